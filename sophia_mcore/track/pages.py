"""MLflow's own pages on this machine: its server, started from an environment that has the whole of mlflow."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO

from sophia_mcore.config.schema import Track
from sophia_mcore.errors import SophiaError, UsageError

ENVIRONMENT = Path(".venv-mlflow/bin/python")
HOW = "python3.11 tools/setup_env.py mlflow"
_START_SECONDS = 600.0


def serve_pages(track: Track, port: int, say: Callable[[str], None]) -> None:
    """Show the store of `track.tracking_uri` at http://127.0.0.1:PORT until Ctrl-C; a server's address is only named.

    Raises UsageError for a port in use, SophiaError when no environment here has the whole of mlflow or it ends.
    """
    if track.tracking_uri.startswith(("http://", "https://")):
        say(f"MLflow's server is at {track.tracking_uri}")
        return
    python = python_with_mlflow()
    if not _is_free(port):
        raise UsageError(f"--port {port}: in use; name another")
    address = f"http://127.0.0.1:{port}"
    command = [python, "-m", "mlflow", "ui", "--backend-store-uri", track.tracking_uri, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    say(f"starting {python} -m mlflow ui")
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # else it starts many processes more
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryFile("w+") as words:
        child = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=words, env=environment, start_new_session=True
        )
        try:
            _wait_until_it_answers(child, address, words)
            say(f"MLflow at {address} (Ctrl-C ends it)")
            child.wait()
        except KeyboardInterrupt:
            pass
        finally:
            _end(child)
            signal.signal(signal.SIGTERM, before)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the server and what it has started: they are one group."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)


def python_with_mlflow() -> str:
    """A Python with MLflow's pages: this one, or that of the environment made for it. Raises SophiaError."""
    try:
        distribution("mlflow")
        return sys.executable
    except PackageNotFoundError:
        pass
    beside = Path(sys.prefix).parent / ENVIRONMENT  # of this checkout, wherever the command was started
    for python in (ENVIRONMENT, beside):
        if python.is_file():
            return str(python.absolute())
    raise SophiaError(f"MLflow's pages need the whole of mlflow, in an environment of its own: {HOW}, then this again")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_until_it_answers(child: subprocess.Popen[bytes], address: str, words: IO[str]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            words.seek(0)
            lines = [line.strip() for line in words if line.strip()]
            raise SophiaError(f"MLflow's server ended: {lines[-1] if lines else f'exit code {child.returncode}'}")
        try:
            with urllib.request.urlopen(address, timeout=2):  # noqa: S310
                return
        except OSError:
            time.sleep(0.3)
    raise SophiaError(f"MLflow's server has not answered at {address} within {_START_SECONDS:.0f} s")
