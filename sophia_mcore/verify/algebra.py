r"""Expressions decided by evaluation: exactly where they are rational, else numerically at fixed points.

Two expressions that differ at a point are different; two that agree to twelve digits at all points are equal (the
comparison of symbolic algebra, at a thousandth of its cost). Anything outside the small grammar is not decided here.
Numbers too large for a float are followed by their logarithms, which is enough to tell them apart.
"""

from __future__ import annotations

import cmath
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from sophia_mcore.verify.expression import CONSTANTS, Node, Parser, Unsupported

MAX_BITS = 20_000
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)")
EQUAL, DIFFERENT = 1e-9, 1e-6  # relative differences; between them nothing is decided
IMMENSE = 1e9  # natural logarithm; written out, such a number fills 180 MB
TINY = 1e-12  # an inexact value below this may be zero
POINTS = ((0.6, 1.9), (-2.3, -0.7), (2.1, 3.8))  # variables take values in these ranges
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


def _exact(node: Node) -> Fraction | None:
    """The rational value of a node, or None if it has none or takes too much work."""
    kind = node[0]
    if kind == "number":
        return node[1]
    if kind in ("name", "log"):
        return None
    if kind == "call":
        rounded = _ROUNDED.get(node[1])
        value = _exact(node[2]) if rounded else None
        return None if value is None or rounded is None else Fraction(rounded(value))
    if kind in ("root", "^"):
        return _exact_power(node)
    values = [_exact(child) for child in node[1:]]
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
        degree, value = _exact(node[1]), _exact(node[2])
        exponent = 1 / degree if degree else None
    else:
        value, exponent = _exact(node[1]), _exact(node[2])
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


def _at(node: Node, point: int) -> complex:
    """Value of a node where every variable has its value of ``point``. Raises OverflowError, ArithmeticError."""
    kind = node[0]
    if kind == "number":
        return complex(node[1])
    if kind == "name":
        return _variable(node[1], point)
    if kind == "call":
        return _FUNCTIONS[node[1]](_at(node[2], point))
    if kind == "log":
        base = 10.0 if node[1] is None else _at(node[1], point)
        return cmath.log(_at(node[2], point)) / cmath.log(base)
    if kind == "+":
        return sum(_at(term, point) for term in node[1:])
    a = _at(node[1], point)
    if kind == "neg":
        return -a
    if kind == "!":
        return _factorial(a)
    b = _at(node[2], point)
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
def _variable(name: str, point: int) -> complex:
    if name in CONSTANTS:
        return complex(_CONSTANTS[name])
    low, high = POINTS[point]
    return complex(low + (high - low) * (zlib.crc32(f"{point}{name}".encode()) / 2**32))


