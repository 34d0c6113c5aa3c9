"""Settings of the on-policy stage (`sophia rl`). Marks as in ``config.schema``: [P] a paper's number, [C] our choice.

SOPHIA + GRPO: arXiv 2507.16814; VL-Rethinker: arXiv 2504.08837; DAPO: arXiv 2503.14476.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from sophia_mcore.config.base import Fraction, NonNegative, Positive, Section


class Select(Section):
    """Pre-selection of questions by the starting model's accuracy, once, before the first batch."""

    samples: NonNegativeInt = 0  # answers per question; 0: no selection; SOPHIA [P] 16, VL-Rethinker [P] 8
    minimum: Fraction = 0.4  # [P] a question stays iff minimum <= right / judged <= maximum
    maximum: Fraction = 0.6  # [P]
    questions_per_unit: PositiveInt = 32

    @model_validator(mode="after")
    def _ordered(self) -> Select:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum = {self.minimum} exceeds maximum = {self.maximum}: no question would stay")
        return self


class Replay(Section):
    """Selective sample replay (VL-Rethinker, Algorithm 1)."""

    alpha: NonNegative = 1.0  # [P] a replayed answer is drawn with probability |advantage| ** alpha
    episode_questions: NonNegativeInt = 1024  # [P] the buffer is emptied after so many questions; 0: never


class Rethink(Section):
    """Forced rethinking (VL-Rethinker): a part of the answers goes on behind a trigger."""

    share: Fraction = 0.0  # of the answers; VL-Rethinker's code 0.65
    cut_share: Fraction = 0.5  # of those, how many are cut before their final answer
    least_tokens: PositiveInt = 30
    most_tokens: PositiveInt = 1024
    most_waits: NonNegativeInt = 3
    per_question: PositiveInt = 2  # [P]
    temperature: Positive = 0.9
    weight: NonNegative = 0.05  # of the auxiliary negative log-likelihood, which has its own denominator
    learn: Literal["all", "from_trigger"] = "all"  # from_trigger: the first try is not imitated
    questioning: str = "\n\nWait, is that right?"
    verification: str = "\n\nLet me check this once more."
    correction: str = "\n\nWait, there is a mistake in this. Let me look again."


class Rl(Section):
    """The on-policy stage: batches of questions, groups of answers by the policy itself, updates, new weights."""

    start: str = "base"  # "base" (models.policy), "round-N" (that round's export) or a model folder
    batches: PositiveInt = 480  # [P]
    questions_per_batch: PositiveInt = 64  # [P]
    group: int = Field(default=8, ge=2)  # [P] answers per question
    samples_per_update: PositiveInt = 512  # [P]
    max_tokens: PositiveInt = 16_384  # [P]
    prompt: Literal["long_thinking", "boxed", "rethink"] = "long_thinking"
    lag: NonNegativeInt = 0  # batches that sampling may be ahead of training; 0: synchronous
    accept_lag_uncorrected: bool = False  # lag without a correction of the objective, knowingly
    placement: Literal["colocated", "separate"] = "colocated"  # whether engines and trainer share their devices
    rollout_nodes: NonNegativeInt = 0  # with "separate" on Slurm: nodes that only sample
    engines: PositiveInt = 1  # per node
    questions_per_unit: PositiveInt = 2
    fill: Literal["none", "ssr", "resample"] = "none"  # [P] none; what an update takes in place of groups without use
    max_resamples: PositiveInt = 10  # with "resample": further draws of questions for one batch
    overlong: Literal["wrong", "graded", "soft", "masked"] = "wrong"  # truncated answers; rl.groups.advantages
    overlong_cache: NonNegativeInt = 0  # tokens before max_tokens where the soft penalty begins
    old: Literal["trainer", "engine"] = "trainer"  # whose log-probs the ratio of an update divides by
    kl: NonNegative = 0.0  # weight of the k3 estimate against the starting model; [P] none
    validate_every_batches: PositiveInt = 20
    keep: Literal["last", "best"] = "last"  # which version becomes the stage's model; best: by validation
    keep_after_batches: NonNegativeInt = 0
    stall_seconds: Positive = 120.0  # without a new token for so long an engine ends itself
    patience_seconds: Positive = 900.0  # how long engines wait for a trainer that gives no sign of life
    max_lost_share: Fraction = 0.05  # of a batch's groups that may be given up
    stop_rollout_gap: Positive = 1.0  # nats, 99th percentile: beyond it somebody samples with other weights
    select: Select = Select()
    ssr: Replay = Replay()
    rethink: Rethink = Rethink()

    @model_validator(mode="after")
    def _consistent(self) -> Rl:
        if self.samples_per_update % self.group:
            raise ValueError(
                f"samples_per_update = {self.samples_per_update} is not a multiple of group = {self.group}"
            )
        if self.lag and self.placement == "colocated":
            raise ValueError(
                f"lag = {self.lag} needs placement = 'separate': colocated engines and trainer take turns anyway"
            )
        if self.overlong == "soft" and not 0 < self.overlong_cache < self.max_tokens:
            raise ValueError(
                f"overlong = 'soft' needs overlong_cache > 0 and below max_tokens = {self.max_tokens}, "
                f"not {self.overlong_cache}"
            )
        if self.placement == "colocated" and self.rollout_nodes:
            raise ValueError("rollout_nodes needs placement = 'separate'")
        return self

    @property
    def updates_per_batch(self) -> int:
        """Optimizer steps on each batch (the same for every batch)."""
        return -(-self.questions_per_batch * self.group // self.samples_per_update)

    def starting_model(self, policy: Path, exports: dict[str, Path]) -> Path:
        """The folder that ``start`` names: ``policy`` for "base", an export by its label, else a path."""
        return policy if self.start == "base" else exports.get(self.start, Path(self.start))
