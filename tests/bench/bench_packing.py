"""Packing a million reasoning-like lengths into rows of 16,384 tokens.

python -m tests.bench.bench_packing [--items 1000000] [--capacity 16384] [--repeats 3]

Prints one JSON line; figures are items per CPU-second of one thread, best of the interleaved repeats, lists of lists in
and out on both sides. Peers: TRL's best-fit decreasing where TRL is installed (on `--peer-items` of the same lengths,
as it is slow), else the same algorithm in plain Python with a sorted list, as training libraries have it.
"""

from __future__ import annotations

import argparse
import json
import time
from bisect import bisect_left, insort
from collections.abc import Callable

import numpy as np

from sophia_mcore.batch.pack import pack, pack_arrays, volume_bound


def lengths_like_reasoning(count: int, capacity: int) -> np.ndarray:
    """Lognormal with a median of 2,000 tokens and a long tail, cut off at the capacity."""
    return np.clip(np.random.default_rng(0).lognormal(7.6, 0.9, count), 16, capacity).astype(np.int64)


def plain_python(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing with the free spaces in a sorted list."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free space, row), sorted
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(free, (lengths[item], -1))
        if place == len(free):
            rows.append([item])
            space, row = capacity, len(rows) - 1
        else:
            space, row = free.pop(place)
            rows[row].append(item)
        if space > lengths[item]:
            insort(free, (space - lengths[item], row))
    return rows


def trl_packer() -> Callable[[list[int], int], int] | None:
    """TRL's packer as (lengths, capacity) -> number of rows, or None."""
    try:
        from datasets import Dataset
        from trl.data_utils import pack_dataset
    except ImportError:
        return None

    def run(lengths: list[int], capacity: int) -> int:
        rows = Dataset.from_dict({"input_ids": [[0] * length for length in lengths]})
        return len(pack_dataset(rows, capacity, strategy="bfd"))

    return run


def rate(work: Callable[[], object], items: int, repeats: int) -> float:
    """Items per CPU-second, best of the repeats."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return items / best


def main() -> None:
    """Run, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("items", 1_000_000), ("capacity", 16_384), ("repeats", 3), ("peer-items", 100_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    lengths = lengths_like_reasoning(options.items, options.capacity)
    few = lengths[: options.peer_items].tolist()
    pack(few[:100], options.capacity)  # compiled before the clock starts
    ours = rate(lambda: pack(lengths, options.capacity), options.items, options.repeats)
    arrays = rate(lambda: pack_arrays(lengths, options.capacity), options.items, options.repeats)
    peers = {"plain Python": rate(lambda: plain_python(few, options.capacity), len(few), options.repeats)}
    rows = {"plain Python": len(plain_python(few, options.capacity)), "ours": len(pack(few, options.capacity))}
    trl = trl_packer()
    if trl is not None:
        peers["TRL"] = rate(lambda: trl(few, options.capacity), len(few), 1)
        rows["TRL"] = trl(few, options.capacity)
    fastest = max(peers, key=lambda name: peers[name])
    print(
        json.dumps(
            {
                "name": "packing",
                "ours": round(ours),
                "peer": round(peers[fastest]),
                "ratio": round(ours / peers[fastest], 2),
                "unit": "items/cpu-second",
                "peer_name": fastest,
                "arrays": round(arrays),
                "arrays_ratio": round(arrays / peers[fastest], 2),
                "peers": {name: round(value) for name, value in peers.items()},
                "rows_on_the_peers_items": rows,
                "over_volume_bound": round(
                    len(pack(lengths, options.capacity)) / volume_bound(lengths, options.capacity), 6
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
