"""The invariants that pack's docstring names."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from sophia_mcore.batch.pack import pack, pack_arrays, volume_bound


def slow_best_fit_decreasing(lengths, capacity):
    """Number of rows, from the definition."""
    loads = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, load in enumerate(loads) if load + length <= capacity]
        if fitting:
            loads[max(fitting, key=lambda row: loads[row])] += length
        else:
            loads.append(length)
    return sorted(loads)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(st.integers(1, 9000), st.data())
def test_invariants(capacity, data):
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    rows = pack(lengths, capacity)
    loads = sorted(sum(lengths[item] for item in row) for row in rows)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(0 < load <= capacity for load in loads)
    assert len(loads) < 2 or loads[0] + loads[1] > capacity
    assert loads == slow_best_fit_decreasing(lengths, capacity)
    assert volume_bound(lengths, capacity) <= len(rows)
    for row in rows:
        assert [(-lengths[item], item) for item in row] == sorted((-lengths[item], item) for item in row)
    firsts = [lengths[row[0]] for row in rows]
    assert firsts == sorted(firsts, reverse=True)
    assert pack(np.array(lengths, dtype=np.int32), capacity) == rows


def test_edges():
    assert pack([], 8) == []
    assert pack([8, 8, 1], 8) == [[0], [1], [2]]
    assert pack([1] * 130, 64) == [list(range(64)), list(range(64, 128)), [128, 129]]
    items, starts = pack_arrays([5, 3], 8)
    assert items.tolist() == [0, 1] and starts.tolist() == [0, 2]


@pytest.mark.parametrize(("lengths", "message"), [([1, 0], "length 0 at index 1"), ([9], "length 9 at index 0")])
def test_impossible_lengths_are_named(lengths, message):
    with pytest.raises(ValueError, match=message):
        pack(lengths, 8)


def test_reasoning_like_lengths_nearly_reach_the_volume_bound():
    lengths = np.clip(np.random.default_rng(0).lognormal(7.6, 0.9, 100_000), 16, 16_384).astype(int)
    assert len(pack(lengths, 16_384)) <= 1.005 * volume_bound(lengths, 16_384)
