r"""Asides in the last sentence: the same value rounded, a value put aside, an uncertainty, a word "by the way".

"5/13 (about 0.385)", "$4\sqrt5$, or about 8.94", "36 (not 32, which ...)", "9.8 m/s², with an uncertainty of 0.1 m/s²".
"""

from __future__ import annotations

import re

from sophia_mcore.verify.reading.values import same_value, value_of

TAIL_CHARACTERS = 300
_ABOUT = r"(?:about|approximately|approx\.?|roughly|around|≈|\\approx|=)"
_ROUNDED = re.compile(
    rf"(?:\s*\(\s*(?:or |which is |that is,? |i\.e\.,? )?{_ABOUT}\s*\$?(?P<bracket>[^()=≈]{{1,40}}?)\$?\s*\)"
    rf"|,?\s+(?:or|which is|that is,?|i\.e\.,?)\s+{_ABOUT}\s+\$?(?P<said>[^()=≈,;]{{1,40}}?)\$?"
    r"|\s*(?:≈|\\approx(?![a-z]))\s*(?P<sign>[^()=≈,;$]{1,30}?)(?P<dollar>\$?))[\s.*]*\Z"
)
_ASIDE = re.compile(
    r"(?:\s\(not\s+[*$]{0,3}(?:[-−√]?\d|[A-J]\b)[^()]{0,200}\)"  # another value, and no doubt of this one
    r"|,\s+which,\s+(?:by the way|incidentally),\s[^.;]{1,80}"
    r"|,?\s+(?:with|and) an?\s+(?:estimated |absolute |experimental )?(?:uncertainty"
    r"|error)(?: bar)? of\s[^;]{1,40})[\s.*]*\Z"
)
_VALUES = re.compile(
    r"\$(?P<formula>[^$]{1,80})\$|(?P<plain>[-−]?(?:\d[\d.,]*|√\d+|π|\([^()\s]{1,20}\))(?:\s?[/*·√π+^−-]\s?[\d.√π()]+|[√π²³]\d*)*)"
)
_UNIT = re.compile(r"(?P<number>\$?[-−]?\d[\d.,]*)(?:\s+[a-z]{2,}){1,3}$|(?P<plain>.*)$")


def without_asides(text: str) -> str:
    r"""The text up to an aside that its last sentence ends with.

    >>> without_asides("So sin A = 5/13 (about 0.385)."), without_asides("It is 5/13 (about 0.5).")
    ('So sin A = 5/13', 'It is 5/13 (about 0.5).')
    """
    start = max(0, len(text) - TAIL_CHARACTERS)
    found = _ASIDE.search(text, start)
    if found is not None and text[: found.start()].strip():
        return text[: found.start()]
    rounded = _ROUNDED.search(text, start)
    if rounded is None:
        return text
    said = (rounded["bracket"] or rounded["said"] or rounded["sign"] or "").strip(" .*$")
    line = text[text.rfind("\n", 0, rounded.start()) + 1 : rounded.start()]
    exact = _last_value(line)
    unit = _UNIT.match(said)
    value = value_of((unit["number"] or unit["plain"]) if unit else said)
    if exact is None or value is None or not same_value(exact, value):
        return text
    return f"{text[: rounded.start()]}{rounded['dollar'] or ''}"


def _last_value(line: str) -> float | None:
    """The value of the last formula or number of a line."""
    found = list(_VALUES.finditer(f"{line}$" if line.count("$") % 2 else line))
    if not found:
        return None
    last = (found[-1]["formula"] or found[-1]["plain"]).rpartition("=")[2].strip(" .,")
    return value_of(last)
