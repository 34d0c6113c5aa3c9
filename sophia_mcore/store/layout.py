"""Paths of a run folder (AGENTS.md shows the tree). This module creates no files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sophia_mcore.config.schema import Config


@dataclass(frozen=True, slots=True)
class RoundFolder:
    """Files of one round.

    >>> RoundFolder(Path("runs/digits/round-0")).kept_file.as_posix()
    'runs/digits/round-0/kept.parquet'
    """

    path: Path

    @property
    def captions(self) -> Path:
        return self.path / "captions"

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    @property
    def fresh(self) -> Path:
        return self.path / "fresh"

    @property
    def verdicts(self) -> Path:
        return self.path / "verdicts"

    @property
    def kept_file(self) -> Path:
        return self.path / "kept.parquet"

    @property
    def kept_summary_file(self) -> Path:
        return self.path / "kept.json"

    @property
    def second_opinion_file(self) -> Path:
        return self.path / "second_opinion.json"

    @property
    def train(self) -> Path:
        return self.path / "train"

    @property
    def checkpoints(self) -> Path:
        return self.train / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Files of one run.

    >>> RunFolder(Path("runs/digits")).evaluation("base", "paper").as_posix()
    'runs/digits/evaluation/base/paper'
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a str is welcome too

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def questions_file(self) -> Path:
        return self.path / "questions.parquet"

    @property
    def evaluation_questions_file(self) -> Path:
        return self.path / "evaluation" / "questions.parquet"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def fp8_check_file(self) -> Path:
        return self.path / "fp8_check.json"

    @property
    def report_json(self) -> Path:
        return self.path / "report.json"

    @property
    def report_html(self) -> Path:
        return self.path / "report.html"

    def round(self, index: int) -> RoundFolder:
        """Folder of round ``index``, counted from 0."""
        return RoundFolder(self.path / f"round-{index}")

    def starting_policy(self, index: int, base: Path) -> Path:
        """The model that round ``index`` starts from: ``base`` for the first, else the export of the round before."""
        return base if index == 0 else self.round(index - 1).model

    def evaluation(self, label: str, protocol: str) -> Path:
        """Folder of the answers of model ``label`` ("base", "round-0") under one protocol, one shard per unit."""
        return self.path / "evaluation" / label / protocol


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a run: what a phase is given, as one value.

    ``unit_attempts``: how often a work unit is tried before it counts as failed (1 where a failure ends the phase).
    """

    config: Config
    run: RunFolder
    index: int
    unit_attempts: int = 1

    @property
    def folder(self) -> RoundFolder:
        """Files of this round."""
        return self.run.round(self.index)

    @property
    def policy(self) -> Path:
        """The model that this round starts from."""
        return self.run.starting_policy(self.index, self.config.models.policy)
