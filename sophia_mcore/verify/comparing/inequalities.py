"""Relations: as sets of numbers in one variable (x > 3, x >= 0 and x != 1, {x | -1 < x < 2}), else sign by sign."""

from __future__ import annotations

import re

from sophia_mcore.verify.comparing.algebra import equal, evaluate, identity, ratio
from sophia_mcore.verify.comparing.structures import (
    Interval,
    endpoint,
    intersection,
    intervals_of,
    merge,
    parse_structure,
)

_SIGN = re.compile(r"(\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\ne(?![a-zA-Z])|<|>|=)")
_UNEQUAL = re.compile(r"[<>|]|\\(?:le|ge|ne)(?![a-zA-Z])")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?")
_SIZE = re.compile(r"\|\s*([a-z])\s*(?:([+-])\s*([^|+-]+))?\|")
_OR = re.compile(r"\s+or\s+|\\text\s*\{\s*or\s*\}|\\lor(?![a-zA-Z])|\s*或者?\s*")
_AND = re.compile(r",?\s+and\s+|,?\s*\\text\s*\{\s*and\s*\}|\s*[且,;]\s*")
_BUILDER = re.compile(
    r"(?:\\?\{)?\s*(?P<name>\\?[A-Za-z]+)\s*(?:\\in\s*(?:\\mathbb\s*\{?\s*R\s*\}?|R))?\s*(?:\||:)\s*(?P<condition>.+?)\s*(?:\\?\})?"
)
_REALS = re.compile(r",?\s*(?:and\s+)?[A-Za-z]\s*\\in\s*(?:\\mathbb\s*\{?\s*R\s*\}?|R)$")
_INF = float("inf")
_TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", "=": "=", r"\ne": r"\ne"}


def parse_inequality(text: str) -> tuple[str, list[Interval]] | None:
    r"""(variable, its solutions) of a cleaned answer; None if it is no condition on one variable by numbers.

    >>> parse_inequality("x > 3")
    ('x', [((Fraction(3, 1), False), (inf, False))])
    """
    builder = _BUILDER.fullmatch(text)
    if builder:
        found = parse_inequality(_REALS.sub("", builder["condition"]))
        return found if found and found[0] == builder["name"] else None
    if not _SIGN.search(text):
        return None
    if text.startswith(r"\{") and text.endswith(r"\}") and "," not in text and not text[2:-2].count("{"):
        return parse_inequality(text[2:-2].strip())  # {-1 < x < 4}
    name, solutions = "", []
    for part in _OR.split(text):
        found = _conjunction(part.strip())
        if found is None or (name and found[0] != name):
            return None
        name = found[0]
        solutions += found[1]
    return name, merge(solutions)


def _conjunction(text: str) -> tuple[str, list[Interval]] | None:
    name = ""
    solutions: list[Interval] = [((-_INF, False), (_INF, False))]
    parts = _AND.split(text)
    for part in parts:
        found = _single(part.strip())
        if found is None or (name and found[0] != name) or (len(parts) > 1 and not _bounds(part)):
            return None  # "x = 1, x = 2" names two values and no number that is both
        name, solutions = found[0], intersection(solutions, found[1])
    return (name, solutions) if name else None


def _bounds(part: str) -> bool:
    return "=" not in part


