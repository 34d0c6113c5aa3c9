"""Forced rethinking, the second stage of VL-Rethinker (arXiv 2504.08837), as pure functions.

A drawn part of the policy's answers is continued: the answer's own tokens, up to a cut, then the tokens of a trigger,
then what the policy says next. A continuation that ends right becomes an auxiliary sample. Tokens are reused and never
encoded anew, because a decoded and encoded text can be another token sequence.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sophia_mcore.records import END_OF_THOUGHT

TriggerKind = Literal["questioning", "verification", "correction"]
_ANNOUNCEMENT = re.compile(r"\\boxed\b|\*\*\s*final answer", re.IGNORECASE)
_WAITS = re.compile(r"\b(?:wait|alternatively|hmm|recheck|re-check|double-check|let me check)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How answers are chosen, cut and continued. Shares are probabilities."""

    share: float  # of the answers that are continued
    cut_share: float = 0.5  # of those, how many are cut before their final answer
    least_tokens: int = 30  # of a continuation that is kept
    most_tokens: int = 1024
    most_waits: int = 3  # words of doubt in a continuation that is kept
    per_question: int = 2  # kept continuations of a question, at most


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of one answer: cut before its final answer or not, and which trigger follows."""

    cut: bool
    kind: TriggerKind


def plan_rethinking(answer_id: str, right: bool, seed: int, rule: Rule) -> Plan | None:
    """Whether and how an answer is continued: a draw that depends on ``seed`` and the id alone.

    Broken and truncated answers, and those without room for a continuation, are the caller's to leave out.
    """
    if _uniform(seed, answer_id, "ask") >= rule.share:
        return None
    questioning = _uniform(seed, answer_id, "kind") < 0.5
    kind: TriggerKind = "questioning" if questioning else "verification" if right else "correction"
    return Plan(cut=_uniform(seed, answer_id, "cut") < rule.cut_share, kind=kind)


def cut_point(text: str) -> int | None:
    """Offset in ``text`` where a rethinking may begin, so that it stands before the final answer.

    Before the end of the thought where there is one, so that thinking goes on inside of it; else before the paragraph
    that announces the final answer. None: the text has neither.

    >>> cut_point("<think>2+3=5.</think>5"), cut_point("2+3.\\n\\nSo \\\\boxed{5}"), cut_point("five")
    (13, 4, None)
    """
    end = text.rfind(END_OF_THOUGHT)
    if end >= 0:
        return end
    found = list(_ANNOUNCEMENT.finditer(text))
    if not found:
        return None
    paragraph = text.rfind("\n\n", 0, found[-1].start())
    return paragraph if paragraph > 0 else None


def tokens_before(offset: int, token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
    """How many leading tokens decode to at most ``offset`` characters: the last token border that is not behind it.

    A token that straddles the offset is left out. ``decode`` turns token ids into text, as the engine does.
    """
    low, high = 0, len(token_ids)
    while low < high:
        middle = (low + high + 1) // 2
        if len(decode(token_ids[:middle])) <= offset:
            low = middle
        else:
            high = middle - 1
    return low


def given_tokens(
    token_ids: Sequence[int],
    text: str,
    plan: Plan,
    trigger_ids: Sequence[int],
    end_ids: Iterable[int],
    decode: Callable[[Sequence[int]], str],
) -> list[int]:
    """The tokens that the continuation begins with: the answer's own up to the cut, then the trigger's.

    Without a cut the whole answer stays, but for its end token: a cut is not made where the text offers no place.
    """
    own = list(token_ids)
    if own and own[-1] in set(end_ids):
        own.pop()
    offset = cut_point(text) if plan.cut else None
    if offset is not None:
        own = own[: tokens_before(offset, own, decode)]
    return [*own, *trigger_ids]


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A continued answer as the choice sees it. ``text`` and ``tokens`` are those behind the trigger."""

    id: str
    question_id: str
    right: bool
    tokens: int
    text: str


def kept(continuations: Iterable[Continuation], rule: Rule) -> list[str]:
    """Ids of the continuations that training imitates: right, of fitting length, without too many words of doubt.

    At most ``rule.per_question`` of a question, the lowest ids first.
    """
    by_question: dict[str, list[str]] = defaultdict(list)
    for one in continuations:
        if one.right and rule.least_tokens <= one.tokens <= rule.most_tokens and waits(one.text) <= rule.most_waits:
            by_question[one.question_id].append(one.id)
    return [name for question in sorted(by_question) for name in sorted(by_question[question])[: rule.per_question]]


def waits(text: str) -> int:
    """How many words of doubt a text has ("wait", "alternatively", "let me check" ...)."""
    return len(_WAITS.findall(text))


def _uniform(*parts: str | int) -> float:
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64
