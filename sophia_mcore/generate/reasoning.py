"""Off-policy reasoning: a text-only model thinks N times from each caption, as if it saw the image."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.data.prompts import fill, load_prompt
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.captions import caption_queue
from sophia_mcore.generate.engine import Engine, Request, Streaming
from sophia_mcore.generate.phase import Asked, read_questions
from sophia_mcore.generate.sampling import sample_units
from sophia_mcore.generate.unit_work import WholeUnit
from sophia_mcore.generate.waves import Grade, WavesUnit
from sophia_mcore.pretrained.chat import Message, plain
from sophia_mcore.progress import Progress
from sophia_mcore.records import Caption, Question, Trajectory, VerdictName, image_set_id, trajectory_id
from sophia_mcore.score.early_stop import Rule, waves_of
from sophia_mcore.score.grading import grade_item, open_grader
from sophia_mcore.store.layout import Round
from sophia_mcore.store.lineage import prompt_hash, seed_for
from sophia_mcore.store.shards import read_table, shard_files
from sophia_mcore.store.units import Unit, UnitQueue, units_of
from sophia_mcore.verify.grade import Grader


def generate_trajectories(round: Round, engine: Engine, progress: Progress) -> int:
    """Sample the trajectories of every question that has none yet; returns how many units this process finished.

    Writes one shard of ``records.Trajectory`` per unit into ``round.folder.trajectories``.
    Raises SophiaError when captions are missing or the engine fails.
    """
    questions = {question.id: question for question in read_questions(round.run.questions_file, with_images=True)}
    template = load_prompt("simulate_seeing", round.config.reasoning.prompt_file, needs=("caption", "question"))
    captions = finished_captions(round, list(questions.values()))

    def ask(question: Question) -> dict[str, list[Asked[Trajectory]]]:
        found = captions.of(question)
        return {caption: ask_trajectories(round, template, question, caption, text) for caption, text in found}

    def whole(unit: Unit, digest: str) -> WholeUnit:
        asked = [one for item in unit.items for own in ask(questions[item]).values() for one in own]
        return WholeUnit(unit, asked, digest, None)

    settings = {"prompt_template": prompt_hash(template)}
    name, queue = f"trajectories of round {round.index}", reasoning_queue(round, list(questions))
    if round.config.reasoning.waves is None:
        return sample_units(name, queue, Trajectory, engine, progress, begin=whole, settings=settings)
    with open_grader(round.config.score) as grader:
        begin = partial(_in_waves, round.config, engine, questions, ask, partial(_verdicts, grader, questions))
        settings |= {"waves": early_stop_label(round.config)}
        return sample_units(name, queue, Trajectory, engine, progress, begin=begin, settings=settings, cutting=True)


def _in_waves(
    config: Config,
    engine: Engine,
    questions: Mapping[str, Question],
    ask: Callable[[Question], dict[str, list[Asked[Trajectory]]]],
    grade: Grade,
    unit: Unit,
    model_digest: str,
) -> WavesUnit:
    asked = [ask(questions[item]) for item in unit.items]
    waves = waves_of(config.reasoning.waves or (), config.reasoning.per_caption)
    rule = Rule(config.reward, config.reasoning.per_caption)
    cuts = isinstance(engine, Streaming) and engine.cuts
    return WavesUnit(unit, asked, model_digest, grade, rule, waves, cuts=cuts)


def _verdicts(
    grader: Grader, questions: Mapping[str, Question], trajectories: Sequence[Trajectory]
) -> list[VerdictName]:
    """As the score phase will find them: one that was cut off at the token limit has no answer."""
    items = [
        grade_item(questions[one.question_id], one.id, "" if one.finish_reason == "length" else one.text)
        for one in trajectories
    ]
    return [grade.verdict for grade in grader.grade_many(items)]


def early_stop_label(config: Config) -> str:
    """What decides which trajectories are sampled, for the metadata of shards: others must not continue them."""
    return json.dumps({"waves": config.reasoning.waves, **config.reward.model_dump(mode="json")}, sort_keys=True)


def reasoning_queue(round: Round, question_ids: Sequence[str]) -> UnitQueue:
    """The trajectory units of a round. Items are questions."""
    units = units_of(question_ids, round.config.reasoning.questions_per_unit)
    return UnitQueue(round.folder.trajectories, units, owner="reasoning", attempts=round.unit_attempts)


def ask_trajectories(
    round: Round, template: str, question: Question, caption: str, caption_text: str
) -> list[Asked[Trajectory]]:
    """N requests for one question and one caption, whose id is ``caption``: text only."""
    config = round.config
    text = fill(template, caption=plain(caption_text), question=plain(question.question))
    return [
        Asked(
            Request(
                messages=(Message("user", text),),
                sampling=config.reasoning.sampling,
                seed=seed_for(config.run.seed, "trajectory", round.index, question.id, caption, n),
            ),
            partial(
                Trajectory,
                id=name,
                question_id=question.id,
                caption_id=caption,
                index=n,
                source="reasoner",
            ),
            name,
        )
        for n in range(config.reasoning.per_caption)
        for name in (trajectory_id(question.id, caption, n),)
    ]


def finished_captions(round: Round, questions: Sequence[Question]) -> CaptionIndex:
    """The captions of the round. Raises SophiaError unless all of them are there."""
    image_sets = {image_set_id(question.images): question.images for question in questions}
    left = caption_queue(round, image_sets).remaining()
    if left:
        raise SophiaError(f"round {round.index}: {left} units of captions are not done; run that phase first")
    return CaptionIndex(round.folder.captions)


class CaptionIndex:
    """Captions by image set. Only ids are kept in memory; texts are read per shard when they are needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: dict[str, set[Path]] = defaultdict(set)  # image set, 16 digits -> where its captions are
        for shard in shard_files(folder):
            for caption in read_table(shard, Caption, columns=["id"]).column("id").to_pylist():
                self._shards[caption.rpartition(".k")[0]].add(shard)
        self._read = lru_cache(maxsize=8)(_captions_of_shard)

    def of(self, question: Question) -> list[tuple[str, str]]:
        """(caption id, text) of the question's image set, by index. Raises SophiaError when there is none."""
        image_set = image_set_id(question.images)[:16]
        found = [row for shard in sorted(self._shards.get(image_set, ())) for row in self._read(shard)[image_set]]
        if not found:
            raise SophiaError(f"{self._folder}: no caption for the images of question {question.id!r}")
        return [(caption, text) for _, caption, text in sorted(found)]


def _captions_of_shard(shard: Path) -> dict[str, list[tuple[int, str, str]]]:
    columns = ["id", "index", "text"]
    table = read_table(shard, Caption, columns=columns)
    result: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for caption, index, text in zip(*(table.column(name).to_pylist() for name in columns), strict=True):
        result[caption.rpartition(".k")[0]].append((index, caption, text))
    return result
