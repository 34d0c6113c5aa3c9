"""Time, GPU-hours and storage of a whole round, and what would change them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sophia_mcore.config.schema import Config, VllmEngine
from sophia_mcore.errors import SophiaError
from sophia_mcore.plan.cost import step_time
from sophia_mcore.plan.hardware import DISK, Device
from sophia_mcore.plan.layouts import Option
from sophia_mcore.plan.memory import model_parameters
from sophia_mcore.plan.rollout import sampler, sampling_seconds
from sophia_mcore.plan.workload import Lengths, Workload
from sophia_mcore.pretrained.family import Picture
from sophia_mcore.pretrained.spec import ModelSpec

GRADED_PER_SECOND = 190.0  # answers per CPU-second of math-verify, seen 176-210
RESTART_SECONDS = 300.0  # to start again after preemption, model loaded: assumed
STORED_BYTES_PER_TOKEN = 6.0  # text, ids and log-probs, compressed: half of 12 raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase. `lost`: seconds of work that a preemption throws away on average; seconds None: unknown, see note."""

    name: str
    seconds: float | None
    gpus: int
    note: str = ""
    lost: float = 0.0


def round_phases(
    config: Config, spec: ModelSpec, reasoner: ModelSpec | None, work: Workload, best: Option, device: Device, gpus: int
) -> list[Phase]:
    """The phases of a round in order; each uses all GPUs. Raises SophiaError where an engine fits no node."""
    captions = work.questions * work.captions
    trajectories = round(captions * work.trajectories * work.sampled)
    parameters = model_parameters(spec)
    assert best.time is not None
    training = work.steps * best.time.total
    saves = work.steps / config.train.save_every_steps
    saving = saves * checkpoint_bytes(config, spec) / DISK / max(1, gpus // device.per_node)
    images = work.pictures * work.picture.tokens + 100
    first = _sampling(
        "captions",
        spec,
        config.captions.engine,
        captions,
        images,
        work.caption,
        device,
        gpus,
        work.pictures,
        work.picture,
    )
    prompt = work.caption.mean + work.prompt_tokens
    second = (
        Phase(name="trajectories", seconds=None, gpus=0, note="an endpoint, or its config.json is not here")
        if reasoner is None
        else _sampling(
            "trajectories", reasoner, config.reasoning.engine, trajectories, prompt, work.response, device, gpus, 0.0
        )
    )
    if work.sampled < 1.0:
        second = replace(
            second, note=f"{second.note}; early stop leaves {work.sampled:.0%} of {captions:,} x {work.trajectories}"
        )
    return [
        first,
        second,
        Phase(
            name="scoring",
            seconds=trajectories / (GRADED_PER_SECOND * config.score.workers),
            gpus=0,
            note=f"{config.score.workers} CPU workers",
        ),
        Phase(
            name="training",
            seconds=training + (0.0 if config.train.save_asynchronously else saving),
            gpus=gpus,
            note=f"{work.steps} steps of {best.time.total:,.3g} s",
            lost=config.train.save_every_steps * best.time.total / 2,
        ),
        Phase(name="export", seconds=2 * 2.0 * parameters / DISK, gpus=0, note="read and write bf16 weights"),
    ]


def _sampling(
    name: str, spec: ModelSpec, engine: object, sequences: int, prompt: float, lengths: Lengths, device: Device,
    gpus: int, pictures: float, picture: Picture | None = None,
) -> Phase:  # fmt: skip
    if not isinstance(engine, VllmEngine):
        return Phase(name=name, seconds=None, gpus=0, note="not sampled by vLLM on these GPUs")
    used = sampler(spec, device, engine.tensor_parallel, engine.max_sequences, prompt, lengths)
    try:
        seconds = sampling_seconds(used, sequences, gpus, prompt, lengths, pictures, picture)
    except SophiaError as error:
        return Phase(name=name, seconds=None, gpus=0, note=str(error))
    raised = f", raised from {engine.tensor_parallel}" if used.tensor != engine.tensor_parallel else ""
    tokens = sequences * sum(lengths.values()) / len(lengths.values())
    note = f"{sequences:,} x {tokens / sequences:,.0f} tokens, TP{used.tensor}{raised}, {used.places} at once"
    return Phase(name=name, seconds=seconds, gpus=gpus, note=note, lost=lengths.mean * used.step(used.places) / 2)


def checkpoint_bytes(config: Config, spec: ModelSpec) -> float:
    """Weights, fp32 master weights and moments of one training checkpoint."""
    language = model_parameters(replace(spec, vision=None, projector=None))
    element, state = (2, 12) if config.train.dtype == "bfloat16" else (4, 8)
    return element * model_parameters(spec) + state * language


def storage(config: Config, spec: ModelSpec, work: Workload) -> dict[str, float]:
    """Bytes that a round writes, images not counted (they are copied once, as they are)."""
    captions = work.questions * work.captions
    values = work.response.values()
    return {
        "captions": captions * work.caption.mean * STORED_BYTES_PER_TOKEN,
        "trajectories": captions
        * work.trajectories
        * work.sampled
        * sum(values)
        / len(values)
        * STORED_BYTES_PER_TOKEN,
        "checkpoints": (config.train.keep_checkpoints + 1) * checkpoint_bytes(config, spec),
        "export": 2.0 * model_parameters(spec),
    }


def total_seconds(phases: list[Phase]) -> float:
    """Of the phases whose time is known."""
    return sum(phase.seconds for phase in phases if phase.seconds is not None)


def gpu_hours(phases: list[Phase]) -> float:
    """Of the phases that use GPUs."""
    return sum(phase.seconds * phase.gpus for phase in phases if phase.seconds is not None) / 3600


def preempted(phases: list[Phase], every_seconds: float) -> list[Phase]:
    """The same phases when all GPUs are taken away every so often and come back at once.

    Each time the work since the last saved state and a restart are lost; finished work units stay.

    Raises:
        SophiaError: what is lost each time is longer than the time between, so the phase never ends.
    """
    slower = []
    for phase in phases:
        if not phase.gpus or phase.seconds is None:
            slower.append(phase)
            continue
        lost = phase.lost + RESTART_SECONDS
        if lost >= every_seconds:
            raise SophiaError(
                f"{phase.name} loses {lost / 60:.0f} minutes at each preemption and is preempted every "
                f"{every_seconds / 60:.0f} minutes: save more often (train.save_every_steps)"
            )
        times = math.floor(phase.seconds / (every_seconds - lost))
        slower.append(replace(phase, seconds=phase.seconds + times * lost))
    return slower


def longer(work: Workload, factor: float) -> Workload:
    """The same round with longer trajectories."""
    return replace(work, response=replace(work.response, mean=work.response.mean * factor))


def towers_otherwise(best: Option, device: Device) -> list[tuple[str, float]]:
    """(layers beside the tower, seconds per step) when the first stage takes more or fewer language layers."""
    setting, found = best.setting, []
    parallel, layers = setting.parallel, setting.spec.language.num_layers
    chunks, stages = parallel.virtual_pipeline or 1, parallel.pipeline
    if stages == 1:
        return []
    each = layers // stages
    first, last = parallel.layers_on_first_stage or each, parallel.layers_on_last_stage or each
    for moved in (-2, -1, 1, 2):
        split = (first + moved * chunks, last - moved * chunks)
        if min(split) < chunks:
            continue
        changed = parallel.model_copy(update={"layers_on_first_stage": split[0], "layers_on_last_stage": split[1]})
        found.append((f"{split[0]}..{split[1]}", step_time(replace(setting, parallel=changed), device).total))
    if layers % (stages * chunks) == 0 and (first, last) != (each, each):
        level = parallel.model_copy(update={"layers_on_first_stage": each, "layers_on_last_stage": each})
        found.append((f"{each}..{each}, even", step_time(replace(setting, parallel=level), device).total))
    return found
