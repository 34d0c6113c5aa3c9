"""The eight benchmarks fetched from a hub: one that this test serves, with files beside them that nobody needs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from sophia_mcore.benchmarks.table import benchmarks
from tests.support.benchmark_files import HUB, NEEDED, folder

pytestmark = NEEDED
COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNWANTED = "big/model.safetensors"


class Hub:
    """A hub of data sets: what it serves, by repository and path; keeps what was fetched."""

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        self.fetched: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                for repository, there in files.items():
                    if path.startswith(f"/api/datasets/{repository}/tree/"):
                        tree = [{"type": "file", "path": name, "size": len(data), "oid": oid(data)}
                                for name, data in there.items()]  # fmt: skip
                        return self.send(json.dumps(tree).encode())
                    if f"{path}/".startswith(f"/api/datasets/{repository}/"):
                        listed = [{"rfilename": name, "size": len(data)} for name, data in there.items()]
                        info = {"id": repository, "sha": COMMIT, "siblings": listed, "tags": [], "private": False}
                        return self.send(json.dumps(info).encode())
                    prefix = f"/datasets/{repository}/resolve/{COMMIT}/"
                    if path.startswith(prefix) and path.removeprefix(prefix) in there:
                        if self.command == "GET":
                            hub.fetched.append(path)
                        return self.send(there[path.removeprefix(prefix)])
                self.send(b"{}", 404)
                return None

            def send(self, data: bytes, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Content-Type", "application/json")
                self.send_header("ETag", f'"{oid(data)}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def served() -> Iterator[Hub]:
    files = {}
    for name, layout in HUB.items():
        below = folder() / "data/hub" / layout
        there = {path.relative_to(below).as_posix(): path.read_bytes() for path in below.rglob("*") if path.is_file()}
        files[benchmarks()[name].repository] = {**there, UNWANTED: b"0" * 100, "README.md": b"# A data set"}
    hub = Hub(files)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_all_eight_come_from_the_hub_by_name(served: Hub, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": served.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0",
                   "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
    command = [sys.executable, "-m", "sophia_mcore.cli", "benchmark", served.address, str(tmp_path / "out"),
               "--model-name", "stub", "--on", ",".join(HUB), "--dry-run"]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "questions; nothing was asked" in done.stdout
    assert not any(path.endswith((UNWANTED, "README.md")) for path in served.fetched)
    for name in HUB:
        assert any(f"/{benchmarks()[name].repository}/" in path for path in served.fetched), name
    served.server.shutdown()  # a second run reads the copy that is here
    again = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_repository_that_is_missing_is_named(served: Hub, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": served.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0",
                   "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
    command = [sys.executable, "-m", "sophia_mcore.cli", "benchmark", served.address, str(tmp_path / "out"),
               "--model-name", "stub", "--on", "mathvista=nobody/MathVista", "--dry-run"]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot fetch nobody/MathVista from the hub" in done.stderr and "--on mathvista=PATH" in done.stderr
