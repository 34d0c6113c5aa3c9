"""The policy answers the evaluation questions under every protocol."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sophia_mcore.config.schema import Config, Protocol
from sophia_mcore.data.prompts import load_prompt
from sophia_mcore.generate.answering import Exam
from sophia_mcore.generate.engine import Engine
from sophia_mcore.generate.phase import read_questions, run_phase
from sophia_mcore.progress import Progress
from sophia_mcore.records import Answer
from sophia_mcore.score.grading import open_grader
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import prompt_hash, seed_for
from sophia_mcore.store.units import UnitQueue, units_of


def evaluate(config: Config, run: RunFolder, label: str, engine: Engine, progress: Progress, attempts: int = 1) -> int:
    """Answer and grade every evaluation question under every protocol; returns how many units were left to do.

    Writes one shard of ``records.Answer`` per unit into ``run.evaluation(label, protocol)``. Seeds do not depend on
    the model, so models are compared under the same random numbers.
    Raises SophiaError when questions are missing, the engine fails, or the folder holds another model's answers.
    """
    questions = {q.id: q for q in read_questions(run.evaluation_questions_file, with_images=False)}
    system = load_prompt("long_thinking", config.batch.long_thinking_prompt_file)
    finished = 0
    with open_grader(config.score) as grader:
        for protocol in config.evaluate.protocols:
            exam = Exam(
                questions=questions,
                system=system,
                images=ImageStore(run.images),
                grader=grader,
                sampling=protocol.sampling,
                samples=protocol.samples,
                seed_of=partial(seed_for, config.run.seed, "evaluation", protocol.name),
            )
            finished += run_phase(
                f"evaluation of {label} ({protocol.name})",
                evaluation_queue(config, run, label, protocol, list(questions)),
                Answer,
                engine,
                progress,
                plan=exam.requests,
                collect=exam.answers,
                settings={"prompt_template": prompt_hash(system)},
                attempts=attempts,
            )
    return finished


def evaluation_queue(config: Config, run: RunFolder, label: str, protocol: Protocol, ids: Sequence[str]) -> UnitQueue:
    """The units of one protocol. Items are questions."""
    units = units_of(ids, config.evaluate.questions_per_unit)
    return UnitQueue(run.evaluation(label, protocol.name), units, owner=f"evaluate {label}")
