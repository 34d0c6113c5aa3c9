"""pass@1 and its confidence interval. Pure functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution


def pass_at_1(verdicts: Iterable[tuple[str, bool]]) -> tuple[float, int]:
    """(mean over questions of the share of right samples, number of questions); (nan, 0) without questions.

    ``verdicts``: (question id, whether the sample is right), with any number of samples per question.

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

    With several samples per question, n is still the number of questions. Samples of one question are not independent,
    so the interval may be too wide, but not too narrow. Returns (0, 1) if n is 0.

    >>> [round(bound, 4) for bound in wilson(0.5, 100)]
    [0.4038, 0.5962]
    """
    if n == 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
