"""Values of expressions: exact where they are rational, else numbers at fixed points, else logarithms."""

from __future__ import annotations

import cmath
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from sophia_mcore.verify.comparing.expression import CONSTANTS, Node, Unsupported

MAX_BITS = 20_000
POINTS = ((0.6, 1.9), (-2.3, -0.7), (2.1, 3.8))  # variables take values in these ranges
_RANGES = (*POINTS, *((at, at + 1.0) for at in range(64)), (-47.0, -31.0), (101.0, 137.0), (530.0, 997.0))
STEPS = tuple(range(len(POINTS), len(_RANGES)))  # rows for what is rounded, and so stays the same for a while


@dataclass(frozen=True, slots=True)
class Point:
    """Where variables take their values: row of POINTS or STEPS, one variable made negative, others made positive."""

    index: int
    negative: str = ""
    positive: frozenset[str] = frozenset()


_CONSTANTS: dict[str, complex] = {r"\pi": math.pi, "e": math.e, "i": 1j}
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "|": abs,
    r"\lfloor": lambda z: _round(math.floor, z),
    r"\lceil": lambda z: _round(math.ceil, z),
    r"\sin": cmath.sin,
    r"\cos": cmath.cos,
    r"\tan": cmath.tan,
    r"\exp": cmath.exp,
    r"\ln": cmath.log,
    r"\arcsin": cmath.asin,
    r"\arccos": cmath.acos,
    r"\arctan": cmath.atan,
    r"\sinh": cmath.sinh,
    r"\cosh": cmath.cosh,
    r"\tanh": cmath.tanh,
    r"\cot": lambda z: 1 / cmath.tan(z),
    r"\sec": lambda z: 1 / cmath.cos(z),
    r"\csc": lambda z: 1 / cmath.sin(z),
}


_ROUNDED: dict[str, Callable[[Fraction], int]] = {r"\lfloor": math.floor, r"\lceil": math.ceil}


def _round(rounded: Callable[[float], int], value: complex) -> complex:
    if abs(value.imag) > 1e-12 or abs(value.real - round(value.real)) < 1e-9:
        raise ValueError("too near to an integer to be rounded")
    return complex(rounded(value.real))


def exact_value(node: Node) -> Fraction | None:
    """The rational value of a node, or None if it has none or takes too much work."""
    kind = node[0]
    if kind == "number":
        return node[1]
    if kind in ("name", "log"):
        return None
    if kind == "call":
        rounded = _ROUNDED.get(node[1])
        value = exact_value(node[2]) if rounded else None
        return None if value is None or rounded is None else Fraction(rounded(value))
    if kind in ("root", "^"):
        return _exact_power(node)
    values = [exact_value(child) for child in node[1:]]
    if any(value is None for value in values):
        return None
    a = values[0]
    assert a is not None
    if kind == "neg":
        return -a
    if kind == "+":
        return _exact_sum([value for value in values if value is not None])
    if kind == "!":
        return Fraction(math.factorial(int(a))) if a.denominator == 1 and 0 <= a <= 500 else None
    b = values[1]
    assert b is not None
    if kind == "binom":
        return (
            Fraction(math.comb(int(a), int(b))) if a.denominator == b.denominator == 1 and 0 <= b <= a <= 500 else None
        )
    if kind == "/":
        return a / b if b else None
    if a.numerator.bit_length() + b.numerator.bit_length() > MAX_BITS:
        return None
    return a * b


def _exact_sum(terms: list[Fraction]) -> Fraction | None:
    total = Fraction(0)
    for term in terms:
        total += term
        if total.denominator.bit_length() + total.numerator.bit_length() > MAX_BITS:
            return None
    return total


def _exact_power(node: Node) -> Fraction | None:
    if node[0] == "root":
        degree, value = exact_value(node[1]), exact_value(node[2])
        exponent = 1 / degree if degree else None
    else:
        value, exponent = exact_value(node[1]), exact_value(node[2])
    if value is None or exponent is None:
        return None
    if value == 0:
        return Fraction(0) if exponent > 0 else None
    top, bottom = exponent.numerator, exponent.denominator
    bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    if abs(top) * bits > MAX_BITS or bottom > 64 or (bottom > 1 and value < 0):
        return None
    roots = [_integer_root(part, bottom) for part in (value.numerator, value.denominator)]
    if None in roots:
        return None
    return Fraction(roots[0], roots[1]) ** top  # type: ignore[arg-type]


def _integer_root(value: int, degree: int) -> int | None:
    if degree == 1:
        return value
    if degree == 2:
        root = math.isqrt(value)
    elif value.bit_length() < 900:
        root = round(value ** (1 / degree))
    else:
        return None
    return root if root**degree == value else None


