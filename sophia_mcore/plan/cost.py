"""Seconds of every part of a training step. Formulas: docs/planner_model.md.

Backward passes of matrix products cost twice the forward, of attention 2.5 times (it makes the scores again).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from sophia_mcore.model.sizes import rank_parameters
from sophia_mcore.parallel.layout import layers_per_stage
from sophia_mcore.plan.hardware import Device
from sophia_mcore.plan.memory import ONE_PASS_TOKENS, Row, Setting, layer_bytes, picture_of, trained_parameters
from sophia_mcore.plan.pipeline import Chunk, Timeline, step_seconds
from sophia_mcore.pretrained.family import Picture
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.tensors import parameters

ATTENTION_BACKWARD = 2.5
TRAFFIC_PER_SAVED_BYTE = 2.0  # a saved tensor is written once and read once more in the same pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """One pass of a micro batch, by part."""

    products: float = 0.0  # matrix products of the decoder layers
    attention: float = 0.0
    memory: float = 0.0  # kernels that memory bounds, and fixed costs
    communication: float = 0.0  # of tensor and context parallelism, as far as it does not hide
    logits: float = 0.0
    tower: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def times(self, factor: float) -> Seconds:
        return Seconds(**{f.name: getattr(self, f.name) * factor for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step. `parts`: busy time of the busiest stage; `bubble`: share of the pipeline lost."""

    total: float
    pipeline: float
    bubble: float
    gradients: float  # exchange of gradients and parameters that does not hide
    optimizer: float
    parts: Seconds


def step_time(setting: Setting, device: Device) -> StepTime:
    """One step of the layout, its pipeline simulated.

    Raises:
        UsageError: the layers or micro batches do not fit the stages.
    """
    passes = [
        [chunk_seconds(setting, device, stage, chunk) for chunk in range(setting.parallel.virtual_pipeline or 1)]
        for stage in range(setting.parallel.pipeline)
    ]
    costs = [[Chunk(forward.total, backward.total) for forward, backward in stage] for stage in passes]
    timeline: Timeline = step_seconds(costs, setting.micro_batches, _transfer_seconds(setting, device))
    busiest = max(range(len(passes)), key=lambda stage: timeline.busy[stage])
    parts = Seconds()
    for forward, backward in passes[busiest]:
        parts = parts + (forward + backward).times(setting.micro_batches)
    gradients, optimizer = _exchange_seconds(setting, device), _optimizer_seconds(setting, device)
    return StepTime(
        total=timeline.makespan + gradients + optimizer + device.step_seconds,
        pipeline=timeline.makespan,
        bubble=timeline.bubble,
        gradients=gradients,
        optimizer=optimizer + device.step_seconds,
        parts=parts,
    )


def chunk_seconds(setting: Setting, device: Device, stage: int, chunk: int) -> tuple[Seconds, Seconds]:
    """(forward, backward) of a micro batch through one model chunk."""
    parallel = setting.parallel
    last = stage == parallel.pipeline - 1 and chunk == (parallel.virtual_pipeline or 1) - 1
    layers = layers_per_stage(setting.spec.language.num_layers, parallel)[stage][chunk]
    one = layer_seconds(setting, device)
    forward = one.times(layers)
    backward = Seconds(
        products=2 * forward.products,
        attention=ATTENTION_BACKWARD * forward.attention,
        memory=2 * forward.memory + _accumulation_seconds(setting, device, stage, chunk),
        communication=layers * _layer_communication(setting, device, backward=True),
    )
    if setting.train.recompute == "full":
        backward = backward + forward
    elif setting.train.recompute == "selective":
        backward = backward + Seconds(attention=forward.attention)
    if last:
        forward = forward + Seconds(logits=_logit_seconds(setting, device))
    if stage == 0 and chunk == 0:
        tower = tower_seconds(setting, device)
        forward = forward + Seconds(tower=tower)
        if setting.train.train_vision_tower:
            again = 1 if setting.train.recompute != "none" else 0
            backward = backward + Seconds(tower=(2 + again) * tower)
    return forward, backward


