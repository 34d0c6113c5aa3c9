"""Grading a realistic stream of answers, against math-verify on the same answers.

python -m tests.bench.bench_grading [--questions 300] [--responses 64] [--peer 1200] [--lines 300000] [--repeats 2]

Prints one JSON line in answers per CPU-second (this process and its children, workers warm). `distinct_ratio`: without
repeated answers, so that caches do not help. `two_processes`: throughput of `sophia grade` with two processes over one,
on a file of --lines, by wall clock; `two_apart`: of two that grade a file each, the most that the machine allows (both
only meaningful on an idle machine); `triples`: seconds of one, two, and two apart, by repeat. `differences`: verdicts
that differ where both decide, by example.
math-verify gets the text after </think>, its gold answers parsed once per question.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from sophia_mcore.config.schema import Score
from sophia_mcore.score import grade_file
from sophia_mcore.verify.grade import Grader
from sophia_mcore.verify.types import GradeItem
from tests.bench.answers import stream


def cpu_seconds() -> float:
    """CPU time of this process and of its living children."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def ours(items: list[GradeItem]) -> tuple[float, list[str]]:
    """(CPU-seconds, verdicts) with warm workers."""
    with Grader(workers=1) as grader:
        list(grader.grade_many([GradeItem("warm", r"\boxed{500 cm}", "5 m")]))
        before = cpu_seconds()
        verdicts = [grade.verdict for grade in grader.grade_many(items)]
        return cpu_seconds() - before, verdicts


def peer(items: list[GradeItem]) -> tuple[float, list[bool | None]]:
    """(CPU-seconds, verdicts) of math-verify; None where it raises."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    gold_of = lru_cache(maxsize=None)(lambda answer: parse(f"\\boxed{{{answer}}}"))
    verify(parse("$x+1$"), parse("$1+x$"))
    before = time.process_time()
    verdicts: list[bool | None] = []
    for item in items:
        try:
            verdicts.append(verify(gold_of(item.answer), parse(item.response.rpartition("</think>")[2])))
        except Exception:
            verdicts.append(None)
    return time.process_time() - before, verdicts


def grade_seconds(source: Path, target: Path, workers: int) -> float:
    """Wall clock of grading the file, in this process."""
    started = time.perf_counter()
    grade_file.grade_file(source, target, Score(workers=workers))
    return time.perf_counter() - started


def two_processes(lines: int, repeats: int) -> dict[str, Any]:
    """Throughput over that of one process, wall clock, each in fresh interpreters: two that share a file (the best of
    the interleaved repeats), and two that grade a file each, which is as much as the two cores have to give."""
    items = stream(lines // 16, 16, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        with open(source, "w") as file:
            for item in items:
                file.write(json.dumps({"id": item.id, "response": item.response, "answer": item.answer}) + "\n")
        del items
        os.sync()
        cached = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as usual

        def seconds(workers: int, at_once: int = 1) -> float:
            command = [sys.executable, "-m", "tests.bench.bench_grading", "--file", source]
            targets = [f"{folder}/{workers}-{i}.jsonl" for i in range(at_once)]
            children = [
                subprocess.Popen([*command, target, str(workers)], env=cached, stdout=subprocess.PIPE, text=True)
                for target in targets
            ]
            return max(float(child.communicate()[0]) for child in children)

        rows = [(seconds(1), seconds(2), seconds(1, at_once=2)) for _ in range(repeats)]
    one, shared, apart = (min(column) for column in zip(*rows, strict=True))
    triples = [[round(seconds, 1) for seconds in row] for row in rows]
    return {"two_processes": round(one / shared, 2), "two_apart": round(2 * one / apart, 2), "triples": triples}


def main() -> None:
    """Print the line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--responses", type=int, default=64)
    parser.add_argument("--peer", type=int, default=1200)
    parser.add_argument("--lines", type=int, default=300_000)
    parser.add_argument("--repeats", type=int, default=2, help="of the runs with two processes")
    parser.add_argument("--file", nargs=3, metavar=("IN", "OUT", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        print(grade_seconds(Path(options.file[0]), Path(options.file[1]), int(options.file[2])))
        return
    items = stream(options.questions, options.responses)
    sample = items[:: max(1, len(items) // options.peer)]
    distinct = stream(options.peer, 1, seed=1)
    seconds, verdicts = ours(items)
    distinct_seconds, _ = ours(distinct)
    peer_seconds, peer_verdicts = peer(sample)
    peer_distinct_seconds, _ = peer(distinct)
    sample_verdicts = verdicts[:: max(1, len(items) // options.peer)]
    differences = [
        {"gold": item.answer, "response": item.response.rpartition("</think>")[2], "ours": mine, "peer": theirs}
        for item, mine, theirs in zip(sample, sample_verdicts, peer_verdicts, strict=True)
        if mine in ("correct", "wrong") and theirs is not None and (mine == "correct") != theirs
    ]
    rate, peer_rate = len(items) / seconds, len(sample) / peer_seconds
    line: dict[str, Any] = {
        "name": "grading", "ours": round(rate), "peer": round(peer_rate), "ratio": round(rate / peer_rate, 1),
        "unit": "answers per CPU-second", "peer_name": "math-verify",
        "distinct_ratio": round((len(distinct) / distinct_seconds) / (len(distinct) / peer_distinct_seconds), 1),
        **two_processes(options.lines, options.repeats), "lines": options.lines, "compared": len(sample),
        "differences": len(differences), "examples": differences[:8],
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
