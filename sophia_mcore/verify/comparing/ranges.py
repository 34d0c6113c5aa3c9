"""Ranges ("10-20", "10 to 20 kg") and ratios ("3:4", "3 to 4"): pairs of plain numbers that are no arithmetic."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from sophia_mcore.verify.rules import Rule, tables
from sophia_mcore.verify.text.dates import parse_date, parse_time
from sophia_mcore.verify.text.numbers import Number, numbers_equal, parse_number
from sophia_mcore.verify.text.words import NOT_A_NOUN

_MONEY = r"(?:\\?\$|[€£¥])?\s*"
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*\\?%)?"
_UNIT = (
    r"(?:\s*(?:\\(?:text|mathrm)\s*\{[^{}\d]{1,30}\}|[^\W\d_][^\d,;:=<>()\\+*]{0,30}?)(?:\s*\^\s*\{?\s*\d\s*\}?)?"
    r"|\s*\^\s*\{?\s*\\circ\s*\}?(?:\s*[CF](?![A-Za-z]))?)?"
)
_RANGE = re.compile(
    rf"(?:from|between|从)?\s*(?P<low>(?:-\s*(?=\d))?{_MONEY}{_PLAIN})(?P<unit1>{_UNIT}?)\s*"
    r"(?P<sign>-{1,3}|\\sim|\bto\b|\band\b|到|至|\\text\{\s*to\s*\})\s*"
    rf"(?P<high>(?:-\s*(?=\d))?{_MONEY}{_PLAIN})(?P<unit2>{_UNIT})",
    re.IGNORECASE,
)
_TIME = r"\d{1,2}:\d{2}(?::\d{2})?(?:\s*[ap]\.?m\.?)?|\d{1,2}\s*[ap]\.?m\.?"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = rf"(?:[a-z]{{3,9}}\.?\s+{_DAY}|{_DAY}\s+[a-z]{{3,9}})(?:,?\s+\d{{4}})?|[a-z]{{3,9}}\s+\d{{4}}"
_END = rf"(?:{_TIME}|{_DATE}|\d+/\d+)"
_SPAN = re.compile(
    rf"(?:from|between|从)?\s*(?P<low>{_END})\s*(?:-{{1,3}}|\\sim|\b(?:to|and|until|till|through)\b|到|至)\s*(?P<high>{_END})",
    re.IGNORECASE,
)
_RATIO = re.compile(r"(?P<first>\d+(?:\.\d+)?)\s*(?::|\bto\b)\s*(?P<second>\d+(?:\.\d+)?)")
_FUNCTIONS = frozenset({"sin", "cos", "tan", "log", "ln", "exp", "sqrt"})
_SHARE = re.compile(r"out of| in |percent|%")  # 2:5 is two of seven
_CLOCK = re.compile(r"\d{1,2}:[0-5]\d")


@dataclass(frozen=True, slots=True)
class Range:
    """A range as written: two numbers, the unit behind them ("" if none), and whether the first is the smaller."""

    low: Number
    high: Number
    unit: str
    rising: bool
    hyphen: bool  # written with a hyphen, as a subtraction is


@lru_cache(maxsize=1 << 13)
def parse_range(text: str) -> Range | None:
    """A cleaned answer as a range; None for any other answer.

    >>> parse_range("10 to 20 kg").unit, parse_range("20-10").rising, parse_range("a-b")
    ('kg', False, None)
    """
    if len(text) > 100 or not text[-1:].strip():
        return None
    match = _RANGE.fullmatch(text)
    if match is None or (match["sign"] == "and") != text.casefold().startswith("between"):
        return None
    if "-" in match["low"] + match["high"] and match["sign"].startswith("-"):
        return None  # -5-5 is a subtraction
    low, high = (parse_number(match[end].replace("- ", "-").strip()) for end in ("low", "high"))
    written = [match[name] for name in ("unit1", "unit2") if match[name]]
    units = {re.sub(r"\\(?:text|mathrm)|[{}\s]", "", unit) for unit in written}
    if low is None or high is None or len(units) > 1 or not all(map(_is_unit, written)):
        return None
    money = sorted(set(re.findall(r"[$€£¥]", match[0])))
    percent = "%" if low.percent or high.percent else ""
    unit = "".join([*money, *units, percent]).removesuffix(".")
    return Range(low, high, unit, low.value < high.value, match["sign"].startswith("-"))


def _is_unit(written: str) -> bool:
    """Not the x of 3-5x: a unit is known, in \\text{}, or words of three letters and more."""
    text = written.strip()
    if re.sub(r"\\(?:text|mathrm)|[{}\s]", "", text) in ("或", "和", "且", "与", "or", "and"):
        return False
    if text.startswith(("\\text", "\\mathrm", "^")):
        return True
    if text.rstrip("^{} 23") in tables().units:
        return len(text) > 1 or written[0].isspace()
    return not text.isascii() or (
        written[0].isspace() and len(text) > 2 and text.split()[0] not in _FUNCTIONS | NOT_A_NOUN
    )


def ranges_equal(gold: str, text: str, rule: Rule) -> bool | None:
    """Whether two answers of which at least one is a range are the same range; None if neither is one.

    A range equals no number, and no subtraction: where both are "low-high" the ends are compared one by one. "7-3"
    is a score or a range. A unit that only one of them has does not count.
    """
    a, b = parse_range(gold), parse_range(text)
    if a is None and b is None:
        return None
    if a is None or b is None:
        one, other = (a, text) if b is None else (b, gold)
        assert one is not None
        return False if parse_number(other) is not None or one.rising or one.hyphen else None
    if a.unit.endswith("%") != b.unit.endswith("%"):
        return False
    if a.unit and b.unit and _same_unit(a.unit) != _same_unit(b.unit):
        return False
    return _ends(a.low, b.low, rule) and _ends(a.high, b.high, rule)


def spans_equal(gold: str, text: str) -> bool | None:
    """Whether two answers of which at least one goes from a time, date or fraction to another have the same ends.

    >>> spans_equal("9:30-10:30", "10:30-11:30"), spans_equal("May 3 to May 5", "from May 3 to May 5")
    (False, True)
    """
    a, b = _span(gold), _span(text)
    return None if a is None and b is None else a == b


def _span(text: str) -> tuple[object, object] | None:
    match = _SPAN.fullmatch(text) if len(text) <= 60 and text[:1].strip("-+\\") else None
    if match is None:
        return None
    low, high = _end(match["low"]), _end(match["high"])
    return (low, high) if low and high and type(low) is type(high) else None


def _end(text: str) -> object | None:
    """A time, date or fraction as a value; None for any other answer."""
    number = parse_number(text)
    return number.value if number is not None else parse_time(text) or parse_date(text)


def _same_unit(unit: str) -> str:
    return tables().units.get(unit, unit.rstrip("s"))


def _ends(a: Number, b: Number, rule: Rule) -> bool:
    return numbers_equal(Number(a.value, a.places), Number(b.value, b.places), rule)


def ratios_equal(gold: str, text: str, equal: Callable[[str, str], bool | None]) -> bool | None:
    """Whether a ratio equals another ratio or the quotient; None if neither answer is one.

    Where both could be times of day ("12:30") they are equal only as such.
    """
    if ":" not in gold and ":" not in text:
        return None  # "3 to 4" alone is a range
    a, b = _RATIO.fullmatch(gold), _RATIO.fullmatch(text)
    if a is None and b is None:
        return None
    if a is not None and b is not None:
        if _CLOCK.fullmatch(gold) or not float(a["second"]) or not float(b["second"]):
            return [float(part) for part in a.groups()] == [float(part) for part in b.groups()]
        if ":" not in gold or ":" not in text:
            return a.groups() == b.groups()  # "10 to 20" is 10:20, and hardly 1:2
        return equal(_quotient(a), _quotient(b))
    written, other = (gold, text) if a is not None else (text, gold)
    match = a or b
    assert match is not None
    if _CLOCK.fullmatch(written) or ":" not in written or parse_number(other) is None or _SHARE.search(other):
        return False
    quotient = _quotient(match)
    if float(match["first"]) % (float(match["second"]) or 1) == 0:
        return False  # 45:1 is hardly meant as 45
    return equal(quotient, other) if a is not None else equal(other, quotient)


_NAMED_RATIO = re.compile(
    r"(?P<names>[^:=<>,;]{1,40}(?::[^:=<>,;]{1,40})+)=(?P<values>\s*\d+(?:\.\d+)?\s*(?::\s*\d+(?:\.\d+)?\s*)+)"
)
_SEVERAL_TO_ONE = re.compile(r"\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?)+")


def named_ratios_equal(gold: str, text: str) -> bool | None:
    """Whether two ratios of which one names what is compared are equal; None if neither does.

    >>> named_ratios_equal("a:b = 2:3", "b:a = 3:2"), named_ratios_equal("a:b = 2:3", "b:a = 2:3")
    (True, False)
    """
    a, b = _NAMED_RATIO.fullmatch(gold), _NAMED_RATIO.fullmatch(text)
    if a is None and b is None:
        return None
    if a is not None and b is not None:
        first, second = (dict(zip(_names_of(one["names"]), _values_of(one["values"]), strict=False)) for one in (a, b))
        if first.keys() != second.keys() or len(first) < 2:
            return False
        return _proportional([first[name] for name in first], [second[name] for name in first])
    match, other = (a, text) if a is not None else (b, gold)
    assert match is not None
    if not _SEVERAL_TO_ONE.fullmatch(other):
        return None
    return _proportional(_values_of(match["values"]), _values_of(other))


def _names_of(text: str) -> list[str]:
    bare = re.sub(r"\\(?:text|mathrm|overline)|[{}\s$_]", "", text)
    return [min(name, name[::-1]) if re.fullmatch("[A-Z]{2}", name) else name for name in bare.split(":")]


def _values_of(text: str) -> list[Fraction]:
    return [Fraction(part.strip()) for part in text.split(":")]


def _proportional(first: list[Fraction], second: list[Fraction]) -> bool:
    if len(first) != len(second) or not first[0] or not second[0]:
        return False
    return all(x * second[0] == y * first[0] for x, y in zip(first, second, strict=True))


def _quotient(match: re.Match[str]) -> str:
    return rf"\frac{{{match['first']}}}{{{match['second']}}}" if "." not in match[0] else f"{match[1]}/{match[2]}"
