"""Random kills of trainer and engine of the on-policy stage: are the bytes those of an undisturbed stage?

python -m tests.bench.bench_rl_resume [--kills 20] [--seed 0]

Prints one JSON line. A tiny stage with the real trainer and an engine of plain transformers (tests/support/stage_world)
runs once undisturbed, then once per kill: the trainer at a random place of its loop, the engine at a random moment, or
both. `equal`: stages that ended with the same bytes of rollouts, versions, model and metrics. `again`: units that were
sampled more often than once, in all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.units import Unit
from tests.support import stage_world, train_world
from tests.support.harness import RankError

SSR = {"fill": "ssr", "ssr": {"episode_questions": 8}, "objective": {"correction": "tis"}}
PLACES = (
    "publish.announce:{n}", "publish.publish:{n}", "open.open_batch:{n}", "loop.take_and_learn:{n}",
    "loop.measure_batch:{n}+", "loop.train_step:{n}", "loop.train_step:{n}+", "log.StageLog.batch:{n}+",
)  # fmt: skip


class CountingEngine(stage_world.FakeEngine):
    """Notes every unit that it begins."""

    def answers(self, batch: Any, unit: Unit, version: Any) -> list[Any]:
        with open(self.run.path / "begun", "a") as file:
            file.write(f"{batch.batch} {unit.id}\n")
        return super().answers(batch, unit, version)


def _serve(config: Config, run: RunFolder) -> None:
    CountingEngine(config, run).work()


@contextmanager
def engines(config: Config, run: RunFolder, kill_after: float | None) -> Iterator[None]:
    """One engine after the other: killed after so many seconds, another takes its place at once."""
    context, stopped = multiprocessing.get_context("fork"), threading.Event()
    current = [context.Process(target=_serve, args=(config, run), daemon=True)]
    current[0].start()

    def replace() -> None:
        if kill_after is not None and not stopped.wait(kill_after):
            current[0].kill()
            current[0].join()
            current[0] = context.Process(target=_serve, args=(config, run), daemon=True)
            current[0].start()

    watcher = threading.Thread(target=replace)
    watcher.start()
    try:
        yield
    finally:
        stopped.set()
        watcher.join()
        current[0].kill()
        current[0].join()


def stage(folder: Path, policy: Path, kill: str, kill_after: float | None) -> tuple[dict[str, Any], int]:
    """What a stage leaves behind, and how many units were begun more than once."""
    config, run = stage_world.make_stage(folder, policy, SSR)
    with engines(config, run, kill_after):
        try:
            stage_world.train(config, run, kill=kill)
        except RankError:
            stage_world.train(config, run)
    begun = Counter((run.path / "begun").read_text().splitlines())
    return stage_world.left_behind(run), sum(begun.values()) - len(begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, equal, again, victims = random.Random(options.seed), 0, 0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        policy = train_world.make_policy(Path(folder) / "policy")
        began = time.monotonic()
        wanted, _ = stage(Path(folder) / "undisturbed", policy, "", None)
        seconds = time.monotonic() - began
        for number in range(options.kills):
            victim = draw.choice(("trainer", "engine", "both"))
            victims[victim] += 1
            kill = "" if victim == "engine" else draw.choice(PLACES).format(n=draw.randint(1, 4))
            after = None if victim == "trainer" else draw.uniform(0.2, 0.9) * seconds
            found, more = stage(Path(folder) / str(number), policy, kill, after)
            equal, again = equal + (found == wanted), again + more
    print(
        json.dumps(
            {"name": "rl_resume", "kills": options.kills, "equal": equal, "again": again, "victims": dict(victims)}
        )
    )


if __name__ == "__main__":
    main()