def layer_seconds(setting: Setting, device: Device) -> Seconds:
    """Forward of one decoder layer on one rank."""
    spec, tokens = setting.spec.language, setting.rank_tokens
    query, key, mlp = setting.widths()
    weights = spec.hidden_size * (2 * query + 2 * key + 3 * mlp)
    rate = device.fp8 if setting.fp8.used else device.bf16
    plain = setting if setting.train.recompute == "none" else _without_recompute(setting)
    traffic = TRAFFIC_PER_SAVED_BYTE * layer_bytes(plain)
    return Seconds(
        products=2 * tokens * weights / rate,
        attention=_attention_seconds(setting, device),
        memory=traffic / device.bandwidth + device.layer_seconds,
        communication=_layer_communication(setting, device),
    )


def _attention_seconds(setting: Setting, device: Device) -> float:
    query, _, _ = setting.widths()
    return 2 * setting.row.squares * query / setting.parallel.context / device.attention  # half masked


def _layer_communication(setting: Setting, device: Device, backward: bool = False) -> float:
    """What a layer's pass sends, not hidden: between tensor-parallel ranks, and around the context's ring.

    Sequence parallelism gathers twice and reduce-scatters twice; its backward gathers the two inputs once more. Without
    it there are two all-reduces, each as much as a gather and a reduce-scatter.
    """
    parallel, tokens = setting.parallel, setting.rank_tokens
    hidden = setting.element * tokens * setting.spec.language.hidden_size
    gathers, scatters = (4 if backward and parallel.sequence_parallel else 2), 2
    cost = device.reduce_scatter if parallel.sequence_parallel else 1.0
    size, messages = (gathers + cost * scatters) * hidden, gathers + scatters
    exchanged = collective_seconds(device, size, parallel.tensor, parallel.tensor, messages)
    _, key, _ = setting.widths()
    passed_on = setting.element * 2 * key * tokens * (parallel.context - 1)
    ring = passed_on / link(device, parallel.tensor * parallel.context)
    hidden_by = _attention_seconds(setting, device) if setting.fused else 0.0
    around = (1.5 if backward else 1.0) * max(0.0, ring - hidden_by)  # keys and values, and backward their gradients
    return exchanged * (1 - device.tensor_overlap) + around


def _without_recompute(setting: Setting) -> Setting:
    return replace(setting, train=setting.train.model_copy(update={"recompute": "none"}))


def link(device: Device, span: int) -> float:
    """Bytes/s between ranks of a group that covers `span` neighbouring ranks."""
    return device.nvlink if span <= device.per_node else device.network


def collective_seconds(device: Device, size: float, ranks: int, span: int, messages: int = 1) -> float:
    """All-gathers or reduce-scatters of `size` bytes in all (the whole tensors) over a ring of `ranks`."""
    if ranks == 1:
        return 0.0
    return size * (ranks - 1) / ranks / link(device, span) + messages * device.message_seconds


def _accumulation_seconds(setting: Setting, device: Device, stage: int, chunk: int) -> float:
    """Adding weight gradients to the fp32 buffer, where no fused kernel does it."""
    if setting.fused:
        return 0.0
    held = trained_parameters(setting, rank_parameters(setting.spec, setting.parallel)[stage])
    return held / (setting.parallel.virtual_pipeline or 1) * (2 * setting.element + 8) / device.bandwidth


def _logit_seconds(setting: Setting, device: Device) -> float:
    """Output layer with the log-probs and both gradients, formed together; targets only."""
    targets = setting.row.targets / setting.parallel.context
    hidden, rows = setting.spec.language.hidden_size, setting.vocabulary_rows
    large = setting.objective.chunk_tokens >= ONE_PASS_TOKENS
    chunks = math.ceil(targets / setting.objective.chunk_tokens) if large else 1
    traffic = 6 * 4 * targets * rows + 8 * (chunks + 1) * rows * hidden  # logits; the weight's gradient per chunk
    flops = (3 if large else 4) * 2 * targets * rows * hidden
    return flops / device.bf16 + traffic / device.bandwidth


