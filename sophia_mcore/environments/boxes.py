"""Boxes in text, and how well two sets of them agree."""

from __future__ import annotations

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom

_NUMBER = r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
MOST_BOXES = 256  # a reply that names more says nothing


def boxes_in(text: str) -> list[Box]:
    """The boxes [x1, y1, x2, y2] of a text, in order; corners may come in any order.

    >>> boxes_in("at [10, 20, 30, 40] or [[5,5,1,1]]")
    [(10.0, 20.0, 30.0, 40.0), (1.0, 1.0, 5.0, 5.0)]
    """
    found = []
    for match in _BOX.finditer(text):
        x1, y1, x2, y2 = map(float, match.groups())
        found.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
        if len(found) > MOST_BOXES:
            return []
    return found


def intersection_over_union(one: Box, other: Box) -> float:
    """Of two boxes; 0 where both have no area.

    >>> intersection_over_union((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    both = _area(one) + _area(other) - common
    return common / both if both > 0.0 else 0.0


def overlap(found: Sequence[Box], gold: Sequence[Box], at_least: float = 0.0) -> float:
    """The largest sum of overlaps of boxes matched one to one, divided by the larger number of boxes."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    if not found or not gold:
        return 0.0
    values = np.array([[intersection_over_union(one, other) for other in gold] for one in found])
    values[values < at_least] = 0.0
    rows, columns = linear_sum_assignment(values, maximize=True)
    return float(values[rows, columns].sum()) / max(len(found), len(gold))


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
