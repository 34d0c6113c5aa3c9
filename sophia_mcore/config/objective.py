"""Settings of the loss."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import PositiveInt, field_validator, model_validator

from sophia_mcore.config.base import Fraction, NonNegative, Positive, Section

# Options of each objective with their defaults; an option of another objective is refused, not ignored.
OBJECTIVE_OPTIONS: dict[str, dict[str, float]] = {
    "sophia": {},
    "dft": {},
    "awr": {"beta": 1.0, "max_weight": 20.0},
    "topr": {},
    "luffy": {"shaping": 0.1, "clip_low": 0.2, "clip_high": 0.2},
    "grpo": {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 0.0},  # dapo: clip_high 0.28
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"clip_low": 1.0, "clip_high": 0.28},
}
_LEARNS_FROM_KEPT = ("sophia", "dft")  # the others weigh right answers against wrong ones


class Objective(Section):
    """The loss. `sophia` is the reward-filtered negative log-likelihood (eq. 7); all: docs/method.md.

    `behaviour` names the probability mu that importance ratios divide by, for trajectories of another model: `none`
    ratio 1 [P], `unit` mu := 1, `reference` the policy before training, `recorded` the reasoner's own log-probs.
    """

    name: str = "sophia"
    behaviour: Literal["none", "unit", "reference", "recorded"] | None = None  # None: unit for luffy, else none
    # None: token_mean [C]; for gspo sequence_mean
    normalization: Literal["token_mean", "sequence_mean", "sum"] | None = None
    chunk_tokens: PositiveInt = 1024  # log-probs are formed this many tokens at a time
    trajectories: Literal["kept", "all"] | None = None  # None: kept for sophia and dft, else all K x N
    reward: Literal["outcome", "filtered"] = "outcome"  # filtered: 1 only if the caption's reward exceeds alpha too
    advantage: Literal["reward", "signed", "group_mean", "group_normalized"] | None = None  # None: by objective
    trajectories_per_question: PositiveInt | None = None  # of `all`: at most this many, right and wrong in balance
    fresh_share: Fraction = 0.0  # share of each global batch that the policy has sampled itself at the round's start
    correction: Literal["none", "tis", "icepop"] = "none"  # of the gap between trainer and sampling engine
    correction_low: NonNegative = 0.5
    correction_high: Positive = 2.0
    log_entropy: bool = False  # costs one more matrix product per step
    beta: Positive | None = None
    max_weight: Positive | None = None
    shaping: Positive | None = None
    clip_low: NonNegative | None = None
    clip_high: NonNegative | None = None
    dual_clip: NonNegative | None = None  # 0: off

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OBJECTIVE_OPTIONS:
            if name.lower() == "dapo":
                raise ValueError("unknown objective: DAPO is 'grpo' with clip_high = 0.28 and normalization token_mean")
            near = difflib.get_close_matches(name.lower(), OBJECTIVE_OPTIONS, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown objective ({hint}valid: {', '.join(OBJECTIVE_OPTIONS)})")
        return name

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        """Fill in what depends on the name."""
        if not isinstance(given, dict):
            return given
        name = given.get("name", "sophia")
        if not isinstance(name, str) or name not in OBJECTIVE_OPTIONS:
            return given  # the name's own check says so
        every = {option for options in OBJECTIVE_OPTIONS.values() for option in options}
        foreign = [key for key in given if key in every - set(OBJECTIVE_OPTIONS[name]) and given[key] is not None]
        if foreign:
            own = ", ".join(OBJECTIVE_OPTIONS[name]) or "none"
            raise ValueError(f"{foreign[0]!r} is not an option of objective {name!r} (its own: {own})")
        trajectories = given.get("trajectories") or ("kept" if name in _LEARNS_FROM_KEPT else "all")
        plain = name in _LEARNS_FROM_KEPT or (trajectories == "kept" and not given.get("fresh_share"))
        defaults: dict[str, Any] = {
            "behaviour": "unit" if name == "luffy" else "none",
            "normalization": "sequence_mean" if name == "gspo" else "token_mean",
            "trajectories": trajectories,
            "advantage": "reward" if plain else "signed" if name == "topr" else "group_normalized",
        }
        given = {key: value for key, value in given.items() if value is not None}
        return defaults | OBJECTIVE_OPTIONS[name] | given

    @model_validator(mode="after")
    def _possible(self) -> Objective:
        if self.correction_low > self.correction_high:
            raise ValueError(f"correction_low = {self.correction_low} exceeds correction_high = {self.correction_high}")
        only_kept = self.trajectories == "kept" and not self.fresh_share
        if only_kept and (self.advantage != "reward" or self.trajectories_per_question):
            which = "trajectories_per_question" if self.advantage == "reward" else f"advantage = {self.advantage!r}"
            raise ValueError(f"{which} needs trajectories = 'all': the kept ones are all right, and chosen already")
        if self.trajectories_per_question == 1 and self.advantage != "reward":
            raise ValueError("trajectories_per_question = 1 leaves right ones only: at least 2 are needed to compare")
        if self.dual_clip is not None and 0.0 < self.dual_clip <= 1.0:
            raise ValueError(f"dual_clip = {self.dual_clip} must be 0 (off) or greater than 1")
        if self.clip_low is not None and self.clip_low > 1.0:
            raise ValueError(f"clip_low = {self.clip_low} must be at most 1: ratios are positive")
        return self

    @property
    def compares_across_sources(self) -> bool:
        """Whether the stored and the policy's own trajectories of a question are one group (arXiv 2504.14945)."""
        return self.name == "luffy"

    @property
    def learns_at_zero(self) -> bool:
        """Whether a trajectory of weight 0 has a gradient: awr weighs it by exp(0) = 1."""
        return self.name == "awr"
