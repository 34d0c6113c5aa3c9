"""What is learned from, and the loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from sophia_mcore.config.base import Fraction, NonNegative, Positive, Section
from sophia_mcore.config.losses import Advantage, Behaviour, Loss, Normalization, Sophia

_BY_LOSS = ("behaviour", "normalization", "trajectories", "advantage")


class Objective(Section):
    """What is learned from, and [objective.loss], the loss: docs/objectives.md. A None is replaced by the loss's own.

    `behaviour` names the probability mu that importance ratios divide by, for trajectories of another model: `none`
    ratio 1 [P], `unit` mu := 1, `reference` the policy before training, `recorded` the reasoner's own log-probs.
    """

    loss: Loss = Sophia()
    behaviour: Behaviour | None = Field(default=None, validate_default=True)
    normalization: Normalization | None = Field(default=None, validate_default=True)  # token_mean [C]
    chunk_tokens: PositiveInt = 1024  # log-probs are formed this many tokens at a time
    reward: Literal["outcome", "filtered"] = "outcome"  # filtered: 1 only if the caption's reward exceeds alpha too
    fresh_share: Fraction = 0.0  # share of each global batch that the policy has sampled itself at the round's start
    trajectories: Literal["kept", "all"] | None = Field(default=None, validate_default=True)
    advantage: Advantage | None = Field(default=None, validate_default=True)  # of `kept` alone: reward
    trajectories_per_question: PositiveInt | None = None  # of `all`: at most this many, right and wrong in balance
    correction: Literal["none", "tis", "icepop"] = "none"  # of the gap between trainer and sampling engine
    correction_low: NonNegative = 0.5
    correction_high: Positive = 2.0
    log_entropy: bool = False  # costs one more matrix product per step
    # [rl.objective] alone:
    kl: NonNegative = 0.0  # [P] none; weight of the k3 estimate of KL(policy | starting model), beside the loss
    fixed_tokens: PositiveInt | None = None  # the constant length of normalization = "fixed"; None: rl.max_tokens

    @field_validator(*_BY_LOSS, mode="before")
    @classmethod
    def _by_loss(cls, given: Any, info: ValidationInfo) -> Any:
        """The loss's default. Fields are validated in their order, so `loss` and what decides are in `info.data`."""
        found = info.data
        loss = found.get("loss")
        if given is not None or loss is None:  # a loss that is not valid has an error of its own
            return given
        if info.field_name == "trajectories":
            return "kept" if loss.learns_from_kept else "all"
        if info.field_name == "advantage" and found.get("trajectories") == "kept" and not found.get("fresh_share"):
            return "reward"
        return getattr(loss, str(info.field_name))

    @property
    def only_kept(self) -> bool:
        """Whether all trajectories to learn from are right ones that were chosen already."""
        return self.trajectories == "kept" and not self.fresh_share

    @model_validator(mode="after")
    def _possible(self) -> Objective:
        if self.correction_low > self.correction_high:
            raise ValueError(f"correction_low = {self.correction_low} exceeds correction_high = {self.correction_high}")
        if self.only_kept and (self.advantage != "reward" or self.trajectories_per_question):
            which = "trajectories_per_question" if self.advantage == "reward" else f"advantage = {self.advantage!r}"
            raise ValueError(f"{which} needs trajectories = 'all': the kept ones are all right, and chosen already")
        if self.trajectories_per_question == 1 and self.advantage != "reward":
            raise ValueError("trajectories_per_question = 1 leaves right ones only: at least 2 are needed to compare")
        return self
