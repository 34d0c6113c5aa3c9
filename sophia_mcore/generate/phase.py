"""What captions, trajectories and evaluation answers have in common: units of requests, one shard per unit, lineage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Completion, Engine, Request
from sophia_mcore.progress import Progress
from sophia_mcore.records import Question
from sophia_mcore.store.lineage import prompt_hash
from sophia_mcore.store.shards import read_metadata, read_shard
from sophia_mcore.store.units import Unit, UnitQueue, run_units

# Given a unit, its requests in the order of its items, the same number for each item.
Plan = Callable[[Unit], Sequence[Request]]
# Given a unit, its requests, their completions and the model's digest: the unit's records.
Collect = Callable[[Unit, Sequence[Request], Sequence[Completion], str], Sequence[Any]]


def run_phase(
    name: str,
    queue: UnitQueue,
    record_type: type,
    engine: Engine,
    progress: Progress,
    *,
    plan: Plan,
    collect: Collect,
    settings: Mapping[str, str],
    attempts: int = 1,
) -> int:
    """Sample every unit that is not done; returns how many units this process finished (``attempts``: ``run_units``).

    ``settings`` (such as the hash of the prompt template) go into the shards' metadata beside the model's digest.
    Raises SophiaError when shards that are there were made by another model or with other settings.
    """
    meter = _Meter(name, progress)
    metadata: dict[str, str] = dict(settings)

    def work(unit: Unit, report: Callable[[int], None]) -> Sequence[Any]:
        if "model_digest" not in metadata:
            metadata["model_digest"] = engine.model_digest
            _check_same(queue, metadata)
        requests = plan(unit)
        per_item = max(1, len(requests) // max(1, len(unit.items)))
        done = 0

        def on_done(count: int) -> None:
            nonlocal done
            done += count
            report(done // per_item)

        started = time.monotonic()
        completions = engine.generate(requests, on_done)
        meter.sampled(completions, time.monotonic() - started)
        return collect(unit, requests, completions, metadata["model_digest"])

    return run_units(queue, record_type, work, meter.show, metadata=metadata, attempts=attempts)


def _check_same(queue: UnitQueue, metadata: Mapping[str, str]) -> None:
    done = sorted(queue.done_units())
    if not done:
        return
    shard = queue.shard(queue.units[done[0]])
    found = read_metadata(shard)["metadata"]
    different = [key for key, value in metadata.items() if found.get(key, value) != value]
    if different:
        raise SophiaError(
            f"{shard} was made with another {' and '.join(different).replace('_', ' ')}: "
            f"remove {queue.folder} to begin anew, or use another run folder"
        )


class _Meter:
    """Turns what units report into a bar with the sampling speed beside it."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name, self._progress = name, progress
        self._shown = -1
        self._tokens, self._seconds = 0, 0.0

    def show(self, done: int, total: int) -> None:
        if self._shown < 0:
            self._progress.start(self._name, total, done)
            self._shown = done
        if done > self._shown:
            self._progress.advance(done - self._shown)
            self._shown = done

    def sampled(self, completions: Sequence[Completion], seconds: float) -> None:
        self._tokens += sum(len(completion.token_ids) for completion in completions)
        self._seconds += seconds
        self._progress.note(f"{self._tokens:,} tokens, {self._tokens / max(self._seconds, 1e-9):,.0f}/s")


def sampled_fields(request: Request, completion: Completion, model_digest: str) -> dict[str, Any]:
    """The fields of ``records.Sampled``."""
    logprobs = completion.token_logprobs
    return {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "token_logprobs": logprobs,
        "logprob_sum": math.fsum(logprobs) if logprobs or not completion.token_ids else math.nan,
        "finish_reason": completion.finish_reason,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "max_tokens": request.sampling.max_tokens,
        "seed": request.seed,
        "model_digest": model_digest,
        "prompt_hash": prompt_hash(completion.prompt_text),
    }


def read_questions(questions_file: Path, *, with_images: bool) -> list[Question]:
    """The checked questions. Raises SophiaError when there are none, or one has no image though ``with_images``."""
    if not questions_file.is_file():
        raise SophiaError(f"{questions_file}: no such file; run `sophia generate` first")
    questions = read_shard(questions_file, Question)
    if not questions:
        raise SophiaError(f"{questions_file}: no questions in it")
    if with_images:
        bare = next((question.id for question in questions if not question.images), None)
        if bare is not None:
            raise SophiaError(
                f"question {bare!r} has no image: a round starts from images (text-only data goes into batch.mixtures)"
            )
    return questions
