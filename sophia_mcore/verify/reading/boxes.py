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
    next_start = last = 0
    for start, end, content in _boxes(text):
        if parts and not BETWEEN.fullmatch(text, end, next_start):
            break
        last = last if parts else end
        parts.append(content)
        next_start = start
    if not parts or _WITHIN.search(text, max(0, next_start - _AROUND), next_start):
        return []
    answer = ", ".join(reversed(parts))
    return [(next_start, f"{_before(text, next_start)}{answer}{_behind(text, last)}")]


_PART = re.compile(r"[(（]\s*([1-9])\s*[)）]")


def boxed_parts(text: str) -> str:
    r"""The boxes of the numbered parts of an answer together, where each part has one; "" elsewhere.

    >>> boxed_parts(r"(1) x = \boxed{40}; (2) y = \boxed{70}"), boxed_parts(r"(1) x = \boxed{40}; (2) y = 70")
    ('(1) 40; (2) 70', '')
    """
    found = list(reversed(list(_boxes(text))))
    end, parts = 0, []
    for number, (start, stop, content) in enumerate(found, 1):
        marks = _PART.findall(text, end, start)
        if not marks or marks[-1] != str(number):
            return ""
        parts.append(f"({number}) {content}")
        end = stop
    return "; ".join(parts) if len(parts) > 1 and not _PART.search(text, end) else ""


# ---- what stands right before and behind a box and makes another answer of it

_AROUND = 60
_WITHIN = re.compile(  # the argument of a root, fraction, power or function, or a digit before the box
    r"(?:(?:\\sqrt(?:\[[^\]]*\])?|\\[dtc]?frac|[_^]|\\(?:overline|bar|hat|vec))\s*\{|\\frac\s*\{[^{}]*\}\s*\{)\s*$|\d\Z"
    r"|\\(?:log|ln|exp|sin|cos|tan)\s*(?:\\left)?\(?\s*$"
)
_OPENED = r"(?:[\s$*]|\\[(\[]|\\[,;:! ])*$"
_SIGN_BEFORE = re.compile(
    rf"(?:(?:^|[=\n$(:]|\bis|\bbe|[\[(])\s*(?P<minus>[-−–])\s*\$?|(?P<relation>(?<![<\/\w=-])(?:\\?[A-Za-z]\w{{0,8}}\s*)?"
    rf"(?:[<>≤≥≠]|\\(?:le|ge|ne)(?:q|qslant)?(?![a-z])|\\[lg]t(?![a-z])|\\pm(?![a-z])|±)\s*)){_OPENED}"
)
_WORDS_BEFORE = re.compile(
    rf"(?<![A-Za-z])(?P<words>not|never|(?:no |not )?(?:less|more|greater|fewer|larger|smaller|higher|lower|other) than"
    r"|at least|at most|up to|over|under|above|below|nearly|almost|twice|half(?: of)?|exceeds|except|besides|minus"
    rf"|negative|(?:multiple|square|cube|root|power|factor) of)(?:\s*[:：])?\s*{_OPENED}|(?P<denied>n['’]t){_OPENED}",
    re.IGNORECASE,
)
_CLOSED = r"(?:[\s$*]|\\[)\]]|\\[,;:! ]|~)*"
_SYMBOLS = "pi|sqrt|frac|cdot|times|theta|alpha|beta|lambda|mu|omega|hbar|ln|log|sin|cos|tan"
_FORMULA_BEHIND = re.compile(
    rf"(?:\\[,;:! ]|\s)*(?P<more>(?:\^|_\{{?\d|\\(?:{_SYMBOLS})(?![a-z])|(?<!\s)[A-Za-z](?![A-Za-z])"
    rf"|[-+]\s*(?:\d|\\|[A-Za-z](?![A-Za-z]))|(?<!\s)[/:](?=\d|\\(?:{_SYMBOLS})(?![a-z]))"
    r"|(?<!\s)\(\s*\d*[A-Za-z]\s*[-+*/^])"
    r"[^$\n=<>≤≥,。，]{0,40}?)(?=\$|\\[)\]]|[.,;。，；]|\s*$|\n)"
)
_WORDS_BEHIND = re.compile(
    rf"{_CLOSED}(?:\\text\s*\{{\s*)?(?P<words>or (?:more|less|fewer|above|below|greater)"
    r"|(?:hundred|thousand|million|billion|trillion|dozen)s?|(?:more|less|fewer|greater|larger|smaller) (?:than|as)"
    r"|times (?:as|more|larger|greater|the)|squared|cubed|[万亿千])(?![A-Za-z])",
    re.IGNORECASE,
)


def _before(text: str, start: int) -> str:
    """The sign or words right before a box: "-", "x > ", "at least "; "" if there are none."""
    line = text[max(text.rfind("\n", 0, start) + 1, start - _AROUND) : start]
    sign = _SIGN_BEFORE.search(line)
    if sign is not None:
        bullet = (
            sign["minus"] is not None
            and line[sign.start("minus") + 1 :].startswith(" ")
            and not line[: sign.start("minus")].strip()
        )
        return "" if bullet else "-" if sign["minus"] else str(sign["relation"])
    words = _WORDS_BEFORE.search(line)
    return "" if words is None else f"{words['words'] or 'not'} "


def _behind(text: str, end: int) -> str:
    """What goes on right behind a box: "^2", "x", " million", " or more"; "" where a sentence or a unit follows."""
    rest = text[end : end + _AROUND]
    formula = _FORMULA_BEHIND.match(rest)
    if formula is not None:
        return formula["more"]
    words = _WORDS_BEHIND.match(rest)
    return "" if words is None else f" {words['words']}"
