"""Runs the tests of Milvus on a real server: `make test-milvus`, with the Python of .venv.

Where the server's wheel cannot be had, or the server does not start, one line says so and nothing fails.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from milvus_server import WHEEL, NoServerError, OwnServer

TESTS = ["tests/search/test_gallery_indexes.py", "-k", "milvus and server"]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="tpas-milvus-") as created:
        try:
            server = OwnServer(Path(created))
            server.start()
        except NoServerError as error:
            print(f"skipped: the tests on a Milvus server, because {error}", flush=True)
            return 0
        try:
            print(f"a Milvus server of {WHEEL} is at {server.address}", flush=True)
            tests = [sys.executable, "-m", "pytest", *TESTS]
            return subprocess.run(tests, env=os.environ | {"TPAS_MILVUS": server.address}).returncode
        finally:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())
