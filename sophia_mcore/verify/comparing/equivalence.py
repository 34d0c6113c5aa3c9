"""Equality that needs symbolic algebra or unit conversion. Runs in the killable workers only: all of it may hang."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from math_verify import parse, verify

from sophia_mcore.verify.comparing import exact
from sophia_mcore.verify.comparing.structures import endpoint, parse_structure
from sophia_mcore.verify.comparing.symbols import symbols
from sophia_mcore.verify.comparing.unread import nothing_unread, without_one_name
from sophia_mcore.verify.comparing.wholly import wholly_read
from sophia_mcore.verify.rules import Rule
from sophia_mcore.verify.text.numbers import parse_number
from sophia_mcore.verify.text.quantities import COMPOUND, Quantity, compound, parse_quantity

CONVERSION_TOLERANCE = 1e-6  # relative; conversion factors are rounded


@lru_cache(maxsize=4096)
def _parsed(answer: str) -> list[Any]:
    return parse(f"\\boxed{{{answer}}}", parsing_timeout=None)


def algebra_equal(gold: str, prediction: str, interval: bool = False) -> bool:
    """True iff math-verify has read both bare answers and holds them equal; what cannot be compared is different.

    Raises MemoryError and RecursionError, which are the verifier's failure and not the answer's.
    """
    try:
        return verify(
            _parsed(gold),
            _parsed(prediction),
            timeout_seconds=None,
            raise_on_error=True,
            allow_set_relation_comp=interval,
        ) and all(wholly_read(one, _parsed) for one in (gold, prediction))
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False


@lru_cache(maxsize=1)
def _units() -> Any:
    import pint

    return pint.UnitRegistry(cache_folder=None)


def converted_equal(gold: str, prediction: str) -> bool | None:
    """Equality of two quantities after conversion; None if they are not two quantities with known units."""
    a, b = parse_quantity(gold), parse_quantity(prediction)
    if a is None or b is None or not (a.known and b.known):
        return None
    try:
        x, y = _measured(a), _measured(b)
        if x is None or y is None:
            return None
        wanted, converted = float(x.magnitude), float(y.to(x.units).magnitude)
    except Exception:  # another dimension, or a power that makes no sense
        return False
    return abs(converted - wanted) <= CONVERSION_TOLERANCE * max(abs(converted), abs(wanted))


def _measured(quantity: Quantity) -> Any:
    """In pint's terms; the sum of the segments of "1 hour 30 minutes"."""
    units = _units()
    if quantity.unit == COMPOUND:
        return sum(units.Quantity(float(number), unit) for number, unit in compound(quantity.number) or ())
    number = parse_number(quantity.number)
    value = endpoint(quantity.number) if number is None else number.value
    return None if value is None else units.Quantity(float(value), quantity.unit)


_TYPICAL = (
    r"\frac{\sqrt{2}}{2}+x^{2}",
    r"\left[-1,\frac{3}{4}\right)",
    r"\{1,2,3\}",
    "x=5",
    r"2\pi r",
    "1<x<2",
    r"\sin 2x",
)


def warm_up() -> None:
    """Fill the parsers' caches once, before the workers are forked: the first answer of each would pay for it."""
    for answer in _TYPICAL:
        algebra_equal(answer, answer + "+1")
    converted_equal("5 m", "5 cm")


def _oracle(gold: str, prediction: str, interval: bool = False) -> bool:
    converted = converted_equal(gold, prediction)
    if converted is not None:
        return converted
    gold, prediction = symbols(gold), symbols(prediction)
    gold, prediction = without_one_name(gold, prediction)
    return nothing_unread(gold, prediction) and algebra_equal(gold, prediction, interval)


def equivalent(task: dict[str, Any]) -> bool:
    """Whether ``task["prediction"]`` answers ``task["gold"]``.

    ``task``: "gold" and "prediction" as extracted, "type", "options", and "rule" (the fields of ``Rule``).
    """
    gold = exact.prepare(task["gold"], task["type"], tuple(task["options"]), Rule(**task["rule"]))
    text = exact.clean(task["prediction"])
    if gold.any_of:
        return any(
            equivalent({**task, "gold": one.raw}) for one in exact.alternatives_for(gold.any_of, task["prediction"])
        )
    if gold.all_of:
        return exact.decide(gold, task["prediction"], lambda a, b, rule: _oracle(a, b)) is True

    def oracle(a: str, b: str, rule: Rule) -> bool:
        return _oracle(a, b, gold.type == "interval")

    forms = parse_structure(gold.text), parse_structure(text)
    if (
        gold.type == "choice"
        or gold.type in exact.SPECIAL_TYPES
        or all(form is not None and form.kind != "union" for form in forms)
    ):
        decided = exact.decide(gold, task["prediction"], oracle)
        if decided is not None:
            return decided
    return oracle(gold.text, text, gold.rule)
