"""How long to wait until a file is looked at again."""

from __future__ import annotations

from collections.abc import Iterator

_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.05, 1.0
_SHARE = 0.05  # of the time that has been waited already


def pauses() -> Iterator[float]:
    """Seconds to sleep before each look: what is waited in vain is at most a twentieth of the wait, or a second.

    A wait of 4 seconds has 49 looks, one of a minute 122, and each further minute 60. A look lists a few folders.

    >>> wait = pauses()
    >>> [round(next(wait), 3) for _ in range(23)][-4:], round([next(wait) for _ in range(80)][-1], 3)
    ([0.05, 0.05, 0.053, 0.055], 1.0)
    """
    waited = 0.0
    while True:
        pause = min(max(_SHORTEST_SECONDS, _SHARE * waited), _LONGEST_SECONDS)
        yield pause
        waited += pause
