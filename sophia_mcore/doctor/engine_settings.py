"""What vLLM would be started with on a GPU, phase by phase, without starting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Config, VllmEngine
from sophia_mcore.doctor.rows import Row
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.vllm_arguments import engine_arguments
from sophia_mcore.launch.phases import wanted_phases
from sophia_mcore.pretrained.families import family_of_folder, image_limits, image_processor
from sophia_mcore.pretrained.hub import local_folder

_UNREAD: dict[str, Any] = {}  # image options of a model that is not here


def gpu_engines(config: Config) -> list[Row]:
    """One row for each vLLM engine of the run, the on-policy stage's included."""
    wanted = [*wanted_phases(config), *wanted_phases(config, "stage")]
    rows = []
    for phase in {phase.engine: phase for phase in reversed(wanted) if phase.engine}.values():
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
        given = engine_arguments(engine, folder or model, options, on_cpu=False)
        if options is _UNREAD:
            given.pop("mm_processor_kwargs")
        shown = ", ".join(f"{key}={value}" for key, value in given.items() if value is not None)
        missing = "; sizes of images: not known before the model is here" if options is _UNREAD else ""
        rows.append(Row(name=f"{phase.engine} on a GPU", state="ok", found=shown + missing))
    return rows


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
