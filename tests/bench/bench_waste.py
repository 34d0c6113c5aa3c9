"""How many of its sampled tokens the on-policy stage learns from: as they come, with SSR, DAPO's resampling, selection.

python -m tests.bench.bench_waste [--batches 200]

Prints one JSON line. Questions have accuracies as two kinds of models leave them: many that are always or never right,
and some in between (a Beta distribution). Groups, advantages, replay and selection are the stage's own functions.
`wasted`: share of tokens in groups that are all right or all wrong. `effective`: samples with an advantage that updates
learn from, per 1,000 sampled tokens; `with_selection`: the tokens of the pre-selection counted too. `full`: samples of
an update over rl.samples_per_update.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from sophia_mcore.rl.groups import Graded, Weighed, advantages
from sophia_mcore.rl.replay import is_new_episode, replay
from sophia_mcore.rl.select import Tally, is_chosen

QUESTIONS, SIZE, GROUP, TOKENS = 4000, 64, 8, 3000
SHAPES = {"broad": (0.8, 0.8), "nearly solved": (2.0, 0.4)}  # Beta parameters of a question's accuracy


@dataclass
class Counts:
    tokens: int = 0
    selection: int = 0
    wasted: int = 0
    effective: int = 0  # drawn again counts, as the update learns from it
    updates: int = 0


def answers(batch: int, chosen: list[tuple[int, float]], draw: random.Random) -> Iterator[Graded]:
    """A group for each question, right with its accuracy."""
    for number, accuracy in chosen:
        for index in range(GROUP):
            right = draw.random() < accuracy
            yield Graded(
                id=f"{number}.b{batch}.n{index}", question_id=str(number), index=index,
                verdict="correct" if right else "wrong", truncated=False, tokens=TOKENS,
            )  # fmt: skip


def stage(way: str, accuracies: list[float], batches: int) -> Counts:
    """``batches`` batches of 64 questions by one of the four ways."""
    draw, counts = random.Random(0), Counts()
    buffer: list[Weighed] = []
    pool = list(enumerate(accuracies))
    if way == "select":
        asked = [(number, p, sum(draw.random() < p for _ in range(16))) for number, p in pool]
        pool = [(number, p) for number, p, right in asked if is_chosen(Tally(right, 16), 16, 0.4, 0.6)]
        counts.selection = 16 * TOKENS * len(accuracies)
    for batch in range(batches):
        useful: list[Weighed] = []
        for _ in range(10 if way == "resample" else 1):
            given = list(answers(batch, draw.sample(pool, min(SIZE, len(pool))), draw))
            weighed = [one for one in weigh(given) if one.advantage]
            counts.tokens += TOKENS * len(given)
            counts.wasted += TOKENS * (len(given) - len(weighed))
            useful += weighed
            if len(useful) >= SIZE * GROUP:
                break
        samples = useful[: SIZE * GROUP]
        if way == "ssr":
            kept = [] if is_new_episode(batch, SIZE, 1024) else buffer
            samples, buffer = replay(useful, kept, SIZE * GROUP, 1.0, (0, "ssr", batch, 0))
        counts.effective += len(samples)
        counts.updates += 1
    return counts


def weigh(given: list[Graded]) -> list[Weighed]:
    return advantages(given, advantage="group_normalized", overlong="wrong", max_tokens=2 * TOKENS)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, default=200)
    batches = parser.parse_args().batches
    rows = {}
    for shape, parameters in SHAPES.items():
        draw = random.Random(shape)
        accuracies = [draw.betavariate(*parameters) for _ in range(QUESTIONS)]
        rows[shape] = {}
        for way in ("none", "ssr", "resample", "select"):
            found = stage(way, accuracies, batches)
            rows[shape][way] = {
                "wasted": round(found.wasted / found.tokens, 3),
                "effective": round(1000 * found.effective / found.tokens, 4),
                "with_selection": round(1000 * found.effective / (found.tokens + found.selection), 4),
                "full": round(found.effective / found.updates / (SIZE * GROUP), 3),
            }
    print(json.dumps({"name": "waste", **rows}))


if __name__ == "__main__":
    main()
