"""The on-policy stage with parties that only wait: real files, claims, engines' loop and verdicts, no model.

An engine sleeps for each decoding step, and its answers have lengths with a long tail. The trainer sleeps for each
batch. What a batch takes beyond that is the protocol's own cost, on any machine that is not overloaded.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sophia_mcore.generate.engine import Completion, Key, OnDone, OnStep, Request, no_step
from sophia_mcore.generate.rollouts import serve
from sophia_mcore.plan.turns import Parties, Turns, Unit, batches_of, simulate
from sophia_mcore.plan.workload import Lengths
from sophia_mcore.rl.batches import read_batch
from sophia_mcore.rl.stream import rollout_seed
from sophia_mcore.store.layout import RunFolder
from tests.support import tiny_models
from tests.support.living_engine import FakeLivingEngine
from tests.support.rl_world import StubTrainer, make_rl_run

PLACES = 16
GROUP = 4
DISTRIBUTION = Lengths(mean=20.0, spread=0.9, limit=120)
LENGTHS = DISTRIBUTION.values(64)


def tokens_of(seed: int) -> int:
    """Length of the answer with this seed: lognormal, cut off."""
    return round(LENGTHS[seed % len(LENGTHS)])


class SleepingEngine(FakeLivingEngine):
    """``step_seconds`` per decoding step of at most ``PLACES`` sequences; what is queued beyond that waits."""

    def generate(
        self, requests: Sequence[Request], on_done: OnDone | None = None, on_step: OnStep | None = None
    ) -> list[Completion]:
        asked = [[(("", place), request) for place, request in enumerate(requests)]]
        found = dict(self.stream(lambda places: asked.pop() if asked else [], on_step or no_step))
        return [found["", place] for place in range(len(requests))]

    def stream(
        self, more: Callable[[int], Sequence[tuple[Key, Request]]], on_step: OnStep
    ) -> Iterator[tuple[Key, Completion]]:
        queued: deque[tuple[Key, Request]] = deque()
        ends: list[tuple[int, int, Key, Request]] = []
        step = number = 0
        until = time.monotonic()
        while True:
            while (free := PLACES - len(ends) - len(queued)) > 0 and (further := more(free)):
                queued.extend(further)
            while queued and len(ends) < PLACES:
                key, request = queued.popleft()
                number += 1
                heapq.heappush(ends, (step + tokens_of(request.seed), number, key, request))
            if not ends:
                return
            step, until = step + 1, max(until, time.monotonic() - self._step_seconds) + self._step_seconds
            time.sleep(max(0.0, until - time.monotonic()))
            on_step()
            while ends and ends[0][0] <= step:
                _, _, key, request = heapq.heappop(ends)
                yield key, self._complete(request)


@dataclass(frozen=True, kw_only=True)
class Played:
    """What was measured, and what the planner says of the same lengths, per batch."""

    engines: int
    seconds: float
    sampling: float  # seconds that an engine was busy, on average
    training: float
    trainer_idle: float
    engine_idle: float
    predicted: Turns


def play(lag: int, *, engines: int, batches: int, questions: int, per_unit: int, step: float, train: float) -> Played:
    """One stage. The first two batches and those without a successor do not count, as in `plan.turns`."""
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_models.save_internvl(Path(folder) / "model", seed=1)
        settings: dict[str, Any] = {
            "batches": batches, "questions_per_batch": questions, "group": GROUP,
            "samples_per_update": GROUP * questions,
            "questions_per_unit": per_unit, "lag": lag, "placement": "separate", "objective": {"correction": "tis"},
            "validate_every_batches": 1000,
        }  # fmt: skip
        config, run = make_rl_run(Path(folder) / "run", model, questions=questions, **settings)
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=_engine, args=(run.config_file, step), daemon=True) for _ in range(engines)]
        for process in processes:
            process.start()
        trainer = _Trainer(config, run, [model], pause=0.01)
        try:
            trainer.wait_for_engines(engines)
            trainer.train(lambda batch: time.sleep(train))
        finally:
            for process in processes:
                process.join(10)
                process.kill()
        units = [_units(run, number, config.run.seed) for number in range(batches)]
        parties = Parties(engines=engines, places=PLACES, step=lambda running: step, train=train)
        return _measured(trainer.ends, trainer.waits, run, lag, engines, train, simulate(units, parties, lag))


class _Trainer(StubTrainer):
    ends: list[float]  # by the clock of the engines' logs
    waits: list[float]

    def wait_for_engines(self, count: int) -> None:
        """All of them are up before the first batch is opened, so that their start is not counted."""
        self.ends, self.waits, self._since = [], [], 0.0
        while len(list(self.run.rl.engines.glob("*.alive"))) < count:
            time.sleep(0.05)

    def train(self, training: Callable[[int], None] = lambda batch: None) -> bool:
        self._since = time.time()

        def trained(batch: int) -> None:
            self.waits.append(time.time() - self._since)
            training(batch)

        return super().train(trained)

    def publish(self, version: int) -> None:
        super().publish(version)
        if version:
            self._since = time.time()
            self.ends.append(self._since)


def recommended_engines(gpus: int, questions: int, per_unit: int, step: float, work: float, lag: int) -> int:
    """How many of the GPUs should sample, by the planner's rule: the division with the shortest batch.

    ``work``: GPU-seconds of training of a batch; an engine has one GPU.
    """
    batches = batches_of(DISTRIBUTION.values(GROUP * questions), GROUP * per_unit, 8 + lag)

    def seconds(engines: int) -> float:
        train = work / (gpus - engines)
        return simulate(batches, Parties(engines=engines, places=PLACES, step=lambda _: step, train=train), lag).seconds

    return min(range(1, gpus), key=seconds)


def _units(run: RunFolder, number: int, seed: int) -> list[Unit]:
    """The units of a batch with the lengths of their answers, last ones first: that is how `plan.turns` takes them."""
    batch = read_batch(run.rl.batch(number))
    assert batch is not None
    units = [[rollout_seed(seed, number, item, i) for item in unit.items for i in range(GROUP)] for unit in batch.units]
    return [tuple(float(tokens_of(one)) for one in reversed(unit)) for unit in reversed(units)]


def _measured(
    ends: list[float], waits: list[float], run: RunFolder, lag: int, engines: int, train: float, predicted: Turns
) -> Played:
    first, last = 1, len(ends) - 1 - lag
    span, count = ends[last] - ends[first], last - first
    lines = [
        {**json.loads(line), "engine": log.name}
        for log in run.rl.engines.glob("*.jsonl")
        for line in log.read_text().splitlines()
    ]
    busy = _busy(lines, ends[first], ends[last])
    return Played(
        engines=engines,
        seconds=span / count,
        sampling=busy / engines / count,
        training=train,
        trainer_idle=sum(waits[first + 1 : last + 1]) / span,
        engine_idle=1.0 - busy / engines / span,
        predicted=predicted,
    )


def _busy(lines: list[dict[str, Any]], since: float, until: float) -> float:
    """Seconds of a span in which an engine had units, all engines together: the union of each engine's units."""
    total = 0.0
    for engine in {line["engine"] for line in lines}:
        spans = sorted((line["time"] - line["seconds"], line["time"]) for line in lines if line["engine"] == engine)
        reached = since
        for start, end in spans:
            total += max(0.0, min(end, until) - max(start, reached))
            reached = max(reached, end)
    return total


def _engine(config_file: Path, step: float) -> None:
    sys.exit(
        serve(
            config_file,
            lambda config, run, version: SleepingEngine(
                version.path(run.rl.versions), version.digest, step_seconds=step
            ),
        )
    )


def options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--per-unit", type=int, default=4)
    parser.add_argument("--step-seconds", type=float, default=0.05)
    parser.add_argument("--train-seconds", type=float, default=4.0)
    return parser.parse_args()


def played(lag: int, given: argparse.Namespace) -> Played:
    return play(
        lag,
        engines=given.engines,
        batches=given.batches + lag,
        questions=given.questions,
        per_unit=given.per_unit,
        step=given.step_seconds,
        train=given.train_seconds,
    )
