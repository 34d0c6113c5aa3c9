r"""Vectors in their spellings: (1, -2), \langle 1, -2 \rangle, a column, \mathbf{i} - 2\mathbf{j}."""

from __future__ import annotations

import re
from dataclasses import replace

from sophia_mcore.verify.comparing.structures import Structure, parse_structure

_UNIT = (
    r"\\(?:mathbf|hat|vec|bm|boldsymbol|overrightarrow|widehat)\s*\{\s*(?:\\(?:mathbf|hat|vec|bm))?\s*\{?\s*\\?"
    r"(?P<unit>[ijk])(?:math)?\s*\}?\s*\}"
)
_TERM = re.compile(rf"\s*(?P<sign>[+-]?)\s*(?P<number>[^+\-]*?)\s*(?:\\cdot\s*)?{_UNIT}")
_BRACKETED = re.compile(r"\((?P<inner>[^()]+)\)")


def components(text: str) -> str | None:
    r"""A sum of multiples of the unit vectors i, j and k as its components; None for any other text.

    >>> components(r"\mathbf{i} - 2\mathbf{j}"), components(r"3\hat{k}"), components("i + 2j")
    ('(1, -2)', '(0, 0, 3)', None)
    """
    found: dict[str, str] = {}
    position = 0
    while position < len(text.rstrip()):
        term = _TERM.match(text, position)
        if term is None or (position and not term["sign"]) or term["unit"] in found:
            return None
        bracketed = _BRACKETED.fullmatch(term["number"])
        number = (bracketed["inner"] if bracketed else term["number"]) or "1"
        if "," in number or "=" in number:
            return None
        found[term["unit"]] = f"-({number})" if term["sign"] == "-" and not number.isdigit() else term["sign"] + number
        position = term.end()
    if not found:
        return None
    values = [found.get(unit, "0").lstrip("+") for unit in ("ijk" if "k" in found else "ij")]
    return f"({', '.join(values)})"


def as_point(structure: Structure, size: int) -> Structure:
    """A column or row of ``size`` cells, or a sum of unit vectors, as a tuple; any other answer as it is."""
    if structure.kind == "matrix":
        rows = structure.parts
        cells = rows[0].parts if len(rows) == 1 else tuple(row.parts[0] for row in rows if len(row.parts) == 1)
        return replace(structure, kind="round", parts=cells, brackets="()") if len(cells) == size > 1 else structure
    flat = components(structure.text) if structure.kind == "atom" else None
    point = parse_structure(flat) if flat is not None else None
    if point is None or len(point.parts) > size:
        return structure
    zero = Structure("atom", "0")
    return replace(point, parts=point.parts + (zero,) * (size - len(point.parts)))
