"""On-policy seeing: the policy describes each image set K times. The question is never shown to it."""

from __future__ import annotations

from functools import partial

from sophia_mcore.config.schema import Config
from sophia_mcore.data.prompts import load_prompt
from sophia_mcore.errors import UsageError
from sophia_mcore.generate.engine import Engine, Request
from sophia_mcore.generate.phase import Asked, read_questions
from sophia_mcore.generate.sampling import run_phase
from sophia_mcore.pretrained.chat import Message, user_text
from sophia_mcore.progress import Progress
from sophia_mcore.records import Caption, caption_id, image_set_id
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.lineage import prompt_hash, seed_for
from sophia_mcore.store.units import Unit, UnitQueue, units_of


def generate_captions(round: Round, engine: Engine, progress: Progress) -> int:
    """Caption every image set of the round that has no captions yet; returns how many units this process finished.

    Writes one shard of ``records.Caption`` per unit into ``round.folder.captions``.
    Raises SophiaError when questions are missing, a question has no image, or the engine fails.
    """
    image_sets = image_sets_of(round.run)
    template = describe_prompt(round.config)
    images = ImageStore(round.run.images)

    def ask(unit: Unit) -> list[Asked[Caption]]:
        return [asked for name in unit.items for asked in ask_captions(round, template, image_sets[name], images)]

    return run_phase(
        f"captions of round {round.index}",
        caption_queue(round, image_sets),
        Caption,
        engine,
        progress,
        ask=ask,
        settings={"prompt_template": prompt_hash(template)},
    )


def image_sets_of(run: RunFolder) -> dict[str, tuple[str, ...]]:
    """Image set -> digests of its images, in the order in which the questions first name them."""
    questions = read_questions(run.questions_file, with_images=True)
    return {image_set_id(question.images): question.images for question in questions}


def caption_queue(round: Round, image_sets: dict[str, tuple[str, ...]]) -> UnitQueue:
    """The caption units of a round. Items are image sets."""
    units = units_of(image_sets, round.config.captions.images_per_unit)
    return UnitQueue(round.folder.captions, units, owner="captions", attempts=round.unit_attempts)


def describe_prompt(config: Config) -> str:
    """The describe prompt. Raises UsageError when it has room for a question: a captioner that reads the question
    answers it, and the visual reward measures nothing."""
    template = load_prompt("describe", config.captions.prompt_file)
    if "{question}" in template:
        raise UsageError(f"{config.captions.prompt_file}: the describe prompt must not contain {{question}}")
    return template


def ask_captions(round: Round, template: str, images: tuple[str, ...], store: ImageStore) -> list[Asked[Caption]]:
    """K requests for one image set; all that is in them is the images, the describe prompt and the seeds."""
    config = round.config
    system = config.batch.default_system_prompt
    messages = (
        *([Message("system", system)] if system is not None else []),
        Message("user", user_text(template, len(images))),
    )
    files = tuple(store.get(digest) for digest in images)
    return [
        Asked(
            Request(
                messages=messages,
                images=files,
                sampling=config.captions.sampling,
                seed=seed_for(config.run.seed, "caption", round.index, image_set_id(images), k),
            ),
            partial(Caption, id=caption_id(images, k), images=images, index=k),
        )
        for k in range(config.captions.per_image)
    ]
