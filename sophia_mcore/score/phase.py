"""The score phase of a round: a verdict for every trajectory, then the kept set.

Verdicts are made per work unit, by as many processes as like to. The kept set is a pure function of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.progress import Progress, counting
from sophia_mcore.records import BROKEN, Kept, Question, Trajectory, Verdict
from sophia_mcore.score.candidates import caption_rewards, stored_candidates, with_totals
from sophia_mcore.score.children import helpers as other_processes
from sophia_mcore.score.efficiency import outcome_efficiency
from sophia_mcore.score.grading import grade_item, open_grader
from sophia_mcore.score.left_out import left_out
from sophia_mcore.score.rescore import compare_folders, newest_archive, set_aside
from sophia_mcore.score.reward import passes, reward_of, select
from sophia_mcore.score.second_opinion import write_second_opinion
from sophia_mcore.score.terms import AskedHelpers, make_terms
from sophia_mcore.score.terms import summary as term_summary
from sophia_mcore.score.thoughts import complaint, count_thoughts
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.failures import read_failures
from sophia_mcore.store.layout import Round, RoundFolder, RunFolder
from sophia_mcore.store.lineage import seed_for
from sophia_mcore.store.shards import read_metadata, read_shard, read_table, shard_files, unit_shard, write_shard
from sophia_mcore.store.units import Unit, UnitQueue, run_units
from sophia_mcore.verify.grade import Grader
from sophia_mcore.verify.types import GradeItem

PARALLEL_FROM = 20_000  # trajectories; below this one process is faster than starting others
MIN_VERDICTS_TO_STOP = 1000  # before this many, only the finished phase is judged by its share of broken verdicts


def score_round(round: Round, progress: Progress, helpers: AskedHelpers | None = None) -> dict[str, Any]:
    """Verdicts for all trajectories of a round, then ``kept.parquet`` and ``kept.json``; returns the latter.

    Where the reward has other terms than the verdict, their values come between; ``helpers`` answers those that ask.

    Finished units are not graded again; verdicts of another verifier version are kept aside and the changes written to
    ``verdict_changes.json``; math-verify's word on a sample goes to ``second_opinion.json``. Raises SophiaError when
    there are no trajectories, when more than ``score.max_broken_share`` of the verdicts are timeouts or errors, or when
    nothing is kept (with the reasons).
    """
    config, run, folder = round.config, round.run, round.folder
    units, shards = _units(config, folder)
    _require_all_questions(run, folder, list(shards.values()))
    rows = sum(read_metadata(path)["rows"] for path in shards.values())
    processes = min(config.score.workers, len(units)) if rows >= PARALLEL_FROM else 1
    job = {"kind": "round", "config": config.model_dump_json(), "folder": str(run.path), "round": round.index}
    with other_processes(processes - 1) as give:
        give(job)
        grade_round(round, progress, 1 if processes > 1 else config.score.workers)
    verdicts = {v.trajectory_id: v for unit in units for v in read_shard(unit_shard(folder.verdicts, unit.id), Verdict)}
    counts: Counter[str] = Counter(v.verdict for v in verdicts.values())
    _stop_if_broken(counts, config.score.max_broken_share)
    if config.score.judge and counts["error"]:
        progress.note(f"{counts['error']} verdicts are `error`: the judge gave no usable reply, or the verifier failed")
    if not config.verdict_alone:
        make_terms(round, units, helpers, progress)
    questions = {q.id: q for q in read_shard(run.questions_file, Question)}
    summary = _keep(round, list(shards.values()), questions, verdicts, counts)
    _report_changes(folder, verdicts, progress)
    if thoughts := complaint(summary["thoughts"]):
        progress.note(thoughts)
    try:
        opinion = folder.second_opinion_file
        write_second_opinion(opinion, config.score, list(shards.values()), questions, verdicts, progress)
    except SophiaError as error:  # training does not wait for it
        progress.note(f"no second opinion: {error}")
    return summary


def grade_round(round: Round, progress: Progress, workers: int) -> None:
    """Make the verdicts of all units of a round that are not done, together with any other process that does."""
    config, folder = round.config, round.folder
    questions = {q.id: q for q in read_shard(round.run.questions_file, Question)}
    units, shards = _units(config, folder)
    tally: Counter[str] = Counter()
    with open_grader(config.score, workers) as grader:
        set_aside(folder.verdicts, grader.version, [unit.id for unit in units])

        def work(unit: Unit, report: Callable[[int], None]) -> list[Verdict]:
            verdicts: list[Verdict] = []
            for number, name in enumerate(unit.items, start=1):
                verdicts += grade_shard(grader, shards[name], questions)
                report(number)
            tally.update(v.verdict for v in verdicts)
            if tally.total() >= MIN_VERDICTS_TO_STOP:
                _stop_if_broken(tally, config.score.max_broken_share)
            return verdicts

        queue = UnitQueue(folder.verdicts, units, owner="score", attempts=round.unit_attempts)
        metadata = {"verifier_version": grader.version}
        run_units(queue, Verdict, work, counting(progress, "verdicts"), metadata=metadata)


def _units(config: Config, folder: RoundFolder) -> tuple[list[Unit], dict[str, Path]]:
    shards = {path.name: path for path in shard_files(folder.trajectories)} if folder.trajectories.is_dir() else {}
    if not shards:
        raise SophiaError(f"no trajectories in {folder.trajectories}: run `sophia generate` first")
    return plan_units(list(shards.values()), config.score.trajectories_per_unit), shards


def _require_all_questions(run: RunFolder, folder: RoundFolder, shards: Sequence[Path]) -> None:
    """Every question has trajectories, except those of units that failed for good and are recorded as such."""
    questions = set(read_table(run.questions_file, Question, columns=("id",)).column("id").to_pylist())
    columns = (read_table(path, Trajectory, columns=("question_id",)).column("question_id") for path in shards)
    answered = {question for column in columns for question in pc.unique(column).to_pylist()}
    missing = sorted(questions - answered)
    if missing and not read_failures(folder.trajectories):
        raise SophiaError(
            f"{folder.trajectories}: {len(missing)} of {len(questions)} questions have no trajectories yet, such as "
            f"{missing[0]!r}: run `sophia generate` to the end first"
        )


def _report_changes(folder: RoundFolder, verdicts: dict[str, Verdict], progress: Progress) -> None:
    """If an earlier verifier version's verdicts were kept aside: what changed, to a file and to the user."""
    archive = newest_archive(folder.verdicts)
    if archive is None:
        return
    versions = {v.verifier_version for v in verdicts.values()}
    changes = compare_folders(archive, folder.verdicts, archive.name.partition(".")[2], ", ".join(sorted(versions)))
    write_json(folder.verdict_changes_file, changes.as_json())
    progress.note(str(changes))


