"""A helper that dies in the middle of a stage: one clear line at once, and the same command goes on when it is back.

Trainer and engine are processes of their own, stubs but for weights and texts; the helper is an endpoint.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config import dump_toml
from sophia_mcore.launch.stage import make_ready
from sophia_mcore.rl.batches import read_batch
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.failures import read_failures, record_failure
from sophia_mcore.store.user_files import keep_user_files
from tests.support import tiny_models
from tests.support.rl_world import rollouts_of
from tests.unit.test_rl_stage import Stage, finish

MINE = """
from sophia_mcore.environments import Ask

def ask(episode, question):
    return Ask.user(f"{question.question} {episode.text}", to="judge")

def length(episode, question):
    return float(len(episode.said("judge")))
"""


class Judge:
    """Says "four" to everything; ``dies_after`` so many replies it is gone as a process that was killed."""

    def __init__(self, port: int = 0, dies_after: int | None = None) -> None:
        self.replies = 0
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                if dies_after is not None and judge.replies >= dies_after:
                    self.connection.close()
                    return
                judge.replies += 1
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "four"}}
                data = json.dumps({"choices": [choice], "usage": {"completion_tokens": 1}}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.port = self.server.server_port

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [tiny_models.save_internvl(folder / str(seed), seed=seed) for seed in (1, 2)]


@pytest.fixture
def judge() -> Iterator[Judge]:
    found = Judge(dies_after=15)  # in the middle of the second batch
    yield found
    found.close()


def judged_stage(folder: Path, models: list[Path], judge: Judge, **settings: Any) -> Stage:
    stage = Stage(folder, models, **settings)
    (folder / "mine.py").write_text(MINE)
    url = f"http://127.0.0.1:{judge.port}/v1"
    engine = {"kind": "openai", "model_name": "m", "base_url": url, "max_retries": 1, "concurrency": 1}
    term = {"function": f"{folder}/mine.py:length", "ask": f"{folder}/mine.py:ask"}
    own = {"helpers": {"judge": {"engine": engine}}, "rewards": (term,), "functions": {"timeout_seconds": 60.0}}
    stage.config = stage.config.model_validate({**stage.config.model_dump(), **own})
    stage.run.config_file.write_text(dump_toml(stage.config))
    keep_user_files(stage.config, stage.run)
    return stage


LAG = {"lag": 1, "placement": "separate", "accept_lag_uncorrected": True}


@pytest.mark.parametrize("settings", [{}, pytest.param(LAG, marks=pytest.mark.slow)], ids=["synchronous", "with lag"])
def test_a_helper_that_dies(tmp_path: Path, models: list[Path], judge: Judge, settings: dict[str, Any]) -> None:
    stage = judged_stage(tmp_path / "run", models, judge, **settings)
    said = finish(stage.start(engine=()), 1)
    wanted = f"error: helper judge: endpoint http://127.0.0.1:{judge.port}/v1 cannot be reached, after 1 retries"
    assert said.splitlines() == [f"{wanted}; the same command goes on when it answers"]
    before = stage.shards()
    assert 0 < len(before) < 6 and judge.replies == 15
    assert not any(read_failures(folder) for folder in stage.run.rl.rollouts.iterdir())  # no unit is to blame
    judge.close()
    back = Judge(judge.port)
    finish(stage.start(engine=()))
    back.close()
    rows = rollouts_of(stage.run)
    assert before.items() <= stage.shards().items() and len(rows) == 3 * 12 * 2  # an answer and the judge's word
    assert {row.scores for row in rows if row.asked == "policy"} == {'{"length": 4.0}'}


def test_what_was_given_up_is_asked_again_by_the_same_command(tmp_path: Path, models: list[Path]) -> None:
    """Of batches that nothing is trained on: too many lost units had stopped the stage for good."""
    stage = Stage(tmp_path, models)
    finish(stage.start(engine=()))
    stage.run.rl.summary_file.unlink()
    for path in sorted(stage.run.rl.versions.glob("0000000[23]*")):  # version 1 is the newest: batch 1 is next
        path.unlink() if path.is_file() else shutil.rmtree(path)
    for number in (0, 1):
        folder = stage.run.rl.batch(number)
        batch = read_batch(folder)
        assert batch is not None
        record_failure(folder, batch.units[0].id, ValueError("no"))
        write_json(folder / "taken.json", {"draws": 1, "units": [], "lost": {batch.units[0].id: "no"}})
        write_json(folder / "learned.json", {})
    make_ready(stage.config, stage.run)
    trained, next_one = stage.run.rl.batch(0), stage.run.rl.batch(1)
    assert read_failures(trained) and (trained / "taken.json").is_file() and (trained / "learned.json").is_file()
    assert not read_failures(next_one)
    assert not (next_one / "taken.json").exists() and not (next_one / "learned.json").exists()
