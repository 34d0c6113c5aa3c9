"""`sophia track RUN --open`: the server is started, answers, and ends with Ctrl-C; what is missing is one line."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from sophia_mcore.config.schema import Track
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.track import pages

# Stands in for the environment with MLflow: answers on the port that it is given, with a child of its own.
FAKE_MLFLOW = """#!{python}
import http.server, subprocess, sys
assert sys.argv[1:4] == ["-m", "mlflow", "ui"], sys.argv
if "sqlite:///broken.db" in sys.argv:
    sys.exit("the store is broken")
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # {marker}"])
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A working directory with such an environment; returns a word of its child's command line."""
    name = f"child-of-{os.getpid()}-{tmp_path.name}"
    python = tmp_path / pages.ENVIRONMENT
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_MLFLOW.format(python=sys.executable, marker=name))
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    monkeypatch.chdir(tmp_path)
    return name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def running(marker: str) -> bool:
    return subprocess.run(["pgrep", "-f", marker], capture_output=True).returncode == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_and_ends_with_all_that_it_started(marker: str, how: signal.Signals) -> None:
    port = free_port()
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from sophia_mcore.config.schema import Track; from sophia_mcore.track.pages import serve_pages; "
        f"serve_pages(Track(), {port}, lambda line: print(line, flush=True))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert "mlflow ui" in child.stdout.readline()
        assert f"http://127.0.0.1:{port}" in child.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            assert answer.status == 200
        assert running(marker)
        child.send_signal(how)
        assert child.wait(60) == 0
        deadline = time.monotonic() + 30
        while running(marker) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not running(marker)
    finally:
        child.kill()
        child.wait()
        subprocess.run(["pkill", "-f", marker])


def test_a_server_that_ends_says_why(marker: str) -> None:
    with pytest.raises(SophiaError, match="MLflow's server ended: the store is broken"):
        pages.serve_pages(Track(tracking_uri="sqlite:///broken.db"), free_port(), lambda line: None)


def test_what_is_missing_or_in_use_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="in use"):
            pages.serve_pages(Track(), taken.getsockname()[1], lambda line: None)
    (tmp_path / pages.ENVIRONMENT).unlink()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "elsewhere" / ".venv"))
    with pytest.raises(SophiaError, match=r"setup_env.py mlflow"):
        pages.python_with_mlflow()


def test_of_a_server_the_address_is_named() -> None:
    said: list[str] = []
    pages.serve_pages(Track(tracking_uri="http://mlflow.example:5000"), 1, said.append)
    assert said == ["MLflow's server is at http://mlflow.example:5000"]
