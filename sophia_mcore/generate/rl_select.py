"""Pre-selection for the on-policy stage: the starting model answers every question some times, once, before batch 0."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from sophia_mcore.config.engines import Sampling
from sophia_mcore.errors import UsageError
from sophia_mcore.generate.answers import Exam
from sophia_mcore.generate.engine import Engine
from sophia_mcore.generate.phase import read_questions
from sophia_mcore.progress import Progress
from sophia_mcore.records import Answer, Question
from sophia_mcore.rl.prompts import system_prompt
from sophia_mcore.rl.questions import checked_questions
from sophia_mcore.rl.select import histogram, is_chosen, tallies
from sophia_mcore.score.grading import open_grader
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import Round
from sophia_mcore.store.lineage import seed_for
from sophia_mcore.store.shards import read_shard, read_values, write_shard
from sophia_mcore.store.units import UnitQueue, units_of


def select_queue(round: Round, question_ids: Sequence[str]) -> UnitQueue:
    """The units of the pre-selection. Items are questions."""
    units = units_of(question_ids, round.config.on_policy.select.questions_per_unit)
    return UnitQueue(round.run.rl.select, units, owner="rl-select", attempts=round.unit_attempts)


def select_questions(round: Round, engine: Engine, progress: Progress) -> int:
    """Ask what has not been asked, then write the questions that stay; returns how many units this process finished.

    Writes RUN/rl/select/ (``records.Answer``), questions.parquet and, last, select.json with the counts.
    Raises SophiaError when questions are missing or the engine fails, UsageError when too few questions stay.
    """
    config, rl, run = round.config, round.config.on_policy, round.run
    found = read_questions(checked_questions(config, run), with_images=False)  # some are text alone
    questions = {question.id: question for question in found}
    with open_grader(config.score) as grader:
        exam = Exam(
            questions=questions,
            system=system_prompt(config),
            images=ImageStore(run.images),
            grader=grader,
            sampling=Sampling(max_tokens=rl.max_tokens),
            samples=rl.select.samples,
            seed_of=partial(seed_for, config.run.seed, "rl", "select"),
        )
        finished = exam.run("pre-selection of questions", select_queue(round, list(questions)), engine, progress)
    _write(round, questions)
    return finished


def _write(round: Round, questions: dict[str, Question]) -> None:
    rl, folder = round.config.on_policy, round.run.rl
    chosen = rl.select
    found = tallies(read_values(folder.select, Answer, ("question_id", "verdict")))
    stay = [
        question
        for name, question in questions.items()
        if is_chosen(found[name], chosen.samples, chosen.minimum, chosen.maximum)
    ]
    counts = {
        "questions": len(questions),
        "chosen": len(stay),
        "samples": chosen.samples,
        "minimum": chosen.minimum,
        "maximum": chosen.maximum,
        "right_answers": histogram(found, {name: question.answer_type for name, question in questions.items()}),
    }
    if len(stay) < rl.questions_per_batch:
        raise UsageError(
            f"rl.select keeps {len(stay)} of {len(questions)} questions, fewer than rl.questions_per_batch = "
            f"{rl.questions_per_batch}: widen rl.select.minimum and maximum, or ask more questions"
        )
    if folder.questions_file.is_file() and read_shard(folder.questions_file, Question) != stay:
        folder.questions_file.unlink()  # a choice that other settings made
    with suppress(FileExistsError):  # the same, also by another task
        write_shard(folder.questions_file, stay, Question)
    write_json(folder.select_file, counts)
