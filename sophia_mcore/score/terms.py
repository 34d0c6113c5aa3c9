"""The reward's terms for the answers of a round, where the reward is not the verdict alone.

Values are stored per answer, so that other weights need no function to be called again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from sophia_mcore.config.functions import RewardTerm
from sophia_mcore.environments.helpers import HelperReply
from sophia_mcore.environments.library import Library
from sophia_mcore.environments.terms import Judged, Said, as_json, from_json, judge, require_terms, weighted
from sophia_mcore.environments.types import Ask, Episode, Turn
from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.family import Message
from sophia_mcore.progress import Progress, counting
from sophia_mcore.records import Answer, Question, Terms, Trajectory, Verdict
from sophia_mcore.score.grading import grade_item, open_grader
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import Round, RoundFolder
from sophia_mcore.store.shards import read_folder, read_metadata, read_shard, shard_files, unit_shard
from sophia_mcore.store.units import Unit, UnitQueue, run_units
from sophia_mcore.verify.grade import Grader

_FRESH = "fresh/"  # in front of a shard's name: the policy's own answers


class AskedHelpers(Protocol):
    """What is needed of helpers."""

    def ask(self, name: str, asks: Sequence[Ask]) -> list[HelperReply]:
        """As ``environments.helpers.Helpers.ask``."""


def make_terms(round: Round, units: Sequence[Unit], helpers: AskedHelpers | None, progress: Progress) -> None:
    """Write the terms of every answer of the round that has none yet.

    ``units``: those of the verdicts. Raises SophiaError when a function's file cannot be imported or too many of its
    calls fail, UsageError when a question has no term.
    """
    config, folder = round.config, round.folder
    questions = {question.id: question for question in read_shard(round.run.questions_file, Question)}
    require_terms(config.reward_terms, questions.values())
    wanted = [*units, *_fresh_units(round)]
    with ExitStack() as opened:
        worker = _Worker(round, questions, helpers, opened)
        queue = UnitQueue(folder.terms, wanted, owner="terms", attempts=round.unit_attempts)
        run_units(queue, Terms, worker.work, counting(progress, "terms of the reward"))
    _stop_if_broken(folder, config.functions.max_broken_share)


def _fresh_units(round: Round) -> list[Unit]:
    folder = round.folder.fresh
    if not round.config.objective.fresh_share or not folder.is_dir():
        return []
    found = []
    for path in shard_files(folder):
        digest = hashlib.sha256(read_metadata(path)["sha256"].encode()).hexdigest()[:8]
        found.append(Unit(f"fresh-{path.stem}-{digest}", (f"{_FRESH}{path.name}",)))
    return found


class _Worker:
    """The functions are opened with the first unit: a finished phase starts no process."""

    def __init__(
        self, round: Round, questions: Mapping[str, Question], helpers: AskedHelpers | None, opened: ExitStack
    ) -> None:
        self._round, self._questions, self._helpers, self._opened = round, questions, helpers, opened
        self._images = ImageStore(round.run.images)
        self._library: Library | None = None
        self._grader: Grader | None = None

    def work(self, unit: Unit, report: Callable[[int], None]) -> list[Terms]:
        if self._library is None:
            self._library = self._opened.enter_context(Library(self._round.config, self._round.run, stage=False))
        rows: list[Terms] = []
        for number, name in enumerate(unit.items, start=1):
            rows += self._shard(self._library, unit, name)
            report(number)
        return rows

    def _shard(self, library: Library, unit: Unit, name: str) -> list[Terms]:
        folder = self._round.folder
        if name.startswith(_FRESH):
            answers = read_shard(folder.fresh / name.removeprefix(_FRESH), Answer)
            verdicts: Mapping[str, Verdict | Answer] = {answer.id: answer for answer in answers}
            trajectories: Sequence[Trajectory] = answers
        else:
            trajectories = read_shard(folder.trajectories / name, Trajectory)
            path = unit_shard(folder.verdicts, unit.id)
            verdicts = {one.trajectory_id: one for one in read_shard(path, Verdict)}
        groups: dict[str, list[tuple[Trajectory, Episode]]] = defaultdict(list)
        for one in trajectories:
            episode = _episode(one, self._questions[one.question_id], verdicts[one.id])
            groups[one.question_id].append((one, episode))
        asked = [(self._questions[key], [episode for _, episode in group]) for key, group in groups.items()]
        judged = judge(library, asked, images=self._images_of, ask_helper=self._ask)
        return [
            _row(trajectory, one)
            for group, found in zip(groups.values(), judged, strict=True)
            for (trajectory, _), one in zip(group, found, strict=True)
        ]

    def _images_of(self, question: Question) -> tuple[bytes, ...]:
        return tuple(self._images.get(digest) for digest in question.images)

    def _ask(self, name: str, asks: Sequence[Ask], questions: Sequence[Question]) -> list[Said]:
        assert self._helpers is not None
        if self._grader is None:
            self._grader = self._opened.enter_context(open_grader(self._round.config.score))
        return graded_replies(self._grader, questions, self._helpers.ask(name, asks))


def graded_replies(grader: Grader, questions: Sequence[Question], replies: Sequence[HelperReply]) -> list[Said]:
    """What a helper has said about each question, and what it is worth as an answer to it."""
    items = [grade_item(question, "", reply.text) for question, reply in zip(questions, replies, strict=True)]
    grades = grader.grade_many(items)
    return [(reply.text, grade.verdict, grade.extracted) for reply, grade in zip(replies, grades, strict=True)]


def _episode(row: Trajectory, question: Question, verdict: Verdict | Answer) -> Episode:
    """An answer as an episode of one turn."""
    turn = Turn(
        to="policy",
        text=row.text,
        messages=(Message("user", question.question),),
        images=question.images,
        tokens=len(row.token_ids),
        finish_reason=row.finish_reason,
        verdict=verdict.verdict,
        extracted=verdict.extracted,
    )
    return Episode(id=row.id, question_id=row.question_id, index=row.index, turns=(turn,))


def _row(trajectory: Trajectory, one: Judged) -> Terms:
    return Terms(
        trajectory_id=trajectory.id,
        question_id=trajectory.question_id,
        caption_id=trajectory.caption_id,
        values=as_json(one.values),
        broken=one.broken,
    )


def _stop_if_broken(folder: RoundFolder, limit: float) -> None:
    rows = broken = 0
    why: Counter[str] = Counter()
    for row in read_folder(folder.terms, Terms):
        rows, broken = rows + 1, broken + bool(row.broken)
        if row.broken:
            why[row.broken] += 1
    if rows and broken / rows > limit:
        raise SophiaError(
            f"rewards: {broken} of {rows} answers are not judged because a function fails, more than "
            f"functions.max_broken_share = {limit}; the most frequent failure: {why.most_common(1)[0][0]}"
        )


def totals(folder: RoundFolder, terms: Sequence[RewardTerm]) -> dict[str, float | None]:
    """R(y) of every answer by its id: the weighted total, or None where a term has not judged it.

    Raises SophiaError when the terms have not been made.
    """
    if not folder.terms.is_dir():
        raise SophiaError(f"{folder.terms}: no such folder; run 'sophia score' first")
    return {
        row.trajectory_id: None if row.broken else weighted(from_json(row.values), terms)
        for row in read_folder(folder.terms, Terms)
    }


def summary(folder: RoundFolder, terms: Sequence[RewardTerm]) -> dict[str, Any]:
    """For kept.json: of each term its weight, how many answers it has judged, and their mean; then the total."""
    sums: dict[str, list[float]] = {term.label: [] for term in terms}
    missing: Counter[str] = Counter()
    whole: list[float] = []
    broken: Counter[str] = Counter()
    for row in read_folder(folder.terms, Terms):
        if row.broken:
            broken[row.broken] += 1
            continue
        values = from_json(row.values)
        for label, value in values.items():
            if value is None:
                missing[label] += 1
            elif label in sums:
                sums[label].append(sum(value) if isinstance(value, list) else value)
        total = weighted(values, terms)
        if total is not None:
            whole.append(total)
    found = {
        term.label: {
            "weight": term.weight,
            "judged": len(sums[term.label]),
            "not_judged": missing[term.label],
            "mean": _mean(sums[term.label]),
        }
        for term in terms
    }
    return {
        "terms": found,
        "total": {"judged": len(whole), "mean": _mean(whole)},
        "broken": {"answers": broken.total(), "reasons": dict(broken.most_common(5))},
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(sorted(values)) / len(values) if values else None
