"""MLflow's own server on this machine, which can be killed and started again with what it had stored.

python tests/slurm/mlflow_server.py FOLDER PORT
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from cluster import wait_for


class MlflowServer:
    """``start`` returns at once, ``wait`` when it answers. Needs flask and flask-cors beside mlflow-skinny."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.folder / "log", "ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, __file__, str(self.folder), str(self.port)], stdout=log, stderr=log
            )

    def wait(self) -> None:
        wait_for(self._answers, "MLflow's server", 90)

    def kill(self) -> None:
        """SIGKILL: it can put nothing in order."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _answers(self) -> bool:
        assert self._child is not None and self._child.poll() is None, (self.folder / "log").read_text()
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

    run_simple("127.0.0.1", port, app, threaded=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
