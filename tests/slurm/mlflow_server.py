"""MLflow's own server on this machine, which can be killed and started again with what it had stored.

    python -m tests.slurm.mlflow_server FOLDER PORT

imports MLflow once, which takes seconds, and forks a server for every line it reads; it answers with the process's id.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.slurm.cluster import wait_for

ROOT = Path(__file__).resolve().parents[2]


class MlflowServer:
    """``prepare`` returns at once, ``start`` when it answers. Needs flask and flask-cors beside mlflow-skinny."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._forker: subprocess.Popen[str] | None = None
        self._server = 0

    def prepare(self) -> None:
        command = [sys.executable, "-m", "tests.slurm.mlflow_server", str(self.folder), str(self.port)]
        pipe = subprocess.PIPE
        with open(self.folder / "log", "ab") as log:
            self._forker = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=log, text=True)

    def start(self) -> None:
        forker = self._forker
        assert forker is not None and forker.stdin is not None and forker.stdout is not None
        print("start", file=forker.stdin, flush=True)
        answer = forker.stdout.readline()
        assert answer, (self.folder / "log").read_text()
        self._server = int(answer)
        wait_for(self._answers, "MLflow's server", 180)

    def kill(self) -> None:
        """SIGKILL: it can put nothing in order."""
        if self._server:
            os.kill(self._server, signal.SIGKILL)
            self._server = 0
            wait_for(lambda: not self._answers(), "the end of MLflow's server", 10)

    def close(self) -> None:
        self.kill()
        if self._forker is not None:
            self._forker.communicate()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply:
                return reply.status == 200
        except OSError:
            return False


def serve(folder: str, port: int) -> None:
    """What `mlflow server` does, without its process manager."""
    store = f"sqlite:///{folder}/mlflow.db"
    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": store,
        "_MLFLOW_SERVER_REGISTRY_STORE": store,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{folder}/artifacts",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }
    from mlflow.server import app
    from werkzeug.serving import run_simple

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what was killed
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            run_simple("127.0.0.1", port, app, threaded=True)
        print(child, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
