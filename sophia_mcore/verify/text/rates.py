"""What an amount is counted per: "$18,750 per year", "30 students per class"; and the era of a year: "1066 AD"."""

from __future__ import annotations

import re
from functools import lru_cache

from sophia_mcore.verify.rules import tables
from sophia_mcore.verify.text.words import NOT_A_NOUN, SMALL

_TIMES = "second|minute|hour|day|night|week|month|quarter|year"
_ADVERBS = {
    "annually": "year",
    "yearly": "year",
    "monthly": "month",
    "weekly": "week",
    "daily": "day",
    "hourly": "hour",
}
_SAME = {"annum": "year", "kg": "kilogram", "person": "person", "capita": "person", "head": "person", "hr": "hour"}
_RATE = re.compile(
    rf"(?P<head>.*?\d[\d,.{{}}]*(?:\s+(?:million|billion|thousand))?(?:\s*\\?%|\s+(?:dollars|euros|[a-z]{{3,}}s))?)"
    rf"(?P<rate>\s+per\s+(?P<per>[a-z]{{2,}})|\s+an?\s+(?P<time>{_TIMES})|\s?/\s?(?P<slash>(?:{_TIMES})|person|[a-z]{{4,}}|kg)"
    rf"|,?\s+(?P<adverb>{'|'.join(_ADVERBS)}))",
    re.DOTALL,
)
_DIGIT = re.compile(r"\d")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_NOT_COUNTED = frozenset({"cent", "cents", "mille", "dozen", "pair", "unit", *SMALL})
_LAST_WORD = re.compile(r"[A-Za-z]+$")


@lru_cache(maxsize=1 << 12)
def rate_of(text: str) -> tuple[str, str]:
    r"""An amount of money, per cent, a number or a count of things, and what it is per; "" where it is per nothing.

    Units stay together: "60 km per hour" is one unit. A number of hundreds is none: "30 per thousand".

    >>> rate_of("$18,750 per year"), rate_of("$15/hour"), rate_of("60 km per hour"), rate_of("30 per thousand")
    (('$18,750', 'year'), ('$15', 'hour'), ('60 km per hour', ''), ('30 per thousand', ''))
    """
    if len(text) > 80 or not any(mark in text for mark in ("per ", "/", " a", "ly")) or _DIGIT.search(text) is None:
        return text, ""
    flat = " ".join(_TEXT.sub(r" \1", text).split()) if "\\text" in text else text
    match = _RATE.fullmatch(flat.strip(" .*").removesuffix("$"))
    if match is None:
        return text, ""
    head, per = (
        match["head"],
        match["per"] or match["time"] or match["slash"] or _ADVERBS.get(match["adverb"] or "", ""),
    )
    word = _LAST_WORD.search(head)
    unit = word is not None and word[0] in tables().units and word[0] not in tables().currencies
    if unit or per in _NOT_COUNTED or per in NOT_A_NOUN or (word is not None and word[0] in NOT_A_NOUN - {"million"}):
        return text, ""
    return head.replace("{,}", ","), _SAME.get(per, per)


_YEAR = re.compile(r"(?:(?:AD|A\.D\.|CE)\s+)(?P<before>\d{1,4})|(?P<behind>\d{1,4})\s+(?:AD|A\.D\.?|CE|C\.E\.?)")


def year_of(text: str) -> str:
    """A year without its era where that is ours; any other text as it is.

    >>> year_of("1066 AD"), year_of("AD 79"), year_of("44 BC")
    ('1066', '79', '44 BC')
    """
    match = _YEAR.fullmatch(text) if text[-1:] in "DE." or text[:1] in "AC" else None
    return match["before"] or match["behind"] if match else text