def plan_units(shards: Sequence[Path], trajectories_per_unit: int) -> list[Unit]:
    """Consecutive shards in units of at most ``trajectories_per_unit`` rows (a larger shard is a unit of its own).

    The id holds a hash of the shards' content hashes: other trajectories make other units.
    """
    groups: list[list[Path]] = []
    digests: list[list[str]] = []
    rows = 0
    for path in shards:
        metadata = read_metadata(path)
        if not groups or rows + metadata["rows"] > trajectories_per_unit:
            groups.append([])
            digests.append([])
            rows = 0
        groups[-1].append(path)
        digests[-1].append(metadata["sha256"])
        rows += metadata["rows"]
    return [
        Unit(f"{i:06d}-{hashlib.sha256(' '.join(digest).encode()).hexdigest()[:8]}", tuple(p.name for p in group))
        for i, (group, digest) in enumerate(zip(groups, digests, strict=True))
    ]


_COLUMNS = ("id", "question_id", "caption_id", "text", "finish_reason")


def grade_shard(grader: Grader, path: Path, questions: dict[str, Question]) -> list[Verdict]:
    """Verdicts on the trajectories of one shard, in its order. A truncated trajectory has no answer.

    Raises SophiaError when a trajectory's question is unknown.
    """
    table = read_table(path, Trajectory, columns=_COLUMNS)
    ids, question_ids, caption_ids, texts, reasons = (table.column(name).to_pylist() for name in _COLUMNS)
    unknown = next((q for q in question_ids if q not in questions), None)
    if unknown is not None:
        raise SophiaError(f"{path}: question {unknown!r} is not among the checked questions")

    def item(index: int) -> GradeItem:
        text = "" if reasons[index] == "length" else texts[index]
        return grade_item(questions[question_ids[index]], ids[index], text)

    return [
        Verdict(
            trajectory_id=grade.id,
            question_id=question_ids[index],
            caption_id=caption_ids[index],
            verdict=grade.verdict,
            extracted=grade.extracted,
            answer_type=grade.answer_type,
            seconds=grade.seconds,
            verifier=grade.verifier,
            verifier_version=grade.verifier_version,
        )
        for index, grade in enumerate(grader.grade_many(item(i) for i in range(len(ids))))
    ]