def _single(text: str) -> tuple[str, list[Interval]] | None:
    pieces = [piece.strip() for piece in _SIGN.split(text)]
    if len(pieces) == 3:
        left, sign, right = pieces
        if _NAME.fullmatch(right) and endpoint(left) is not None:
            left, sign, right = right, _TURNED[sign], left
        value = endpoint(right)
        size = _SIZE.fullmatch(left)
        if size and value is not None and value >= 0:
            middle = endpoint(size[3].strip()) if size[3] else 0
            if middle is None:
                return None
            middle = -middle if size[2] == "+" else middle
            start, end = middle - value, middle + value
            inside: Interval = ((start, sign == r"\le"), (end, sign == r"\le"))
            outside = [((-_INF, False), (start, sign == r"\ge")), ((end, sign == r"\ge"), (_INF, False))]
            return (size[1], [inside] if sign in ("<", r"\le") else outside) if sign not in ("=", r"\ne") else None
        if value is None or not _NAME.fullmatch(left) or endpoint(left) is not None:
            return None
        below: Interval = ((-_INF, False), (value, sign == r"\le"))
        above: Interval = ((value, sign == r"\ge"), (_INF, False))
        if sign == "=":
            return left, [((value, True), (value, True))]
        return left, [below, above] if sign == r"\ne" else [below] if sign in ("<", r"\le") else [above]
    if len(pieces) == 5:
        low, first, name, second, high = pieces
        if first in (">", r"\ge") and second in (">", r"\ge"):
            low, first, second, high = high, _TURNED[second], _TURNED[first], low
        lower, upper = endpoint(low), endpoint(high)
        rising = first in ("<", r"\le") and second in ("<", r"\le")
        if rising and lower is not None and upper is not None and _NAME.fullmatch(name):
            closed = first == r"\le" and abs(lower) != _INF, second == r"\le" and abs(upper) != _INF
            return name, [((lower, closed[0]), (upper, closed[1]))]
    return None


def inequalities_equal(gold: str, text: str) -> bool | None:
    """Equality of an inequality with another or with an interval; None if neither is one or they cannot be told.

    A set {x | ...} and an interval name no variable, so that its name does not matter there.
    """
    first, second = parse_inequality(gold), parse_inequality(text)
    if first is None and second is None:
        return None
    if not _UNEQUAL.search(gold) and not _UNEQUAL.search(text):
        return None  # named values
    if first is not None and second is not None:
        free = gold.endswith("}") or text.endswith("}")
        return first[1] == second[1] and (free or first[0] == second[0])
    solutions, unread = (first, text) if second is None else (second, gold)
    assert solutions is not None
    other = parse_structure(unread)
    if other is None or other.kind in ("atom", "bare", "matrix"):
        return None if _UNEQUAL.search(unread) and solutions[0] in unread else False  # x^2 < 4 takes solving
    found = intervals_of(other)
    return None if found is None else found == solutions[1]


# ---- relations that name no solutions: "\le 5", ">", "x > y"

_BOUND = re.compile(r"(?P<sign>\\le|\\ge|\\ne|<|>)(?![a-zA-Z])\s*(?P<value>.*)", re.DOTALL)
_BEFORE = re.compile(
    r"(?P<ge>at least|no less than|not less than|minimum of)|(?P<le>at most|no more than|not more than"
    r"|up to|maximum of)"
    r"|(?P<gt>(?:more|greater|larger|higher) than|(?:over|above|exceeding)(?= [\d$\\]))"
    r"|(?P<lt>(?:less|fewer|smaller|lower) than|(?:under|below)(?= [\d$\\]))",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    r"(?P<value>\S+) or (?:(?P<ge>more|greater|above|over)|(?P<le>less|fewer|below|under))", re.IGNORECASE
)
_SIGN_OF = {"ge": r"\ge", "le": r"\le", "gt": ">", "lt": "<"}


def bound(text: str) -> tuple[str, str] | None:
    r"""(sign, what follows) of an answer that is a bound without a variable; None for any other answer.

    >>> bound(r"\le 5"), bound("at least 3"), bound(">"), bound("x > 3")
    (('\\le', '5'), ('\\ge', '3'), ('>', ''), None)
    """
    match = _BOUND.fullmatch(text)
    if match:
        return match["sign"], match["value"].strip()
    if " " not in text or len(text) > 60:
        return None
    before = _BEFORE.match(text)
    if before and before.lastgroup and text[before.end() :].strip():
        return _SIGN_OF[before.lastgroup], text[before.end() :].strip()
    behind = _BEHIND.fullmatch(text)
    return (_SIGN_OF[behind.lastgroup], behind["value"]) if behind and behind.lastgroup else None


