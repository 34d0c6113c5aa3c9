"""A user's own weighing and relabelling of a batch: called once, by rank 0, and kept beside the batch's rollouts.

What comes of it lies in a file, so that every rank, and a resumed stage, learns from the same.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sophia_mcore.config.functions import WEIGHS
from sophia_mcore.config.schema import Config
from sophia_mcore.environments.library import Library
from sophia_mcore.environments.rows import episode_of
from sophia_mcore.environments.types import Episode
from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Question, Rollout
from sophia_mcore.rl.batches import Batch
from sophia_mcore.rl.credit import Credited, Shaping
from sophia_mcore.rl.groups import Graded
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.json_files import read_json
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_shard, unit_shard

LEARNED = "learned.json"  # in a batch's folder


@dataclass(frozen=True, slots=True)
class Learned:
    """``weights``: [advantage, kl] by the id of a turn, None where weighing is built in; ``targets``: as JSON, each
    with "id", "question_id" and "weight" (that of its relabelling included); ``failed``: calls without a value.
    """

    weights: Mapping[str, Sequence[float]] | None = None
    targets: Sequence[Mapping[str, Any]] = ()
    failed: int = 0


@dataclass
class _Calls:
    made: int = 0
    failures: Counter[str] = field(default_factory=Counter)


def is_needed(config: Config) -> bool:
    """Whether the stage has a function to call here."""
    rl = config.on_policy
    return rl.weigh.function not in WEIGHS or bool(rl.relabel)


def shaping(config: Config) -> Shaping:
    """What becomes of truncated turns."""
    rl = config.on_policy
    return Shaping(overlong=rl.overlong, max_tokens=rl.max_tokens, overlong_cache=rl.overlong_cache)


def read_learned(config: Config, folder: Path) -> Learned:
    """What ``learn`` has written. Raises SophiaError when it has not, or for other settings."""
    if not is_needed(config):
        return Learned()
    found = read_json(folder / LEARNED)
    if found is None or found.get("settings") != _settings(config):
        raise SophiaError(f"{folder / LEARNED}: missing, or made with other settings")
    return Learned(found["weights"], found["targets"], found["failed"])


def learn(
    config: Config,
    run: RunFolder,
    folder: Path,
    batches: Sequence[Batch],
    units: set[str],
    groups: Mapping[str, Sequence[Credited]],
    questions: Mapping[str, Question],
) -> None:
    """Weigh and relabel a batch, unless that is done. ``groups``: its judged episodes.

    Raises SophiaError when a file cannot be imported, or more than functions.max_broken_share of the calls fail.
    """
    found = read_json(folder / LEARNED)
    if found is not None and found.get("settings") == _settings(config):
        return
    rows = _rows(batches, units)
    episodes = {
        question: [episode_of(rows[_key(one.turns[0])], questions[question], _rewards(one)) for one in group]
        for question, group in groups.items()
    }
    calls = _Calls()
    with Library(config, run) as library:
        weights = _weights(library, groups, episodes, calls) if library.own_weigh is not None else None
        targets = list(_targets(config, library, episodes, questions, calls))
    limit = config.functions.max_broken_share
    if calls.failures.total() > limit * calls.made:
        reason, _ = calls.failures.most_common(1)[0]
        raise SophiaError(
            f"{calls.failures.total()} of {calls.made} calls failed, more than functions.max_broken_share = {limit}: "
            f"{reason}"
        )
    value = {"settings": _settings(config), "weights": weights, "targets": targets, "failed": calls.failures.total()}
    write_json(folder / LEARNED, value)


def _settings(config: Config) -> str:
    rl = config.on_policy
    values = [
        [one.model_dump(mode="json") for one in config.rewards],
        rl.weigh.model_dump(mode="json"),
        [one.model_dump(mode="json") for one in rl.relabel],
        rl.overlong,
    ]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _key(turn: Graded) -> tuple[str, int]:
    return turn.question_id, turn.index


def _rewards(one: Credited) -> dict[str, float]:
    return {turn.id: reward for turn, reward in zip(one.turns, one.rewards, strict=True)}


def _rows(batches: Sequence[Batch], units: set[str]) -> dict[tuple[str, int], list[Rollout]]:
    found: dict[tuple[str, int], list[Rollout]] = {}
    for batch in batches:
        for unit in batch.units:
            for row in read_shard(unit_shard(batch.folder, unit.id), Rollout) if unit.id in units else ():
                if not row.parent:
                    found.setdefault((row.question_id, row.index), []).append(row)
    return {key: sorted(rows, key=lambda row: row.turn) for key, rows in found.items()}


def _weights(
    library: Library, groups: Mapping[str, Sequence[Credited]], episodes: Mapping[str, list[Episode]], calls: _Calls
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    outcomes = library.weigh([episodes[question] for question in groups])
    for group, outcome in zip(groups.values(), outcomes, strict=True):
        calls.made += 1
        if outcome.error:
            calls.failures[outcome.error] += 1
            continue
        for one, row in zip(group, outcome.value, strict=True):
            found |= {turn.id: weight for turn, weight in zip(one.turns, row, strict=True)}
    return found


def _targets(
    config: Config,
    library: Library,
    episodes: Mapping[str, list[Episode]],
    questions: Mapping[str, Question],
    calls: _Calls,
) -> Iterator[dict[str, Any]]:
    asked = [(episode, questions[question]) for question, group in episodes.items() for episode in group]
    for number, (settings, callee) in enumerate(zip(config.on_policy.relabel, library.relabels, strict=True)):
        for (episode, question), outcome in zip(asked, library.relabel(callee, asked), strict=True):
            calls.made += 1
            if outcome.error:
                calls.failures[outcome.error] += 1
                continue
            for place, target in enumerate(outcome.value):
                yield {
                    **target,
                    "id": f"{episode.id}.relabel{number}.{place}",
                    "question_id": question.id,
                    "weight": settings.weight * target["weight"],
                }
