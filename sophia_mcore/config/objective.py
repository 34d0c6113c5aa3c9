"""Settings of the objective: the trajectories to learn from, and the loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from sophia_mcore.config.base import Fraction, NonNegative, Positive, Section
from sophia_mcore.config.losses import Advantage, Behaviour, Loss, Normalization, Sophia

_BY_LOSS = ("behaviour", "normalization", "trajectories", "advantage")


class Objective(Section):
    """Which trajectories are learned from, and with which loss (docs/objectives.md). None: the default of the loss.

    `behaviour` chooses the probability mu in importance ratios for trajectories of another model. `none`: ratio 1 [P].
    `unit`: mu = 1. `reference`: the policy before training. `recorded`: the reasoner's own log-probs.
    """

    loss: Loss = Sophia()
    behaviour: Behaviour | None = Field(default=None, validate_default=True)
    normalization: Normalization | None = Field(default=None, validate_default=True)  # token_mean [C]
    chunk_tokens: PositiveInt = 1024  # log-probs are computed for this many tokens at a time
    reward: Literal["outcome", "filtered"] = "outcome"  # filtered: 1 only if the caption's reward exceeds alpha too
    fresh_share: Fraction = 0.0  # share of each global batch for the policy's own answers, sampled before training
    trajectories: Literal["kept", "all"] | None = Field(default=None, validate_default=True)
    advantage: Advantage | None = Field(default=None, validate_default=True)  # with `kept` only "reward" is possible
    trajectories_per_question: PositiveInt | None = None  # with `all`: at most this many, balanced right and wrong
    correction: Literal["none", "tis", "icepop"] = "none"  # correction of the gap between trainer and sampling engine
    correction_low: NonNegative = 0.5
    correction_high: Positive = 2.0
    log_entropy: bool = False  # costs one more matrix product per step
    # only in [rl.objective]:
    kl: NonNegative = 0.0  # [P] none; weight of the k3 estimate of KL(policy | starting model), beside the loss
    fixed_tokens: PositiveInt | None = None  # the constant length of normalization = "fixed"; None: rl.max_tokens

    @field_validator(*_BY_LOSS, mode="before")
    @classmethod
    def _by_loss(cls, given: Any, info: ValidationInfo) -> Any:
        """The default of the loss. Fields are validated in order, so `info.data` has `loss` and all earlier fields."""
        found = info.data
        loss = found.get("loss")
        if given is not None or loss is None:  # an invalid loss has its own error
            return given
        if info.field_name == "trajectories":
            return "kept" if loss.learns_from_kept else "all"
        if info.field_name == "advantage" and found.get("trajectories") == "kept" and not found.get("fresh_share"):
            return "reward"
        return getattr(loss, str(info.field_name))

    @property
    def only_kept(self) -> bool:
        """Whether only kept trajectories are learned from, which are all right."""
        return self.trajectories == "kept" and not self.fresh_share

    @model_validator(mode="after")
    def _check_combination(self) -> Objective:
        if self.correction_low > self.correction_high:
            raise ValueError(f"correction_low = {self.correction_low} exceeds correction_high = {self.correction_high}")
        if self.only_kept and (self.advantage != "reward" or self.trajectories_per_question):
            which = "trajectories_per_question" if self.advantage == "reward" else f"advantage = {self.advantage!r}"
            raise ValueError(f"{which} needs trajectories = 'all': kept ones are all right and already selected")
        if self.trajectories_per_question == 1 and self.advantage != "reward":
            raise ValueError("trajectories_per_question = 1: at least 2 are needed to compare right with wrong ones")
        return self
