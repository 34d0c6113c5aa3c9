"""Settings of the on-policy stage (`sophia rl`). Marks as in ``config.schema``: [P] a paper's number, [C] our choice.

SOPHIA + GRPO: arXiv 2507.16814; VL-Rethinker: arXiv 2504.08837; DAPO: arXiv 2503.14476.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from sophia_mcore.config.base import Fraction, NonNegative, Positive, Section
from sophia_mcore.config.engines import Engine, VllmEngine
from sophia_mcore.config.functions import WEIGHS, EnvironmentChoice, Relabel, Weigh
from sophia_mcore.config.losses import Grpo, Loss
from sophia_mcore.config.objective import Objective
from sophia_mcore.config.sources import Source

_LOSS = Grpo(clip_high=0.35)  # VL-Rethinker's code; SOPHIA's paper does not say
_SAMPLING = ("temperature", "top_p", "top_k", "sampling")


class Select(Section):
    """Pre-selection of questions by the starting model's accuracy, once, before the first batch."""

    samples: NonNegativeInt = 0  # answers per question; 0: no selection; SOPHIA [P] 16, VL-Rethinker [P] 8
    minimum: Fraction = 0.4  # [P] a question is used if minimum <= right / judged <= maximum
    maximum: Fraction = 0.6  # [P]
    questions_per_unit: PositiveInt = 32

    @model_validator(mode="after")
    def _ordered(self) -> Select:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum = {self.minimum} exceeds maximum = {self.maximum}: no question would stay")
        shares = [right / self.samples for right in range(self.samples + 1)] if self.samples else []
        if shares and not any(self.minimum <= share <= self.maximum for share in shares):
            raise ValueError(
                f"no share of samples = {self.samples} answers lies from minimum = {self.minimum} to maximum = "
                f"{self.maximum}: no question would stay"
            )
        return self


class Replay(Section):
    """Selective sample replay (VL-Rethinker, Algorithm 1)."""

    alpha: NonNegative = 1.0  # [P] a replayed answer is drawn with probability |advantage| ** alpha
    episode_questions: NonNegativeInt = 1024  # [P] the buffer is emptied after so many questions; 0: never


class Rethink(Section):
    """Forced rethinking (VL-Rethinker): a share of the answers is continued after a trigger text."""

    share: Fraction = 0.0  # share of the answers that are continued; VL-Rethinker's code 0.65
    cut_share: Fraction = 0.5  # share of these that are cut before their final answer
    least_tokens: PositiveInt = 30
    most_tokens: PositiveInt = 1024
    most_waits: NonNegativeInt = 3
    per_question: PositiveInt = 2  # [P]
    temperature: Positive = 0.9
    weight: NonNegative = 0.05  # weight of the auxiliary negative log-likelihood, which has its own denominator
    learn: Literal["all", "from_trigger"] = "all"  # from_trigger: the first try is not imitated
    questioning: str = "\n\nWait, is that right?"
    verification: str = "\n\nLet me check this once more."
    correction: str = "\n\nWait, there is a mistake in this. Let me look again."


