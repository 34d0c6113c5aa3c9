"""Answers that hang naive graders: how each of them ends, and what one in a hundred of them costs.

python -m tests.bench.bench_hanging [--questions 1000] [--responses 64]

Prints one JSON line. `ours`: throughput with 1% of hanging answers over that without, in CPU-seconds, all kinds mixed;
`named_only`: with the kinds of the performance notes alone. `slowest_cpu_seconds`, `slowest_wall_seconds`: of a single
hanging answer; wall time says something on an idle machine only. `peer`: the same for math-verify, on a small
sample, each answer stopped by its own alarm of five seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace

from sophia_mcore.verify.grade import Grader
from sophia_mcore.verify.types import GradeItem
from tests.bench.answers import FOUND, HANGING, stream
from tests.bench.bench_grading import ours, peer


def spoiled(items: list[GradeItem], kinds: dict[str, str], share: float) -> list[GradeItem]:
    """The same items with a share of responses replaced."""
    chance, answers = random.Random(5), list(kinds.values())
    chosen = set(chance.sample(range(len(items)), max(1, round(share * len(items)))))
    return [
        replace(item, response=f"So \\boxed{{{chance.choice(answers)}}}.") if index in chosen else item
        for index, item in enumerate(items)
    ]


def one_by_one() -> list[dict[str, object]]:
    """How each kind ends by itself, against the gold answer 9."""
    found: list[dict[str, object]] = []
    with Grader(workers=1) as grader:
        list(grader.grade_many([GradeItem("warm", r"\boxed{500 cm}", "5 m")]))
        for name, answer in {**HANGING, **FOUND}.items():
            started = time.perf_counter()
            (grade,) = grader.grade_many([GradeItem(name, f"\\boxed{{{answer}}}", "9")])
            wall = time.perf_counter() - started
            found.append(
                {"kind": name, "verdict": grade.verdict, "cpu": round(grade.seconds, 3), "wall": round(wall, 3)}
            )
    return found


def main() -> None:
    """Print the line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--responses", type=int, default=64)
    parser.add_argument("--peer", type=int, default=100)
    options = parser.parse_args()
    items = stream(options.questions, options.responses)
    clean, _ = ours(items)
    named, _ = ours(spoiled(items, HANGING, 0.01))
    everything, _ = ours(spoiled(items, {**HANGING, **FOUND}, 0.01))
    sample = items[: options.peer]
    peer_clean, _ = peer(sample)
    peer_spoiled, _ = peer(spoiled(sample, {k: HANGING[k] for k in ("tower", "factorial", "set of 3000")}, 0.01))
    single = one_by_one()
    print(
        json.dumps(
            {
                "name": "hanging", "ours": round(clean / everything, 3), "peer": round(peer_clean / peer_spoiled, 3),
                "ratio": round((clean / everything) / (peer_clean / peer_spoiled), 2),
                "unit": "throughput with 1% hanging answers / without", "peer_name": "math-verify",
                "named_only": round(clean / named, 3), "kinds": len(single),
                "slowest_cpu_seconds": max(float(str(kind["cpu"])) for kind in single),
                "slowest_wall_seconds": max(float(str(kind["wall"])) for kind in single),
                "timeouts": [kind["kind"] for kind in single if kind["verdict"] == "timeout"],
                "lost": sum(kind["verdict"] not in ("correct", "wrong", "timeout") for kind in single),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
