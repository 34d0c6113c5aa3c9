r"""Expressions decided by evaluation: exactly where they are rational, else numerically at fixed points.

Two expressions that differ at a point are different; two that agree to twelve digits at all points are equal (the
comparison of symbolic algebra, at a thousandth of its cost). Anything outside the small grammar is not decided here.
Numbers too large for a float are followed by their logarithms, which is enough to tell them apart.
"""

from __future__ import annotations

import cmath
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from sophia_mcore.verify.comparing.evaluation import POINTS, STEPS, Point, exact_value, log_value_at, value_at
from sophia_mcore.verify.comparing.expression import CONSTANTS, Node, Parser, Unsupported

_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)")
MAX_NAMES = 8  # variables of an expression with roots that are tried negative one by one
IMMENSE = 1e9  # natural logarithm; written out, such a number fills 180 MB
TINY = 1e-12  # an inexact value below this may be zero
EQUAL, DIFFERENT = 1e-9, 1e-6  # relative differences; between them nothing is decided


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression and what its evaluation gave."""

    node: Node
    decimal: bool  # has a number with a decimal point in it
    exact: Fraction | None
    values: tuple[complex | None, ...]  # at the points; None where it has no value
    huge: bool  # a value beyond floats came up
    positive: frozenset[str] = frozenset()  # variables that, alone negative, leave it without a real value

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
    """A cleaned answer as an expression, or None if it is outside the grammar or nested too deep."""
    scientific = _SCIENTIFIC.fullmatch(text)
    if scientific:
        text = f"{scientific[1]} \\times 10^{{{scientific[2]}}}"
    try:
        parser = Parser(text)
        return _evaluated(parser.parse(), parser.decimal)
    except (Unsupported, RecursionError):
        return None


def _evaluated(node: Node, decimal: bool) -> Expression | None:
    exact = exact_value(node)
    values: list[complex | None] = []
    huge = False
    for point in range(len(POINTS)) if exact is None else ():
        try:
            value = value_at(node, Point(point))
            values.append(value if cmath.isfinite(value) else None)
            huge = huge or not cmath.isfinite(value)
        except ArithmeticError:  # beyond floats, or a division by what was beyond floats
            values.append(None)
            huge = True
        except ValueError:
            values.append(None)
    return Expression(node, decimal, exact, tuple(values), huge, _positive(node) if exact is None else frozenset())


def _positive(node: Node) -> frozenset[str]:
    """Variables that stand for positive numbers, as those under a root do: negative, they alone leave no real value."""
    names = _names_in(node) - CONSTANTS
    if "i" in _names_in(node) or not names or len(names) > MAX_NAMES or not _rooted(node):
        return frozenset()
    return frozenset(
        name for name in names if name == r"\hbar" or not all(_is_real(node, Point(index, name)) for index in (0, 2))
    )


def _rooted(node: Node) -> bool:
    """Whether a root, logarithm or broken power is in the tree."""
    if node[0] in ("root", "log") or node[:2] == ("call", r"\ln") or (node[0] == "^" and _broken(node[2])):
        return True
    return any(_rooted(child) for child in node[1:] if isinstance(child, tuple))


def _rounded(node: Node) -> bool:
    """Whether a value that depends on variables is rounded in the tree: it is the same number between two steps."""
    if node[0] == "call" and node[1] in (r"\lfloor", r"\lceil") and not _names_in(node) <= CONSTANTS:
        return True
    return any(_rounded(child) for child in node[1:] if isinstance(child, tuple))


def _vanishes(node: Node) -> bool:
    """Whether it may be zero: products of what is not zero are not, however small."""
    if node[0] in ("*", "/", "^", "root", "neg"):
        return any(_vanishes(child) for child in node[1:])
    return node[0] not in ("number", "name") or (node[0] == "number" and node[1] == 0)


def identity(expression: Expression) -> bool:
    """Whether an expression in numbers alone is zero, but for rounding."""
    if expression.exact is not None or not expression.is_number:
        return expression.exact == 0
    return all(value is not None and abs(value) < EQUAL for value in expression.values)


def _broken(exponent: Node) -> bool:
    return exponent[0] == "/" or (exponent[0] == "number" and exponent[1].denominator > 1)


def _is_real(node: Node, point: Point) -> bool:
    value = _value(node, point)
    return value is not None and abs(value.imag) <= EQUAL * abs(value)


def _value(node: Node, point: Point) -> complex | None:
    """The finite value at a point, or None."""
    try:
        value = value_at(node, point)
    except (ArithmeticError, ValueError, Unsupported):
        return None
    return value if cmath.isfinite(value) else None


def immense(node: Node) -> bool:
    """Whether a power or factorial of plain numbers in the tree is larger than e to the ``IMMENSE``."""
    if node[0] in ("^", "!") and not _names_in(node):
        try:
            if log_value_at(node, Point(0))[1] > IMMENSE:
                return True
        except (Unsupported, ArithmeticError, ValueError):
            pass
    return any(immense(child) for child in node[1:] if isinstance(child, tuple))


def equal(a: Expression, b: Expression) -> bool | None:
    """Whether two expressions are equal; None if their values do not tell."""
    if a.exact is not None and b.exact is not None:
        return a.exact == b.exact
    try:
        xs, ys = at_points(a), at_points(b)
    except OverflowError:
        return _differ_in_size(a, b)
    if a.huge or b.huge:
        return _differ_in_size(a, b)
    if (set(xs) == {None}) != (set(ys) == {None}):
        return False  # only one of them has a value, as of "ln 0"
    positive = a.positive | b.positive
    if positive:  # the middle point is the one with negative values
        xs, ys = ((values[0], _value(e.node, Point(1, "", positive)), values[2]) for e, values in ((a, xs), (b, ys)))
    if _rounded(a.node) or _rounded(b.node):
        xs, ys = ((*values, *(_value(e.node, Point(row)) for row in STEPS)) for e, values in ((a, xs), (b, ys)))
    agreements = 0
    for x, y in zip(xs, ys, strict=True):
        if x is None or y is None:
            continue
        size = max(abs(x), abs(y))
        if size < TINY and a.exact != 0 and b.exact != 0:
            return None  # zero but for rounding, or really so small?
        if size < TINY and not all(one.exact == 0 or _vanishes(one.node) for one in (a, b)):
            return False
        difference = abs(x - y)
        if difference > DIFFERENT * size and size >= TINY:
            return False
        if difference > EQUAL * size and size >= TINY:
            return None
        agreements += 1
    return True if agreements >= 2 else None


def ratio(a: Expression, b: Expression) -> complex | None:
    """The constant that ``a`` is of ``b``, both in variables and neither zero; None if there is none."""
    if a.exact is not None or b.exact is not None or a.is_number or b.is_number:
        return None
    ratios = [x / y for x, y in zip(a.values, b.values, strict=True) if x and y]
    same = len(ratios) == len(POINTS) and all(abs(r - ratios[0]) <= EQUAL * abs(r) for r in ratios)
    return ratios[0] if same else None


def at_points(expression: Expression) -> tuple[complex | None, ...]:
    """Its values at the points, None where it has none. Raises OverflowError for a rational beyond floats."""
    return expression.values if expression.exact is None else (complex(expression.exact),) * len(POINTS)


def _differ_in_size(a: Expression, b: Expression) -> bool | None:
    """False when the logarithms of two numbers differ clearly; equality of huge numbers is not decided."""
    try:
        if a.exact == 0 or b.exact == 0:
            return False if log_value_at((b if a.exact == 0 else a).node, Point(0))[1] > -700 else None
        (m1, s1), (m2, s2) = log_value_at(a.node, Point(0)), log_value_at(b.node, Point(0))
    except (Unsupported, ArithmeticError, ValueError, RecursionError):
        return None
    if math.isnan(s1) or math.isnan(s2) or (math.isinf(s1) and math.isinf(s2)):
        return None
    uncertainty = 1e-3 + 1e-9 * min(abs(s1), abs(s2))
    return False if abs(s1 - s2) > uncertainty or abs(m1 - m2) > 1e-3 else None
