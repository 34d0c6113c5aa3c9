"""Inequalities in one variable as intervals: x > 3, 3 < x, -1 <= x < 5, and unions of these with "or"."""

from __future__ import annotations

import re

from sophia_mcore.verify.structures import Interval, endpoint, intervals_of, merge, parse_structure

_SIGN = re.compile(r"(<=|>=|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\lt(?![a-zA-Z])|\\gt(?![a-zA-Z])|<|>)")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?")
_OR = re.compile(r"\s+or\s+|\\text\s*\{\s*or\s*\}|\\lor(?![a-zA-Z])|或")
_LESS = {"<": False, r"\lt": False, "<=": True, r"\le": True}
_GREATER = {">": False, r"\gt": False, ">=": True, r"\ge": True}
_INF = float("inf")


def parse_inequality(text: str) -> tuple[str, list[Interval]] | None:
    r"""(variable, its solutions) of a cleaned answer; None if it is no inequality between a variable and numbers.

    >>> parse_inequality("x > 3")
    ('x', [((Fraction(3, 1), False), (inf, False))])
    """
    if not _SIGN.search(text):
        return None
    name, solutions = "", []
    for part in _OR.split(text):
        found = _single(part.strip())
        if found is None or (name and found[0] != name):
            return None
        name = found[0]
        solutions.append(found[1])
    return name, merge(solutions)


def _single(text: str) -> tuple[str, Interval] | None:
    pieces = [piece.strip() for piece in _SIGN.split(text)]
    if len(pieces) == 3:
        left, sign, right = pieces
        if _NAME.fullmatch(right) and endpoint(left) is not None:
            left, sign, right = right, _turned(sign), left
        value = endpoint(right)
        if value is None or not _NAME.fullmatch(left) or endpoint(left) is not None:
            return None
        if sign in _LESS:
            return left, ((-_INF, False), (value, _LESS[sign]))
        return left, ((value, _GREATER[sign]), (_INF, False))
    if len(pieces) == 5:
        low, first, name, second, high = pieces
        if first in _GREATER and second in _GREATER:
            low, first, second, high = high, _turned(second), _turned(first), low
        start, end = endpoint(low), endpoint(high)
        if first in _LESS and second in _LESS and start is not None and end is not None and _NAME.fullmatch(name):
            return name, ((start, _LESS[first] and abs(start) != _INF), (end, _LESS[second] and abs(end) != _INF))
    return None


def _turned(sign: str) -> str:
    return {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(sign) or {
        r"\le": r"\ge", r"\ge": r"\le", r"\lt": r"\gt", r"\gt": r"\lt",
    }[sign]  # fmt: skip


def inequalities_equal(gold: str, text: str) -> bool | None:
    """Equality of an inequality with another or with an interval; None if neither is one or they cannot be told."""
    first, second = parse_inequality(gold), parse_inequality(text)
    if first is None and second is None:
        return None
    if first is not None and second is not None:
        return first == second
    other = parse_structure(text if second is None else gold)
    if other is None or other.kind in ("atom", "bare", "matrix"):
        return None
    found = intervals_of(other)
    solutions = first or second
    return None if found is None or solutions is None else found == solutions[1]