def value_at(node: Node, point: Point) -> complex:
    """Value of a node where every variable has its value of ``point``. Raises OverflowError, ArithmeticError."""
    kind = node[0]
    if kind == "number":
        return complex(node[1])
    if kind == "name":
        return _variable(node[1], point)
    if kind == "call":
        return _FUNCTIONS[node[1]](value_at(node[2], point))
    if kind == "log":
        base = 10.0 if node[1] is None else value_at(node[1], point)
        return cmath.log(value_at(node[2], point)) / cmath.log(base)
    if kind == "+":
        return sum(value_at(term, point) for term in node[1:])
    a = value_at(node[1], point)
    if kind == "neg":
        return -a
    if kind == "!":
        return _factorial(a)
    b = value_at(node[2], point)
    if kind == "*":
        return a * b
    if kind == "/":
        return a / b
    if kind == "^":
        return _power(a, b)
    if kind == "root":
        if b.real < 0 and abs(b.imag) < 1e-12 and a != 2:
            raise ValueError("the real or the principal root?")
        return cmath.sqrt(b) if a == 2 else _power(b, 1 / a)
    if a.imag or b.imag or a.real > 500 or a.real != int(a.real) or b.real != int(b.real) or b.real < 0:
        raise OverflowError
    return complex(math.comb(int(a.real), int(b.real)))


def _power(base: complex, exponent: complex) -> complex:
    if exponent.imag == 0 and abs(exponent.real) <= 64 and exponent.real == int(exponent.real):
        return base ** int(exponent.real)
    result = base**exponent
    if result == 0 and base != 0:
        raise OverflowError  # too small for a float
    return result


def _factorial(value: complex) -> complex:
    if value.imag or value.real != int(value.real) or value.real < 0:
        raise Unsupported
    if value.real > 170:
        raise OverflowError
    return complex(math.factorial(int(value.real)))


@lru_cache(maxsize=4096)
def _variable(name: str, point: Point) -> complex:
    if name in CONSTANTS:
        return complex(_CONSTANTS[name])
    low, high = _RANGES[point.index]
    value = low + (high - low) * (zlib.crc32(f"{point.index}{name}".encode()) / 2**32)
    return complex(-abs(value) if name == point.negative else abs(value) if name in point.positive else value)


def log_value_at(node: Node, point: Point) -> tuple[complex, float]:
    """Value as (m, s) meaning m * exp(s), |m| about 1, for numbers beyond floats. ``s`` may be inf."""
    kind = node[0]
    if kind == "neg":
        m, s = log_value_at(node[1], point)
        return -m, s
    if kind in ("*", "/"):
        (m1, s1), (m2, s2) = log_value_at(node[1], point), log_value_at(node[2], point)
        return _scaled(m1 * m2, s1 + s2) if kind == "*" else _scaled(m1 / m2, s1 - s2)
    if kind == "+":
        return _log_sum([log_value_at(term, point) for term in node[1:]])
    if kind == "!":
        n, s = log_value_at(node[1], point)
        if s > 700 or n.imag or n.real < 0:
            return (1, math.inf) if n.real > 0 and not n.imag else _unsupported()
        return _scaled(1, math.lgamma(n.real * math.exp(s) + 1))
    if kind == "binom":
        (a, sa), (b, sb) = log_value_at(node[1], point), log_value_at(node[2], point)
        n, k = a.real * math.exp(min(sa, 700)), b.real * math.exp(min(sb, 700))
        if not 0 <= k <= n or n > 1e14:
            raise Unsupported
        return _scaled(1, math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1))
    if kind in ("^", "root"):
        base, exponent = (node[2], node[1]) if kind == "root" else (node[1], node[2])
        return _log_power(log_value_at(base, point), log_value_at(exponent, point), kind == "root")
    if kind == "call" and node[1] in _ROUNDED:
        m, s = log_value_at(node[2], point)
        return (m, s) if s > 40 else _scaled(value_at(node, point), 0.0)
    if kind == "log" or (kind == "call" and node[1] == r"\ln"):
        base = math.e if kind == "call" else 10.0 if node[1] is None else value_at(node[1], point)
        m, s = log_value_at(node[2], point)
        return _scaled((s + cmath.log(m)) / cmath.log(base), 0.0)
    return _scaled(value_at(node, point), 0.0)


_UNKNOWN = complex(math.nan, math.nan)  # the phase of a large power of a number that is not positive


def _log_sum(terms: list[tuple[complex, float]]) -> tuple[complex, float]:
    top = max(s for _, s in terms)
    if top == math.inf:
        largest = [m for m, s in terms if s == math.inf]
        return (largest[0], top) if len(largest) == 1 else _unsupported()
    total = sum(m * math.exp(s - top) for m, s in terms)
    if abs(total) < 1e-6:
        raise Unsupported  # they cancel: nothing is known
    return _scaled(total, top)


def _unsupported() -> Any:
    raise Unsupported


def _scaled(m: complex, s: float) -> tuple[complex, float]:
    size = abs(m)
    if size == 0 or math.isnan(s) or math.isnan(size) or math.isinf(size):
        raise Unsupported
    return m / size, s + math.log(size)


def _log_power(base: tuple[complex, float], exponent: tuple[complex, float], root: bool) -> tuple[complex, float]:
    (m, s), (n, t) = base, exponent
    if abs(n.imag) > 1e-12:
        raise Unsupported
    power = n.real * (math.exp(t) if t < 700 else math.inf)
    power = 1 / power if root else power
    if abs(s) < 1e-12 or (math.isinf(s) and power == 0):
        raise Unsupported  # one to a large power, infinity to none
    positive = abs(m.imag) <= 1e-12 and m.real > 0
    return 1 if positive else _UNKNOWN, s * power
