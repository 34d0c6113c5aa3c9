"""Parts that a response ends with, by number or name: "(1) 48 and (2) 20", "Domain: (-1, 4]" and "Range: [0, 5)"."""

from __future__ import annotations

import re

from sophia_mcore.verify.text.clauses import SENTENCE_END
from sophia_mcore.verify.text.several import labelled_parts, numbered_parts

_TAIL = 600  # characters of the end that are read
_BULLET = re.compile(r"^\s*(?:[-*•]\s+|\d{1,2}[.)]\s+)?")
_LEAD = re.compile(r"^(?:(?:so|thus|hence|therefore),?\s+(?=the\s)|(?:final\s+)?answer\s*[:：]\s*)", re.IGNORECASE)
_ONE_PART = re.compile(
    r"(?:the\s+)?(?!answers?\b|ans\b|solution\b|note\b|check\b)(?P<label>[a-z]{3,20})\s*(?::|=|\bis\b|\bare\b)\s*(?P<value>\S.{0,100})",
    re.IGNORECASE,
)
_DOUBTED = re.compile(
    r"\b(?:if|unless|not|never|neither|nor|maybe|perhaps|probably|possibly|likely|would|could|might|wrong|incorrect|false)\b"
    r"|n['’]t\b|\?",
    re.IGNORECASE,
)
_OF_ANOTHER = re.compile(  # a line before the parts that says whose they are, or that they are not meant
    rf"{_DOUBTED.pattern}|\b(?:inverse|other|another|mistakes?|errors?|students?|someone|people|wrote|says?|said|claims?|claimed"
    r"|thinks?|thought|guess\w*|suppos\w+|assum\w+|original\w*|initial\w*|first|before|instead|unlike|contrary)\b",
    re.IGNORECASE,
)

_SAID_BY = re.compile(  # the same of a sentence that ends
    r"\b(?:inverse|mistakes?|students?|someone|people|wrote|says?|said|claims?|claimed|thinks?|thought|guess\w*|wrong)\b",
    re.IGNORECASE,
)


def named_parts(text: str) -> list[tuple[int, str]]:
    """The named parts at the end of a text, at least two, as one answer.

    >>> named_parts("We read it off.\\nDomain: $(-1, 4]$\\nRange: $[0, 5)$")
    [(16, 'Domain: (-1, 4]; Range: [0, 5)')]
    >>> named_parts("Not so:\\nDomain: (-1, 4]\\nRange: [0, 5)")
    []
    """
    tail = text.rstrip()[-_TAIL:]
    found: list[str] = []
    position = start = len(text.rstrip()) - len(tail)
    pieces = [(start + line.start(), one) for line in _LINE.finditer(tail) for one in _sentences(line[0])]
    for start, piece in reversed(pieces):
        parts = _parts(piece)
        if not parts:
            if (_SAID_BY.search if piece.endswith((".", "!")) else _OF_ANOTHER.search)(piece):
                return []
            break
        if _DOUBTED.search(piece):
            return []
        found[:0] = parts
        position = start
    return [(position, "; ".join(found))] if len(found) > 1 else []


_LINE = re.compile(r"[^\n]*\S[^\n]*")


def _sentences(line: str) -> list[str]:
    plain = _BULLET.sub("", line, count=1).replace("$", "").replace("**", "").strip()
    return [_LEAD.sub("", one) for one in SENTENCE_END.split(plain)]


def _parts(piece: str) -> list[str]:
    several = labelled_parts(piece)
    if several:
        return [f"{label}: {value}" for label, value in several]
    one = _ONE_PART.fullmatch(piece)
    return [f"{one['label']}: {one['value'].rstrip(' .,;')}"] if one is not None else []


_FIRST = re.compile(r"(?:^|\n)[ \t]*(?P<first>[(（]1[)）]|①)")
_ANNOUNCED = re.compile(  # the beginning of the last line before its first part
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:(?:the|our)\s+)?(?:(?:final|correct)\s+)?answers?(?:\s+(?:are|is))?\s*[:：]?\s*"
    r"|we\s+(?:get|have|obtain|find)\s*:?\s*)?"
    r"|(?:所以|因此|故)?(?:最终|正确)?答案(?:是|为)?[:：]?\s*",
    re.IGNORECASE,
)
_ON_THE_LINE = re.compile(r"[(（]1[)）]|①")


def last_numbered(text: str) -> list[tuple[int, str]]:
    """The numbered parts at the end: lines from the last "(1)" on, or the last line behind "The answers are".

    >>> last_numbered("So\\n(1) 48\\n(2) 20"), last_numbered("The answers are not (1) 48 and (2) 20.")
    ([(3, '(1) 48\\n(2) 20')], [])
    """
    text = text.rstrip()
    line = text.rpartition("\n")[2]
    first = _ON_THE_LINE.search(line)
    if first is not None and _ANNOUNCED.fullmatch(line[: first.start()].replace("*", "").lstrip()):
        start = len(text) - len(line) + first.start()
    else:
        start = max((found.start("first") for found in _FIRST.finditer(text)), default=-1)
    header = text[: max(text.rfind("\n", 0, max(start, 0)), 0)].rstrip().rpartition("\n")[2]
    if header.endswith((":", "：")) and _OF_ANOTHER.search(header):
        return []
    parts = text[start:].replace("**", "") if start >= 0 else ""
    return [(start, parts)] if parts and numbered_parts(parts) else []