def tower_seconds(setting: Setting, device: Device) -> float:
    """Forward of vision tower and projector over a rank's share of the row's pictures, and the gather."""
    vision, projector = setting.spec.vision, setting.spec.projector
    if vision is None or projector is None or setting.row.pictures == 0:
        return 0.0
    parallel = setting.parallel
    ranks = parallel.tensor * parallel.context
    share = math.ceil(setting.row.pictures / ranks)
    picture, element = setting.picture, setting.element
    features = picture.tokens * projector.output_size
    flops = picture_flops(setting.spec, picture)
    saved = vision.num_layers * picture.patches * element * (12 * vision.hidden_size + 2 * vision.intermediate_size)
    gather = collective_seconds(device, setting.row.pictures * features * element, ranks, ranks)
    fixed = vision.num_layers * device.layer_seconds
    return share * (flops / device.bf16 + TRAFFIC_PER_SAVED_BYTE * saved / device.bandwidth) + gather + fixed


def picture_flops(spec: ModelSpec, picture: Picture | None = None) -> float:
    """Forward FLOP of tower and projector for one picture (None: all are alike)."""
    vision, projector = spec.vision, spec.projector
    if vision is None or projector is None:
        return 0.0
    picture = picture or picture_of(spec)
    weights = parameters(spec)["vision"]
    attention = 4 * vision.num_layers * picture.patches * picture.seen * vision.hidden_size
    return 2 * picture.patches * weights + attention + 2 * picture.tokens * parameters(spec)["projector"]


def _transfer_seconds(setting: Setting, device: Device) -> float:
    """A hidden state to the next stage; stages lie world / PP ranks apart."""
    parallel = setting.parallel
    if parallel.pipeline == 1:
        return 0.0
    hidden = setting.element * setting.residual_tokens * setting.spec.language.hidden_size
    world = parallel.tensor * parallel.pipeline * parallel.context * setting.data
    return hidden / link(device, world) + device.message_seconds


def _largest(setting: Setting) -> int:
    held = [trained_parameters(setting, part) for part in rank_parameters(setting.spec, setting.parallel)]
    return max(held)


def _exchange_seconds(setting: Setting, device: Device) -> float:
    """fp32 gradients summed over the replicas and, with the distributed optimizer, parameters gathered again."""
    ranks = setting.data * setting.parallel.context
    trained = _largest(setting)
    size = trained * (4 + setting.element) if setting.train.distributed_optimizer else trained * 8
    return collective_seconds(device, size, ranks, ranks * setting.parallel.tensor, 2) * device.data_exposed


def _optimizer_seconds(setting: Setting, device: Device) -> float:
    """Norm, clipping and AdamW: gradients read three times and zeroed, state and parameters read and written."""
    replicas = setting.data * setting.parallel.context if setting.train.distributed_optimizer else 1
    trained = _largest(setting)
    return trained * (4 + (12 + 24 + setting.element) / replicas) / device.bandwidth


def model_flops(spec: ModelSpec, row: Row, *, train_tower: bool = False) -> float:
    """FLOP that the model needs for a row, forward and backward, without recomputation: what MFU counts."""
    language = spec.language
    query = language.num_attention_heads * language.head_dim
    key = language.num_key_value_heads * language.head_dim
    weights = language.hidden_size * (2 * query + 2 * key + 3 * language.intermediate_size)
    decoder = language.num_layers * (6 * row.tokens * weights + 6 * row.squares * query)
    logits = 6 * row.targets * language.hidden_size * language.vocab_size
    return decoder + logits + row.pictures * picture_flops(spec, row.picture) * (3 if train_tower else 1)