class RlObjective(Objective):
    """[rl.objective]: like [objective]. The default loss is GRPO with clip_high = 0.35.

    Every answer is the policy's own, so settings about trajectories of another model have no effect here.
    """

    loss: Loss = _LOSS

    @field_validator("loss", mode="before")
    @classmethod
    def _wider_clip(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("name", _LOSS.name) == _LOSS.name:
            return {"name": _LOSS.name, "clip_high": _LOSS.clip_high, **given}
        return given

    @model_validator(mode="after")
    def _own_answers_only(self) -> RlObjective:
        plain = Objective(loss=self.loss)
        for name in ("fresh_share", "trajectories", "trajectories_per_question", "reward", "behaviour"):
            if getattr(self, name) != getattr(plain, name):
                raise ValueError(
                    f"{name} concerns trajectories of another model: every answer here is the policy's own"
                )
        return self


class RlTrain(Section):
    """[rl.train]: optimisation. [train] gives all settings that are not here; `batches` gives the number of steps."""

    learning_rate: Positive = 5e-7  # [P]; VL-Rethinker 1e-6
    final_learning_rate_fraction: Fraction = 1.0  # [C] constant
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegative = 0.05
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    clip_gradient_norm: Positive = 1.0
    term_gradients_every_steps: NonNegativeInt = 0
    save_every_batches: PositiveInt = 10
    keep_checkpoints: PositiveInt = 2


class Rl(Section):
    """The on-policy stage: batches of questions, groups of the policy's own answers, updates, new weights."""

    start: str = "base"  # "base" (models.policy), "round-N" (that round's export) or a model folder
    batches: PositiveInt = 480  # [P]
    questions_per_batch: PositiveInt = 64  # [P]
    group: int = Field(default=8, ge=2)  # [P] answers per question
    samples_per_update: PositiveInt = 512  # [P]
    max_tokens: PositiveInt = 16_384  # [P]
    prompt: Literal["long_thinking", "boxed", "rethink"] = "long_thinking"
    lag: NonNegativeInt = 0  # batches that sampling may be ahead of training; 0: synchronous
    accept_lag_uncorrected: bool = False  # True: allow lag without a correction of the objective
    placement: Literal["colocated", "separate"] = "colocated"  # whether engines and trainer share their devices
    versions: Literal["run", "memory"] = "run"  # where engines find new weights: RUN, or /dev/shm of their node
    rollout_nodes: NonNegativeInt = 0  # with "separate" on Slurm: nodes that only sample
    engines: PositiveInt = 1  # per node
    questions_per_unit: PositiveInt = 2
    fill: Literal["none", "ssr", "resample"] = "none"  # [P] none; what replaces groups of equal rewards in an update
    max_resamples: PositiveInt = 10  # with "resample": further draws of questions for one batch
    overlong: Literal["wrong", "graded", "soft", "masked"] = "wrong"  # truncated answers; rl.groups.advantages
    overlong_cache: NonNegativeInt = 0  # tokens before max_tokens where the soft penalty begins
    old: Literal["trainer", "engine"] = "trainer"  # whose log-probs the ratio of an update divides by
    validate_every_batches: PositiveInt = 20
    keep: Literal["last", "best"] = "last"  # which version becomes the stage's model; best: by validation
    keep_after_batches: NonNegativeInt = 0
    stall_seconds: Positive = 120.0  # an engine that samples no token for this long ends itself
    patience_seconds: Positive = 900.0  # how long engines wait for a trainer that does not respond
    max_lost_share: Fraction = 0.05  # share of a batch's groups that may be lost
    stop_rollout_gap: Positive = 1.0  # nats, 99th percentile; a larger gap means that weights differ
    environment: EnvironmentChoice = EnvironmentChoice()
    max_turns: PositiveInt = 8  # of the policy in an episode; what is still asked then is cut off
    weigh: Weigh = Weigh()
    relabel: tuple[Relabel, ...] = ()  # what is imitated from episodes, beside the objective
    select: Select = Select()
    ssr: Replay = Replay()
    rethink: Rethink = Rethink()
    engine: Engine = VllmEngine()  # samples at temperature 1 and top-p 1, so that its log-probs are the policy's
    objective: RlObjective = RlObjective()
    train: RlTrain = RlTrain()
    questions: tuple[Source, ...] = ()  # what the stage asks; empty: the questions of [data]
    validation: tuple[Source, ...] = ()  # questions that choose the version to keep; never those of [evaluate]

    @model_validator(mode="before")
    @classmethod
    def _no_sampling(cls, given: Any) -> Any:
        found = next((key for key in _SAMPLING if isinstance(given, dict) and key in given), None)
        if found:
            raise ValueError(
                f"{found} cannot be set: answers are sampled at temperature 1 and top-p 1, "
                "so that their recorded log-probs are the policy's"
            )
        return given

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
        if self.lag and self.objective.correction == "none" and not self.accept_lag_uncorrected:
            raise ValueError(
                f"lag = {self.lag} trains on answers of older versions: set objective.correction to 'tis' or 'icepop', "
                "or accept_lag_uncorrected = true"
            )
        if self.engine.kind == "openai":
            raise ValueError("engine.kind = 'openai': new weights cannot be loaded into an endpoint; use 'vllm'")
        length = self.engine.max_model_length_tokens if self.engine.kind == "vllm" else None
        if length is not None and length <= self.max_tokens:
            raise ValueError(
                f"engine.max_model_length_tokens = {length} leaves no room for a prompt beside max_tokens = "
                f"{self.max_tokens}"
            )
        if self.keep == "best" and not self.validation:
            raise ValueError("keep = 'best' is chosen by validation questions: [[rl.validation]] is missing")
        if self.overlong == "soft" and not 0 < self.overlong_cache < self.max_tokens:
            raise ValueError(
                f"overlong = 'soft' needs overlong_cache > 0 and below max_tokens = {self.max_tokens}, "
                f"not {self.overlong_cache}"
            )
        if self.rethink.share and self.rethink.most_tokens >= self.max_tokens:
            raise ValueError(
                f"rethink.most_tokens = {self.rethink.most_tokens} leaves no room for a first try in max_tokens = "
                f"{self.max_tokens}: no answer would be continued"
            )
        if self.rethink.least_tokens > self.rethink.most_tokens:
            raise ValueError(
                f"rethink.least_tokens = {self.rethink.least_tokens} exceeds rethink.most_tokens = "
                f"{self.rethink.most_tokens}: no continuation would be kept"
            )
        if not self.one_turn and self.rethink.share:
            raise ValueError("rethink.share needs environment = 'single': a continued answer belongs to no turn")
        if self.weigh.function not in WEIGHS and self.fill == "resample":
            raise ValueError(
                "fill = 'resample' needs a built-in weigh: further questions are asked before it is called"
            )
        if self.placement == "colocated" and self.rollout_nodes:
            raise ValueError("rollout_nodes needs placement = 'separate'")
        return self

    def copies_versions(self, processes: int, per_node: int | None) -> bool:
        """Whether versions lie in the run folder and each node that samples copies them into its memory.

        On one machine nothing is copied: with "memory" the trainer writes them there itself. ``processes``: of the
        trainer; ``per_node``: of these on each node, None: all.
        """
        several = self.rollout_nodes > 0 or (per_node or processes) < processes
        return self.versions == "memory" and several

    def check_nodes(self, processes: int, per_node: int | None) -> None:
        """Raise ValueError if the stage needs what its nodes do not have. Arguments as in ``copies_versions``."""
        in_one_memory = self.versions == "memory" and not self.copies_versions(processes, per_node)
        if in_one_memory and self.keep == "best":
            raise ValueError("rl.versions = 'memory' loses the best version when the machine restarts: keep = 'last'")

    def check_run(self, data: Sequence[Source], evaluation: Sequence[Source], row_tokens: int) -> None:
        """Raise ValueError if the section does not fit the rest of the configuration.

        ``data``, ``evaluation``: the questions of the rounds and the held-out ones; ``row_tokens``: length of a packed
        row.
        """
        asked = ("rl.questions", self.questions) if self.questions else ("data.questions", data)
        for (name, ours), kind, others, why in (
            (("rl.validation", self.validation), "evaluation", evaluation, "must not choose the version"),
            (asked, "evaluation", evaluation, "must not be trained on"),
            (asked, "validation", self.validation, "must not be trained on"),
        ):
            both = next((one.path for one in ours if any(one.same_rows(other) for other in others)), None)
            if both is not None:
                raise ValueError(f"{name}: {both} holds the {kind} questions too, which {why}")
        if self.max_tokens >= row_tokens:
            raise ValueError(
                f"rl.max_tokens = {self.max_tokens} and a prompt do not fit into batch.sequence_length_tokens = "
                f"{row_tokens}, and no answer may be left out of its group"
            )

    @property
    def selects(self) -> bool:
        """Whether questions are chosen by the starting model's accuracy."""
        return self.select.samples > 0

    @property
    def one_turn(self) -> bool:
        """Whether an episode is one answer to the question as it stands."""
        return self.environment.function == "single"

    @property
    def needs_reference(self) -> bool:
        """Whether log-probs of the starting model are needed: for a KL term, or a weigh of one's own that may ask."""
        return bool(self.objective.kl) or self.weigh.function not in WEIGHS

    @property
    def measures_old(self) -> bool:
        """Whether the trainer's own log-probs are measured before a batch's first update. With one update per batch
        and nothing replayed they are those of the update itself, and the ratio is 1.
        """
        return self.old == "trainer" and (self.updates_per_batch > 1 or self.fill == "ssr")

    @property
    def updates_per_batch(self) -> int:
        """Optimizer steps on each batch (the same for every batch)."""
        return -(-self.questions_per_batch * self.group // self.samples_per_update)
