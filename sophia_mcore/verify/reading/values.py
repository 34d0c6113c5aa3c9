"""The value of a short text, as far as two of them can be told apart."""

from __future__ import annotations

from sophia_mcore.verify.comparing.algebra import at_points, evaluate
from sophia_mcore.verify.text.normalize import clean
from sophia_mcore.verify.text.numbers import parse_number
from sophia_mcore.verify.text.quantities import parse_quantity

CHARACTERS = 200  # of a text that is no value


def value_of(text: str) -> float | None:
    """The real value of a number, quantity or formula without letters, its unit left out; None for anything else.

    >>> value_of("12.5 cm"), value_of(r"\\frac{1}{4}"), value_of("x + 1")
    (12.5, 0.25, None)
    """
    cleaned = clean(text.strip(" .$*")) if len(text) <= CHARACTERS else ""
    measured = parse_quantity(cleaned) if cleaned else None
    number = parse_number(measured.number if measured is not None else cleaned)
    if number is not None:
        return float(number.value)
    worked = evaluate(measured.number if measured is not None else cleaned) if cleaned else None
    if worked is None or not worked.is_number:
        return None
    try:
        value = at_points(worked)[0]
    except OverflowError:
        return None
    return None if value is None or abs(value.imag) > 1e-9 else value.real


def same_value(first: float, second: float) -> bool:
    """Whether two values are one, rounded or as a percentage."""
    return first == second or any(abs(first - second * scale) <= 0.01 * abs(first) for scale in (1, 100, 0.01))