def chains_equal(gold: str, text: str) -> bool | None:
    r"""Equality of two chains of names, "x > y > z" and "z < y < x"; None if not both are.

    >>> chains_equal("x > y > z", "z < y < x"), chains_equal("x > y > z", "x > z > y"), chains_equal("1 < x < 2", "x")
    (True, False, None)
    """
    first, second = _chain(gold), _chain(text)
    return None if first is None or second is None else first == second


def _chain(text: str) -> list[str] | None:
    """The sides and signs of a chain of at least three names, the smaller ones first; None for any other answer."""
    pieces = ["".join(piece.split()) for piece in _SIGN.split(text)]
    if len(pieces) < 5 or not all(_NAME.fullmatch(side) for side in pieces[::2]):
        return None
    signs = [sign for sign in pieces[1::2] if sign != "="]
    if not signs or signs[0] in ("<", r"\le"):
        return pieces
    return [_TURNED.get(piece, piece) for piece in reversed(pieces)]


_CONGRUENCE = re.compile(
    r"(?P<left>[^=<>]+?)\s*\\equiv\s*(?P<right>[^=<>]+?)\s*\(?\s*(?:\\(?:text|mathrm)\s*\{\s*mod\s*\}|\\?[pb]?mod)\s*\{?\s*"
    r"(?P<modulus>\w+)\s*\}?\s*\)?"
)


def congruences_equal(gold: str, text: str) -> bool | None:
    r"""Whether two congruences are the same; None if neither answer is one.

    >>> congruences_equal(r"x \equiv 3 \pmod 5", r"x \equiv 8 \pmod{5}"), congruences_equal(r"x \equiv 3 \pmod 5", "3")
    (True, False)
    """
    if r"\equiv" not in gold + text or "mod" not in gold + text or len(gold + text) > 200:
        return None
    a, b = _CONGRUENCE.fullmatch(gold), _CONGRUENCE.fullmatch(text)
    if a is None or b is None:
        return None if a is None and b is None else False
    if (a["left"].strip(), a["modulus"]) != (b["left"].strip(), b["modulus"]):
        return False
    first, second = evaluate(a["right"]), evaluate(b["right"])
    if first is None or second is None or first.exact is None or second.exact is None or not a["modulus"].isdigit():
        return a["right"] == b["right"]
    return (first.exact - second.exact) % int(a["modulus"]) == 0


def relations_equal(gold: str, text: str) -> bool | None:
    """Equality of two answers with exactly one relation sign each; None if they are not of that form.

    Written as "D > 0", they are equal when the sign is the same and one D is a positive multiple of the other
    (any multiple for "=" and "!=").
    """
    a, b = _oriented(gold), _oriented(text)
    if a is None or b is None:
        return None
    if a[0] != b[0]:
        return False
    first, second = evaluate(f"({a[1]})-({a[2]})"), evaluate(f"({b[1]})-({b[2]})")
    if first is None or second is None:
        return None
    if identity(first) != identity(second):
        return False  # "1 + 3 = 2^2" says what is true of numbers, "1 + 2 = 2^2" does not
    if first.is_number and second.is_number and not identity(first):
        sides = [(evaluate(a[side]), evaluate(b[side])) for side in (1, 2)]
        return all(x is not None and y is not None and equal(x, y) is True for x, y in sides)
    found = ratio(first, second)
    if found is None:
        return None if a[0] in ("=", r"\ne") else False
    return a[0] in ("=", r"\ne") or (abs(found.imag) < 1e-9 and found.real > 0)


def _oriented(text: str) -> tuple[str, str, str] | None:
    """(sign, larger side, smaller side), the sign one of > \\ge = \\ne; None unless there is exactly one sign."""
    pieces = [piece.strip() for piece in _SIGN.split(text)]
    if len(pieces) != 3 or not pieces[0] or not pieces[2]:
        return None
    left, sign, right = pieces
    return (_TURNED[sign], right, left) if sign in ("<", r"\le") else (sign, left, right)
