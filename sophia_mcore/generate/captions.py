"""On-policy seeing: the policy describes each image set K times. The question is never shown to it."""

from __future__ import annotations

from collections.abc import Sequence

from sophia_mcore.batch.samples import user_text
from sophia_mcore.config.schema import Config
from sophia_mcore.data.prompts import load_prompt
from sophia_mcore.errors import UsageError
from sophia_mcore.generate.engine import Completion, Engine, Request
from sophia_mcore.generate.phase import read_questions, run_phase, sampled_fields
from sophia_mcore.pretrained.chat import Message
from sophia_mcore.progress import Progress
from sophia_mcore.records import Caption, caption_id, image_set_id
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import prompt_hash, seed_for
from sophia_mcore.store.units import Unit, UnitQueue, units_of


def generate_captions(
    config: Config, run: RunFolder, round_index: int, engine: Engine, progress: Progress, attempts: int = 1
) -> int:
    """Caption every image set of the round that has no captions yet; returns how many units this process finished.

    Writes one shard of ``records.Caption`` per unit into ``run.round(round_index).captions``.
    Raises SophiaError when questions are missing, a question has no image, or the engine fails.
    """
    image_sets = image_sets_of(run)
    template = describe_prompt(config)
    images = ImageStore(run.images)

    def plan(unit: Unit) -> list[Request]:
        return [
            request
            for image_set in unit.items
            for request in caption_requests(config, round_index, template, image_sets[image_set], images)
        ]

    def collect(
        unit: Unit, requests: Sequence[Request], completions: Sequence[Completion], digest: str
    ) -> list[Caption]:
        keys = [(image_set, k) for image_set in unit.items for k in range(config.captions.per_image)]
        return [
            Caption(
                id=caption_id(image_sets[image_set], k),
                images=image_sets[image_set],
                index=k,
                **sampled_fields(request, completion, digest),
            )
            for (image_set, k), request, completion in zip(keys, requests, completions, strict=True)
        ]

    return run_phase(
        f"captions of round {round_index}",
        caption_queue(config, run, round_index, image_sets),
        Caption,
        engine,
        progress,
        plan=plan,
        collect=collect,
        attempts=attempts,
        settings={"prompt_template": prompt_hash(template)},
    )


def image_sets_of(run: RunFolder) -> dict[str, tuple[str, ...]]:
    """Image set -> digests of its images, in the order in which the questions first name them."""
    questions = read_questions(run.questions_file, with_images=True)
    return {image_set_id(question.images): question.images for question in questions}


def caption_queue(
    config: Config, run: RunFolder, round_index: int, image_sets: dict[str, tuple[str, ...]]
) -> UnitQueue:
    """The caption units of a round. Items are image sets."""
    units = units_of(image_sets, config.captions.images_per_unit)
    return UnitQueue(run.round(round_index).captions, units, owner="captions")


def describe_prompt(config: Config) -> str:
    """The describe prompt. Raises UsageError when it has room for a question: a captioner that reads the question
    answers it, and the visual reward measures nothing."""
    template = load_prompt("describe", config.captions.prompt_file)
    if "{question}" in template:
        raise UsageError(f"{config.captions.prompt_file}: the describe prompt must not contain {{question}}")
    return template


def caption_requests(
    config: Config, round_index: int, template: str, images: tuple[str, ...], store: ImageStore
) -> list[Request]:
    """K requests for one image set; all that is in them is the images, the describe prompt and the seeds."""
    system = config.batch.default_system_prompt
    messages = (
        *([Message("system", system)] if system is not None else []),
        Message("user", user_text(template, len(images))),
    )
    files = tuple(store.get(digest) for digest in images)
    return [
        Request(
            messages=messages,
            images=files,
            sampling=config.captions.sampling,
            seed=seed_for(config.run.seed, "caption", round_index, image_set_id(images), k),
        )
        for k in range(config.captions.per_image)
    ]
