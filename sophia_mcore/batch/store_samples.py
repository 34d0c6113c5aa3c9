"""Training samples from a round's store: the kept trajectories, or all K x N of them with rewards as weights."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sophia_mcore.batch.advantage import rewards, weigh
from sophia_mcore.batch.samples import STORED, Sample, from_kept, system_prompt
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.records import Kept, Question, Trajectory, Verdict
from sophia_mcore.store.layout import RoundFolder, RunFolder
from sophia_mcore.store.shards import read_folder, read_shard, read_table, shard_files

ALL_SOURCE = "trajectories"


@dataclass(frozen=True, slots=True)
class StoreSamples:
    """`recorded`: natural log-probs of each sample's response tokens in the model that wrote it ({} if not asked for);
    `dropped`: why trajectories of the store are not used.
    """

    samples: list[Sample]
    dropped: Counter[str]
    recorded: dict[str, NDArray[np.float32]]


def from_store(
    config: Config, run: RunFolder, folder: RoundFolder, policy: Path, *, long_thinking: str
) -> StoreSamples:
    """What the objective learns from (`objective.trajectories`): the kept set, or the round's full store.

    Trajectories are read in a stream, so that memory holds the chosen ones only.

    Raises SophiaError: a phase before has not been run, nothing is left to train on, a recorded log-prob is missing,
    not finite or positive. UsageError: objective.behaviour = "recorded" with a reasoner of another tokenizer.
    """
    default = config.batch.default_system_prompt
    objective = config.objective
    recorded = objective.behaviour == "recorded"
    if recorded:
        require_same_tokenizer(policy, config.models.reasoner)
    if objective.trajectories != "all" and not recorded:
        kept = from_kept(_kept(folder), long_thinking=long_thinking, default_system=default)
        return StoreSamples(kept, Counter(), {})
    dropped: Counter[str] = Counter()
    if objective.trajectories == "all":
        weights, dropped = _weights(config, folder)
    else:
        weights = {row.trajectory_id: 1.0 for row in _kept(folder)}
    questions = {row.id: row for row in _questions(run)}
    samples: list[Sample] = []
    logprobs: dict[str, NDArray[np.float32]] = {}
    for trajectory in read_folder(folder.trajectories, Trajectory):
        if trajectory.id not in weights:
            continue
        question = questions.get(trajectory.question_id)
        if question is None:
            raise SophiaError(f"{run.questions_file}: no question {trajectory.question_id} (of {trajectory.id})")
        sample = _sample(trajectory, question, weights[trajectory.id], long_thinking, default, recorded)
        samples.append(sample)
        if recorded:
            logprobs[sample.id] = recorded_logprobs(trajectory)
    if not samples:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())) or "the store is empty"
        raise SophiaError(f"{folder.path}: no trajectory left for objective {objective.name!r} ({reasons})")
    return StoreSamples(sorted(samples, key=lambda sample: sample.id), dropped, logprobs)


def recorded_logprobs(trajectory: Trajectory) -> NDArray[np.float32]:
    """log mu of each response token, checked. Raises SophiaError naming the trajectory and what is wrong."""
    values = trajectory.token_logprobs
    where = f"trajectory {trajectory.id}: objective.behaviour = 'recorded' cannot be served"
    if not values:
        raise SophiaError(f"{where}, its engine recorded no log-probs")
    if len(values) != len(trajectory.token_ids):
        raise SophiaError(f"{where}, {len(values)} log-probs for {len(trajectory.token_ids)} tokens")
    for place, value in enumerate(values):
        if not math.isfinite(value) or value > 1e-4:
            raise SophiaError(f"{where}, the log-prob of token {place} is {value}")
    return np.minimum(np.array(values, np.float32), 0.0)


def require_same_tokenizer(policy: Path, reasoner: Path | None) -> None:
    """Raise UsageError with the reason unless both models cut plain text into the same token ids.

    Added special tokens may differ: samples that spell one are dropped.
    """
    remedy = "choose objective.behaviour none, unit or reference"
    if reasoner is None:
        raise UsageError(
            f"objective.behaviour = 'recorded': the reasoner is an endpoint, its tokenizer is unknown; {remedy}"
        )
    ours, theirs = _tokenizer_parts(policy), _tokenizer_parts(reasoner)
    different = [name for name, part in ours.items() if part != theirs[name]]
    if different:
        raise UsageError(
            f"objective.behaviour = 'recorded': the tokenizers of {policy} and {reasoner} differ ({different[0]}), "
            f"so the reasoner's log-probs belong to other tokens than the policy's; {remedy}"
        )


def _tokenizer_parts(model_dir: Path) -> dict[str, Any]:
    path = model_dir / "tokenizer.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); objective.behaviour = 'recorded' compares it") from None
    model = value.get("model") or {}
    return {
        "vocabulary": model.get("vocab"),
        "merges": [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model.get("merges") or []],
        "model type": (model.get("type"), model.get("ignore_merges")),
        "normalizer": value.get("normalizer"),
        "pre-tokenizer": value.get("pre_tokenizer"),
    }


def _weights(config: Config, folder: RoundFolder) -> tuple[dict[str, float], Counter[str]]:
    for path, phase in ((folder.trajectories, "generate"), (folder.verdicts, "score")):
        if not path.is_dir():
            raise SophiaError(f"{path}: no such folder; run 'sophia {phase}' first")
    truncated: dict[str, bool] = {}
    for path in shard_files(folder.trajectories):
        columns = read_table(path, Trajectory, columns=("id", "finish_reason")).to_pydict()
        truncated |= {i: r == "length" for i, r in zip(columns["id"], columns["finish_reason"], strict=True)}
    verdicts = {row.trajectory_id: row for row in read_folder(folder.verdicts, Verdict)}
    scored, unjudged = rewards(verdicts.values(), truncated, config.objective, config.reward)
    weights, unused = weigh(scored, config.objective, config.run.seed)
    return weights, unjudged + unused


def _sample(
    trajectory: Trajectory, question: Question, weight: float, long_thinking: str, default: str | None, recorded: bool
) -> Sample:
    return Sample(
        id=trajectory.id,
        source=ALL_SOURCE,
        images=question.images,
        system=system_prompt(trajectory.text, long_thinking, default),
        question=question.question,
        response=trajectory.text,
        weight=weight,
        kind=STORED,
        complete=trajectory.finish_reason == "stop",
        response_ids=trajectory.token_ids if recorded else None,
    )


def _kept(folder: RoundFolder) -> Iterable[Kept]:
    if not folder.kept_file.is_file():
        raise SophiaError(f"{folder.kept_file}: no such file; run 'sophia score' first")
    return read_shard(folder.kept_file, Kept)


def _questions(run: RunFolder) -> Iterator[Question]:
    if not run.questions_file.is_file():
        raise SophiaError(f"{run.questions_file}: no such file; run 'sophia generate' first")
    yield from read_shard(run.questions_file, Question)
