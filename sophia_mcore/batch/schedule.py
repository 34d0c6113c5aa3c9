"""Selects the samples of step i. This is a pure function of i, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.lineage import seed_for


@dataclass(frozen=True, slots=True)
class Stream:
    """`size` samples, shuffled again in each epoch. `share`: their part of every global batch, in (0, 1]."""

    name: str
    size: int
    share: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps over several streams.

    The first stream is the main one: it decides where an epoch ends. Invariants (the tests' assertions):
    step i depends only on the fields and i; every epoch of a stream reads each of its samples once; after any number
    of steps a stream's share of the samples so far is exact to within one sample per stream; with `fixed_steps` every
    step has exactly global_batch samples; with epochs the last one is cut off where the main stream's epochs end.
    """

    streams: tuple[Stream, ...]
    global_batch: int
    seed: int
    epochs: float = 1.0
    fixed_steps: int | None = None

    def __post_init__(self) -> None:
        empty = [stream.name for stream in self.streams if stream.size == 0]
        if empty:
            raise SophiaError(f"no sample to train on in {', '.join(empty)}")

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.fixed_steps or math.ceil(round(self._total() / self.global_batch, 9))

    def step(self, index: int) -> list[tuple[int, int]]:
        """(stream, sample in the stream) for each sample of step `index` in [0, steps)."""
        if not 0 <= index < self.steps:
            raise IndexError(f"step {index} of {self.steps}")
        return [
            (number, self._sample(stream, position))
            for number, stream in enumerate(self.streams)
            for position in range(self._given(number, index), self._given(number, index + 1))
        ]

    def _total(self) -> float:
        """Samples of all streams together until the epochs of the main stream end."""
        return self.epochs * self.streams[0].size / self.streams[0].share

    def _given(self, number: int, steps: int) -> int:
        """How many samples stream `number` has contributed after `steps` steps.

        Streams 1, 2, ... in turn take their part of what is left; stream 0 takes the rest. So the number of no stream
        ever goes down from one step to the next, for any shares.
        """
        left = steps * self.global_batch
        if self.fixed_steps is None:
            left = min(left, round(self._total()))
        left_share = 1.0
        for stream in self.streams[1 : number + 1] if number else self.streams[1:]:
            taken = math.floor(round(left * stream.share / left_share, 6))
            left, left_share = left - taken, left_share - stream.share
        return taken if number else left

    def _sample(self, stream: Stream, position: int) -> int:
        epoch, place = divmod(position, stream.size)
        return int(_permutation(stream.size, seed_for(self.seed, "epoch", stream.name, epoch))[place])


@lru_cache(maxsize=16)
def _permutation(size: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(size)


def assign_rows(lengths: Sequence[Sequence[int]], multiple: int, ranks: int) -> list[list[int | None]]:
    """Divide rows, given as the lengths of their sequences, among ranks; returns row indices, None for an empty row.

    Every rank gets the same number of rows, a multiple of `multiple`. Rows are sorted by attention cost (sum of squared
    lengths), largest first, and dealt to the ranks; the order of the ranks is reversed at every turn. So all ranks
    finish a step at about the same time.

    >>> assign_rows([[4], [2, 2], [3], [1]], multiple=1, ranks=2)
    [[0, 3], [2, 1]]
    """
    order = sorted(range(len(lengths)), key=lambda row: (-sum(n * n for n in lengths[row]), row))
    per_rank = max(1, -(-len(order) // (ranks * multiple))) * multiple
    padded = [*order, *[None] * (per_rank * ranks - len(order))]
    turns = [padded[start : start + ranks] for start in range(0, len(padded), ranks)]
    return [
        [(turn if number % 2 == 0 else turn[::-1])[rank] for number, turn in enumerate(turns)] for rank in range(ranks)
    ]
