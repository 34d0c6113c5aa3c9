"""Finding the final answer in a response.

``RULES`` is the whole table, tried from top to bottom; within a rule the last match in the text wins. Only what follows
the last ``</think>`` is searched first; a thought that never ends has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

TAIL_CHARACTERS = 20_000  # marker rules look at this much of the end; \boxed{} is searched everywhere
MAX_PLAIN_CHARACTERS = 200  # a whole response may itself be the answer when it is one line of at most this length
_LINE = r"[^\n]*"


@dataclass(frozen=True, slots=True)
class Rule:
    """One way in which answers are announced. ``find`` returns the candidates in the order of the text."""

    name: str
    find: Callable[[str], list[str]]
    types: frozenset[str] | None = None  # answer types it is meant for; None: all


def _balanced(text: str, start: int) -> int:
    """Index of the brace that closes the one at ``start``, or -1. A backslash escapes the next character."""
    depth = 0
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return -1


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_BETWEEN_BOXES = re.compile(r"(?:[\s,;$、，和或及]|\\[()\[\]]|\band\b|\bor\b|\\text\{\s*(?:and|or)\s*\})*")


def _boxed(text: str) -> list[str]:
    r"""The last boxed answer; boxes joined by nothing but "and", "or" or commas are one answer."""
    marks = list(_BOX.finditer(text))[-32:]
    end_of_group: int | None = None
    parts: list[str] = []
    for mark in reversed(marks):
        if mark.end() < len(text) and text[mark.end()] == "{":
            close = _balanced(text, mark.end())
            content, end = (text[mark.end() + 1 : close], close + 1) if close > 0 else ("", len(text))
        else:
            token = re.compile(r"[^\s$.,;{}\\]+").match(text, mark.end())
            content, end = (token.group(), token.end()) if token else ("", mark.end())
        content = content.strip()
        if not content:
            continue
        if end_of_group is not None and not _BETWEEN_BOXES.fullmatch(text, end, end_of_group):
            break
        parts.append(content)
        end_of_group = mark.start()
    return [", ".join(reversed(parts))] if parts else []


def _pattern(expression: str, flags: int = re.IGNORECASE) -> Callable[[str], list[str]]:
    compiled = re.compile(expression, flags)
    return lambda text: [m.group("answer") for m in compiled.finditer(text, max(0, len(text) - TAIL_CHARACTERS))]


def _whole(text: str) -> list[str]:
    text = text.strip()
    return [text] if "\n" not in text and len(text) <= MAX_PLAIN_CHARACTERS else []


_CHOICE = frozenset({"choice"})
_IS = r"\s*(?:is|are|:|=|：|would be|should be)?\s*:?\s*"
RULES: tuple[Rule, ...] = (
    Rule("boxed", _boxed),
    Rule("tag", _pattern(r"<answer>(?P<answer>.*?)</answer>", re.IGNORECASE | re.DOTALL)),
    Rule("hashes", _pattern(rf"^####[ \t]*(?P<answer>\S{_LINE})", re.MULTILINE)),
    Rule("final answer", _pattern(rf"\**\bfinal answer\b\**{_IS}\**[ \t]*:?\**\s*(?P<answer>\S{_LINE})")),
    Rule(
        "Chinese",
        _pattern(
            rf"(?:最终)?(?:答案|结果)(?:选项)?\**(?:是|为|应为|应该是|选)?\**\s*[:：]?\**\s*(?P<answer>\S{_LINE})"
        ),
    ),
    Rule(
        "Chinese choice", _pattern(r"(?:故选|应选|选择|选项?)\s*[:：]?\s*(?P<answer>[（(]?[A-J][)）]?)(?![A-Za-z])", 0)
    ),
    Rule(
        "answer is",
        _pattern(
            rf"\banswer(?:\s+to\s+[^\n:]{{1,80}})?\**\s+(?:is|are|would be|should be)\b\s*:?\**\s*(?P<answer>\S{_LINE})"
        ),
    ),
    Rule("answer:", _pattern(rf"\b(?:answer|solution|result)s?\s*\**\s*[:：=]\s*\**\s*(?P<answer>\S{_LINE})")),
    Rule(
        "option is",
        _pattern(
            rf"\b(?:correct|right|best)\s+(?:option|choice|one)\**\s+(?:is|would be)\s*:?\**\s*(?P<answer>\S{_LINE})"
        ),
    ),
    Rule(
        "option letter",
        _pattern(
            r"(?:\b(?:option|choice|choose|select|pick)\s+\**|^\**)(?P<answer>[(\[]?[A-J](?=[)\].:,\s*]|$)[)\]]?)",
            re.MULTILINE,
        ),
        _CHOICE,
    ),
    Rule("whole", _whole),
    Rule("conclusion", _pattern(r"(?:\bis|\bare|=|≈|\\approx|\bequals)\s*(?P<answer>[^\s=≈][^\n=≈]{0,80})\s*\Z")),
)

_OPEN, _CLOSE = "<think>", "</think>"


def _parts(text: str) -> list[str]:
    """The parts of a response to search, best first."""
    thought, mark, after = text.rpartition(_CLOSE)
    if _OPEN in after:
        after = after[: after.index(_OPEN)]
        return [after] if mark else []
    return [after, thought] if mark else [after]


_WRAP = re.compile(
    r"^(?:\*\*|__|`|\$\$?|\\\(|\\\[|[\"'“‘「])(?P<inner>.+?)(?:\*\*|__|`|\$\$?|\\\)|\\\]|[\"'”’」])$", re.DOTALL
)


def tidy(answer: str) -> str:
    """An announced answer without the sentence around it: outer emphasis, quotes, math signs and the final stop go."""
    answer = answer.strip()
    for _ in range(6):
        before = answer
        answer = answer.strip().rstrip("。")
        if answer.endswith(".") and not answer.endswith(".."):
            answer = answer[:-1]
        answer = answer.removesuffix("**") if answer.count("**") % 2 else answer
        wrapped = _WRAP.match(answer)
        if wrapped and "$" not in wrapped.group("inner"):
            answer = wrapped.group("inner")
        if answer == before:
            break
    return answer.strip()


def extract(text: str, answer_type: str = "") -> str | None:
    r"""The final answer of a response as text, or None.

    ``answer_type`` is a canonical type or "" and only switches on the rules that are meant for one type.

    >>> extract(r"<think>1+1</think>The answer is \boxed{2}.")
    '2'
    """
    for part in _parts(text):
        for rule in RULES:
            if rule.types is not None and answer_type not in rule.types:
                continue
            for candidate in reversed(rule.find(part)):
                answer = tidy(candidate)
                if answer:
                    return answer
        if part.strip():
            break
    return None
