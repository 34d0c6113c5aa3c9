"""The trajectories of a round as rewards see them, and which of them training learns from. No text is kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.compute as pc

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Answer, Kept, Trajectory, Verdict
from sophia_mcore.score.advantage import weigh
from sophia_mcore.score.reward import Candidate, PairKey, trajectory_rewards, visual_rewards
from sophia_mcore.score.terms import totals
from sophia_mcore.store.failures import read_failures
from sophia_mcore.store.layout import RoundFolder
from sophia_mcore.store.shards import read_folder, read_table, shard_files


@dataclass(frozen=True, slots=True)
class Chosen:
    """What training learns from: the weight of each chosen trajectory by its id.

    ``stored`` are the reasoner's, ``own`` the policy's; ``dropped`` says why the others are not used.
    """

    stored: dict[str, float]
    own: dict[str, float]
    dropped: Counter[str]


def choose(config: Config, folder: RoundFolder, question_ids: Collection[str]) -> Chosen:
    """Weights by ``objective.trajectories``: 1 for the kept set, or rewards and advantages over the full store; with
    ``objective.fresh_share`` the policy's own answers too.

    ``question_ids`` are all questions of the round. Raises SophiaError: a phase before has not been run, or questions
    have no answers of the policy's own.
    """
    objective = config.objective
    candidates, dropped = _stored(folder) if objective.trajectories == "all" else ([], Counter[str]())
    if objective.fresh_share:
        candidates += own_candidates(folder, question_ids)
    candidates = with_totals(config, folder, candidates)
    scored, broken = trajectory_rewards(candidates, objective.reward, config.reward)
    weights, unused = weigh(
        scored,
        objective.advantage,
        config.run.seed,
        one_group=objective.loss.one_group,
        keep_zero=objective.loss.learns_from_zero,
        limit=objective.trajectories_per_question,
    )
    own = {row.id for row in scored if row.source == "policy"}
    stored = {name: weight for name, weight in weights.items() if name not in own}
    if objective.trajectories == "kept":
        stored = dict.fromkeys(_kept_ids(folder), 1.0)
    return Chosen(stored, {name: weight for name, weight in weights.items() if name in own}, dropped + broken + unused)


def stored_candidates(
    shards: Sequence[Path], verdicts: Mapping[str, Verdict], *, with_length: bool = True
) -> list[Candidate]:
    """The trajectories of the shards that have a verdict, in order. Without ``with_length`` each length is 0.

    The length is in tokens; where an endpoint has returned none, in characters.
    """
    columns = ("id", "finish_reason", "token_ids", "text") if with_length else ("id", "finish_reason")
    found = []
    for path in shards:
        table = read_table(path, Trajectory, columns=columns)
        lengths = [0] * len(table)
        if with_length:
            tokens = pc.list_value_length(table.column("token_ids")).to_pylist()
            characters = pc.utf8_length(table.column("text")).to_pylist()
            lengths = [count or size for count, size in zip(tokens, characters, strict=True)]
        rows = zip(table.column("id").to_pylist(), table.column("finish_reason").to_pylist(), lengths, strict=True)
        for name, reason, length in rows:
            if name in verdicts:
                verdict = verdicts[name]
                ids = (verdict.question_id, verdict.caption_id)
                found.append(Candidate(name, *ids, length, reason == "length", verdict.verdict))
    return found


def with_totals(config: Config, folder: RoundFolder, candidates: list[Candidate]) -> list[Candidate]:
    """The candidates with the totals of the reward's terms, where the reward is not the verdict alone.

    Raises SophiaError when an answer has no terms.
    """
    if config.verdict_alone or not candidates:
        return candidates
    found = totals(folder, config.reward_terms)
    lost = next((one.id for one in candidates if one.id not in found), None)
    if lost is not None:
        raise SophiaError(f"{folder.terms}: answer {lost!r} has no terms of the reward; run 'sophia score' again")
    return [replace(one, by_terms=True, total=found[one.id]) for one in candidates]


def caption_rewards(config: Config, candidates: Iterable[Candidate]) -> dict[PairKey, float]:
    """R(c) of a round's candidates (``reward.visual_rewards``), whatever an early stop has left out."""
    per_caption = config.reasoning.per_caption if config.reasoning.waves is not None else 0
    return visual_rewards(candidates, config.reward.broken, per_caption)


def own_candidates(folder: RoundFolder, question_ids: Collection[str]) -> list[Candidate]:
    """The policy's own answers of a round, each length 0.

    Raises SophiaError when questions have none, except those of work units that failed for good.
    """
    columns = ("id", "question_id", "finish_reason", "verdict")
    shards = shard_files(folder.fresh) if folder.fresh.is_dir() else []
    rows = [row for path in shards for row in read_table(path, Answer, columns=columns).to_pylist()]
    missing = sorted(set(question_ids) - {row["question_id"] for row in rows})
    if missing and not read_failures(folder.fresh):
        raise SophiaError(
            f"{folder.fresh}: {len(missing)} of {len(question_ids)} questions have no answers of the policy's own yet "
            f"(objective.fresh_share), such as {missing[0]!r}: run `sophia generate` to the end first"
        )
    return [
        Candidate(row["id"], row["question_id"], "", 0, row["finish_reason"] == "length", row["verdict"], "policy")
        for row in rows
    ]


def _stored(folder: RoundFolder) -> tuple[list[Candidate], Counter[str]]:
    for path, phase in ((folder.trajectories, "generate"), (folder.verdicts, "score")):
        if not path.is_dir():
            raise SophiaError(f"{path}: no such folder; run 'sophia {phase}' first")
    shards = shard_files(folder.trajectories)
    rows = sum(len(read_table(path, Trajectory, columns=("id",))) for path in shards)
    verdicts = {row.trajectory_id: row for row in read_folder(folder.verdicts, Verdict)}
    _require_all(folder, {"trajectories": rows, "verdicts": len(verdicts)})
    found = stored_candidates(shards, verdicts, with_length=False)
    return found, +Counter(no_trajectory=len(verdicts) - len(found))


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


def _kept_ids(folder: RoundFolder) -> list[str]:
    if not folder.kept_file.is_file():
        raise SophiaError(f"{folder.kept_file}: no such file; run 'sophia score' first")
    ids: list[str] = read_table(folder.kept_file, Kept, columns=("trajectory_id",)).column("trajectory_id").to_pylist()
    return ids
