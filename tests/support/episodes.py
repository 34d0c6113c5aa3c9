"""Episodes for tests of rewards and environments."""

from __future__ import annotations

from typing import Any

from sophia_mcore.environments.types import Episode, Turn
from sophia_mcore.pretrained.family import Message


def turn(text: str, right: bool = False, **fields: Any) -> Turn:
    """A turn of the policy, unless ``to`` says otherwise."""
    given: dict[str, Any] = {
        "to": "policy",
        "messages": (Message("user", "2 + 2?"),),
        "tokens": len(text),
        "verdict": "correct" if right else "wrong",
    }
    return Turn(text=text, **{**given, **fields})


def episode(*turns: str | Turn, right: bool = False, index: int = 0, **fields: Any) -> Episode:
    """An episode; of texts, the last one is right iff ``right``."""
    made = tuple(
        one if isinstance(one, Turn) else turn(one, right and place == len(turns) - 1)
        for place, one in enumerate(turns)
    )
    return Episode(id=f"q.b0.n{index}", question_id="q", index=index, turns=made, **fields)