def _log_at(node: Node, point: int) -> tuple[complex, float]:
    """Value as (m, s) meaning m * exp(s), |m| about 1, for numbers beyond floats. ``s`` may be inf."""
    kind = node[0]
    if kind == "neg":
        m, s = _log_at(node[1], point)
        return -m, s
    if kind in ("*", "/"):
        (m1, s1), (m2, s2) = _log_at(node[1], point), _log_at(node[2], point)
        return _scaled(m1 * m2, s1 + s2) if kind == "*" else _scaled(m1 / m2, s1 - s2)
    if kind == "+":
        return _log_sum([_log_at(term, point) for term in node[1:]])
    if kind == "!":
        n, s = _log_at(node[1], point)
        if s > 700 or n.imag or n.real < 0:
            return (1, math.inf) if n.real > 0 and not n.imag else _unsupported()
        return _scaled(1, math.lgamma(n.real * math.exp(s) + 1))
    if kind == "binom":
        (a, sa), (b, sb) = _log_at(node[1], point), _log_at(node[2], point)
        n, k = a.real * math.exp(min(sa, 700)), b.real * math.exp(min(sb, 700))
        if not 0 <= k <= n or n > 1e14:
            raise Unsupported
        return _scaled(1, math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1))
    if kind in ("^", "root"):
        base, exponent = (node[2], node[1]) if kind == "root" else (node[1], node[2])
        return _log_power(_log_at(base, point), _log_at(exponent, point), kind == "root")
    if kind == "call" and node[1] in _ROUNDED:
        m, s = _log_at(node[2], point)
        return (m, s) if s > 40 else _scaled(_at(node, point), 0.0)
    if kind == "log" or (kind == "call" and node[1] == r"\ln"):
        base = math.e if kind == "call" else 10.0 if node[1] is None else _at(node[1], point)
        m, s = _log_at(node[2], point)
        return _scaled((s + cmath.log(m)) / cmath.log(base), 0.0)
    return _scaled(_at(node, point), 0.0)


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


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression and what its evaluation gave."""

    node: Node
    decimal: bool  # has a number with a decimal point in it
    exact: Fraction | None
    values: tuple[complex | None, ...]  # at the points; None where it has no value
    huge: bool  # a value beyond floats came up

    @property
    def is_number(self) -> bool:
        """Whether it stands for one finite number."""
        return self.exact is not None or _names_in(self.node) <= CONSTANTS


def _names_in(node: Node) -> set[str]:
    if node[0] == "name":
        return {node[1]}
    return set().union(*(_names_in(child) for child in node[1:] if isinstance(child, tuple)))


@lru_cache(maxsize=1 << 15)
def evaluate(text: str) -> Expression | None:
    """A cleaned answer as an expression, or None if it is outside the grammar."""
    scientific = _SCIENTIFIC.fullmatch(text)
    if scientific:
        text = f"{scientific[1]} \\times 10^{{{scientific[2]}}}"
    try:
        parser = Parser(text)
        node = parser.parse()
        exact = _exact(node)
    except (Unsupported, RecursionError):
        return None
    values: list[complex | None] = []
    huge = False
    for point in range(len(POINTS)) if exact is None else ():
        try:
            value = _at(node, point)
            values.append(value if cmath.isfinite(value) else None)
            huge = huge or not cmath.isfinite(value)
        except ArithmeticError:  # beyond floats, or a division by what was beyond floats
            values.append(None)
            huge = True
        except ValueError:
            values.append(None)
        except Unsupported:
            return None
    return Expression(node, parser.decimal, exact, tuple(values), huge)


def immense(node: Node) -> bool:
    """Whether a power or factorial of plain numbers in the tree is larger than e to the ``IMMENSE``."""
    if node[0] in ("^", "!") and not _names_in(node):
        try:
            if _log_at(node, 0)[1] > IMMENSE:
                return True
        except (Unsupported, ArithmeticError, ValueError):
            pass
    return any(immense(child) for child in node[1:] if isinstance(child, tuple))


def equal(a: Expression, b: Expression) -> bool | None:
    """Whether two expressions are equal; None if their values do not tell."""
    if a.exact is not None and b.exact is not None:
        return a.exact == b.exact
    try:
        xs, ys = _values(a), _values(b)
    except OverflowError:
        return _differ_in_size(a, b)
    if a.huge or b.huge:
        return _differ_in_size(a, b)
    agreements = 0
    for x, y in zip(xs, ys, strict=True):
        if x is None or y is None:
            continue
        size = max(abs(x), abs(y))
        if size < TINY and a.exact != 0 and b.exact != 0:
            return None  # zero but for rounding, or really so small?
        difference = abs(x - y)
        if difference > DIFFERENT * size and size >= TINY:
            return False
        if difference > EQUAL * size and size >= TINY:
            return None
        agreements += 1
    return True if agreements >= 2 else None


def proportional(a: Expression, b: Expression) -> bool:
    """Whether two expressions in variables are constant multiples of each other, none being zero."""
    if a.exact is not None or b.exact is not None or a.is_number or b.is_number:
        return False
    ratios = [x / y for x, y in zip(a.values, b.values, strict=True) if x and y]
    return len(ratios) == len(POINTS) and all(abs(r - ratios[0]) <= EQUAL * abs(r) for r in ratios)


def _values(expression: Expression) -> tuple[complex | None, ...]:
    return expression.values if expression.exact is None else (complex(expression.exact),) * len(POINTS)


def _differ_in_size(a: Expression, b: Expression) -> bool | None:
    """False when the logarithms of two numbers differ clearly; equality of huge numbers is not decided."""
    try:
        if a.exact == 0 or b.exact == 0:
            return False if _log_at((b if a.exact == 0 else a).node, 0)[1] > -700 else None
        (m1, s1), (m2, s2) = _log_at(a.node, 0), _log_at(b.node, 0)
    except (Unsupported, ArithmeticError, ValueError, RecursionError):
        return None
    if math.isnan(s1) or math.isnan(s2) or (math.isinf(s1) and math.isinf(s2)):
        return None
    uncertainty = 1e-3 + 1e-9 * min(abs(s1), abs(s2))
    return False if abs(s1 - s2) > uncertainty or abs(m1 - m2) > 1e-3 else None
