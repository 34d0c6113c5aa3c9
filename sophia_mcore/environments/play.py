"""Episodes in lock step: all that is asked of the policy at one time is one list of asks.

A generator, so that whoever plays it (an engine, or `sophia check --try` without one) only gives replies. What comes
out depends on questions, seeds and replies alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sophia_mcore.environments.codec import BadValueError
from sophia_mcore.environments.library import Library
from sophia_mcore.environments.places import placed, require_helper
from sophia_mcore.environments.pool import Outcome
from sophia_mcore.environments.types import POLICY, Ask, Reply, Status
from sophia_mcore.records import Question

HELPER_ASKS_PER_TURN = 4  # an episode may ask helpers so many times as often as the policy, and no more
Replies = Callable[[str, Sequence[Ask]], Sequence[Reply]]  # of a helper, by its name
Wave = list[tuple[int, Ask]]  # (which episode, what the policy is asked)


@dataclass(slots=True)
class Played:
    """One ask of an episode and the reply to it."""

    ask: Ask
    reply: Reply
    rewards: dict[str, float] = field(default_factory=dict)  # of the step that read the reply


@dataclass(slots=True, kw_only=True)
class Live:
    """An episode on its way. ``why``: the reason of a status that is not "done"."""

    question: Question
    images: tuple[bytes, ...]
    seed: int
    turns: list[Played] = field(default_factory=list)
    status: Status = "done"
    why: str = ""
    state: Any = None
    ask: Ask | None = None

    @property
    def policy_turns(self) -> int:
        """Turns of the policy so far."""
        return sum(one.ask.to == POLICY for one in self.turns)

    def end(self, status: Status, why: str) -> None:
        """Nothing more is asked."""
        self.status, self.why, self.ask = status, why, None


def play(
    library: Library,
    episodes: Sequence[Live],
    *,
    system: str,
    max_turns: int,
    helpers: Sequence[str],
    ask_helper: Replies,
    unfit: Callable[[Ask], str] = lambda ask: "",
) -> Generator[Wave, Sequence[Reply], None]:
    """Play the episodes to their ends: yields what the policy is asked, is sent the replies in the same order.

    ``unfit`` says why a prompt cannot be asked (too long, too many images), "" if it can. An episode whose functions
    fail is broken; one that still asks after ``max_turns`` turns of the policy, or asks what cannot be asked, is cut
    off.
    """

    def take(chosen: Sequence[Live], outcomes: Sequence[Outcome]) -> None:
        for one, outcome in zip(chosen, outcomes, strict=True):
            if outcome.error:
                one.end("broken", outcome.error)
                continue
            one.state, one.ask = outcome.value.state, outcome.value.ask
            if one.turns:
                one.turns[-1].rewards |= outcome.value.rewards
            if one.ask is not None:
                _accept(one, system, max_turns, helpers, unfit)
            elif not one.policy_turns:
                one.end("broken", "rl.environment: the episode ended before the policy was asked")

    take(episodes, library.start([(one.question, one.images, one.seed) for one in episodes]))
    while True:
        while by_helper := _asking_helpers(episodes):
            for name, chosen in by_helper.items():
                asks = [one.ask for one in chosen if one.ask is not None]
                take(chosen, _steps(library, chosen, ask_helper(name, asks)))
        chosen = [one for one in episodes if one.ask is not None]
        if not chosen:
            return
        places = {id(one): place for place, one in enumerate(episodes)}
        replies = yield [(places[id(one)], one.ask) for one in chosen if one.ask is not None]
        take(chosen, _steps(library, chosen, replies))


def _steps(library: Library, chosen: Sequence[Live], replies: Sequence[Reply]) -> list[Outcome]:
    for one, reply in zip(chosen, replies, strict=True):
        assert one.ask is not None
        one.turns.append(Played(one.ask, reply))
        one.ask = None
    return library.step([(one.state, one.turns[-1].reply, one.images) for one in chosen])


def _asking_helpers(episodes: Sequence[Live]) -> dict[str, list[Live]]:
    found: dict[str, list[Live]] = {}
    for one in episodes:
        if one.ask is not None and one.ask.to != POLICY:
            found.setdefault(one.ask.to, []).append(one)
    return found


def _accept(one: Live, system: str, max_turns: int, helpers: Sequence[str], unfit: Callable[[Ask], str]) -> None:
    """Bring the ask into the form that a model reads, or end the episode."""
    assert one.ask is not None
    to = one.ask.to
    try:
        require_helper(to, [POLICY, *helpers])
        if to != POLICY and one.ask.prefill:
            raise BadValueError("a prefill is for the policy, not for a helper")
        one.ask = placed(one.ask, system)
    except BadValueError as error:
        one.end("broken", f"rl.environment: {error}")
        return
    of_helpers = len(one.turns) - one.policy_turns
    if to == POLICY and one.policy_turns >= max_turns:
        one.end("cut_off", f"more than rl.max_turns = {max_turns} turns")
    elif to != POLICY and of_helpers >= HELPER_ASKS_PER_TURN * max_turns:
        one.end("cut_off", f"more than {HELPER_ASKS_PER_TURN} x rl.max_turns questions to helpers")
    elif to == POLICY and (why := unfit(one.ask)):
        one.end("cut_off", why)