def _stop_if_broken(counts: Counter[str], limit: float) -> None:
    broken, total = sum(counts[name] for name in BROKEN), counts.total()
    if total and broken / total > limit:
        raise SophiaError(
            f"grading: {broken} of {total} verdicts are timeouts or errors ({_listed(counts)}), more than "
            f"score.max_broken_share = {limit}; raise score.timeout_seconds or look at the answers"
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {counts[name]}" for name in sorted(counts) if counts[name])


def _keep(
    round: Round,
    shards: Sequence[Path],
    questions: dict[str, Question],
    verdicts: dict[str, Verdict],
    counts: Counter[str],
) -> dict[str, Any]:
    config, folder = round.config, round.folder
    candidates = with_totals(config, folder, stored_candidates(shards, verdicts))
    sampling = left_out(config, folder, shards, candidates)
    rewards = caption_rewards(config, candidates)
    seed = seed_for(config.run.seed, "select", round.index)
    selection = select(candidates, rewards, config.reward, seed)
    by_id = {c.id: c for c in candidates}
    texts = _texts(shards, frozenset(selection.kept))
    kept = []
    for trajectory in selection.kept:
        candidate = by_id[trajectory]
        question = questions[candidate.question_id]
        kept.append(
            Kept(
                trajectory_id=trajectory,
                question_id=question.id,
                caption_id=candidate.caption_id,
                images=question.images,
                question=question.question,
                response=texts[trajectory],
                token_count=candidate.length,
                outcome=reward_of(candidate) or 0.0,
                caption_reward=rewards[candidate.question_id, candidate.caption_id],
            )
        )
    summary = {
        "questions": len({c.question_id for c in candidates}),
        "captions": len({c.caption_id for c in candidates}),
        "trajectories": len(candidates),
        "kept": len(kept),
        "caption_reward_mean": sum(rewards[pair] for pair in sorted(rewards)) / len(rewards) if rewards else 0.0,
        "caption_pairs": len(rewards),
        "caption_pairs_passed": sum(passes(reward, config.reward) for reward in rewards.values()),
        "verdicts": dict(sorted(counts.items())),
        "dropped": dict(sorted(selection.dropped.items())),
        "thoughts": count_thoughts(shards),
        "outcome_efficiency": efficiency_of(shards, verdicts),
        "verifier_versions": sorted({f"{v.verifier} {v.verifier_version}" for v in verdicts.values()}),
        "reward": config.reward.model_dump(mode="json", exclude={"at_least"} if config.verdict_alone else None),
        **sampling,
    }
    if not config.verdict_alone:
        summary["rewards"] = term_summary(folder, config.reward_terms)
    if not kept:
        least = "" if config.verdict_alone else f", reward.at_least = {config.reward.at_least}"
        raise SophiaError(
            f"no trajectory of {len(candidates)} was kept (dropped: {_listed(selection.dropped)}); "
            f"nothing to train on, see reward.alpha = {config.reward.alpha}{least} and {folder.verdicts}"
        )
    _write(folder, kept, summary)
    return summary


def efficiency_of(shards: Sequence[Path], verdicts: dict[str, Verdict]) -> dict[str, float | int | None] | None:
    """Outcome efficiency of the judged trajectories; None without any."""

    def answers() -> Iterator[tuple[str, str, bool, int]]:
        for path in shards:
            table = read_table(path, Trajectory, columns=("id", "text", "token_ids"))
            lengths = pc.list_value_length(table.column("token_ids")).to_pylist()
            for name, text, tokens in zip(*(table.column(c).to_pylist() for c in ("id", "text")), lengths, strict=True):
                if (verdict := verdicts.get(name)) is not None:
                    yield text, verdict.extracted, verdict.verdict == "correct", tokens

    found = outcome_efficiency(answers())
    return None if found is None else found.as_json()


def _texts(shards: Sequence[Path], wanted: frozenset[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for path in shards:
        table = read_table(path, Trajectory, columns=("id", "text"))
        rows = [i for i, trajectory in enumerate(table.column("id").to_pylist()) if trajectory in wanted]
        taken = table.take(pa.array(rows, pa.int64()))
        texts.update(zip(taken.column("id").to_pylist(), taken.column("text").to_pylist(), strict=True))
    return texts


def _write(folder: RoundFolder, kept: list[Kept], summary: dict[str, Any]) -> None:
    """Several processes may write the same; another kept set is replaced.

    The file depends on what is kept alone: trajectories that were not sampled, since they could not be kept
    (``score.early_stop``), leave no trace in it.
    """
    rows = [summary["reward"], [asdict(one) for one in kept]]
    fingerprint = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    other = folder.kept_file.exists() and read_metadata(folder.kept_file)["metadata"].get("fingerprint") != fingerprint
    if other and read_shard(folder.kept_file, Kept) != kept:  # else: written by a version with other fingerprints
        folder.kept_summary_file.unlink(missing_ok=True)
        folder.kept_file.unlink(missing_ok=True)
    with contextlib.suppress(FileExistsError):  # written by another process, or before this one was killed
        write_shard(folder.kept_file, kept, Kept, {"fingerprint": fingerprint})
    write_json(folder.kept_summary_file, summary)
