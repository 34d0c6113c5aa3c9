"""pass@1 and how sure it is. Pure functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution


def pass_at_1(verdicts: Iterable[tuple[str, bool]]) -> tuple[float, int]:
    """Mean over questions of the share of right samples; (value, number of questions).

    ``verdicts`` are (question id, right?) pairs, any number of samples per question. (nan, 0) without any.

    >>> pass_at_1([("a", True), ("a", False), ("b", True)])
    (0.75, 2)
    """
    by_question: dict[str, list[bool]] = defaultdict(list)
    for question, right in verdicts:
        by_question[question].append(right)
    if not by_question:
        return math.nan, 0
    shares = [sum(rights) / len(rights) for rights in by_question.values()]
    return math.fsum(shares) / len(shares), len(shares)


def wilson(share: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share observed on ``n`` questions (Wilson 1927), 95% by default.

    With several samples per question n stays the number of questions: samples of one question are not independent, so
    the interval is rather too wide than too narrow. (0, 1) without any question.

    >>> [round(bound, 4) for bound in wilson(0.5, 100)]
    [0.4038, 0.5962]
    """
    if n == 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
