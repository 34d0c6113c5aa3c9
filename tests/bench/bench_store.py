"""Writing and reading trajectories of 20 KB: the store's shards against JSON lines and plain Parquet.

python -m tests.bench.bench_store [--rows 2000] [--repeats 3] [--folder TMP]

Prints one JSON line; figures are rows per CPU-second, all threads counted, best of the interleaved repeats; files are
synced, pages stay in the cache. Raw bytes of a row are those of its text and eight for every token (an id and a
log-prob of four bytes each). Text is drawn from 4,000 words by Zipf's law, with figures and formulas between them.
Cases: `tokens` (1,000 tokens with their log-probs beside 12 KB of text: what our own engines give; the line's own
figures), `text` (20 KB of text without tokens: what an endpoint's trajectories are).
Peers: `jsonl` (JSON lines), `parquet` (the same columns by pyarrow's writer, zstd, from lists and to lists of Python).
Limit: `arrow`, pyarrow's writer and reader with our encodings, from and to tables of Arrow, without a hash.
`columns`: reading what the grader needs, as a table. `chosen`: the records of one row in 64, which training reads where
one of 8 x 8 trajectories is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sophia_mcore.records import Trajectory
from sophia_mcore.store.schema import schema_of, to_table
from sophia_mcore.store.shards import open_writer, read_shard, read_table, write_shard

BATCH = 500  # rows per shard


def words() -> list[str]:
    """A vocabulary of made-up words, and some figures and formulas."""
    random = np.random.default_rng(1)
    letters = np.array(list("etaoinshrdlucmfwygpbvk"))
    plain = ["".join(random.choice(letters, random.integers(2, 11))) for _ in range(3_800)]
    return plain + [str(i) for i in range(100)] + [rf"\frac{{{i}}}{{x_{i}}}" for i in range(100)]


def trajectories(rows: int, text_bytes: int, tokens: int) -> list[Trajectory]:
    """Rows with about this much text and this many tokens."""
    random = np.random.default_rng(0)
    vocabulary = np.array(words())
    found = []
    for i in range(rows):
        drawn = vocabulary[(random.zipf(1.25, text_bytes // 4) - 1) % len(vocabulary)]
        text = " ".join(drawn)[:text_bytes]
        logprobs = tuple(float(x) for x in -random.exponential(0.3, tokens).astype(np.float32))
        found.append(
            Trajectory(
                id=f"train-{i // 16}.{i:016x}.k{i % 4}.n{i % 8}", question_id=f"train-{i // 16}",
                caption_id=f"{i // 16:016x}.k{i % 4}", index=i % 8, text=text,
                token_ids=tuple(random.integers(0, 151_674, tokens).tolist()), token_logprobs=logprobs,
                logprob_sum=sum(logprobs), finish_reason="stop", temperature=1.0, top_p=1.0, max_tokens=16_384, seed=i,
                model_digest="3f2a" * 16, prompt_hash=f"{i // 16:064x}",
            )
        )  # fmt: skip
    return found


def raw_bytes(rows: list[Trajectory]) -> int:
    """Bytes of text and tokens."""
    return sum(len(row.text.encode()) + 8 * len(row.token_ids) for row in rows)


def shards(rows: list[Trajectory]) -> list[list[Trajectory]]:
    """As many rows as a work unit has."""
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def write_ours(folder: Path, rows: list[Trajectory]) -> None:
    """The store."""
    for number, part in enumerate(shards(rows)):
        write_shard(folder / f"{number}.parquet", part, Trajectory)


def write_jsonl(folder: Path, rows: list[Trajectory]) -> None:
    """One line a row."""
    for number, part in enumerate(shards(rows)):
        with open(folder / f"{number}.jsonl", "w") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in part)
            file.flush()
            os.fsync(file.fileno())


def write_parquet(folder: Path, rows: list[Trajectory]) -> None:
    """pyarrow alone."""
    schema = schema_of(Trajectory)
    for number, part in enumerate(shards(rows)):
        columns = [[getattr(row, name) for row in part] for name in schema.names]
        with open(folder / f"{number}.parquet", "wb") as file:
            pq.write_table(pa.table(columns, schema=schema), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())


def write_arrow(folder: Path, tables: list[pa.Table]) -> None:
    """pyarrow alone, our encodings, from tables that are there."""
    for number, table in enumerate(tables):
        with open(folder / f"{number}.parquet", "wb") as file:
            with open_writer(file, Trajectory) as writer:
                writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())


def read_jsonl(file: Path) -> list[Trajectory]:
    """One line a row."""
    with open(file) as lines:
        return [Trajectory(**json.loads(line)) for line in lines]


def read_parquet(file: Path) -> list[dict[str, Any]]:
    """pyarrow alone, into dictionaries."""
    return pq.read_table(file).to_pylist()


def read_chosen(file: Path) -> list[Trajectory]:
    """What training needs: some records."""
    first = int(file.stem) * BATCH
    chosen = {f"train-{i // 16}.{i:016x}.k{i % 4}.n{i % 8}" for i in range(first, first + BATCH, 64)}
    found = read_shard(file, Trajectory, chosen)
    assert 0 < len(found) <= len(chosen)  # the last shard may be shorter
    return found


def read_columns(file: Path) -> pa.Table:
    """What the grader needs."""
    return read_table(file, Trajectory, columns=["id", "question_id", "text"])


WRITE: dict[str, Callable[[Path, list[Trajectory]], None]] = {
    "ours": write_ours, "jsonl": write_jsonl, "parquet": write_parquet,
}  # fmt: skip
READ: dict[str, tuple[str, Callable[[Path], object]]] = {
    "ours": ("ours", lambda file: read_shard(file, Trajectory)), "columns": ("ours", read_columns),
    "chosen": ("ours", read_chosen), "jsonl": ("jsonl", read_jsonl), "parquet": ("parquet", read_parquet),
    "arrow": ("arrow", lambda file: pq.read_table(file, use_threads=False)),
}  # fmt: skip


def measure(rows: list[Trajectory], repeats: int, parent: Path | None) -> dict[str, dict[str, float]]:
    """Rows per CPU-second written and read, and bytes on the disk over raw bytes."""
    tables = [to_table(part, Trajectory) for part in shards(rows)]
    writers = WRITE | {"arrow": lambda folder, rows: write_arrow(folder, tables)}
    seconds: dict[str, dict[str, list[float]]] = {"write": {n: [] for n in writers}, "read": {n: [] for n in READ}}
    sizes = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(dir=parent) as temporary:
            for name, write in writers.items():
                folder = Path(temporary) / name
                folder.mkdir()
                start = time.process_time()
                write(folder, rows)
                seconds["write"][name].append(time.process_time() - start)
                sizes[name] = sum(file.stat().st_size for file in folder.iterdir()) / raw_bytes(rows)
            for name, (written, read) in READ.items():
                start = time.process_time()
                for file in (Path(temporary) / written).iterdir():
                    read(file)
                seconds["read"][name].append(time.process_time() - start)
    speed = {what: {n: round(len(rows) / min(v)) for n, v in found.items()} for what, found in seconds.items()}
    return {**speed, "size": {name: round(size, 3) for name, size in sizes.items()}}  # type: ignore[dict-item]


def main() -> None:
    """Run, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 2_000), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    cases = {"tokens": (12_000, 1_000, options.rows), "text": (20_000, 0, options.rows)}
    found = {name: measure(trajectories(n, text, tokens), options.repeats, options.folder)
             for name, (text, tokens, n) in cases.items()}  # fmt: skip
    own = found["tokens"]
    line = {
        "name": "store", "ours": own["write"]["ours"], "peer": own["write"]["jsonl"],
        "ratio": round(own["write"]["ours"] / own["write"]["jsonl"], 2), "unit": "rows written/cpu-second",
        "peer_name": "JSON lines", "read": own["read"]["ours"], "read_peer": own["read"]["jsonl"],
        "read_ratio": round(own["read"]["ours"] / own["read"]["jsonl"], 2), "size": own["size"]["ours"],
        "columns": own["read"]["columns"], "chosen": own["read"]["chosen"],
        "limit_ratio": round(own["write"]["ours"] / own["write"]["arrow"], 2),
        "read_limit_ratio": round(own["read"]["ours"] / own["read"]["arrow"], 2),
        "parquet_ratio": round(own["write"]["ours"] / own["write"]["parquet"], 2), **found,
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
