"""[[stages]]: a run as a list of stages, each with settings of its own.

`launch.stage_configs` makes the configuration of each stage.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from sophia_mcore.config.base import Section

LAST, VALIDATION, EVALUATE = "last", "validation", "evaluate."
_PROMOTE = (LAST, VALIDATION, f"{EVALUATE}pass_at_1")


class Stage(Section):
    """A stage of the run. It begins with the model that the stage before has promoted; the first with models.policy."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")  # what the stage is called; its folder is named by it
    kind: Literal["sophia", "supervised", "rl"]  # rounds, training on the pairs of train.data, or the on-policy stage
    set: dict[str, Any] = Field(default_factory=dict)  # settings of this stage in place of those of the file
    # Which model goes on: "last"; "evaluate.pass_at_1", or "evaluate." and the name of a protocol or of a set of
    # evaluation questions; "validation" (rl). By score, the model that the stage began with is a candidate too.
    promote: str = LAST

    @property
    def on_policy(self) -> bool:
        """Whether it is an on-policy stage, and not one of rounds."""
        return self.kind == "rl"

    @field_validator("promote")
    @classmethod
    def _known(cls, text: str) -> str:
        if text in (LAST, VALIDATION) or (text.startswith(EVALUATE) and text != EVALUATE):
            return text
        near = difflib.get_close_matches(text.lower(), _PROMOTE, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown rule {text!r} ({hint}valid: {', '.join(_PROMOTE)}, evaluate.NAME)")


def check_stages(stages: Sequence[Stage] | None) -> None:
    """Raise ValueError for an empty list and for a name that two stages have."""
    if stages is None:
        return
    if not stages:
        raise ValueError("stages: the list is empty: name a stage, or remove the key")
    names = [stage.name for stage in stages]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"stages: two stages have the name {twice!r}")
