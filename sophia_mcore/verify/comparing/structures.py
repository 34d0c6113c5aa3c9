"""Answers with parts: lists, tuples, sets, intervals and their unions, matrices."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from sophia_mcore.verify.comparing.algebra import evaluate
from sophia_mcore.verify.text.normalize import MAX_DEPTH, depth, split_top, without_degree
from sophia_mcore.verify.text.numbers import parse_number

MAX_PAIRS = 4096  # comparisons of parts with parts; more are not tried one by one
Equal = Callable[[str, str], bool | None]
Endpoint = tuple[float | Fraction, bool]  # (value, whether it belongs to the interval)
Interval = tuple[Endpoint, Endpoint]


@dataclass(frozen=True, slots=True)
class Structure:
    """An answer by form.

    ``kind``: "atom", "bare" (parts without brackets), "set", "round", "square", "half" (half-open), "union", "matrix"
    (rows of cells) or "empty". ``text`` is the cleaned text; ``brackets`` the outer pair of round, square and half.
    """

    kind: str
    text: str
    parts: tuple[Structure, ...] = ()
    brackets: str = ""


_IN = re.compile(r"[A-Za-z]\s*\\in(?![a-zA-Z])\s*")
_AND = re.compile(r"(?:,\s*)?(?:\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\s(?:and|or|&)\s|\s*(?:和|或|以及)\s*)")
_DIGIT = re.compile(r"\d")
_CUP = re.compile(r"\\cup(?![a-zA-Z])")
_PM = re.compile(r"\\pm(?![a-zA-Z])")
_MATRIX = re.compile(r"\\begin\{(p|b|B|)(?:matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1?(?:matrix|array)\}", re.DOTALL)
OR = re.compile(r"\bor\b|或")
_CASES = re.compile(r"\\begin\{cases\}(.*)\\end\{cases\}", re.DOTALL)
_ROW_END = re.compile(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-zA-Z])")
_CLOSES = {"(": ")", "[": "]"}


_INFINITY = {
    r"\infty": 1,
    r"+\infty": 1,
    r"-\infty": -1,
    "oo": 1,
    "-oo": -1,
    "infinity": 1,
    "-infinity": -1,
    r"+ \infty": 1,
    r"- \infty": -1,
}


def infinity(text: str) -> int | None:
    """1 or -1 for the infinities, else None."""
    return _INFINITY.get(text)


@lru_cache(maxsize=1 << 15)
def parse_structure(text: str) -> Structure | None:
    """The form of a cleaned answer; None if its brackets do not match, are too many, or the answer is not listed."""
    return _parse(text) if depth(text) <= MAX_DEPTH else None


def _parse(text: str) -> Structure | None:
    if parse_number(text) is not None or (text.isalnum() and (text.isascii() or not _DIGIT.search(text))):
        return Structure("atom", text)
    if "\\in" in text:
        text = _IN.sub("", text, count=1) if _IN.match(text) else text
    system = _CASES.fullmatch(text) if "\\begin{cases}" in text else None
    if system and "&" not in text:  # equations that all hold
        rows = [row.strip(" ,;") for row in _ROW_END.split(system[1]) if row.strip()]
        return _of_parts("bare", ", ".join(rows), rows)
    if "\\begin" in text:
        return _matrix(text)
    unions = split_top(_CUP.sub("\x01", text), "\x01") if "\\cup" in text else [text]
    if unions is None:
        return None
    if len(unions) > 1:
        return _of_parts("union", text, unions)
    joined = " and " in text or " or " in text or (" & " in text and "\\" not in text)
    listed = _AND.sub(",", text) if joined or "{" in text or not text.isascii() else text
    parts = split_top(listed, ",;")
    if parts is None:
        return None
    if len(parts) > 1:
        return _of_parts("bare", text, parts)
    return _single(text)


def atom(text: str) -> Structure:
    """One part of an answer, by its form."""
    return parse_structure(text) or Structure("atom", text)


def _of_parts(kind: str, text: str, parts: list[str], brackets: str = "") -> Structure | None:
    if not all(parts):
        return None
    parsed = [_parse(without_degree(part)) for part in parts]
    if any(part is None for part in parsed):
        return None
    return Structure(kind, text, tuple(part for part in parsed if part is not None), brackets)


def _single(text: str) -> Structure | None:
    if text in (r"\emptyset", r"\{\}", r"\{ \}"):
        return Structure("empty", text)
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return _listed("set", text, text[2:-2])
    if text.startswith("{") and text.endswith("}") and "," in text:
        return _listed("set", text, text[1:-1])
    first, last = text[:1], text[-1:]
    if first in "([" and last in ")]" and _encloses(text):
        parts = split_top(text[1:-1], ",;")
        if parts is None:
            return None
        if len(parts) == 1 and _CLOSES[first] == last:
            inner = _parse(parts[0])
            return Structure("atom", text) if first == "(" and inner is not None and inner.kind == "atom" else inner
        if len(parts) == 2:  # infinity is never included
            first = "(" if infinity(parts[0]) else first
            last = ")" if infinity(parts[1]) else last
        kind = "half" if _CLOSES[first] != last else "round" if first == "(" else "square"
        return _of_parts(kind, text, parts, first + last)
    if r"\mp" in text and r"\pm" not in text:
        text = text.replace(r"\mp", r"\pm")
    if len(_PM.findall(text)) == 1:
        return _of_parts("bare", text, [_PM.sub("+", text), _PM.sub("-", text)])
    return Structure("atom", text)


def _listed(kind: str, text: str, inner: str) -> Structure | None:
    if "|" in inner or ":" in inner:
        return None  # {x | ...}
    parts = split_top(inner, ",;")
    return _of_parts(kind, text, parts) if parts else None


def _encloses(text: str) -> bool:
    """Whether the first bracket is closed by the last one."""
    level = 0
    for position, character in enumerate(text):
        if character in "([{":
            level += 1
        elif character in ")]}":
            level -= 1
            if level == 0:
                return position == len(text) - 1
    return False


def _matrix(text: str) -> Structure | None:
    match = _MATRIX.fullmatch(text)
    if match is None or "\\begin" in match[2]:
        return None
    rows = [row for row in _ROW_END.split(match[2]) if row.strip()]
    cells = [[cell.strip() for cell in row.split("&")] for row in rows]
    if not cells or len({len(row) for row in cells}) != 1:
        return None
    parsed = [_of_parts("row", " & ".join(row), row) for row in cells]
    if any(row is None for row in parsed):
        return None
    return Structure("matrix", text, tuple(row for row in parsed if row is not None))


# ---- comparison; True, False, or None where the parts do not tell


def compare(gold: Structure, prediction: Structure, equal: Equal, ordered_pairs: bool = False) -> bool | None:
    """Equality of two answers by form, with ``equal`` for the parts.

    ``ordered_pairs``: "(a, b)" and "[a, b]" are points or lists, not intervals, so their brackets do not matter,
    and plain values without brackets are in order.
    """
    if gold.kind == prediction.kind == "atom":
        return equal(gold.text, prediction.text)
    if gold.kind == "empty" or prediction.kind == "empty":
        return gold.kind == prediction.kind or _none_if_atom(gold, prediction)
    if gold.kind == "matrix" or prediction.kind == "matrix":
        return _compare_matrices(gold, prediction, equal)
    if "union" in (gold.kind, prediction.kind):
        return _compare_unions(gold, prediction)
    if gold.kind == "atom" or prediction.kind == "atom":
        return _compare_with_atom(gold, prediction, equal)
    unordered = ("bare", "set")
    if ordered_pairs and gold.kind == "bare" and all(p.kind == "atom" and "=" not in p.text for p in gold.parts):
        return _compare_ordered(gold.parts, prediction.parts, equal)
    named = any("=" in part.text for part in gold.parts) or _PM.search(gold.text)
    if gold.kind == "bare" and prediction.kind == "round" and named:
        return False  # "x = 2 or x = 3" is no point
    if gold.kind in unordered and prediction.kind in (unordered if gold.kind == "set" else (*unordered, "round")):
        counted = "set" not in (gold.kind, prediction.kind) and len(gold.parts) == len(prediction.parts)
        return _compare_unordered(gold.parts, prediction.parts, equal, counted)
    if gold.kind == "set" and prediction.kind in ("round", "square", "half"):
        return False  # a point, a list or an interval
    if prediction.kind == "set":
        return False if gold.kind in ("round", "square", "half") and not ordered_pairs else None
    if prediction.kind != "bare" and gold.brackets != prediction.brackets:
        pairs = len(gold.parts) == 2 and not ordered_pairs
        if pairs or "half" in (gold.kind, prediction.kind):
            return False if len(prediction.parts) == 2 else None
    if prediction.kind == "bare" and gold.kind != "round":
        return None
    return _compare_ordered(gold.parts, prediction.parts, equal)


def _none_if_atom(a: Structure, b: Structure) -> bool | None:
    return None if "atom" in (a.kind, b.kind) else False


def _all(results: list[bool | None]) -> bool | None:
    return False if False in results else None if None in results else True


def _compare_ordered(a: tuple[Structure, ...], b: tuple[Structure, ...], equal: Equal) -> bool | None:
    if len(a) != len(b):
        return False
    results: list[bool | None] = []
    for x, y in zip(a, b, strict=True):
        results.append(compare(x, y, equal))
        if results[-1] is False:
            return False
    return _all(results)


def _compare_matrices(gold: Structure, prediction: Structure, equal: Equal) -> bool | None:
    for side in (gold, prediction):  # [[1, 2], [3, 4]] is one too
        if side.kind != "matrix" and not (side.kind == "square" and {row.kind for row in side.parts} == {"square"}):
            return None
    if len({len(row.parts) for row in prediction.parts}) > 1:
        return False
    if len(gold.parts) != len(prediction.parts) or len(gold.parts[0].parts) != len(prediction.parts[0].parts):
        return False
    rows = zip(gold.parts, prediction.parts, strict=True)
    return _all([_compare_ordered(x.parts, y.parts, equal) for x, y in rows])


def _compare_with_atom(gold: Structure, prediction: Structure, equal: Equal) -> bool | None:
    """A list or set against one thing: equal only if all its parts are that thing. "3, 3" asks for two values."""
    several, atom = (prediction, gold) if gold.kind == "atom" else (gold, prediction)
    if several.kind in ("round", "square", "half"):
        value = evaluate(atom.text)
        return False if value is not None and value.node[0] != "name" and len(several.parts) > 1 else None
    unknown = False
    for part in several.parts[:MAX_PAIRS]:
        result = compare(atom, part, equal) if several is prediction else compare(part, atom, equal)
        if result is False:
            return False
        unknown = unknown or result is None
    if several is gold and gold.kind == "bare" and _PM.search(gold.text) is None and not OR.search(gold.text):
        return False
    return None if unknown or len(several.parts) > MAX_PAIRS else True


def _compare_unordered(
    a: tuple[Structure, ...], b: tuple[Structure, ...], equal: Equal, counted: bool = False
) -> bool | None:
    """Equality as sets: every part of each has its equal in the other; ``counted``: as often as in this one."""
    if len(a) * len(b) > MAX_PAIRS:
        values = [[parse_number(part.text) for part in side] for side in (a, b)]
        if any(value is None for side in values for value in side):
            return None
        first, second = (sorted(value.value for value in side if value) for side in values)
        return first == second if counted else set(first) == set(second)
    table = [[compare(x, y, equal) for y in b] for x in a]
    lines = [*table, *([row[j] for row in table] for j in range(len(b)))]
    found = [True if True in line else None if None in line else False for line in lines]
    if counted and any(
        same is True and row.count(True) != lines[len(a) + j].count(True)
        for row in table
        if None not in row
        for j, same in enumerate(row)
        if None not in lines[len(a) + j]
    ):
        return False  # "3, 3, 5" is not "3, 5, 5"
    return _all(list(found))


def _compare_unions(gold: Structure, prediction: Structure) -> bool | None:
    several, other = (gold, prediction) if gold.kind == "union" else (prediction, gold)
    sides = other.text.split("=") if other.kind == "atom" else []
    if other.kind in ("round", "square", "half") or (sides and all(evaluate(side) is not None for side in sides)):
        pieces = intervals_of(several)
        if pieces is not None and len(pieces) > 1:
            return False  # no interval, point, value or equation is that
    atom = gold if gold.kind == "atom" else prediction
    if atom.kind == "atom":
        union = intervals_of(prediction if atom is gold else gold)
        return False if endpoint(atom.text) is not None and union and any(a[0] != b[0] for a, b in union) else None
    first, second = intervals_of(gold), intervals_of(prediction)
    return None if first is None or second is None else first == second


def intervals_of(structure: Structure) -> list[Interval] | None:
    """Disjoint intervals in order, each ((start, closed), (end, closed)); None if an end is not a plain number."""
    pieces = structure.parts if structure.kind == "union" else (structure,)
    intervals: list[Interval] = []
    for piece in pieces:
        found = _intervals(piece)
        if found is None:
            return None
        intervals += found
    return merge(intervals)


def merge(intervals: list[Interval]) -> list[Interval]:
    """The union of intervals as disjoint intervals in order."""
    intervals.sort(key=lambda i: (i[0][0], not i[0][1]))
    merged: list[Interval] = []
    for start, end in intervals:
        if merged:
            (last_start, (last, last_closed)) = merged[-1]
            if start[0] < last or (start[0] == last and (start[1] or last_closed)):
                if (end[0], end[1]) > (last, last_closed):
                    merged[-1] = (last_start, end)
                continue
        merged.append((start, end))
    return merged


def intersection(first: list[Interval], second: list[Interval]) -> list[Interval]:
    """The numbers that lie in both unions of intervals."""
    found: list[Interval] = []
    for a in first:
        for b in second:
            start = max(a[0], b[0], key=lambda end: (end[0], not end[1]))
            end = min(a[1], b[1], key=lambda end: (end[0], end[1]))
            if start[0] < end[0] or (start[0] == end[0] and start[1] and end[1]):
                found.append((start, end))
    return merge(found)


def _intervals(piece: Structure) -> list[Interval] | None:
    if piece.kind in ("set", "bare"):
        points = [endpoint(part.text) for part in piece.parts]
        return None if None in points else [((p, True), (p, True)) for p in points if p is not None]
    if piece.kind == "empty":
        return []
    if len(piece.parts) != 2 or len(piece.brackets) != 2:
        return None
    start, end = endpoint(piece.parts[0].text), endpoint(piece.parts[1].text)
    if start is None or end is None or start > end:
        return None
    return [((start, piece.brackets[0] == "["), (end, piece.brackets[1] == "]"))]


def endpoint(text: str) -> float | Fraction | None:
    """The number that a text stands for, +-inf included; None for any other answer."""
    sign = infinity(text)
    if sign is not None:
        return sign * float("inf")
    expression = evaluate(text)
    if expression is None or not expression.is_number:
        return None
    if expression.exact is not None:
        return expression.exact
    value = expression.values[0]
    return round(value.real, 9) if value is not None and abs(value.imag) < 1e-12 else None
