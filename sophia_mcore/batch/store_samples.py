"""Training samples, with weights, from the trajectories that a round has stored."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sophia_mcore.batch.samples import FRESH, STORED, Sample, from_kept, system_prompt
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.pretrained.chat import plain
from sophia_mcore.records import Answer, Kept, Question, Trajectory
from sophia_mcore.score.candidates import choose
from sophia_mcore.store.layout import RoundFolder, RunFolder
from sophia_mcore.store.shards import read_folder, read_shard

# Author -> (Sample.source, Sample.kind)
_SOURCES = {"reasoner": ("trajectories", STORED), "policy": ("fresh", FRESH)}
# Author -> the setting that needs the log-probs of its trajectories
_NEEDED_BY = {"reasoner": "objective.behaviour = 'recorded'", "policy": "objective.fresh_share"}
Logprobs = dict[str, NDArray[np.float32]]  # sample id -> natural-log probability of each response token


@dataclass(frozen=True, slots=True)
class StoreSamples:
    """Samples, and the log-probs of their response tokens that were recorded during sampling.

    `behaviour`: log mu, if the objective uses recorded probabilities. `rollout`: log-probs of the sampling engine, for
    the policy's own answers. `dropped`: reason -> number of trajectories that are not used.
    """

    samples: list[Sample]
    dropped: Counter[str]
    behaviour: Logprobs
    rollout: Logprobs


def from_store(
    config: Config, run: RunFolder, folder: RoundFolder, policy: Path, *, long_thinking: str
) -> StoreSamples:
    """The samples that the objective learns from.

    `objective.trajectories` chooses the kept set or all trajectories of the round; `objective.fresh_share` adds the
    policy's own answers. Raises SophiaError when an earlier phase has not been run, nothing is left to train on, or a
    recorded log-prob is missing, not finite or positive. Raises UsageError when objective.behaviour = "recorded" and
    the reasoner has another tokenizer.
    """
    objective, default = config.objective, config.batch.default_system_prompt
    recorded = objective.behaviour == "recorded"
    if recorded:
        require_same_tokenizer(policy, config.models.reasoner)
    kept_texts = objective.trajectories == "kept" and not recorded  # kept.parquet has all that is needed
    questions = {} if kept_texts and not objective.fresh_share else _questions(run)
    chosen = choose(config, folder, questions)
    reader = StoreReader(questions, long_thinking, default)
    behaviour: Logprobs = {}
    if kept_texts:
        samples = from_kept(read_shard(folder.kept_file, Kept), long_thinking=long_thinking, default_system=default)
    else:
        samples, behaviour = reader.read(folder.trajectories, Trajectory, chosen.stored, logprobs=recorded)
        samples.sort(key=lambda sample: sample.id)
        if not samples:
            reasons = ", ".join(f"{why} {count}" for why, count in sorted(chosen.dropped.items()))
            why = reasons or "the store is empty"
            raise SophiaError(f"{folder.path}: no trajectory left for objective {objective.loss.name!r} ({why})")
    own: list[Sample] = []
    rollout: Logprobs = {}
    if objective.fresh_share:
        own, rollout = reader.read(folder.fresh, Answer, chosen.own, logprobs=True)
    if recorded or (objective.behaviour != "reference" and objective.correction == "none"):
        behaviour |= rollout
    return StoreSamples([*samples, *own], chosen.dropped, behaviour, rollout)


@dataclass(frozen=True, slots=True)
class StoreReader:
    """Makes samples from stored trajectories of the reasoner or the policy. ``questions``: id -> question."""

    questions: Mapping[str, Question]
    long_thinking: str
    default_system: str | None

    def read(
        self, folder: Path, record_type: type[Trajectory], weights: Mapping[str, float], *, logprobs: bool
    ) -> tuple[list[Sample], Logprobs]:
        """Samples of the trajectories in ``folder`` whose ids are in ``weights``, in the order of the store.

        ``logprobs``: also return the recorded log-prob of each response token, and use the sampled tokens as response.
        The store is read as a stream, so that memory holds only the chosen trajectories.
        Raises SophiaError for an unknown question, a missing trajectory, or a log-prob that cannot be used.
        """
        samples: list[Sample] = []
        recorded: Logprobs = {}
        for row in read_folder(folder, record_type, weights.keys()):
            samples.append(self._sample(row, weights[row.id], sampled_tokens=logprobs))
            if logprobs:
                recorded[row.id] = recorded_logprobs(row, _NEEDED_BY[row.source])
        lost = weights.keys() - {sample.id for sample in samples}
        if lost:
            raise SophiaError(
                f"{folder}: {len(lost)} of the trajectories to train on are gone, such as {min(lost)!r}; "
                "run `sophia generate` and `sophia score` again"
            )
        return samples, recorded

    def _sample(self, row: Trajectory, weight: float, *, sampled_tokens: bool) -> Sample:
        question = self.questions.get(row.question_id)
        if question is None:
            raise SophiaError(f"trajectory {row.id}: its question {row.question_id!r} is not among the round's")
        source, kind = _SOURCES[row.source]
        own = row.source == "policy"  # train with the system prompt of the sampling, even if there is no thought
        return Sample(
            id=row.id,
            source=source,
            images=question.images,
            system=self.long_thinking if own else system_prompt(row.text, self.long_thinking, self.default_system),
            question=plain(question.question) if own else question.question,
            response=row.text,
            weight=weight,
            kind=kind,
            complete=row.finish_reason == "stop",
            response_ids=row.token_ids if sampled_tokens else None,
            opened=row.opened,
        )


def recorded_logprobs(row: Trajectory, setting: str) -> NDArray[np.float32]:
    """Recorded log-prob of each response token. Raises SophiaError, naming row and setting, if they cannot be used."""
    values = row.token_logprobs
    where = f"trajectory {row.id}: {setting} cannot be served"
    if not values:
        raise SophiaError(f"{where}, its engine recorded no log-probs")
    if len(values) != len(row.token_ids):
        raise SophiaError(f"{where}, {len(values)} log-probs for {len(row.token_ids)} tokens")
    if min(row.token_ids) < 0:
        raise SophiaError(f"{where}, its tokens are unknown")
    for place, value in enumerate(values):
        if not math.isfinite(value) or value > 1e-4:
            raise SophiaError(f"{where}, the log-prob of token {place} is {value}")
    return np.minimum(np.array(values, np.float32), 0.0)


def require_same_tokenizer(policy: Path, reasoner: Path | None) -> None:
    """Raise UsageError unless both models split plain text into the same token ids.

    Added special tokens may differ, because samples that contain one are dropped.
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


def _questions(run: RunFolder) -> dict[str, Question]:
    if not run.questions_file.is_file():
        raise SophiaError(f"{run.questions_file}: no such file; run 'sophia generate' first")
    return {question.id: question for question in read_shard(run.questions_file, Question)}
