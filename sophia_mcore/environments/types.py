"""The values that functions of environments and rewards exchange. All are frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sophia_mcore.pretrained.family import Message
from sophia_mcore.records import FinishReason, VerdictName

IMAGE = "<image>"  # the place of an image in the text of a message
POLICY = "policy"
Status = Literal["done", "cut_off", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a model is asked: the whole prompt, never what is new in it alone.

    Each of ``images`` (encoded files) has its place ``IMAGE`` in a user or system message, in order; without any place
    they stand before the text of the first user message. Where the policy is asked without a system message, the
    stage's own (``rl.prompt``) is put in front. ``to``: "policy", or the name of one of [helpers]. ``prefill``: the
    policy's reply goes on from here; it is no part of the reply. ``max_tokens``: of the reply; None: as the stage or
    the helper says, which is also the most.
    """

    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()
    to: str = POLICY
    prefill: str = ""
    max_tokens: int | None = None

    @staticmethod
    def user(text: str, images: tuple[bytes, ...] = (), **fields: Any) -> Ask:
        """A prompt of one user message."""
        return Ask(messages=(Message("user", text),), images=images, **fields)


class Step(NamedTuple):
    """What an environment answers: its new state, what is asked next, and named rewards of the reply just read.

    ``state`` is JSON (dict with text keys, list, text, number, bool, None) and comes back as such: a tuple as a list.
    It has at most `codec.MOST_STATE_CHARACTERS` characters.
    ``ask`` None: the episode is over.
    """

    state: Any
    ask: Ask | None = None
    rewards: Mapping[str, float] = {}


class Reply(NamedTuple):
    """What was said to the last ask: its text, and whether it ended by itself ("stop") or was cut off ("length")."""

    text: str
    finish_reason: FinishReason = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One reply of an episode, and what was asked. ``images``: digests of what the prompt shows.

    ``verdict`` and ``extracted``: of a turn of the policy, graded as an answer. ``rewards``: the step's.
    ``reward``: the weighted sum of the terms, once they are known: where turns are weighed and relabelled.
    """

    to: str
    text: str
    messages: tuple[Message, ...]
    images: tuple[str, ...] = ()
    tokens: int = 0  # sampled, end token included
    finish_reason: FinishReason = "stop"
    verdict: VerdictName = "no_answer"
    extracted: str = ""
    rewards: Mapping[str, float] = field(default_factory=dict)
    reward: float = 0.0

    @property
    def right(self) -> bool:
        """Whether the turn answers the question rightly."""
        return self.verdict == "correct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """Everything that was said about a question once. ``status`` "cut_off": it took more than ``max_turns`` turns.

    ``scores``: the values of the reward terms, by their names, where they are known already.
    """

    id: str
    question_id: str
    index: int
    turns: tuple[Turn, ...]
    status: Status = "done"
    scores: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def policy_turns(self) -> tuple[Turn, ...]:
        """The turns of the policy, in order."""
        return tuple(turn for turn in self.turns if turn.to == POLICY)

    @property
    def last(self) -> Turn:
        """The policy's last turn, which holds its answer."""
        return self.policy_turns[-1]

    @property
    def text(self) -> str:
        """Text of the policy's last turn."""
        return self.last.text

    @property
    def right(self) -> bool:
        """Whether the policy's last turn answers the question rightly, and was not cut off by the token limit."""
        return self.last.right and self.last.finish_reason == "stop"

    @property
    def rights(self) -> tuple[bool, ...]:
        """Whether each turn of the policy answers the question rightly."""
        return tuple(turn.right for turn in self.policy_turns)

    @property
    def rewards(self) -> tuple[float, ...]:
        """The weighted reward of each turn of the policy, where it is known."""
        return tuple(turn.reward for turn in self.policy_turns)

    @property
    def tokens(self) -> int:
        """Tokens that the policy has sampled, in all turns."""
        return sum(turn.tokens for turn in self.policy_turns)

    def said(self, name: str) -> str | None:
        """What a helper said last; None when it was not asked."""
        return next((turn.text for turn in reversed(self.turns) if turn.to == name), None)


class Weight(NamedTuple):
    """What a turn of the policy is worth. ``kl``: weight of its k3 term against the starting model.

    Both 0: the turn is not trained on, and counted.
    """

    advantage: float
    kl: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to imitate behind a prompt: pieces of text, each with whether it is learned. An end token follows."""

    messages: tuple[Message, ...]
    pieces: tuple[tuple[str, bool], ...]
    images: tuple[str, ...] = ()  # digests, as in `Turn.images`
    weight: float = 1.0
