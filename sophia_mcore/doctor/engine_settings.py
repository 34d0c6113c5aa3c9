"""What vLLM would be started with on a GPU, phase by phase, without starting it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from sophia_mcore.benchmarks.rows import read_any
from sophia_mcore.config.engines import UNCOUNTED_IMAGES, VllmEngine, with_images
from sophia_mcore.config.schema import Config
from sophia_mcore.data.prompt_images import Prompts, all_prompts, largest_row, most_images
from sophia_mcore.data.sources import on_the_hub
from sophia_mcore.doctor.rows import Row
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.vllm_arguments import engine_arguments, gpu_subjects
from sophia_mcore.launch.phases import stage_alone, wanted_phases
from sophia_mcore.pretrained.families import family_of_folder, image_limits, image_processor
from sophia_mcore.pretrained.hub import local_folder

_UNREAD: dict[str, Any] = {}  # image options of a model that is not here
_ROWS = 20  # rows of a source that are read to see how many images a prompt has


def gpu_engines(config: Config) -> list[Row]:
    """Rows about the vLLM engines of the run, the on-policy stage's included: arguments, and what vLLM makes of them.

    A row of a subject is shared by the engines that it holds for.
    """
    wanted = [*wanted_phases(config), *wanted_phases(config, "stage")]
    subjects: dict[tuple[str, str], list[str]] = {}
    rows = []
    for phase in reversed({phase.engine: phase for phase in reversed(wanted) if phase.engine}.values()):
        engine = phase.engine_of(config)
        model = getattr(config.models, phase.asks)
        if not isinstance(engine, VllmEngine) or model is None:
            continue
        folder = _here(model)
        try:
            unread = None if phase.asks == "reasoner" else _UNREAD
            options = _image_options(config, folder) if folder else unread
        except SophiaError:  # the row about the model says why
            continue
        most, how = _images_of(config, phase.engine)
        known = with_images(engine, most or 0)
        assert isinstance(known, VllmEngine)
        given = engine_arguments(known, folder or model, options, on_cpu=False)
        missing = ""
        if options is _UNREAD:
            given.pop("mm_processor_kwargs")
            missing = "; sizes of images: not known before the model is here"
        if options is not None and engine.max_images_per_prompt is None:
            missing += how
            if most is None:
                given.pop("limit_mm_per_prompt")
        shown = ", ".join(f"{key}={value}" for key, value in given.items() if value is not None)
        rows.append(Row(name=f"{phase.engine} on a GPU", state="ok", found=shown + missing))
        for subject, text in gpu_subjects(given).items():
            subjects.setdefault((subject, text), []).append(phase.engine.removesuffix(".engine"))
    return rows + [
        Row(name=f"{subject} of vLLM on a GPU", state="ok", found=f"{text} ({', '.join(names)})")
        for (subject, text), names in sorted(subjects.items())
    ]


def _images_of(config: Config, engine: str) -> tuple[int | None, str]:
    """(images of the largest prompt of an engine, None if not known; how they were counted)"""
    asked = [one for one in all_prompts(config) if one.key == engine]
    counts = [_most(one) for one in asked]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None, "; images of a prompt: not known before the questions are here"
    in_stage = any(phase.engine == engine for phase in stage_alone())
    made = in_stage and config.rl is not None and not config.rl.one_turn
    all_rows = all(one.file.is_file() for one in asked)
    how = "" if all_rows else f"; images of a prompt: of the first {_ROWS} rows so far"
    return max([UNCOUNTED_IMAGES if made else 0, *known]), how


def _most(prompts: Prompts) -> int | None:
    if prompts.file.is_file():
        return most_images(prompts.file)
    try:
        if any(on_the_hub(source) for source in prompts.sources):
            return None
        found = largest_row(prompts.sources, lambda source: islice(read_any(source), _ROWS))
    except SophiaError:  # the row about the source says why
        return None
    return len(found[1].images) if found else None


def _here(model: Path) -> Path | None:
    """The model's folder, or that of the hub's files in the local cache; None if it has yet to be downloaded."""
    try:
        folder = local_folder(model)
    except SophiaError:
        return None
    return folder if folder.is_dir() else None


def _image_options(config: Config, folder: Path) -> Any:
    """Of the model's image processor; None for a model without images."""
    if family_of_folder(folder) is None:
        return None
    images = image_processor(folder, image_limits(config.batch))
    return None if images is None else images.vllm_options()
