"""Packs lengths into rows of fixed capacity: best-fit decreasing, in time linear in the number of lengths.

Lengths are small integers. So a counting sort is enough, and the fullest row with enough space is found as the next set
bit in a bitmap over the free space of the rows.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray


def pack(lengths: ArrayLike, capacity: int) -> list[list[int]]:
    """Pack `lengths` into rows; returns the indices in each row, whose lengths sum to at most `capacity`.

    >>> pack([5, 3, 4, 2, 2], 8)
    [[0, 1], [2, 3, 4]]

    Invariants (the tests' assertions):
    every index is in exactly one row; no row exceeds the capacity; no two rows fit into one; the result depends
    only on the arguments; equal lengths keep their order; a row lists longer items first; rows come in the order
    in which they were opened, which is by the length of their first item, longest first.

    Raises:
        ValueError: a length is below 1 or above the capacity (naming the first such index).
    """
    items, starts = pack_arrays(lengths, capacity)
    flat, cuts = items.tolist(), starts.tolist()
    with _collector_paused():
        return [flat[start:stop] for start, stop in pairwise(cuts)]


def pack_arrays(lengths: ArrayLike, capacity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Like `pack`, as arrays: the item indices of all rows, and the start of each row (rows + 1 values)."""
    checked = np.ascontiguousarray(lengths, dtype=np.int64)
    if checked.ndim != 1:
        raise ValueError(f"lengths must be one-dimensional, not {checked.ndim}-dimensional")
    wrong = np.flatnonzero((checked < 1) | (checked > capacity))
    if len(wrong):
        raise ValueError(f"length {checked[wrong[0]]} at index {wrong[0]} is not in [1, capacity = {capacity}]")
    return _best_fit_decreasing(checked, capacity)


def volume_bound(lengths: Sequence[int] | NDArray[np.int64], capacity: int) -> int:
    """Lower bound of the number of rows: the sum of the lengths divided by the capacity, rounded up."""
    return -(-int(np.sum(lengths)) // capacity)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector. Making many lists of integers would start it often, without finding garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@njit(cache=True)
def _best_fit_decreasing(lengths, capacity):  # type: ignore[no-untyped-def]
    order = _longest_first(lengths, capacity)
    row_of = np.empty(order.size, np.int32)  # row of the i-th item in `order`; indexed so for sequential memory access
    top = np.full(capacity + 1, -1, np.int32)  # free space -> last row with exactly that much, or -1
    below = np.empty(order.size, np.int32)  # row -> the next row with the same free space
    words = np.zeros((capacity >> 6) + 1, np.uint64)  # bit f is set if some row has free space f
    summary = np.zeros((words.size >> 6) + 1, np.uint64)  # bit w is set if words[w] is not zero
    rows = 0
    for place in range(order.size):
        length = lengths[order[place]]
        free = _next_bit(words, summary, length)
        if free < 0:
            row, free = rows, capacity
            rows += 1
        else:
            row = top[free]
            top[free] = below[row]
            if top[free] < 0:
                words[free >> 6] ^= np.uint64(1) << np.uint64(free & 63)
                if words[free >> 6] == 0:
                    summary[free >> 12] ^= np.uint64(1) << np.uint64((free >> 6) & 63)
        row_of[place] = row
        free -= length
        if free > 0:
            below[row], top[free] = top[free], row
            words[free >> 6] |= np.uint64(1) << np.uint64(free & 63)
            summary[free >> 12] |= np.uint64(1) << np.uint64((free >> 6) & 63)
    return _group(order, row_of, rows)


@njit(cache=True)
def _longest_first(lengths, capacity):  # type: ignore[no-untyped-def]
    """Indices by decreasing length; equal lengths keep their order (a counting sort)."""
    place = np.zeros(capacity + 2, np.int64)
    for length in lengths:
        place[capacity - length + 1] += 1
    for key in range(1, place.size):
        place[key] += place[key - 1]
    order = np.empty(lengths.size, np.int32)
    for item in range(lengths.size):
        key = capacity - lengths[item]
        order[place[key]] = item
        place[key] += 1
    return order


@njit(cache=True)
def _next_bit(words, summary, first):  # type: ignore[no-untyped-def]
    """Smallest set bit >= first, or -1."""
    word = first >> 6
    bits = words[word] & (np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(first & 63))
    if bits != 0:
        return (word << 6) + _lowest(bits)
    word += 1
    block = word >> 6
    if block >= summary.size:
        return -1
    bits = summary[block] & (np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(word & 63))
    while bits == 0:
        block += 1
        if block == summary.size:
            return -1
        bits = summary[block]
    word = (block << 6) + _lowest(bits)
    return (word << 6) + _lowest(words[word])


@njit(cache=True)
def _lowest(bits):  # type: ignore[no-untyped-def]
    """Position of the lowest set bit of a non-zero word, by halving."""
    position = 0
    for step in (32, 16, 8, 4, 2, 1):
        if bits & ((np.uint64(1) << np.uint64(step)) - np.uint64(1)) == 0:
            bits >>= np.uint64(step)
            position += step
    return position


@njit(cache=True)
def _group(order, row_of, rows):  # type: ignore[no-untyped-def]
    """Items of all rows, each row in the order in which they were placed, and the start of each row."""
    starts = np.zeros(rows + 1, np.int64)
    for row in row_of:
        starts[row + 1] += 1
    for row in range(rows):
        starts[row + 1] += starts[row]
    items, free = np.empty(order.size, np.int64), starts[:-1].copy()
    for place in range(order.size):
        row = row_of[place]
        items[free[row]] = order[place]
        free[row] += 1
    return items, starts
