"""Paths of a run folder (AGENTS.md shows the tree). This module creates no files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sophia_mcore.store.labels import round_label, round_of
from sophia_mcore.store.rl_folder import SUMMARY, RlFolder
from sophia_mcore.store.slurm_folder import SlurmFolder

if TYPE_CHECKING:
    from sophia_mcore.config.schema import Config

# Files in the folder of a phase that runs on ranks:
STOPPED = "stopped.json"  # a signal asked the phase to stop, and its state is saved
FAILED = "failed.json"  # a rank failed by its own error, not because it lost another rank
CONVERSION = "conversion.json"  # in a converted or exported model: where it comes from, and the digest of every tensor
CHECKPOINT = "checkpoint.json"  # in a trainer's checkpoint: the digest of every file
MODEL_CARD = "README.md"  # in an exported model
SYSTEM_METRICS = "system.jsonl"  # load of the first node
_STEP = re.compile(r"step-(\d{8,})")


def step_name(step: int) -> str:
    """Folder name of the checkpoint after ``step`` updates.

    >>> step_name(500)
    'step-00000500'
    """
    return f"step-{step:08d}"


def bad_rows_file(questions: Path) -> Path:
    """Beside a file of checked questions: the rows that were left out, and why."""
    return questions.with_name(f"{questions.stem}.bad.jsonl")


def checkpoint_steps(folder: Path) -> dict[int, Path]:
    """Checkpoint folders by step, in ascending order; {} if ``folder`` is missing."""
    if not folder.is_dir():
        return {}
    found = {int(match[1]): path for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))}
    return {step: path for step, path in sorted(found.items()) if path.is_dir()}


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
    def terms(self) -> Path:
        """The values of the reward's terms, where the reward is not the verdict alone."""
        return self.path / "terms"

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
    def verdict_changes_file(self) -> Path:
        return self.path / "verdict_changes.json"

    @property
    def train(self) -> Path:
        return self.path / "train"

    @property
    def train_metrics_file(self) -> Path:
        return self.train / "metrics.jsonl"

    @property
    def train_summary_file(self) -> Path:
        """Written when the training has ended."""
        return self.train / SUMMARY

    @property
    def system_metrics_file(self) -> Path:
        return self.train / SYSTEM_METRICS

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
        object.__setattr__(self, "path", Path(self.path))  # accept a str too

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    @property
    def code(self) -> Path:
        """Copies of the user's own functions."""
        return self.path / "code"

    @property
    def helpers(self) -> Path:
        """Replies of helpers by what they were asked."""
        return self.path / "helpers"

    def records(self, index: int, phase: str) -> Path:
        """Folder with PART.json for each part of a phase: the settings and inputs that its results were made from."""
        return self.path / "records" / round_label(index) / phase

    @property
    def aside(self) -> Path:
        """Results that are no longer valid: one folder per time, with the paths that they had in the run."""
        return self.path / "aside"

    @staticmethod
    def why_file(folder: Path) -> Path:
        """In a folder of ``aside``: when and why its results were moved there."""
        return folder / "why.json"

    @property
    def track_lock_file(self) -> Path:
        """Held while the run is copied to MLflow."""
        return self.path / "track.lock"

    @property
    def again_file(self) -> Path:
        """The phases that `sophia run --from` still has to start again."""
        return self.path / "again.json"

    @property
    def fork_file(self) -> Path:
        """The run that this one was forked from, and the results that they share."""
        return self.path / "fork.json"

    @property
    def stages(self) -> Path:
        """Runs of the stages of [[stages]], named by place (from 0) and name."""
        return self.path / "stages"

    def stage(self, index: int, name: str) -> RunFolder:
        return RunFolder(self.stages / f"{index:02d}-{name}")

    @property
    def promoted_file(self) -> Path:
        return self.path / "promoted.json"

    @property
    def predictions(self) -> Path:
        """VLMEvalKit files of the answers, for `sophia benchmark`."""
        return self.path / "predictions"

    @property
    def logs(self) -> Path:
        """Output of the workers of a local run."""
        return self.path / "logs"

    @property
    def slurm(self) -> SlurmFolder:
        return SlurmFolder(self.path / "slurm")

    @property
    def fp8_check(self) -> Path:
        """Folder of the FP8 check's ranks. It holds a summary if the check has passed."""
        return self.path / "fp8_check"

    @property
    def fp8_check_config_file(self) -> Path:
        return self.path / "fp8_check.toml"

    @property
    def fp8_check_file(self) -> Path:
        return self.path / "fp8_check.json"

    @property
    def fp8_check_html(self) -> Path:
        return self.path / "fp8_check.html"

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
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def report_json(self) -> Path:
        return self.path / "report.json"

    @property
    def report_html(self) -> Path:
        return self.path / "report.html"

    @property
    def rl(self) -> RlFolder:
        return RlFolder(self.path / "rl")

    def round(self, index: int) -> RoundFolder:
        """Folder of round ``index``, counted from 0."""
        return RoundFolder(self.path / round_label(index))

    def rounds(self) -> list[int]:
        """Sorted indices of the rounds that have a folder."""
        found = (round_of(path.name) for path in self.path.glob("round-*") if path.is_dir())
        return sorted(index for index in found if index is not None)

    @property
    def is_stage_alone(self) -> bool:
        """Whether an on-policy stage has begun here, and no round."""
        return self.rl.path.is_dir() and not self.rounds()

    def starting_policy(self, index: int, base: Path) -> Path:
        """The model that round ``index`` starts from: ``base`` for round 0, else the export of the round before."""
        return base if index == 0 else self.round(index - 1).model

    def exports(self, rounds: int) -> dict[str, Path]:
        """Folders of the exported models of the first ``rounds`` rounds, by label: "round-0", "round-1", ..."""
        return {round_label(index): self.round(index).model for index in range(rounds)}

    def evaluation(self, label: str, protocol: str) -> Path:
        """Folder of the answers of model ``label`` ("base", "round-0") under one protocol, one shard per unit."""
        return self.path / "evaluation" / label / protocol


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a run: configuration, run folder and round number. Phases take it as their argument.

    ``unit_attempts``: how often a work unit is tried before it counts as failed. With 1, a failure ends the phase.
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
