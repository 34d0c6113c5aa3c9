"""Opening batches: which questions the next one asks, and whether a batch asks for more. For rank 0."""

from __future__ import annotations

import sys

from sophia_mcore.errors import SophiaError
from sophia_mcore.rl.batches import Batch, open_batch, read_batch
from sophia_mcore.rl.stream import batch_questions
from sophia_mcore.train.on_policy.batch import TAKEN, drawn_batches, take, unit_states
from sophia_mcore.train.on_policy.job import StageJob
from sophia_mcore.train.on_policy.own import is_needed, learn


def open_once(job: StageJob, number: int, draw: int = 0, *, replay: bool = False) -> Batch:
    """Open a batch, or a further draw of questions for it, unless it is open already.

    Raises SophiaError with ``replay`` when the batch is not among the stored rollouts.
    """
    folder = job.folder.batch(number, draw)
    known = read_batch(folder)
    if known is not None:
        return known
    if replay:
        raise SophiaError(f"{folder}: not among the stored rollouts, which end here")
    position, questions = _next_questions(job, number)
    open_batch(
        folder,
        batch=number,
        minimum_version=max(0, number - job.rl.lag),
        first_position=position,
        question_ids=questions,
        questions_per_unit=job.rl.questions_per_unit,
    )
    opened = read_batch(folder)
    assert opened is not None
    return opened


def _next_questions(job: StageJob, number: int) -> tuple[int, list[str]]:
    """First position in the stream and the questions there: what was opened counts, not what was trained.

    A further draw leaves out what its batch has asked already (where the stream has begun anew).
    """
    size = job.rl.questions_per_batch
    opened = sum(len(drawn_batches(job.folder, index)) for index in range(job.rl.batches))
    asked = {item for one in drawn_batches(job.folder, number) for unit in one.units for item in unit.items}
    stream = batch_questions(job.question_ids, opened, size, job.config.run.seed)
    return opened * size, [question for question in stream if question not in asked]


def is_sampled(job: StageJob, number: int, *, replay: bool = False) -> tuple[bool, str]:
    """Whether every unit of a batch is done or given up, and how far it is in words.

    Raises SophiaError with ``replay`` when a unit is missing: nobody would sample it.
    """
    done, lost, units = unit_states(drawn_batches(job.folder, number), job.config.cluster.unit_attempts)
    complete = len(done | lost.keys()) == units
    if replay and not complete:
        raise SophiaError(f"{job.folder.batch(number)}: {units - len(done)} of its {units} units are not stored")
    return complete, f"batch {number}: {len(done)} of {units} units sampled"


def draw_again(job: StageJob, number: int) -> bool:
    """Ask further questions where too few groups of a sampled batch teach something (DAPO's dynamic sampling).

    False: the batch has enough, or may not draw again, which is warned of: it is trained on what there is.
    """
    if job.rl.fill != "resample" or (job.folder.batch(number) / TAKEN).is_file():
        return False
    groups, wanted = job.planner.useful_groups(number), job.rl.questions_per_batch
    if groups >= wanted:
        return False
    batches = drawn_batches(job.folder, number)
    draw = len(batches)
    if draw <= job.rl.max_resamples and batches[-1].units and open_once(job, number, draw).units:
        return True
    print(
        f"warning: batch {number}: {groups} of the {wanted} groups that it should have teach something, after "
        f"{draw - 1} further draws of questions",
        file=sys.stderr,
        flush=True,
    )
    return False


def take_and_learn(job: StageJob, number: int) -> None:
    """Note what training uses of a sampled batch, and let functions of the user's own weigh and relabel it."""
    take(job.folder, number, job.config.cluster.unit_attempts)
    if is_needed(job.config):
        batches, done, groups = job.planner.groups(number)
        learn(job.config, job.run, job.folder.batch(number), batches, done, groups, job.questions)
