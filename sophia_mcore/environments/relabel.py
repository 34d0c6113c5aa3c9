"""The built-in relabelling: what to imitate from an episode."""

from __future__ import annotations

from collections.abc import Iterator

from sophia_mcore.environments.types import Episode, Target
from sophia_mcore.records import Question


def own_successes(episode: Episode, question: Question, *, least_turns: int = 1) -> Iterator[Target]:
    """Every turn of the policy in an episode that ended right, each behind its own prompt.

    ``least_turns``: only episodes with so many turns of the policy.
    """
    turns = episode.policy_turns
    if episode.right and len(turns) >= least_turns:
        for turn in turns:
            yield Target(messages=turn.messages, images=turn.images, pieces=((turn.text, True),))
