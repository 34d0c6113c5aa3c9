"""Nodes that copy versions into a memory of their own: each has a folder on this machine."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sophia_mcore.generate.phase import read_questions
from sophia_mcore.generate.rollout_loop import Rollouts
from sophia_mcore.generate.rollout_unit import Examiner
from sophia_mcore.generate.watchdog import Watchdog
from sophia_mcore.rl.copies import Copier, NodeCopies, node_copies
from sophia_mcore.rl.versions import Version
from sophia_mcore.score.grading import open_grader
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from tests.support import tiny_models
from tests.support.living_engine import FakeLivingEngine
from tests.support.rl_world import StubTrainer, make_rl_run
from tests.support.versions import publish

NODES = {"placement": "separate", "versions": "memory", "rollout_nodes": 2}


def make_models(folder: Path) -> list[Path]:
    """Three sets of weights; a second weight file is the same in all, as that of a frozen tower."""
    made = [tiny_models.save_internvl(folder / str(seed), seed=seed) for seed in (1, 2, 3)]
    for model in made:
        (model / "frozen.bin").write_bytes(bytes(range(256)) * 4096)
    return made


class World:
    """A run folder's versions, and a node that copies them."""

    def __init__(self, folder: Path, models: list[Path]) -> None:
        self.pointers = folder / "versions"
        self.pointers.mkdir()
        self.models = models
        self.copies = NodeCopies(folder / "node", self.pointers)

    def publish(self, number: int) -> Version:
        return publish(self.models[number % 3], self.pointers, number)

    def copy(self, version: Version) -> Path:
        self.copies.copy(version, threading.Event())
        return self.copies.path(version)

    def there(self) -> list[str]:
        return sorted(path.name for path in self.copies.folder.iterdir() if path.is_dir())


def wait_for(found: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, what
        time.sleep(0.01)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def in_this_process(folder: Path, models: list[Path], settings: dict[str, Any], **engine: Any) -> RunFolder:
    """A stage with a stub trainer in a thread, a copier, and one engine's loop."""
    parallel = settings.pop("parallel", {})
    config, run = make_rl_run(folder / "run", models[0], **settings)
    config = config.model_copy(update={"parallel": config.parallel.model_copy(update=parallel)})
    trainer = StubTrainer(config, run, models)
    thread = threading.Thread(target=trainer.train, args=(lambda batch: time.sleep(0.1),), daemon=True)
    copies = node_copies(config, run, folder / "node")
    assert copies is not None
    questions = {q.id: q for q in read_questions(run.questions_file, with_images=True)}
    with (
        Copier(copies),
        open_grader(config.score) as grader,
        Watchdog(run.rl.engines / "test.alive", config.on_policy.stall_seconds, 120.0) as watchdog,
    ):
        examiner = Examiner(config, questions, "Think.", ImageStore(run.images), grader)
        loop = Rollouts(
            config, run, examiner, grader, watchdog,
            lambda version: FakeLivingEngine(version.path(run.rl.versions), version.digest, **engine),
            name="test", lease_seconds=120.0, copies=copies,
        )  # fmt: skip
        thread.start()
        try:
            assert loop.run()
        finally:
            loop.close()
            trainer.stopped = True
            thread.join()
    return run


def units_of(run: RunFolder) -> list[dict[str, Any]]:
    logs = run.rl.engines.glob("*.jsonl")
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]
