"""Options judged one by one, exactly one of them affirmed: "A: no", "B ✗", "**Composite** – ✅ two rows of leaves"."""

from __future__ import annotations

import re

ROWS = 3  # fewer rows may be of a question that asks for what does not fit
AFTER_CHARACTERS = 200  # what may stand behind the rows
_ROW = re.compile(r"[ \t]*(?:[-*•]\s+|\d{1,2}[.)]\s+|\|\s*)?(?=[^\s|-]|-\w)(?P<row>[^\n]{1,300})")
_RULER = re.compile(r"[\s|:-]+")
_YES = re.compile(r"[✓✔✅☑]|[–—:|→]\s*[*_]{0,3}(?:fits|yes|matches|correct)\b|(?<!不)符合题意|(?<!不)正确")
_NO = re.compile(
    r"[✗✘❌✖]|[–—:|→]\s*[*_]{0,3}(?:no|impossible|wrong|incorrect|does not|doesn['’]t)\b|不符合题意|不正确|错误",
    re.IGNORECASE,
)
_LETTER = re.compile(r"[*_]{0,3}\(?(?P<letter>[A-J])\)?[*_]{0,3}(?:[.:)]|\s|$)")
_END_OF_LABEL = re.compile(r"\s+[–—-]\s|\s*[:：|→✓✔✅☑]")
_REVERSED = re.compile(
    r"\bcannot\b|\bnot\b|\bnever\b|n['’]t\b|\bexcept\b|\bwrong\b|\bfalse\b|\bincorrect\b|\bwrongly\b|[✗✘❌✖]|不|错",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    r"\bcannot\b|\bNOT\b|\*not\*|\bexcept\b|\bleast\b|\b(?:is|are) not\b|\bfalse\b|\bincorrect\b|不(?!同)|错误"
)


def marked_row(text: str) -> list[tuple[int, str]]:
    r"""The one row of the last rows that is affirmed while all others are denied, by its letter or its label.

    >>> marked_row("- (A) It folds. ✓\n- (B) It does not. ✗\n- (C) Two faces meet. ✗")
    [(61, 'A')]
    """
    if _YES.search(text) is None:
        return []
    lines = text.rstrip().split("\n")
    last = len(lines)
    while last and len("\n".join(lines[last:])) <= AFTER_CHARACTERS and not _judged(lines[last - 1]):
        last -= 1
    first = last
    while first and (_judged(lines[first - 1]) or not lines[first - 1].strip() or _RULER.fullmatch(lines[first - 1])):
        first -= 1
    rows = [line for line in lines[first:last] if _judged(line)]
    affirmed = [row for row in rows if _YES.search(row)]
    if len(rows) < ROWS or len(affirmed) != 1 or _REVERSED.search("\n".join(lines[last:])):
        return []
    if _BEFORE.search("\n".join(lines[max(0, first - 3) : first])):
        return []
    label = _label(affirmed[0])
    start = max(len("\n".join(lines[:last])) - 1, 0)  # behind what is said of the other rows
    return [(start, label)] if label else []


def _judged(line: str) -> bool:
    """Whether a row is affirmed or denied, and not both."""
    return _ROW.fullmatch(line) is not None and (_YES.search(line) is None) != (_NO.search(line) is None)


def _label(row: str) -> str:
    found = _ROW.fullmatch(row)
    rest = found["row"].strip() if found else ""
    letter = _LETTER.match(rest)
    return letter["letter"] if letter else _END_OF_LABEL.split(rest)[0].strip(" *_")
