"""A run folder for the on-policy stage, and a trainer that trains nothing: it keeps the contract of the files."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sophia_mcore.config import dump_toml, load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.records import Question, Rollout
from sophia_mcore.rl.batches import open_batch, read_batch
from sophia_mcore.rl.devices import DeviceLock
from sophia_mcore.rl.stream import batch_questions
from sophia_mcore.rl.versions import read_version
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_folder, read_shard, write_shard
from tests.support import configs
from tests.support.pictures import smooth
from tests.support.versions import publish

VLLM = {"kind": "vllm", "dtype": "float32", "threads": 1, "kv_cache_mib": 64, "max_sequences": 16}


def make_rl_run(
    folder: Path, policy: Path, *, questions: int = 6, validation: int = 0, pictured: bool = True, **settings: Any
) -> tuple[Config, RunFolder]:
    """A run with checked questions and a configuration of small batches; ``settings`` are those of [rl].

    ``pictured``: each question has an image.
    """
    run = RunFolder(folder)
    digests = ImageStore(run.images).add_many([smooth(28, 28, i) for i in range(questions)])
    rows = [
        Question(
            id=f"q{i}", question=f"What is {i}?", answer=str(i % 4), answer_type="integer",
            images=(digest,) if pictured else (),
        )
        for i, digest in enumerate(digests)
    ]  # fmt: skip
    write_shard(run.questions_file, rows, Question)
    if validation:
        write_shard(run.rl.validation_questions_file, rows[:validation], Question)
    thinking = folder / "thinking.txt"
    thinking.write_text("Think.")
    rl: dict[str, Any] = {
        "batches": 3, "questions_per_batch": 4, "group": 3, "samples_per_update": 12, "max_tokens": 16,
        "questions_per_unit": 2, "validate_every_batches": 2, "engine": VLLM,
    }  # fmt: skip
    sampling = {"temperature": 0.0, "max_tokens": 8}
    config = configs.make_config(
        folder, policy, "reasoner",
        run={"seed": 7}, rl=rl | settings, score={"workers": 1}, batch={"long_thinking_prompt_file": thinking},
        evaluate={"protocols": ({"name": "greedy", "sampling": sampling},), "questions_per_unit": 2},
    )  # fmt: skip
    run.config_file.write_text(dump_toml(config))
    return config, run


def rollouts_of(run: RunFolder) -> list[Rollout]:
    """All finished rollouts."""
    folders = sorted(path for path in run.rl.rollouts.iterdir()) if run.rl.rollouts.is_dir() else []
    return [one for folder in folders for one in read_folder(folder, Rollout)]


class StubTrainer:
    """Opens batches and publishes versions; version v has the weights of ``models[v % len(models)]``.

    All that it knows lies in files, so it can be killed and started again.
    """

    def __init__(self, config: Config, run: RunFolder, models: Sequence[Path], *, pause: float = 0.02) -> None:
        self.config, self.run, self.models, self.pause = config, run, models, pause
        self.rl = config.on_policy
        self.lock = DeviceLock.of(run) if self.rl.placement == "colocated" else None
        self.stopped = False
        self._touched = 0.0

    def train(self, training: Callable[[int], None] = lambda batch: None) -> bool:
        """The whole stage; ``training`` is called where a batch would be trained. False: ``stopped`` was set."""
        self.publish(0)
        for batch in range(min(self.rl.lag + 1, self.rl.batches)):
            self.open(batch)
        for batch in range(self.rl.batches):
            while not self.is_done(batch):
                if not self.wait():
                    return False
            if self.lock is not None:
                self.lock.acquire(shared=False, waiting=lambda: None)
            training(batch)
            self.publish(batch + 1)
            if batch + 1 + self.rl.lag < self.rl.batches:
                self.open(batch + 1 + self.rl.lag)
            if self.lock is not None:
                self.lock.release()
        write_json(self.run.rl.summary_file, {"batches": self.rl.batches})
        return True

    def wait(self) -> bool:
        if time.monotonic() - self._touched > 0.2:
            self.run.rl.train.mkdir(parents=True, exist_ok=True)
            self.run.rl.alive_file.touch()
            self._touched = time.monotonic()
        time.sleep(self.pause)
        return not self.stopped

    def publish(self, version: int) -> None:
        pointers = self.run.rl.versions
        pointers.mkdir(parents=True, exist_ok=True)
        if read_version(pointers, version) is None:
            publish(self.models[version % len(self.models)], pointers, version)

    def open(self, batch: int) -> None:
        if read_batch(self.run.rl.batch(batch)) is not None:
            return
        ids = [question.id for question in read_shard(self.run.questions_file, Question)]
        size = self.rl.questions_per_batch
        open_batch(
            self.run.rl.batch(batch),
            batch=batch,
            minimum_version=max(0, batch - self.rl.lag),
            first_position=batch * size,
            question_ids=batch_questions(ids, batch, size, self.config.run.seed),
            questions_per_unit=self.rl.questions_per_unit,
        )

    def is_done(self, batch: int) -> bool:
        found = read_batch(self.run.rl.batch(batch))
        return found is not None and found.queue(self.config.cluster.unit_attempts).done()


def main() -> int:
    """`python -m tests.support.rl_world --model A [--model B] RUN/config.toml`: a stub in the trainer's place;
    exit codes as its: 0 done, 1 failed, 75 stopped by a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, action="append", dest="models")
    parser.add_argument("--seconds-per-batch", type=float, default=0.0)
    parser.add_argument("--fail", default="", help="end as a rank that failed by itself, with this line")
    parser.add_argument("config", type=Path)
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--progress-fd", type=int)
    options = parser.parse_args()
    run = RunFolder(options.config.parent)
    if options.fail:
        write_json(run.rl.train / "failed.json", {"rank": 0, "error": options.fail, "node": None})
        print(f"error: {options.fail}", file=sys.stderr)
        return 1
    trainer = StubTrainer(load_config(options.config), run, options.models)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(trainer, "stopped", True))
    run.rl.train.mkdir(parents=True, exist_ok=True)
    with open(run.rl.train / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with open(run.rl.train / "starts", "a") as starts:
            starts.write(f"{os.getpid()}\n")
        return 0 if trainer.train(lambda batch: time.sleep(options.seconds_per_batch)) else 75


if __name__ == "__main__":
    sys.exit(main())
