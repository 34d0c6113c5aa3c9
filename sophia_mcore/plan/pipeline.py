"""Megatron's pipeline schedules as a discrete-event simulation: waiting times and micro batches in flight.

A stage works through a fixed list of operations; each starts when the stage is free and its input has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from sophia_mcore.errors import UsageError


class Operation(NamedTuple):
    """One forward or backward pass of a micro batch through one model chunk of a stage."""

    forward: bool
    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Seconds of one pass of a micro batch through a chunk."""

    forward: float
    backward: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the simulation saw. Seconds; one entry per stage."""

    makespan: float
    busy: tuple[float, ...]

    @property
    def bubble(self) -> float:
        """Share of the makespan in which the busiest stage waits."""
        return 1.0 - max(self.busy) / self.makespan if self.makespan else 0.0


@lru_cache(maxsize=256)
def schedule(stages: int, stage: int, chunks: int, micro_batches: int) -> tuple[Operation, ...]:
    """What one stage does, in order: 1F1B, or (several chunks) interleaved 1F1B.

    Every chunk passes every micro batch forward once and backward once.

    Raises:
        UsageError: interleaving needs the micro batches to be a multiple of the stages.
    """
    if chunks > 1 and micro_batches % stages:
        raise UsageError(f"{micro_batches} micro batches are not a multiple of {stages} stages, as interleaving needs")
    if chunks == 1:
        warm = stages - stage - 1
    else:
        warm = 2 * (stages - stage - 1) + (chunks - 1) * stages
    total = chunks * micro_batches
    warm = min(warm, total)
    places = [_place(number, stages, chunks) for number in range(total)]
    forward = [Operation(True, chunk, batch) for chunk, batch in places]
    backward = [Operation(False, chunks - 1 - chunk, batch) for chunk, batch in places]
    steady = [operation for pair in zip(forward[warm:], backward, strict=False) for operation in pair]
    return (*forward[:warm], *steady, *backward[total - warm :])


def _place(number: int, stages: int, chunks: int) -> tuple[int, int]:
    """(chunk, micro batch) of the number-th forward pass: groups of `stages` micro batches go through all chunks."""
    if chunks == 1:
        return 0, number
    group, rest = divmod(number, stages * chunks)
    chunk, place = divmod(rest, stages)
    return chunk, group * stages + place


def in_flight(stages: int, stage: int, micro_batches: int, sizes: Sequence[float]) -> list[int]:
    """How many passes through each chunk wait for their backward when the sum of their `sizes` (bytes) is highest."""
    counts, worst, now, peak = [0] * len(sizes), [0] * len(sizes), 0.0, -1.0
    enough = min(micro_batches, 3 * stages)  # later ones repeat the pattern
    for operation in schedule(stages, stage, len(sizes), enough):
        sign = 1 if operation.forward else -1
        counts[operation.chunk] += sign
        now += sign * sizes[operation.chunk]
        if now > peak:
            peak, worst = now, list(counts)
    return worst


def simulate(costs: Sequence[Sequence[Chunk]], micro_batches: int, transfer: float = 0.0) -> Timeline:
    """Run one step: `costs[stage][chunk]`, `transfer` seconds for a hidden state to reach the next stage.

    Raises:
        UsageError: see `schedule`.
    """
    stages, chunks = len(costs), len(costs[0])
    lists = [schedule(stages, stage, chunks, micro_batches) for stage in range(stages)]
    done: dict[tuple[int, Operation], float] = {}
    places, free, busy = [0] * stages, [0.0] * stages, [0.0] * stages
    waiting = sum(map(len, lists))
    while waiting:
        before = waiting
        for stage in range(stages):
            while places[stage] < len(lists[stage]):
                operation = lists[stage][places[stage]]
                arrival = _arrival(stage, operation, stages, chunks, done, transfer)
                if arrival is None:
                    break
                cost = costs[stage][operation.chunk]
                seconds = cost.forward if operation.forward else cost.backward
                free[stage] = max(free[stage], arrival) + seconds
                busy[stage] += seconds
                done[stage, operation] = free[stage]
                places[stage] += 1
                waiting -= 1
        if waiting == before:
            raise RuntimeError("the schedule waits for itself")
    return Timeline(max(free), tuple(busy))


def _arrival(
    stage: int,
    operation: Operation,
    stages: int,
    chunks: int,
    done: dict[tuple[int, Operation], float],
    transfer: float,
) -> float | None:
    """Time at which the operation's input arrives; None: not known yet."""
    forward, chunk, batch = operation
    ends = (0, 0) if forward else (stages - 1, chunks - 1)
    if (stage, chunk) == ends:
        if forward:
            return 0.0
        return done.get((stage, Operation(True, chunk, batch)))
    step = -1 if forward else 1
    source = (stage + step) % stages
    wraps = source != stage + step
    when = done.get((source, Operation(forward, chunk + step if wraps else chunk, batch)))
    if when is None:
        return None
    own = 0.0 if forward else done.get((stage, Operation(True, chunk, batch)))
    return None if own is None else max(when + (transfer if stages > 1 else 0.0), own)


def step_seconds(costs: Sequence[Sequence[Chunk]], micro_batches: int, transfer: float = 0.0) -> Timeline:
    """`simulate` at a cost that does not grow with the number of micro batches.

    Beyond four rounds of the pipeline every further round takes as long as the busiest stage works, which the
    difference of two shorter simulations gives.
    """
    stages = len(costs)
    short, long = 4 * stages, 5 * stages
    if micro_batches <= long + stages:
        return simulate(costs, micro_batches, transfer)
    rest = micro_batches % stages
    first, second = (simulate(costs, n + rest, transfer) for n in (short, long))
    rounds = (micro_batches - long - rest) / stages
    makespan = second.makespan + rounds * (second.makespan - first.makespan)
    busy = tuple(b + rounds * (b - a) for a, b in zip(first.busy, second.busy, strict=True))
    return Timeline(makespan, busy)
