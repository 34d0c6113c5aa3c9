"""The losses of [objective.loss]: one class for each, with its options and the properties that the trainer uses.

- `gradient`: what d loss / d log pi of a token depends on, apart from the sample's weight: nothing ("constant"), the
  log-prob of this token ("token"), or the log-probs of the whole sequence ("sequence").
- `wrong_gradient`: the same for samples of negative weight, if it differs.
- `advantage`, `behaviour`, `normalization`: the defaults of the settings in [objective].
- `learns_from_kept`: the default of objective.trajectories is the kept trajectories; otherwise it is all K x N.
- `learns_from_zero`: samples of weight 0 contribute to the loss.
- `one_group`: stored answers and the policy's own answers are in one group when advantages are computed.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from sophia_mcore.config.base import NonNegative, Positive, Section

Gradient = Literal["constant", "token", "sequence"]
Behaviour = Literal["none", "unit", "reference", "recorded"]
Normalization = Literal["token_mean", "sequence_mean", "sum", "fixed"]
Advantage = Literal["reward", "signed", "group_mean", "group_normalized"]
ClipLow = Annotated[float, Field(ge=0.0, le=1.0)]  # ratios are positive


def _plain_option(given: Any) -> Any:
    """One line in place of one for each type that an option may have."""
    if not isinstance(given, (bool, int, float, str)):
        kind = {"list": "list", "tuple": "list", "dict": "table"}.get(type(given).__name__, type(given).__name__)
        raise ValueError(f"an option is a number, a text, true or false, and not a {kind}")
    return given


Option = Annotated[bool | int | float | str, BeforeValidator(_plain_option)]  # of a function of the user's own


class _BuiltIn(Section):
    gradient: ClassVar[Gradient] = "token"
    wrong_gradient: ClassVar[Gradient | None] = None
    advantage: ClassVar[Advantage] = "group_normalized"
    behaviour: ClassVar[Behaviour] = "none"
    normalization: ClassVar[Normalization] = "token_mean"
    learns_from_kept: ClassVar[bool] = False
    learns_from_zero: ClassVar[bool] = False
    one_group: ClassVar[bool] = False


class Sophia(_BuiltIn):
    """Reward-filtered negative log-likelihood (arXiv 2507.16814, eq. 7)."""

    gradient: ClassVar[Gradient] = "constant"
    advantage: ClassVar[Advantage] = "reward"
    learns_from_kept: ClassVar[bool] = True
    name: Literal["sophia"] = "sophia"


class Dft(_BuiltIn):
    """Dynamic fine-tuning (arXiv 2508.05629)."""

    advantage: ClassVar[Advantage] = "reward"
    learns_from_kept: ClassVar[bool] = True
    name: Literal["dft"] = "dft"


class Awr(_BuiltIn):
    """Advantage-weighted regression (arXiv 1910.00177)."""

    gradient: ClassVar[Gradient] = "constant"
    learns_from_zero: ClassVar[bool] = True  # exp(0) = 1
    name: Literal["awr"] = "awr"
    beta: Positive = 1.0
    max_weight: Positive = 20.0


class Topr(_BuiltIn):
    """Tapered off-policy REINFORCE (arXiv 2503.14286)."""

    gradient: ClassVar[Gradient] = "constant"
    wrong_gradient: ClassVar[Gradient | None] = "sequence"
    advantage: ClassVar[Advantage] = "signed"
    name: Literal["topr"] = "topr"


class Luffy(_BuiltIn):
    """LUFFY (arXiv 2504.14945)."""

    behaviour: ClassVar[Behaviour] = "unit"
    one_group: ClassVar[bool] = True
    name: Literal["luffy"] = "luffy"
    shaping: Positive = 0.1
    clip_low: ClipLow = 0.2
    clip_high: NonNegative = 0.2


class Grpo(_BuiltIn):
    """GRPO (arXiv 2402.03300); DAPO (arXiv 2503.14476) is clip_high = 0.28."""

    name: Literal["grpo"] = "grpo"
    clip_low: ClipLow = 0.2
    clip_high: NonNegative = 0.2
    dual_clip: NonNegative = 0.0  # 0: off

    @field_validator("dual_clip")
    @classmethod
    def _off_or_above_one(cls, value: float) -> float:
        if 0.0 < value <= 1.0:
            raise ValueError(f"dual_clip = {value} must be 0 (off) or greater than 1")
        return value


class Gspo(_BuiltIn):
    """GSPO (arXiv 2507.18071)."""

    gradient: ClassVar[Gradient] = "sequence"
    normalization: ClassVar[Normalization] = "sequence_mean"
    name: Literal["gspo"] = "gspo"
    clip_low: ClipLow = 3e-4
    clip_high: NonNegative = 4e-4


class Cispo(_BuiltIn):
    """CISPO (arXiv 2506.13585)."""

    name: Literal["cispo"] = "cispo"
    clip_low: ClipLow = 1.0
    clip_high: NonNegative = 0.28


class OwnLoss(Section):
    """A user's own function, `FILE.py:FUNCTION`. docs/own_reward.md describes its arguments and its result."""

    name: str
    options: dict[str, Option] = Field(default_factory=dict)  # the function's keyword-only parameters
    gradient: Gradient = "sequence"  # always right; "token" and "constant" save memory if they are true
    wrong_gradient: Gradient | None = None
    advantage: Advantage = "group_normalized"
    behaviour: Behaviour = "none"
    normalization: Normalization = "token_mean"
    learns_from_kept: bool = False
    learns_from_zero: bool = False
    one_group: bool = False

    @field_validator("name")
    @classmethod
    def _names_a_function(cls, name: str) -> str:
        reference_of(name)
        return name


class Reference(NamedTuple):
    """The two parts of `FILE.py:FUNCTION`."""

    file: str
    function: str


def reference_of(text: str) -> Reference:
    """Parse `FILE.py:FUNCTION`. Raises ValueError, with the valid names of losses, if ``text`` has another form."""
    if match := re.fullmatch(r"(.+\.py):([A-Za-z_]\w*)", text):
        return Reference(match[1], match[2])
    if text.lower() == "dapo":
        raise ValueError("unknown objective: DAPO is 'grpo' with clip_high = 0.28 and normalization token_mean")
    near = difflib.get_close_matches(text.lower(), LOSSES, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown objective ({hint}valid: {', '.join(LOSSES)}, or FILE.py:FUNCTION of your own)")


_CLASSES = (Sophia, Dft, Awr, Topr, Luffy, Grpo, Gspo, Cispo)
LOSSES: dict[str, type[_BuiltIn]] = {cls.model_fields["name"].default: cls for cls in _CLASSES}  # type: ignore[misc]


def _tag(given: Any) -> str:
    name = given.get("name", "sophia") if isinstance(given, dict) else getattr(given, "name", "own")
    return name if isinstance(name, str) and name in LOSSES else "own"


Loss = Annotated[
    Annotated[Sophia, Tag("sophia")]
    | Annotated[Dft, Tag("dft")]
    | Annotated[Awr, Tag("awr")]
    | Annotated[Topr, Tag("topr")]
    | Annotated[Luffy, Tag("luffy")]
    | Annotated[Grpo, Tag("grpo")]
    | Annotated[Gspo, Tag("gspo")]
    | Annotated[Cispo, Tag("cispo")]
    | Annotated[OwnLoss, Tag("own")],
    Discriminator(_tag),
]
