"""Training samples from a round's store: the kept trajectories, or all K x N of them with rewards as weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sophia_mcore.batch.fresh_samples import fresh_samples, scored_fresh
from sophia_mcore.batch.recorded import recorded_logprobs, require_same_tokenizer
from sophia_mcore.batch.samples import STORED, Sample, from_kept, system_prompt
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Kept, Question, Trajectory, Verdict
from sophia_mcore.score.advantage import Scored, rewards, weigh
from sophia_mcore.store.layout import RoundFolder, RunFolder
from sophia_mcore.store.shards import read_folder, read_shard, read_table, shard_files

ALL_SOURCE = "trajectories"


@dataclass(frozen=True, slots=True)
class StoreSamples:
    """Natural logs of each response token by sample id: `behaviour`, log mu where the objective divides by what was
    recorded; `rollout`, the sampling engine's for the policy's own. `dropped`: why trajectories are not used.
    """

    samples: list[Sample]
    dropped: Counter[str]
    behaviour: dict[str, NDArray[np.float32]]
    rollout: dict[str, NDArray[np.float32]]


def from_store(
    config: Config, run: RunFolder, folder: RoundFolder, policy: Path, *, long_thinking: str
) -> StoreSamples:
    """What the objective learns from (`objective.trajectories`): the kept set, or the round's full store; with
    `objective.fresh_share` the policy's own answers too.

    Trajectories are read in a stream, so that memory holds the chosen ones only.

    Raises SophiaError: a phase before has not been run, nothing is left to train on, a recorded log-prob is missing,
    not finite or positive. UsageError: objective.behaviour = "recorded" with a reasoner of another tokenizer.
    """
    objective = config.objective
    recorded = objective.behaviour == "recorded"
    if recorded:
        require_same_tokenizer(policy, config.models.reasoner)
    questions = {row.id: row for row in _questions(run)} if recorded or objective.trajectories == "all" else {}
    scored, dropped = _scored(config, folder) if objective.trajectories == "all" else ([], Counter[str]())
    if objective.fresh_share:
        questions = questions or {row.id: row for row in _questions(run)}
        scored += scored_fresh(folder, list(questions), dropped)
    weights, unused = weigh(scored, objective, config.run.seed)
    dropped += unused
    found = StoreSamples([], dropped, {}, {})
    if objective.trajectories == "kept" and not recorded:
        default = config.batch.default_system_prompt
        found.samples.extend(from_kept(_kept(folder), long_thinking=long_thinking, default_system=default))
    else:
        if objective.trajectories == "kept":
            weights |= {row.trajectory_id: 1.0 for row in _kept(folder)}
        own = {row.id for row in scored if row.fresh}
        stored = {name: weight for name, weight in weights.items() if name not in own}
        _add_stored(found, config, run, folder, stored, questions, long_thinking)
    if objective.fresh_share:
        for sample, logprobs in fresh_samples(folder, weights, questions, long_thinking):
            found.samples.append(sample)
            found.rollout[sample.id] = logprobs
            if recorded or (objective.behaviour != "reference" and objective.correction == "none"):
                found.behaviour[sample.id] = logprobs
    return found


def _add_stored(
    found: StoreSamples,
    config: Config,
    run: RunFolder,
    folder: RoundFolder,
    weights: dict[str, float],
    questions: dict[str, Question],
    long_thinking: str,
) -> None:
    objective, default = config.objective, config.batch.default_system_prompt
    recorded = objective.behaviour == "recorded"
    for trajectory in read_folder(folder.trajectories, Trajectory):
        if trajectory.id not in weights:
            continue
        question = questions.get(trajectory.question_id)
        if question is None:
            raise SophiaError(f"{run.questions_file}: no question {trajectory.question_id} (of {trajectory.id})")
        sample = _sample(trajectory, question, weights[trajectory.id], long_thinking, default, recorded)
        found.samples.append(sample)
        if recorded:
            found.behaviour[sample.id] = recorded_logprobs(trajectory, "objective.behaviour = 'recorded'")
    lost = weights.keys() - {sample.id for sample in found.samples}
    if lost:
        raise SophiaError(
            f"{folder.trajectories}: {len(lost)} of the trajectories to train on are gone, such as {min(lost)!r}; "
            "run `sophia generate` and `sophia score` again"
        )
    if not found.samples:
        reasons = ", ".join(f"{why} {count}" for why, count in sorted(found.dropped.items())) or "the store is empty"
        raise SophiaError(f"{folder.path}: no trajectory left for objective {objective.loss.name!r} ({reasons})")
    found.samples.sort(key=lambda sample: sample.id)


def _scored(config: Config, folder: RoundFolder) -> tuple[list[Scored], Counter[str]]:
    for path, phase in ((folder.trajectories, "generate"), (folder.verdicts, "score")):
        if not path.is_dir():
            raise SophiaError(f"{path}: no such folder; run 'sophia {phase}' first")
    truncated: dict[str, bool] = {}
    for path in shard_files(folder.trajectories):
        columns = read_table(path, Trajectory, columns=("id", "finish_reason")).to_pydict()
        truncated |= {i: r == "length" for i, r in zip(columns["id"], columns["finish_reason"], strict=True)}
    verdicts = {row.trajectory_id: row for row in read_folder(folder.verdicts, Verdict)}
    _require_all(folder, {"trajectories": len(truncated), "verdicts": len(verdicts)})
    return rewards(verdicts.values(), truncated, config.objective, config.reward)


def _require_all(folder: RoundFolder, there: dict[str, int]) -> None:
    """Raise SophiaError when fewer rows are stored than scoring has counted: shards have gone since."""
    try:
        counted = json.loads(folder.kept_summary_file.read_bytes())
        wanted = {"trajectories": counted["trajectories"], "verdicts": sum(counted["verdicts"].values())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # the report names a damaged summary; the shards have hashes of their own
    for name, count in there.items():
        if count < wanted[name]:
            raise SophiaError(
                f"{folder.path / name}: {count:,} of {wanted[name]:,} {name} are there, a shard has gone; "
                "run `sophia generate` and `sophia score` again"
            )


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
