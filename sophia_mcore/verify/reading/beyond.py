r"""A box that the text goes on from: "AC = \boxed{7.5}. But x is EC, so x = 7.5 - 5 = 2.5". The box was a step."""

from __future__ import annotations

import re

from sophia_mcore.verify.reading.endings import conclusion, only_number
from sophia_mcore.verify.reading.remarks import without_remarks
from sophia_mcore.verify.reading.values import same_value, value_of

REST_CHARACTERS = 600  # a longer text behind a box is not read as a step
_MARKS = r"(?:[\s$*}.]|\\[)\]]|\\[,;:! ]|~|°|\\?%)*"
_CLOSED = re.compile(
    rf"{_MARKS}(?:(?:\\(?:text|mathrm)\s*\{{[^{{}}]*\}}|[a-zA-ZµΩ²³/^]{{1,6}})(?=[\s$]*(?:[.\n$]|\\[)\]])))?{_MARKS}"
)
_GOES_ON = re.compile(  # the work is not yet done
    r"(?:but|however|yet|now|next|it remains|we still|to get|to find|subtracting|adding|multiplying|dividing"
    r"|doubling|halving|then)\b"
    r"|(?:this|that|it) is (?:only |just )?(?:the|a|an|one) [^.;\n]{1,60}[;,.]\s",
    re.IGNORECASE,
)
_STATES = re.compile(r"(?:so|thus|hence|therefore|finally|consequently)\b", re.IGNORECASE)
_ENDED = re.compile(r"[.\n]|\\\]|\$\$")  # the box's sentence
_SHOWN = re.compile(r"(?:\s*(?:\$\$?|\\\]))?[.\s]*\n\s*(?:\$\$|\\\[)\s*\S")  # a formula on a line of its own
_REASON = re.compile(r"[\s,;]*(?:because|since|as|where|which|i\.e|that is|or)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=\w[.!])\s")
_LAST = re.compile(r"(?:=|\b(?:is|gives|get|equals|leaves)\b)\s*\$?(?P<value>[^=$]{1,60})[\s.$*]*\Z")


def goes_on(text: str, end: int, inside: str) -> str | None:
    r"""What replaces a boxed number that is only a step: the later value, or "" where in doubt; None if nothing does.

    ``end`` is where the box ends, ``inside`` what it holds.

    >>> goes_on("But x is the rest. Subtracting, x = 8 - 5 = 3.", 0, "8"), goes_on("This is the length.", 0, "8")
    ('3', None)
    """
    behind = text[end:]
    rest = without_remarks(behind.strip())
    closed = _CLOSED.match(rest)
    rest = rest[closed.end() :] if closed else rest
    between = behind[: len(behind) - len(behind.lstrip()) + (closed.end() if closed else 0)]
    if not rest or len(rest) > REST_CHARACTERS or "\\boxed" in rest or _REASON.match(rest):
        return None
    on = _GOES_ON.match(rest) is not None
    states = _STATES.match(rest) is not None and _ENDED.search(between) is not None
    if not (on or states or _SHOWN.match(text, end)):
        return None  # as "AB = [5], so CD = 7" and "[5] so three" in one sentence
    boxed = value_of(inside)
    later = next((found[-1][1] for read in (only_number, conclusion) if (found := read(_plain(rest)))), None)
    first = only_number(_SENTENCE_END.split(rest)[0]) if states and boxed is not None else []
    again = value_of(first[-1][1]) if first else None
    if boxed is not None and again is not None and same_value(boxed, again):
        return None  # the answer once more
    last = _LAST.search(rest)
    sure = later is not None and value_of(later) is not None
    value = value_of(later or "") if sure else value_of(last["value"]) if last else None
    if boxed is None or value is None or same_value(boxed, value):
        return None
    return later.strip(" .$*") if on and sure and later else ""


def _plain(rest: str) -> str:
    """The last display without its marks."""
    shown = re.search(r"(?:\$\$|\\\[)\s*(?P<inner>[^$]{1,200}?)[\s.]*(?:\$\$|\\\])\s*\Z", rest)
    return f"{rest[: shown.start()]}\n{shown['inner'].strip()}" if shown else rest
