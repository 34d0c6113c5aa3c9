"""What an engine of the on-policy stage finds to do: units of open batches, and answers to validation questions."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.generate.answers import Exam
from sophia_mcore.records import Question
from sophia_mcore.rl.batches import Batch, batch_folders, read_batch
from sophia_mcore.rl.prompts import system_prompt
from sophia_mcore.rl.validation import due_versions, is_due, validation_queue
from sophia_mcore.rl.versions import Version, read_version
from sophia_mcore.store.claims import Claim, UnitQueue
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import seed_for
from sophia_mcore.store.shards import read_shard
from sophia_mcore.verify.grade import Grader


@dataclass(frozen=True, slots=True)
class Task:
    """A claimed unit of a batch."""

    batch: Batch
    claim: Claim


class Board:
    """The open batches of a stage, as one engine sees them."""

    def __init__(self, rollouts: Path, attempts: int, lease_seconds: float) -> None:
        self._rollouts = rollouts
        self._attempts = attempts
        self._lease_seconds = lease_seconds
        self._open: dict[Path, tuple[Batch, UnitQueue]] = {}
        self._done: set[Path] = set()

    def claim(self, version: int) -> Task | None:
        """A unit that ``version`` may answer, of the lowest open batch that has one free.

        Raises SophiaError for a batch that cannot be read or a folder that cannot be written.
        """
        for folder in batch_folders(self._rollouts):
            if folder in self._done:
                continue
            if folder not in self._open:
                batch = read_batch(folder)
                if batch is None:
                    continue
                self._open[folder] = batch, batch.queue(self._attempts, self._lease_seconds)
            batch, queue = self._open[folder]
            if batch.minimum_version > version:
                continue
            claim = queue.claim()
            if claim is not None:
                return Task(batch, claim)
            if queue.remaining() == len(queue.given_up()):
                queue.close()
                self._done.add(folder)
                del self._open[folder]
        return None

    def close(self) -> None:
        """Leave no trace of this process; its claims are released before."""
        for _, queue in self._open.values():
            queue.close()
        self._open.clear()


class Validation:
    """The validation questions that versions have not answered yet."""

    def __init__(self, config: Config, run: RunFolder, grader: Grader) -> None:
        self._config = config
        self._run = run
        self._complete: set[tuple[int, str]] = set()
        self._queues: dict[tuple[int, str], UnitQueue] = {}
        file = run.rl.validation_questions_file
        self._questions = {q.id: q for q in read_shard(file, Question)} if file.is_file() else {}
        self._exams = {
            protocol.name: Exam(
                questions=self._questions,
                system=system_prompt(config),
                images=ImageStore(run.images),
                grader=grader,
                sampling=protocol.sampling,
                samples=protocol.samples,
                seed_of=partial(seed_for, config.run.seed, "rl", "validation", protocol.name),
            )
            for protocol in config.evaluate.protocols
        }

    def open_versions(self, newest: Version) -> Iterator[Version]:
        """The versions up to ``newest`` that have questions left to answer and whose weights are still there."""
        if not self._questions:
            return
        for number in due_versions(self._config.on_policy, newest.version):
            if all((number, protocol) in self._complete for protocol in self._exams):
                continue
            version = newest if number == newest.version else read_version(self._run.rl.versions, number)
            if version is not None and version.path(self._run.rl.versions).is_dir():
                yield version

    @property
    def questions(self) -> dict[str, Question]:
        """By id."""
        return self._questions

    def claim(self, version: Version) -> tuple[Claim, Exam] | None:
        """A unit of questions for ``version``; None when nothing is due or free."""
        if not self._questions or not is_due(self._config.on_policy, version.version):
            return None
        for name, exam in self._exams.items():
            key = version.version, name
            if key in self._complete:
                continue
            if key not in self._queues:
                self._queues[key] = validation_queue(self._config, self._run, version.version, name, self._questions)
            queue = self._queues[key]
            claim = queue.claim()
            if claim is not None:
                return claim, exam
            if queue.remaining() == len(queue.given_up()):
                queue.close()
                self._complete.add(key)
                del self._queues[key]
        return None

    def close(self) -> None:
        """Leave no trace of this process; its claims are released before."""
        for queue in self._queues.values():
            queue.close()
        self._queues.clear()


class SignOfLife:
    """How long ago a file was touched, by this process's own clock: those of hosts may differ."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: float | None = None
        self._since = time.monotonic()

    def silent_seconds(self) -> float:
        """Seconds since the file's time changed; without the file, since the first look."""
        try:
            touched = os.stat(self._path).st_mtime
        except OSError:
            touched = None
        if touched != self._seen:
            self._seen, self._since = touched, time.monotonic()
        return time.monotonic() - self._since
