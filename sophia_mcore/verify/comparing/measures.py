"""What an answer measures: degrees, percentages, prices. Two kinds are different, whatever their numbers."""

from __future__ import annotations

import re

from sophia_mcore.verify.comparing.algebra import equal, evaluate
from sophia_mcore.verify.text.normalize import TEXT_COMMAND
from sophia_mcore.verify.text.quantities import amount, parse_quantity

_PERCENT, _DEGREES = re.compile(r"%$|\bpercent$"), re.compile(r"(?:\\circ|°|º|\\degree|degrees?)\s*\}?\s*\$?$")
_ANGLES = frozenset({"degree", "degree_Celsius", "degree_Fahrenheit"})


def other_measure(gold: str, cleaned: str, prediction: str, text: str) -> bool:
    """Whether one answer is an angle in degrees and the other a percentage or a quantity of another kind."""
    for degrees, other in ((gold, text), (prediction, cleaned)):
        if "deg" in degrees or "circ" in degrees or not degrees.isascii():
            if not _DEGREES.search(degrees):
                continue
            measured = parse_quantity(other)
            if _PERCENT.search(other) or (
                measured is not None and _is_counted(measured.unit) and measured.unit not in _ANGLES
            ):
                return True
    return False


_CURRENCY = re.compile(r"\b(?:dollars?|bucks?|cents?|euros?|pounds?|yuan|yen|rupees?|[A-Z]{3})\b|[元圆块]")
_UNCOUNTED = frozenset({"unit", "square unit", "cubic unit", "times"})


def _is_counted(unit: str) -> bool:
    """Whether a unit or noun says what is counted or measured, as "units" does not."""
    return unit not in _UNCOUNTED


def price_of_percent(gold: str, cleaned: str, prediction: str, text: str) -> bool:
    """Whether one answer is a price and the other a percentage, an angle in degrees or a number of something else."""
    paid, wanted = amount(prediction), amount(gold)
    for price, priced, other, priced_text in ((paid, wanted, cleaned, prediction), (wanted, paid, text, gold)):
        measured = parse_quantity(other) if price is not None and priced is None else None
        if measured is not None and measured.unit == "pound" and price is not None and "£" not in priced_text:
            continue  # "5 pounds" and "5 lb"
        if measured is not None and _is_counted(measured.unit) and not _CURRENCY.search(other):
            return True
    if paid is not None and (_PERCENT.search(cleaned) or (_DEGREES.search(gold) and not gold.isalnum())):
        return True
    return wanted is not None and _PERCENT.search(text) is not None


_SIGNS = re.compile(r"[€£¥₹]|\\\$|\$(?=\d[^$]*\$\d)")


def other_currency(gold: str, prediction: str) -> bool:
    """Whether both name currencies by their signs, as in "$10-$20", and not the same."""
    if gold.isascii() and prediction.isascii():
        return False
    wanted, paid = ({sign.lstrip("\\") for sign in _SIGNS.findall(text)} for text in (gold, prediction))
    return bool(wanted and paid and wanted != paid)


def other_angle(option: str, text: str) -> bool:
    """Whether an option is an angle in degrees and the answer a percentage or in another unit."""
    measured = parse_quantity(text)
    other = _PERCENT.search(text) is not None or (measured is not None and measured.known and measured.unit != "degree")
    return other and _DEGREES.search(option) is not None


_RADIANS = re.compile(r"\s*(?:\brad(?:ians?)?)$")


def turned_equal(gold: str, cleaned: str, prediction: str, text: str) -> bool | None:
    r"""Whether an angle in degrees and a multiple of pi are the same angle; None if they are not of these two kinds.

    >>> turned_equal(r"60^\circ", "60", r"\frac{\pi}{3}", r"\frac{\pi}{3}"), turned_equal("60", "60", r"\pi", r"\pi")
    (True, None)
    """
    for degrees, number, radians in ((gold, cleaned, text), (prediction, text, cleaned)):
        if r"\pi" not in radians or r"\pi" in number or _DEGREES.search(degrees.strip(" .")) is None:
            continue
        flat = _RADIANS.sub("", " ".join(TEXT_COMMAND.sub(r" \1", radians).split()))
        first, second = evaluate(number), evaluate(rf"\frac{{180 ({flat})}}{{\pi}}")
        return equal(first, second) if first is not None and second is not None else None
    return None
