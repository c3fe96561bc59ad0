"""Runs the tests of Milvus on a real server: `make test-milvus`, with the Python of .venv.

The server is the binary in the wheel `milvus` (Linux and macOS on x86-64), put into a temporary folder. Where
the wheel cannot be had, or its server does not start, one line says so and nothing fails.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

WHEEL = "milvus==2.3.5"
SECONDS_TO_START = 90
TESTS = ["tests/search/test_gallery_indexes.py", "-k", "milvus and server"]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="tpas-milvus-") as created:
        wheel, data = Path(created, "wheel"), Path(created, "data")
        install = ["install", "--quiet", "--no-deps", "--only-binary=:all:", "--target", str(wheel), WHEEL]
        if subprocess.run([sys.executable, "-m", "pip", *install]).returncode:
            return skipped(f"the wheel {WHEEL} cannot be had here")
        sys.path.insert(0, str(wheel))
        from milvus import MilvusServer

        server = MilvusServer(wait_for_started=False, data_dir=str(data))
        try:
            server.start()
            server.wait_started(1_000 * SECONDS_TO_START)
        except (OSError, RuntimeError) as error:  # a TimeoutError is an OSError
            return skipped(f"the server of {WHEEL} did not start: {error}")
        else:
            address = f"http://{server.server_address}:{server.listen_port}"
            print(f"a Milvus server of {WHEEL} is at {address}", flush=True)
            tests = [sys.executable, "-m", "pytest", *TESTS]
            return subprocess.run(tests, env=os.environ | {"TPAS_MILVUS": address}).returncode
        finally:
            server.stop()


def skipped(reason: str) -> int:
    print(f"skipped: the tests on a Milvus server, because {reason}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
