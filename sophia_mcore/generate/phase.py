"""What captions, trajectories and evaluation answers have in common: units of requests, one shard per unit, lineage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Completion, Engine, Request
from sophia_mcore.progress import Progress, counting
from sophia_mcore.records import Question
from sophia_mcore.store.lineage import prompt_hash
from sophia_mcore.store.shards import read_metadata, read_shard
from sophia_mcore.store.units import Unit, UnitQueue, run_units

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Asked(Generic[Record]):
    """A request, and what makes a record of its completion: ``make`` takes the fields of ``records.Sampled``."""

    request: Request
    make: Callable[..., Record]

    def record(self, completion: Completion, model_digest: str) -> Record:
        """The record of what was sampled by the model of that digest."""
        return self.make(**sampled_fields(self.request, completion, model_digest))


def run_phase(
    name: str,
    queue: UnitQueue,
    record_type: type,
    engine: Engine,
    progress: Progress,
    *,
    ask: Callable[[Unit], Sequence[Asked[Any]]],
    grade: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
    settings: Mapping[str, str],
) -> int:
    """Sample every unit that is not done; returns how many units this process finished.

    ``ask`` gives the requests of a unit, ``grade`` turns all its records into what is stored (None: the records
    themselves). ``settings`` (such as the hash of the prompt template) go into the shards' metadata beside the model's
    digest. Raises SophiaError when shards that are there were made by another model or with other settings.
    """
    metadata: dict[str, str] = dict(settings)
    tokens, seconds = 0, 0.0

    def work(unit: Unit, report: Callable[[int], None]) -> Sequence[Any]:
        nonlocal tokens, seconds
        if "model_digest" not in metadata:
            metadata["model_digest"] = engine.model_digest
            _check_same(queue, metadata)
        asked = ask(unit)
        done = 0

        def on_done(count: int) -> None:
            nonlocal done
            done += count
            report(done * len(unit.items) // len(asked))

        started = time.monotonic()
        completions = engine.generate([one.request for one in asked], on_done)
        seconds += time.monotonic() - started
        tokens += sum(len(completion.token_ids) for completion in completions)
        progress.note(f"{tokens:,} tokens, {tokens / max(seconds, 1e-9):,.0f}/s")
        digest = metadata["model_digest"]
        records = [one.record(completion, digest) for one, completion in zip(asked, completions, strict=True)]
        return grade(records) if grade is not None else records

    return run_units(queue, record_type, work, counting(progress, name), metadata=metadata)


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
        "opened": completion.opened,
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
