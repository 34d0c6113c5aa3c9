"""Packing a million reasoning-like lengths into rows of 16,384 tokens, against the packers of TRL and NeMo-RL.

python -m tests.bench.bench_packing [--items 1000000] [--repeats 3] [--peer-items 20000] [--trl FOLDER] [--nemo-rl FILE]

Prints one JSON line; figures are items per CPU-second of one thread, best of the interleaved repeats. `ours` takes and
gives arrays (`pack_arrays`); `lists` gives lists of lists, as the peers do (`pack`). The peers are slow, so they pack
the first `--peer-items` of the same lengths; NeMo-RL's gets slower with more items, TRL's hardly.

The peers' own code runs where it is given: `pip install --no-deps --target FOLDER trl` for TRL, and for NeMo-RL (whose
package on the registry is empty) the file nemo_rl/data/packing/algorithms.py of its repository. Otherwise our own
implementation of the same algorithm stands in, and `peer_code` says so: best-fit decreasing with a segment tree over
the free space for TRL, first-fit decreasing for NeMo-RL.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import site
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sophia_mcore.batch.pack import pack, pack_arrays, volume_bound

STAND_IN = "a stand-in: our own implementation of its algorithm"  # by this word the index knows it
Packer = Callable[[list[int], int], int]  # (lengths, capacity) -> number of rows


def lengths_like_reasoning(count: int, capacity: int) -> np.ndarray:
    """Lognormal with a median of 2,000 tokens and a long tail, cut off at the capacity."""
    return np.clip(np.random.default_rng(0).lognormal(7.6, 0.9, count), 16, capacity).astype(np.int64)


class Spaces:
    """A segment tree over the free spaces of rows: the smallest that is there and not below a length."""

    def __init__(self, capacity: int) -> None:
        self.leaves = 1 << (capacity - 1).bit_length()
        self.largest = [0] * (2 * self.leaves)

    def set(self, space: int, there: bool) -> None:
        """Note that a row with this much space is there, or none any more."""
        node, largest = self.leaves + space - 1, self.largest
        largest[node] = space if there else 0
        while node > 1:
            node >>= 1
            left, right = largest[2 * node], largest[2 * node + 1]
            largest[node] = left if left > right else right

    def find(self, length: int) -> int:
        """The smallest space of at least ``length``."""
        node = 1
        while node < self.leaves:
            node = 2 * node + (self.largest[2 * node] < length)
        return self.largest[node]


def best_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """In plain Python, with a segment tree."""
    spaces, waiting = Spaces(capacity), defaultdict(deque)
    spaces.set(capacity, True)
    rows: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        space = spaces.find(lengths[item])
        if space < capacity:
            row = waiting[space].popleft()
            if not waiting[space]:
                spaces.set(space, False)
        else:
            rows.append(row := [])
        row.append(item)
        left = space - lengths[item]
        if left:
            waiting[left].append(row)
            spaces.set(left, True)
    return len(rows)


def first_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """In plain Python: every item goes into the first row that has room."""
    rows: list[list[int]] = []
    free: list[int] = []
    for item in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[item]
        place = next((i for i, space in enumerate(free) if space >= length), None)
        if place is None:
            rows.append([item])
            free.append(capacity - length)
        else:
            rows[place].append(item)
            free[place] -= length
    return len(rows)


def trl_packer(folder: Path | None) -> tuple[Packer, str]:
    """TRL's packer and whose code it is. Tokens are single bytes, so that copying them costs next to nothing."""
    if folder is not None:
        site.addsitedir(str(folder))
    try:
        import pyarrow as pa
        from trl import __version__
        from trl.data_utils import _pack_bfd
    except ImportError as error:
        if folder is not None:
            raise SystemExit(f"--trl {folder}: {error}") from error
        return best_fit_decreasing, STAND_IN

    def run(lengths: list[int], capacity: int) -> int:
        starts = np.concatenate(([0], np.cumsum(lengths)))
        tokens = pa.LargeListArray.from_arrays(starts, pa.array(np.zeros(starts[-1], np.int8)))
        return len(_pack_bfd(pa.table({"input_ids": tokens}), capacity))

    return run, f"trl {__version__}"


def nemo_packers(file: Path | None) -> tuple[dict[str, Packer], str]:
    """NeMo-RL's packers that fill rows as ours does, and whose code it is."""
    if file is None:
        return {"NeMo-RL first-fit": first_fit_decreasing}, STAND_IN
    spec = importlib.util.spec_from_file_location("nemo_rl_packing", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise SystemExit(f"--nemo-rl {file}: not a Python file")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def packer(kind: Any) -> Packer:
        return lambda lengths, capacity: len(kind(capacity)._pack_implementation(lengths))

    return {
        "NeMo-RL first-fit": packer(module.FirstFitDecreasingPacker),
        "NeMo-RL modified first-fit": packer(module.ModifiedFirstFitDecreasingPacker),
    }, f"NeMo-RL {file.name}"


def seconds_of(work: Callable[[], object]) -> float:
    """CPU-seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Run, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("items", 1_000_000), ("capacity", 16_384), ("repeats", 3), ("peer-items", 20_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("trl", "nemo-rl"):
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    lengths = lengths_like_reasoning(options.items, options.capacity)
    few = lengths[: options.peer_items].tolist()
    trl, trl_code = trl_packer(options.trl)
    nemo, nemo_code = nemo_packers(options.nemo_rl)
    peers = {"TRL": trl, **nemo}
    rows = {"ours": len(pack(few, options.capacity)), **{n: run(few, options.capacity) for n, run in peers.items()}}
    work: dict[str, tuple[Callable[[], object], int]] = {
        "arrays": (lambda: pack_arrays(lengths, options.capacity), options.items),
        "lists": (lambda: pack(lengths, options.capacity), options.items),
        **{name: (lambda run=run: run(few, options.capacity), len(few)) for name, run in peers.items()},
    }
    best = dict.fromkeys(work, float("inf"))
    for _ in range(options.repeats):
        for name, (run, _) in work.items():
            best[name] = min(best[name], seconds_of(run))
    rate = {name: items / best[name] for name, (_, items) in work.items()}
    fastest = max(peers, key=rate.__getitem__)
    bins = len(pack_arrays(lengths, options.capacity)[1]) - 1
    line = {
        "name": "packing", "ours": round(rate["arrays"]), "peer": round(rate[fastest]),
        "ratio": round(rate["arrays"] / rate[fastest], 1), "unit": "items/cpu-second", "peer_name": fastest,
        "peer_code": {"TRL": trl_code, "NeMo-RL": nemo_code}, "peer_items": len(few),
        "peers": {name: round(rate[name]) for name in peers}, "lists": round(rate["lists"]),
        "lists_ratio": round(rate["lists"] / rate[fastest], 1), "rows_on_the_peers_items": rows,
        "over_volume_bound": round(bins / volume_bound(lengths, options.capacity), 6),
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
