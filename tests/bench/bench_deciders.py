"""Which module decides how many verdicts.

python -m tests.bench.bench_deciders [--run RUN ...] [--pairs FILE.jsonl ...] [--stream QUESTIONS]

Prints one table row per module and one column per set. --run: the trajectories of a run's rounds; --pairs: lines with
"response", "answer" and, where they have them, "type", "options", "benchmark"; --stream: those of tests/bench/answers.
A verdict belongs to the module whose function first returned it, and "workers" are what the exact rules leave open.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from sophia_mcore.records import Question, Trajectory
from sophia_mcore.store.shards import read_folder, read_shard
from sophia_mcore.verify import GradeItem, exact
from sophia_mcore.verify.extract import extract
from sophia_mcore.verify.rules import rule_for
from tests.bench.answers import stream

PACKAGE = str(Path(exact.__file__).parent)


def deciding_module(decide: Callable[[], bool | None]) -> str:
    """Name of the module whose function first returned the value that ``decide`` returns; "workers" for None."""
    # per frame: the last (value, module) that a function called from it returned
    stack: list[tuple[bool, str] | None] = [None]

    def watch(frame: FrameType, event: str, value: Any) -> None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if event == "call":
            stack.append(None)
        elif event == "return":
            inner = stack.pop()
            if isinstance(value, bool):
                module = inner[1] if inner and inner[0] is value else Path(frame.f_code.co_filename).stem
                stack[-1] = (value, module)

    sys.setprofile(watch)
    try:
        result = decide()
    finally:
        sys.setprofile(None)
    return "workers" if result is None or stack[0] is None else stack[0][1]


def count(items: Iterable[GradeItem]) -> Counter[str]:
    """Verdicts by deciding module."""
    counts: Counter[str] = Counter()
    for item in items:
        gold = exact.prepare(item.answer, item.answer_type, item.options, rule_for(item.rules))
        found = extract(item.response, gold.type)
        counts["extract (no answer)" if found is None else deciding_module(partial(exact.decide, gold, found))] += 1
        for cached in (exact.parse_number, exact.evaluate):
            cached.cache_clear()  # type: ignore[attr-defined]
    return counts


def of_run(run: Path) -> Iterator[GradeItem]:
    """All trajectories of all rounds."""
    questions = {q.id: q for q in read_shard(run / "questions.parquet", Question)}
    for folder in sorted(run.glob("round-*/trajectories")):
        for row in read_folder(folder, Trajectory):
            q = questions[row.question_id]
            text = "" if row.finish_reason == "length" else row.text
            yield GradeItem(row.id, text, q.answer, q.answer_type, q.options, q.source)


def of_pairs(path: Path) -> Iterator[GradeItem]:
    """The lines of a file; the file's name stands for the benchmark where a line names none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        kind = row.get("type") or row.get("answer_type") or ""
        options, rules = tuple(row.get("options") or ()), row.get("benchmark") or path.stem
        yield GradeItem(str(row["id"]), row["response"], str(row["answer"]), kind, options, rules)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, nargs="*", default=[])
    parser.add_argument("--pairs", type=Path, nargs="*", default=[])
    parser.add_argument("--stream", type=int, default=0, metavar="QUESTIONS")
    options = parser.parse_args()
    columns: dict[str, Counter[str]] = {}
    if options.run:
        columns["runs"] = count(item for run in options.run for item in of_run(run))
    if options.stream:
        columns["stream"] = count(stream(options.stream, 8))
    if options.pairs:
        columns["pairs"] = count(item for path in options.pairs for item in of_pairs(path))
    print("| decided by | " + " | ".join(f"{name} ({c.total()})" for name, c in columns.items()) + " |")
    print("|---" * (len(columns) + 1) + "|")
    total = sum(columns.values(), Counter())
    for module, _ in total.most_common():
        print(f"| {module} | " + " | ".join(f"{100 * c[module] / c.total():.2f}%" for c in columns.values()) + " |")


if __name__ == "__main__":
    main()
