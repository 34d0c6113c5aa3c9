"""Paths of the on-policy stage in a run folder. This module creates no files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SUMMARY = "summary.json"  # in the folder of a phase that runs on ranks: it has ended


@dataclass(frozen=True, slots=True)
class RlFolder:
    """Files of the on-policy stage, in RUN/rl.

    >>> RlFolder(Path("runs/digits/rl")).batch(12).as_posix()
    'runs/digits/rl/rollouts/00000012'
    """

    path: Path

    @property
    def select(self) -> Path:
        """Answers of the starting model, from which questions are selected."""
        return self.path / "select"

    @property
    def own_questions_file(self) -> Path:
        """The checked questions of [[rl.questions]]."""
        return self.path / "own_questions.parquet"

    @property
    def questions_file(self) -> Path:
        """The selected questions."""
        return self.path / "questions.parquet"

    @property
    def select_file(self) -> Path:
        """Counts of the selection."""
        return self.path / "select.json"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    def batch(self, index: int, draw: int = 0) -> Path:
        """Folder of the rollouts of a batch. ``draw`` > 0: a further draw of questions for the same batch."""
        return self.rollouts / (f"{index:08d}.{draw}" if draw else f"{index:08d}")

    @property
    def versions(self) -> Path:
        """Pointer files of the policy's versions."""
        return self.path / "versions"

    @property
    def validation_questions_file(self) -> Path:
        return self.path / "validation.parquet"

    def validation(self, version: int, protocol: str) -> Path:
        """Folder of the answers of one policy version to the validation questions under one protocol."""
        return self.path / "validation" / f"{version:08d}" / protocol

    def validated(self) -> dict[int, Path]:
        """Folders of the policy versions that were asked validation questions, by version, lowest first."""
        found = {int(path.name): path for path in (self.path / "validation").glob("*") if path.name.isdigit()}
        return dict(sorted(found.items()))

    @property
    def engines(self) -> Path:
        """Logs of the engines: one JSON line per work unit."""
        return self.path / "engines"

    def engine_alive_file(self, host: str, pid: int) -> Path:
        """The engine in process ``pid`` of ``host`` touches this file while it makes progress."""
        return self.engines / f"{host}-{pid}.alive"

    def old(self, index: int) -> Path:
        """Folder of the trainer's log-probs of a batch, under the policy before the batch's first update."""
        return self.path / "old" / f"{index:08d}"

    @property
    def train(self) -> Path:
        return self.path / "train"

    @property
    def metrics_file(self) -> Path:
        """The curves of the stage: a line per batch and per update."""
        return self.train / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.train / "checkpoints"

    @property
    def summary_file(self) -> Path:
        """Written when the stage has ended."""
        return self.train / SUMMARY

    @property
    def alive_file(self) -> Path:
        """The trainer touches this file while it runs."""
        return self.train / "alive"

    @property
    def weighed(self) -> Path:
        """The batches of a stage that has ended under other weights of the reward's terms."""
        return self.path / "weighed"

    @property
    def weighed_file(self) -> Path:
        """What came of it; written when it is complete."""
        return self.weighed / SUMMARY

    @property
    def model(self) -> Path:
        """The stage's result, a Hugging Face folder."""
        return self.path / "model"
