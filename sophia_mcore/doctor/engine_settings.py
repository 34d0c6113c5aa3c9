"""Shows the arguments with which each phase would start vLLM on a GPU, without starting it."""

from __future__ import annotations

from sophia_mcore.config.schema import Config, VllmEngine
from sophia_mcore.doctor.rows import Row
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.vllm_arguments import engine_arguments
from sophia_mcore.launch.phases import wanted_phases
from sophia_mcore.pretrained.families import family_of_folder, image_limits, image_processor


def gpu_engines(config: Config) -> list[Row]:
    """One row for each vLLM engine of the run whose model folder exists on this machine."""
    rows = []
    for phase in wanted_phases(config):
        engine = phase.engine(config) if phase.engine is not None else None
        model = config.models.reasoner if phase.name == "reasoning" else config.models.policy
        if not isinstance(engine, VllmEngine) or model is None or not model.is_dir():
            continue
        try:
            images = image_processor(model, image_limits(config.batch)) if family_of_folder(model) else None
            options = None if images is None else images.vllm_options()
            given = engine_arguments(engine, model, options, on_cpu=False)
        except SophiaError:  # the row about the model gives the reason
            continue
        shown = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        rows.append(Row(name=f"{phase.name}.engine on a GPU", state="ok", found=shown))
    return rows
