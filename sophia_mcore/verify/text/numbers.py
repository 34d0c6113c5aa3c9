"""Numbers as exact rationals, and when two of them count as equal."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from sophia_mcore.verify.rules import Rule
from sophia_mcore.verify.text.words import number_of_words

MAX_DIGITS = 300  # longer numbers and larger exponents are left to others
SMALL = Fraction(1, 100)  # below this size rounding to decimal places says little: relative difference counts
SMALL_RELATIVE = Fraction(1, 10_000)
SAME_RELATIVE = Fraction(1, 10**9)  # numbers with a decimal point that agree to nine digits are equal at any size


@dataclass(frozen=True, slots=True)
class Number:
    """A rational number as written. ``places``: digits after the decimal point, None if written without one."""

    value: Fraction
    places: int | None = None
    percent: bool = False
    kind: str = "integer"


_PLAIN = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    r"(?:\\?[$€£¥]\s*)?(?P<sign>[+-]?)\s*(?:\\?[$€£¥]\s*)?"
    rf"(?:(?P<plain>{_PLAIN})(?:[eE](?P<exponent>[+-]?\d{{1,4}}))?"
    r"|(?:(?P<units>\d+)\s+)?(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
    r"|(?P<whole>\d+)?\s*\\frac\s*"
    r"(?:\{\s*(?P<ftop>-?\d+)\s*\}\s*\{\s*(?P<fbottom>-?\d+)\s*\}|(?P<d1>\d)\s*(?P<d2>\d))\s*)"
    r"(?P<percent>\s*(?:\\?%|percent\b|\\text\s*\{\s*percent\s*\}))?"
)
_TIMES_TEN = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?P<plain>{_PLAIN})\s*(?:\\times|\\cdot|\*|x)\s*)?"
    r"10\s*\^\s*(?:\{\s*(?P<braced>[+-]?\d{1,4})\s*\}|\(\s*(?P<round>[+-]?\d{1,4})\s*\)|(?P<bare>[+-]?\d{1,4}))"
)
_SPACED_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_SEPARATOR = re.compile(r",|\{,\}|\\,")


@lru_cache(maxsize=1 << 16)
def parse_number(text: str) -> Number | None:
    """A cleaned answer as a rational number, or None if it is not plainly one.

    >>> parse_number("1,234.50").value
    Fraction(2469, 2)
    """
    if len(text) > MAX_DIGITS:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        words = number_of_words(text)
        if words is not None:
            return Number(words, None, False, "integer" if words.denominator == 1 else "fraction")
        spoken = _spoken(text)
        if spoken is not None:
            return spoken
        if "\\overline" in text or "\\dot" in text or "\u0307" in text or ".(" in text:
            return _repeating(text)
        if _SPACED_THOUSANDS.fullmatch(text):
            return parse_number(text.replace(" ", ""))
        return _parse_scientific(text)
    sign = -1 if match["sign"] == "-" else 1
    percent = match["percent"] is not None
    if match["plain"]:
        return _plain(match["plain"], int(match["exponent"] or 0), match["exponent"] is not None, sign, percent)
    whole = 0
    if match["top"]:
        top, bottom = int(match["top"]), int(match["bottom"])
        if match["units"]:
            whole = int(match["units"])
            if top >= bottom:
                return None  # no mixed number
    else:
        top, bottom = int(match["ftop"] or match["d1"]), int(match["fbottom"] or match["d2"])
        whole = int(match["whole"] or 0)
    if bottom == 0:
        return None
    return Number(sign * (whole + Fraction(top, bottom)), None, percent, "percent" if percent else "fraction")


def _plain(digits: str, exponent: int, scientific: bool, sign: int, percent: bool) -> Number | None:
    if abs(exponent) > MAX_DIGITS:
        return None
    digits = _SEPARATOR.sub("", digits)
    mantissa, _, decimals = digits.partition(".")
    value = Fraction(int(mantissa + decimals or "0"), 10 ** len(decimals)) * Fraction(10) ** exponent
    places = max(0, len(decimals) - exponent) if decimals or exponent < 0 else None
    kind = "percent" if percent else "scientific" if scientific else "integer" if places is None else "decimal"
    return Number(sign * value, places, percent, kind)


_SPOKEN = re.compile(
    r"(?:(?P<minus>minus|negative)\s+(?P<size>[\w .-]+)|(?P<share>[A-Za-z -]+?)\s+percent"
    r"|(?P<top>\d{1,9}|[a-z]{3,5}) (?:out of|in) (?P<bottom>\d{1,9}|[a-z]{3,5}))",
    re.IGNORECASE,
)


def _spoken(text: str) -> Number | None:
    """ "minus five", "three percent" and "7 out of 10"."""
    if text.endswith(" below zero"):
        below = parse_number(re.sub(r"(?: degrees?)? below zero$", "", text))
        return None if below is None or below.value < 0 else replace(below, value=-below.value)
    if text.startswith("百分之") and (share := parse_number(text[3:])) is not None:
        return replace(share, percent=True, kind="percent")
    match = _SPOKEN.fullmatch(text)
    if match is None:
        return None
    if match["top"]:
        ends = [Fraction(one) if one.isdigit() else number_of_words(one) for one in (match["top"], match["bottom"])]
        return Number(ends[0] / ends[1], None, False, "fraction") if ends[0] is not None and ends[1] else None
    if match["share"]:
        words = number_of_words(match["share"])
        return None if words is None else Number(words, None, True, "percent")
    size = None if _SPOKEN.fullmatch(match["size"]) else parse_number(match["size"].strip())
    return None if size is None or match["size"].strip().startswith("-") else replace(size, value=-size.value)


_REPEATING = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>\d*)\.(?P<fixed>\d*)(?:\\overline\s*\{?(?P<period>\d+)\}?|\((?P<braced>\d+)\))"
)
_DOTTED = re.compile(r"\\dot\s*(?:\{\s*(\d)\s*\}|(\d))|(\d)\u0307")


def _repeating(text: str) -> Number | None:
    """0.1\\overline{3} as 2/15; dots stand over the first and the last digit of a period, or over each."""
    dots = list(_DOTTED.finditer(text))
    if dots:
        first, end = dots[0].start(), dots[-1].end()
        period = _DOTTED.sub(r"\1\2\3", text[first:end])
        text = f"{text[:first]}\\overline{{{period}}}{text[end:]}"
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    fixed, period = match["fixed"], match["period"] or match["braced"]
    value = Fraction(int(match["whole"] + fixed or "0"), 10 ** len(fixed))
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    return Number(-value if match["sign"] else value, None, False, "fraction")


def _parse_scientific(text: str) -> Number | None:
    match = _TIMES_TEN.fullmatch(text)
    if match is None:
        return None
    exponent = int(match["braced"] or match["round"] or match["bare"])
    sign = -1 if match["sign"] == "-" else 1
    return _plain(match["plain"] or "1", exponent, True, sign, False)


def numbers_equal(gold: Number, prediction: Number, rule: Rule) -> bool:
    """Equality of two numbers under the precision of ``rule``; the gold answer "50%" equals both 0.5 and 50.

    A percentage for a plain gold answer has one reading: the share where that is at most 1 ("3%" for 0.03), else the
    number of per cent ("45%" for 45, but not "4500%").
    """
    a, b = gold.value, prediction.value
    inexact = gold.places is not None or prediction.places is not None
    places = gold.places or 0
    if gold.percent == prediction.percent:
        return values_equal(a, b, inexact, places, rule)
    if gold.percent:
        share = rule if rule.tolerance is None else replace(rule, tolerance=rule.tolerance / 100)  # it is of per cents
        return values_equal(a, b, inexact, places, rule) or values_equal(a / 100, b, inexact, places + 2, share)
    return values_equal(a, b / 100 if abs(a) <= 1 else b, inexact, places, rule)


def _allowed(tolerance: Fraction, size: Fraction) -> Fraction:
    """The tolerance that comes with an answer; one that is larger than the answer is one of its mantissa.

    >>> float(_allowed(Fraction("0.02"), Fraction("1.488e-4"))), float(_allowed(Fraction("0.02"), Fraction("1.5")))
    (2e-06, 0.02)
    >>> _allowed(Fraction(1, 2), Fraction(1, 10**400)) > 0  # beyond floats
    True
    """
    if not 0 < size <= tolerance:
        return tolerance
    return tolerance * Fraction(10) ** math.floor(math.log10(size.numerator) - math.log10(size.denominator))


def values_equal(gold: Fraction, value: Fraction, inexact: bool, gold_places: int, rule: Rule) -> bool:
    """Equality of two rationals; ``inexact``: one of them was written with a decimal point."""
    if gold == value:
        return True
    difference = abs(gold - value)
    allowed = [_allowed(Fraction(rule.tolerance), abs(gold))] if rule.tolerance is not None else []
    if rule.absolute is not None:  # 1e-8 says nothing of 2e-15
        allowed.append(Fraction(rule.absolute) * (min(Fraction(1), 100 * abs(gold)) if gold else 1))
    if any(difference <= one * Fraction(1_000_001, 1_000_000) for one in allowed):
        return True
    if rule.relative is not None and difference <= Fraction(rule.relative) * abs(gold):
        return True
    if rule.truncate_integers and gold.denominator == 1 and gold_places == 0 and int(value) == gold:
        return True
    if rule.gold_places and gold_places and difference * 2 < Fraction(1, 10**gold_places):
        return True  # rounds to it; what lies in the middle rounds to either
    if inexact and difference <= SAME_RELATIVE * abs(gold):
        return True
    if not inexact or rule.places is None or difference > 1:
        return False
    if abs(gold) < SMALL and difference > SMALL_RELATIVE * abs(gold):
        return False
    return round(gold, rule.places) == round(value, rule.places)
