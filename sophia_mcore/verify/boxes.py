r"""Answers in \\boxed{}."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_BOXES = 16
BOX_CHARACTERS = 20_000  # a box longer than this is not an answer

_BRACE = re.compile(r"\\.|\{+|\}+", re.DOTALL)
_UNBRACED = re.compile(r"\s*([^\s$.,;{}\\]+)")
BETWEEN = re.compile(r"(?:[\s,;$、，和或及]|\\[()\[\]]|\band\b|\bor\b|\\(?:text|quad)\s*(?:\{\s*(?:and|or)\s*\})?)*")


def _closing_brace(text: str, start: int) -> int:
    """Index of the brace that closes the one at ``start``, or -1. A backslash escapes the next character."""
    depth = 0
    for match in _BRACE.finditer(text, start, start + BOX_CHARACTERS):
        run = match.group()
        if run[0] == "{":
            depth += len(run)
        elif run[0] == "}":
            if len(run) >= depth:
                return match.start() + depth - 1
            depth -= len(run)
    return -1


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, content) of the complete, non-empty boxes, from the last to the first."""
    end = len(text)
    for _ in range(MAX_BOXES):
        start = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
        if start < 0:
            return
        inside = text.find("x", start) + (3 if text.startswith("\\boxed", start) else 1)
        brace = inside + (len(text[inside : inside + 8]) - len(text[inside : inside + 8].lstrip()))
        if text[brace : brace + 1] == "{":
            close = _closing_brace(text, brace)
            if close > 0 and text[brace + 1 : close].strip():
                yield start, close + 1, text[brace + 1 : close].strip()
        else:
            bare = _UNBRACED.match(text, inside)
            if bare:
                yield start, bare.end(), bare[1]
        end = start


def end_of_last(text: str) -> int:
    """Where the last box that has content ends; -1 if there is none."""
    return next((end for _, end, _ in _boxes(text)), -1)


def cut_off(text: str) -> bool:
    """Whether the last box never ends: what stands in an earlier one has been replaced."""
    start = text.rfind("\\boxed{")
    return start >= 0 and len(text) - start < BOX_CHARACTERS and _closing_brace(text, start + len("\\boxed")) < 0


def boxed(text: str) -> list[tuple[int, str]]:
    """The last boxed answer; boxes joined by nothing but "and", "or" or commas are one answer."""
    parts: list[str] = []
    next_start = 0
    for start, end, content in _boxes(text):
        if parts and not BETWEEN.fullmatch(text, end, next_start):
            break
        parts.append(content)
        next_start = start
    return [(next_start, ", ".join(reversed(parts)))] if parts else []
