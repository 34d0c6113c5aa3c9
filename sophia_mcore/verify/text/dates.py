"""Dates and times of day in their usual forms."""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache

from sophia_mcore.verify.text.numbers import parse_number
from sophia_mcore.verify.text.words import chinese_digits

DATE_FORMATS = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%B %d %Y", "%b %d %Y", "%d %B %Y", "%d %b %Y", "%m/%d/%Y",
    "%B %Y", "%b %Y", "%B %d", "%b %d", "%d %B", "%d %b",
)  # fmt: skip
TIME_FORMATS = ("%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M:%S %p", "%I %p")
_CHINESE = re.compile(r"(?:(\d{4})年)?(\d{1,2})月(?:(\d{1,2})[日号])?")
_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)\b")
_MERIDIEM = re.compile(r"(?<=\d)\s*([ap])\.?\s?(?:m\b)?\.*$", re.IGNORECASE)
_LOOKS = re.compile(r"\d")


@lru_cache(maxsize=4096)
def parse_date(text: str) -> tuple[int | None, int, int | None] | None:
    """(year, month, day) of a date, parts that are not given being None; None if it is not a date.

    >>> parse_date("March 5th, 2021")
    (2021, 3, 5)
    """
    if len(text) > 40 or not (_LOOKS.search(text) or "月" in text):
        return None
    chinese = _CHINESE.fullmatch((text if text.isascii() else chinese_digits(text)).replace(" ", ""))
    if chinese:
        year, month, day = chinese.groups()
        return (int(year) if year else None, int(month), int(day) if day else None)
    plain = " ".join(_ORDINAL.sub("", text).replace(",", " ").replace(" of ", " ").split())
    for form in DATE_FORMATS:
        has_year = "%Y" in form
        try:
            moment = datetime.strptime(plain if has_year else f"{plain} 2000", form if has_year else f"{form} %Y")
        except ValueError:
            continue
        return (moment.year if has_year else None, moment.month, moment.day if "%d" in form else None)
    return None


@lru_cache(maxsize=4096)
def parse_time(text: str) -> tuple[int, int, int] | None:
    """(hour, minute, second) of a time of day; None if it is not one.

    >>> parse_time("3:45 p.m.")
    (15, 45, 0)
    """
    if len(text) > 20 or not _LOOKS.search(text):
        return None
    plain = _MERIDIEM.sub(lambda match: f" {match[1].upper()}M", text.strip())
    for form in TIME_FORMATS:
        try:
            moment = datetime.strptime(plain, form)
        except ValueError:
            continue
        return (moment.hour, moment.minute, moment.second)
    return None


def has_meridiem(text: str) -> bool:
    """Whether a time says am or pm; without it "3:45" may also be a ratio."""
    return _MERIDIEM.search(text) is not None


_MINUTES = {"five": 5, "ten": 10, "quarter": 15, "a quarter": 15, "twenty": 20, "twenty-five": 25, "half": 30}
_SPOKEN = re.compile(
    r"(?:(?P<minutes>a quarter|[a-z-]+|\d{1,2}(?= minutes))(?: minutes)? (?P<way>past|after|to|before) )?"
    r"(?P<hour>[a-z]+|\d{1,2})"
    r"(?P<sharp> o'? ?clock)?(?P<late> in the (?:afternoon|evening))?(?: in the morning)?"
)


_CHINESE_TIME = re.compile(
    r"(?P<half>上午|早上|下午|晚上)?(?P<hour>[一二两三四五六七八九十]{1,2}|\d{1,2})[点时](?:整|(?P<part>半|[一三]刻)|(?P<minute>\d{1,2}|[零二三四五]?十?[一二三四五六七八九]?)分?)?"
)
_PARTS = {"半": 30, "一刻": 15, "三刻": 45}


_NAMED = dict.fromkeys(("noon", "12 noon", "midday"), (12, 0, 0)) | dict.fromkeys(
    ("midnight", "12 midnight"), (0, 0, 0)
)


def _chinese_time(text: str) -> tuple[int, int, int] | None:
    match = _CHINESE_TIME.fullmatch(text.replace(" ", ""))
    if match is None:
        return None
    hour, minute = (
        parse_number(part) if part else None
        for part in (match["hour"], match["minute"].lstrip("零") if match["minute"] else "")
    )
    if hour is None or (match["minute"] and minute is None):
        return None
    minutes = _PARTS[match["part"]] if match["part"] else int(minute.value) if minute else 0
    if hour.value not in range(25) or minutes >= 60:
        return None
    if match["half"] == "晚上" and hour.value == 12:
        return 0, minutes, 0  # midnight
    late = match["half"] in ("下午", "晚上") and hour.value < 12
    return int(hour.value) + (12 if late else 0), minutes, 0


def spoken_time(text: str) -> tuple[int, int, int] | None:
    """(hour, minute, second) of "quarter to seven", "half past 6" or "6 o'clock"; None for anything else.

    >>> spoken_time("quarter to seven"), spoken_time("half past six"), spoken_time("seven")
    ((6, 45, 0), (6, 30, 0), None)
    """
    if len(text) > 40:
        return None
    if not text.isascii():
        return _chinese_time(text)
    if text.casefold() in _NAMED:
        return _NAMED[text.casefold()]
    match = _SPOKEN.fullmatch(text.casefold().replace("’", "'"))
    if match is None or not (match["way"] or match["sharp"]):
        return None
    number, said = parse_number(match["hour"]), match["minutes"] or "0"
    minutes = int(said) if said.isdigit() else _MINUTES.get(said)
    if number is None or number.value not in range(1, 13) or minutes is None or minutes >= 60:
        return None
    hour = int(number.value)
    if match["way"] in ("to", "before"):
        if not minutes:
            return None
        hour, minutes = (hour - 2) % 12 + 1, 60 - minutes
    return hour % 12 + 12 if match["late"] else hour, minutes, 0
