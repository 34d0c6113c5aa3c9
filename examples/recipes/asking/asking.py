"""The policy is told nothing but the question; it may ask for facts one by one before it answers (compare ProMed,
arXiv 2508.13514). The facts stand behind a bar in the question's text, which the environment alone sees.
"""

from __future__ import annotations

import re
from typing import Any

from sophia_mcore.environments import Ask, Episode, Question, Reply, Step

NAMES = ("first", "second", "third", "fourth")
_CALL = re.compile(rf"ask ({'|'.join(NAMES)})")


def start(question: Question, images: tuple[bytes, ...], seed: int) -> Step:
    """The question without the facts."""
    asked, _, facts = question.question.partition(" | ")
    digits = dict(zip(NAMES, facts.split(), strict=True))
    return Step({"question": asked, "facts": digits, "known": []}, Ask.user(prompt(asked, {})))


def step(state: dict[str, Any], reply: Reply, images: tuple[bytes, ...]) -> Step:
    """A reply that asks gets its fact; anything else is the answer. ``asks``: 1 for a reply that asks.

    ``gain``: 1 / n for each of the n facts that the answer depends on, when it becomes known. The share stands for the
    paper's difference of log p(answer | facts), for which a model would have to be asked.
    """
    call = _CALL.fullmatch(reply.text.strip())
    if call is None:
        return Step(state)
    needed = set(needs(state["question"]))
    gain = (call[1] in needed and call[1] not in state["known"]) / len(needed)
    known = [*state["known"], call[1]]
    shown = {name: state["facts"][name] for name in known}
    rewards = {"asks": 1.0, "gain": float(gain)}
    return Step({**state, "known": known}, Ask.user(prompt(state["question"], shown)), rewards)


def needs(question: str) -> list[str]:
    """The facts that an answer depends on: those that the question names."""
    return [name for name in NAMES if re.search(rf"\b{name}\b", question)]


def prompt(question: str, known: dict[str, str]) -> str:
    """The whole prompt: the question and what has been told."""
    told = ", ".join(f"{name} {digit}" for name, digit in known.items()) or "nothing"
    return f"{question} Known: {told}."


def enough(episode: Episode, question: Question) -> float:
    """1 when everything that the answer depends on was asked for."""
    asked = {call[1] for turn in episode.policy_turns if (call := _CALL.fullmatch(turn.text.strip()))}
    return float(asked.issuperset(needs(question.question.partition(" | ")[0])))
