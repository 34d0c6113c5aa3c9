"""All layouts of the GPUs: which are possible, which fit into memory, how long a step takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from sophia_mcore.config.schema import Config, Fp8, Parallel
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.parallel.layout import check_layout, check_run_layout, layers_per_stage
from sophia_mcore.plan.cost import StepTime, chunk_seconds, model_flops, step_time
from sophia_mcore.plan.hardware import GIB, Device
from sophia_mcore.plan.memory import Memory, Setting, worst_rank
from sophia_mcore.plan.workload import Workload
from sophia_mcore.pretrained.spec import ModelSpec

CONTEXT_SIZES = (1, 2, 4, 8)
SIMULATED = 24  # layouts whose pipeline is simulated; the others are behind by a rough estimate
_MAX_CHUNKS = 8


@dataclass(frozen=True, kw_only=True)
class Option:
    """A layout that fits, with its worst rank's memory and (when simulated) its time."""

    setting: Setting
    stage: int
    memory: Memory
    rough: float  # seconds per step, pipeline not simulated
    time: StepTime | None = None
    tokens_per_second: float = 0.0  # per GPU
    mfu: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A layout that does not work, and why; `excess` bytes beyond the memory (inf: cannot be cut)."""

    parallel: Parallel
    reason: str
    excess: float


@dataclass(frozen=True, kw_only=True)
class Ranking:
    options: tuple[Option, ...]  # fastest first, simulated
    fitting: int
    refusals: tuple[Refusal, ...]  # nearest miss first


def rank_layouts(config: Config, spec: ModelSpec, work: Workload, device: Device, gpus: int, fp8: bool) -> Ranking:
    """All layouts of `gpus` devices, the fastest that fit first.

    Raises:
        SophiaError: no layout fits; names the nearest miss.
    """
    fitting: list[Option] = []
    refusals: list[Refusal] = []
    for setting in candidates(config, spec, work, device, gpus, fp8, refusals):
        stage, memory = worst_rank(setting)
        if memory.total > device.memory:
            refusals.append(_too_large(setting, stage, memory, device))
        else:
            fitting.append(Option(setting=setting, stage=stage, memory=memory, rough=_rough(setting, device)))
    refusals.sort(key=lambda refusal: refusal.excess)
    if not fitting:
        nearest = refusals[0].reason if refusals else "no size of tensor parallelism fits"
        more = "more GPUs or a shorter batch.sequence_length_tokens"
        if device.fp8 and not fp8 and config.fp8.recipe == "none":
            more = "more GPUs, a shorter batch.sequence_length_tokens or --fp8"
        raise SophiaError(
            f"no layout of {gpus} x {device.name} holds this model and batch; the nearest miss: {nearest}; "
            f"{more} may help"
        )
    fitting.sort(key=lambda option: option.rough)
    simulated = [simulated_option(option, work, device, gpus) for option in fitting[:SIMULATED]]
    simulated.sort(key=lambda option: -option.tokens_per_second)
    return Ranking(options=tuple(simulated), fitting=len(fitting), refusals=tuple(refusals))


def simulated_option(option: Option, work: Workload, device: Device, gpus: int) -> Option:
    """The option with its step simulated."""
    setting = option.setting
    time = step_time(setting, device)
    speed = work.step_tokens / time.total / gpus
    needed = model_flops(setting.spec, setting.row, train_tower=setting.train.train_vision_tower) * work.rows_per_step
    return replace(
        option, time=time, tokens_per_second=speed, mfu=needed / time.total / gpus / device.peak
    )  # fmt: skip


def own_option(config: Config, spec: ModelSpec, work: Workload, device: Device, gpus: int) -> Option | Refusal:
    """The layout that the configuration itself asks for, on these GPUs: its speed, or why it does not work."""
    setting = configured(config, spec, work, gpus)
    parallel = setting.parallel
    if gpus % parallel.model_ranks:
        reason = f"{describe(setting)}: {gpus} GPUs are not a multiple of its {parallel.model_ranks} ranks"
        return Refusal(parallel=parallel, reason=reason, excess=math.inf)
    try:
        check_run_layout(spec, config)
        stage, memory = worst_rank(setting)
        if memory.total > device.memory:
            return _too_large(setting, stage, memory, device)
        option = Option(setting=setting, stage=stage, memory=memory, rough=_rough(setting, device))
        return simulated_option(option, work, device, gpus)
    except SophiaError as error:
        return Refusal(parallel=parallel, reason=str(error), excess=math.inf)


def candidates(
    config: Config, spec: ModelSpec, work: Workload, device: Device, gpus: int, fp8: bool, refusals: list[Refusal]
) -> Iterator[Setting]:
    """Settings whose layers, heads and lengths divide. The others are appended to `refusals`."""
    row = work.row()
    recipes = {config.fp8.recipe, *(["tensorwise"] if fp8 and config.fp8.recipe == "none" else [])}
    for parallel in shapes(spec, device, gpus):
        for recipe in sorted(recipes):
            low = config.fp8.model_copy(update={"recipe": recipe})
            try:
                _check(spec, parallel, work, device, low)
            except UsageError as error:
                if parallel.virtual_pipeline is None:
                    refusals.append(Refusal(parallel=parallel, reason=str(error), excess=math.inf))
                continue
            data = gpus // (parallel.tensor * parallel.pipeline * parallel.context)
            yield from _variants(config, spec, work, device, Setting(
                spec=spec, parallel=parallel, train=config.train, fp8=low, objective=config.objective, row=row,
                data=data,
                micro_batches=micro_batches(work.rows_per_step, data, parallel),
            ))  # fmt: skip


def configured(config: Config, spec: ModelSpec, work: Workload, ranks: int) -> Setting:
    """The layout that the configuration itself asks for."""
    parallel = config.parallel
    data = max(1, ranks // (parallel.tensor * parallel.pipeline * parallel.context))
    return Setting(
        spec=spec, parallel=parallel, train=config.train, fp8=config.fp8, objective=config.objective, row=work.row(),
        data=data,
        micro_batches=micro_batches(work.rows_per_step, data, parallel),
    )  # fmt: skip


def micro_batches(rows: int, data: int, parallel: Parallel) -> int:
    """Rows of one data-parallel rank; interleaving needs a multiple of the stages."""
    own = max(1, math.ceil(rows / data))
    multiple = parallel.pipeline if parallel.virtual_pipeline else 1
    return math.ceil(own / multiple) * multiple


def shapes(spec: ModelSpec, device: Device, gpus: int) -> Iterator[Parallel]:
    """Sizes whose product divides the GPUs; tensor parallelism stays inside a node."""
    for tensor in (n for n in range(1, min(gpus, device.per_node) + 1) if gpus % n == 0):
        for context in (n for n in CONTEXT_SIZES if gpus // tensor % n == 0):
            rest = gpus // tensor // context
            for pipeline in (n for n in range(1, min(rest, spec.language.num_layers) + 1) if rest % n == 0):
                limit = spec.language.num_layers // pipeline
                for chunks in (None, *range(2, min(limit, _MAX_CHUNKS) + 1)) if pipeline > 1 else (None,):
                    yield Parallel(
                        tensor=tensor, pipeline=pipeline, virtual_pipeline=chunks, context=context,
                        sequence_parallel=tensor > 1, processes=gpus, processes_per_node=min(gpus, device.per_node),
                    )  # fmt: skip


def _check(spec: ModelSpec, parallel: Parallel, work: Workload, device: Device, fp8: Fp8) -> None:
    """Refuse a layout that is impossible for every split of the layers."""
    if fp8.used and not device.fp8:
        raise UsageError(f"fp8.recipe = {fp8.recipe!r}: {device.name} has no FP8")
    flat = parallel.model_copy(update={"pipeline": 1, "virtual_pipeline": None})
    check_layout(spec, flat, work.sequence_length, fp8=fp8.used)


def _variants(config: Config, spec: ModelSpec, work: Workload, device: Device, base: Setting) -> Iterator[Setting]:
    """Splits of the layers, recomputation, distributed optimizer."""
    replicated = base.data * base.parallel.context > 1
    for recompute in ("none", "selective", "full"):
        for distributed in (True, False) if replicated else (config.train.distributed_optimizer,):
            train = base.train.model_copy(update={"recompute": recompute, "distributed_optimizer": distributed})
            setting = replace(base, train=train)
            for split in splits(setting, device):
                yield replace(setting, parallel=split)


def splits(setting: Setting, device: Device) -> list[Parallel]:
    """The even split, where there is one, and the one in which tower and output layer are balanced by fewer layers."""
    parallel, layers = setting.parallel, setting.spec.language.num_layers
    chunks = parallel.virtual_pipeline or 1
    if parallel.pipeline == 1:
        return [parallel]
    each = layers // parallel.pipeline
    # written out even where it is even, so that an overlay replaces what a configuration says
    even = parallel.model_copy(update={"layers_on_first_stage": each, "layers_on_last_stage": each})
    found = [] if layers % (parallel.pipeline * chunks) else [even]
    balanced = _balanced(setting, device, layers, chunks)
    return found if balanced is None or balanced in found else [*found, balanced]


def _balanced(setting: Setting, device: Device, layers: int, chunks: int) -> Parallel | None:
    """Layers on the first and last stage such that the slowest stage is fastest; None: no split works."""
    stages = setting.parallel.pipeline
    one = replace(setting, parallel=setting.parallel.model_copy(update={"pipeline": 1, "virtual_pipeline": None}))
    forward, backward = chunk_seconds(one, device, 0, 0)
    layer = (forward.total + backward.total - forward.tower - backward.tower - forward.logits) / layers
    ends = _ends(layers, stages, chunks, layer, forward.tower + backward.tower, forward.logits)
    if ends is None:
        return None
    first, last = ends
    split = setting.parallel.model_copy(update={"layers_on_first_stage": first, "layers_on_last_stage": last})
    layers_per_stage(layers, split)
    return split


@cache
def _ends(layers: int, stages: int, chunks: int, layer: float, tower: float, logits: float) -> tuple[int, int] | None:
    """Layers of the first and the last stage; a layer, the tower and the logits take the given seconds."""
    best: tuple[float, int, int] | None = None
    middles = range(chunks, layers + 1, chunks) if stages > 2 else (0,)
    for middle in middles:
        rest = layers - middle * (stages - 2)
        for first in range(chunks, rest - chunks + 1, chunks):
            last = rest - first
            if last % chunks:
                continue
            slowest = max(first * layer + tower, middle * layer, last * layer + logits)
            if best is None or slowest < best[0] * 0.999:
                best = (slowest, first, last)
    return None if best is None else best[1:]


def _rough(setting: Setting, device: Device) -> float:
    """Step time without waiting for each other's micro batches: busiest stage plus the filling of the pipeline."""
    stages, chunks = setting.parallel.pipeline, setting.parallel.virtual_pipeline or 1
    busy = {}
    for stage in {0, min(1, stages - 1), stages - 1}:
        passes = [chunk_seconds(setting, device, stage, chunk) for chunk in {0, chunks - 1}]
        middle = chunk_seconds(setting, device, stage, chunks // 2) if chunks > 2 else None
        busy[stage] = sum(f.total + b.total for f, b in passes)
        if middle is not None:
            busy[stage] += (chunks - 2) * (middle[0].total + middle[1].total)
    slowest = max(busy.values())
    return setting.micro_batches * slowest + (stages - 1) * slowest / chunks


def _too_large(setting: Setting, stage: int, memory: Memory, device: Device) -> Refusal:
    parts = {name: getattr(memory, name) for name in Memory.__dataclass_fields__}
    largest = sorted(parts, key=lambda name: -parts[name])[:2]
    listed = ", ".join(f"{name} {parts[name] / GIB:.0f}" for name in largest)
    return Refusal(
        parallel=setting.parallel,
        reason=f"{describe(setting)} needs {memory.total / GIB:.0f} GiB of {device.memory / GIB:.0f} on stage {stage} "
        f"({listed})",
        excess=memory.total - device.memory,
    )


def describe(setting: Setting) -> str:
    """A layout in a few words."""
    p, words = setting.parallel, []
    for name, value in (("TP", p.tensor), ("PP", p.pipeline), ("VPP", p.virtual_pipeline or 1), ("CP", p.context)):
        if value > 1:
            words.append(f"{name}{value}")
    words.append(f"DP{setting.data}")
    each = setting.spec.language.num_layers / p.pipeline
    if p.layers_on_first_stage is not None and (p.layers_on_first_stage, p.layers_on_last_stage) != (each, each):
        last = p.layers_on_last_stage
        if last is None:
            last = sum(layers_per_stage(setting.spec.language.num_layers, p)[-1])
        words.append(f"{p.layers_on_first_stage}..{last} layers")
    if setting.train.recompute != "none":
        words.append(f"recompute {setting.train.recompute}")
    if setting.fp8.used:
        words.append(f"fp8 {setting.fp8.recipe}")
    if not setting.train.distributed_optimizer:
        words.append("plain optimizer")
    return " ".join(words)
