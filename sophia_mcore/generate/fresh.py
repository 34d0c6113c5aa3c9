"""Fresh trajectories: the policy's own answers to the round's questions, which objectives may mix with the stored ones.

They are sampled beside the captions, by the same model in the same engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sophia_mcore.config.engines import Sampling
from sophia_mcore.config.schema import Config
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


def generate_fresh(
    config: Config, run: RunFolder, round_index: int, engine: Engine, progress: Progress, attempts: int = 1
) -> int:
    """Answer every question that has no fresh trajectories yet; returns how many units this process finished.

    Writes one shard of ``records.Answer`` per unit into ``run.round(round_index).fresh``.
    Raises SophiaError when questions are missing, the engine fails, or the folder holds another model's answers.
    """
    questions = {question.id: question for question in read_questions(run.questions_file, with_images=True)}
    system = load_prompt("long_thinking", config.batch.long_thinking_prompt_file)
    with open_grader(config.score) as grader:
        exam = Exam(
            questions=questions,
            system=system,
            images=ImageStore(run.images),
            grader=grader,
            sampling=Sampling(max_tokens=config.fresh.max_tokens),
            samples=config.fresh.per_question,
            seed_of=partial(seed_for, config.run.seed, "fresh", round_index),
        )
        return run_phase(
            f"the policy's own answers of round {round_index}",
            fresh_queue(config, run, round_index, list(questions)),
            Answer,
            engine,
            progress,
            plan=exam.requests,
            collect=exam.answers,
            attempts=attempts,
            settings={"prompt_template": prompt_hash(system)},
        )


def fresh_queue(config: Config, run: RunFolder, round_index: int, question_ids: Sequence[str]) -> UnitQueue:
    """The units of a round's fresh trajectories. Items are questions."""
    units = units_of(question_ids, config.fresh.questions_per_unit)
    return UnitQueue(run.round(round_index).fresh, units, owner="fresh")
