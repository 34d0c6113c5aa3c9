"""Bytes that each rank of a layout holds, by part. Formulas: docs/planner_model.md; against real allocations:
tests/dist/test_plan_memory.py.

Legend: S tokens of a row, s = S / CP of a rank, r = s / TP under sequence parallelism (else s), H hidden size,
a, k, F query, key and MLP widths of a tensor-parallel rank, e bytes of an element.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from sophia_mcore.config.schema import Fp8, Objective, Parallel, Train
from sophia_mcore.model.sizes import padded_vocab_size, rank_parameters
from sophia_mcore.parallel.layout import layers_per_stage
from sophia_mcore.plan.pipeline import in_flight
from sophia_mcore.pretrained.family import Picture
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.tensors import layer_parameters, parameters

ONE_PASS_TOKENS = 512  # as in objective.logprob: from here on the output layer's gradient is formed in fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A micro batch: one packed row (or the mean of many).

    squares: sum over its sequences of length^2; targets: tokens with a target; pictures: distinct ones; picture: what
    one of them costs, None where all are alike.
    """

    tokens: int
    squares: float
    targets: float
    pictures: float
    picture: Picture | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one rank.

    activations: what every micro batch in flight keeps of the decoder layers; tower: the same of a trained tower;
    pipeline: inputs and outputs of the stage, and buffers; logits: of the output layer until its backward;
    workspace: temporary memory of one pass, or what saving a checkpoint takes beyond all that waits in a step.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    pipeline: float
    logits: float
    tower: float
    workspace: float

    @property
    def kept(self) -> float:
        """What waits for a backward at the worst moment."""
        return self.activations + self.pipeline + self.logits + self.tower

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Bytes of one rank while it saves a checkpoint, beside what `Memory` counts.

    host: the most that it takes in the memory of its node; held: what of it stays until an asynchronous save is
    written; device: for a moment, between steps.
    """

    host: float
    held: float
    device: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a layout's memory and time depend on."""

    spec: ModelSpec
    parallel: Parallel
    train: Train
    fp8: Fp8
    objective: Objective
    row: Row
    data: int  # data-parallel size
    micro_batches: int  # rows of a data-parallel rank per step
    fused: bool = True  # Transformer Engine's kernels; False: plain torch, as on the CPU

    @property
    def element(self) -> int:
        """Bytes of a parameter and of a hidden state."""
        return 2 if self.train.dtype == "bfloat16" else 4

    @property
    def picture(self) -> Picture:
        """What a picture of the row costs the tower."""
        return self.row.picture or picture_of(self.spec)

    @property
    def rank_tokens(self) -> float:
        return self.row.tokens / self.parallel.context

    @property
    def residual_tokens(self) -> float:
        return self.rank_tokens / (self.parallel.tensor if self.parallel.sequence_parallel else 1)

    @property
    def replicas(self) -> int:
        """Ranks that hold the same parameters."""
        return self.data * self.parallel.context

    @property
    def vocabulary_rows(self) -> int:
        return padded_vocab_size(self.spec.language.vocab_size, self.parallel.tensor) // self.parallel.tensor

    def widths(self) -> tuple[float, float, float]:
        """(a, k, F) of a rank."""
        language, size = self.spec.language, self.parallel.tensor
        return (
            language.num_attention_heads * language.head_dim / size,
            language.num_key_value_heads * language.head_dim / size,
            language.intermediate_size / size,
        )


def picture_of(spec: ModelSpec, tokens: float | None = None) -> Picture:
    """What a picture costs the tower of a model; `tokens`: of its text, where pictures have a size of their own."""
    if spec.family is None:
        return Picture(pixels=0, patches=0, seen=0, tokens=0, rows=0)
    return spec.family.picture(spec.vision, spec.projector, tokens)


def rank_memory(setting: Setting, stage: int) -> Memory:
    """Memory of a tensor-parallel rank of pipeline stage `stage`.

    Raises:
        UsageError: the layers do not fit the stages.
    """
    held = rank_parameters(setting.spec, setting.parallel)[stage]
    trained = trained_parameters(setting, held)
    kept = [chunk_bytes(setting, stage, chunk) for chunk in range(setting.parallel.virtual_pipeline or 1)]
    whole = [sum(sizes.values()) for sizes in kept]
    counts = in_flight(setting.parallel.pipeline, stage, setting.micro_batches, whole)

    def waiting(part: str) -> float:
        return sum(count * sizes[part] for count, sizes in zip(counts, kept, strict=True))

    one_pass = max(_workspace(setting, stage), _tower_workspace(setting) if stage == 0 else 0.0)
    between_steps = saving(setting, stage).device - sum(waiting(part) for part in kept[0])  # nothing waits then
    return Memory(
        weights=setting.element * sum(held.values()) + _fp8_copies(setting, stage),
        gradients=4 * trained,
        optimizer=optimizer_bytes(setting, trained),
        activations=waiting("activations"),
        pipeline=waiting("pipeline") + _stage_buffers(setting, stage),
        logits=waiting("logits"),
        tower=waiting("tower"),
        workspace=max(one_pass, between_steps),
    )


def saving(setting: Setting, stage: int) -> Saving:
    """What a checkpoint costs a rank of a stage.

    The distributed optimizer's state is gathered whole on every rank, whichever rank writes it: fp32 weights and two
    moments of its parameters in host memory, from its own share of them. One of the three passes through the device at
    a time; it is there as parts and joined, beside the one before. Interleaved stages do so chunk by chunk: less.
    """
    held = rank_parameters(setting.spec, setting.parallel)[stage]
    trained, weights = trained_parameters(setting, held), setting.element * sum(held.values())
    whole, share = 12.0 * trained, 12.0 * trained / setting.replicas
    written = (weights + whole) * setting.train.save_asynchronously
    if not setting.train.distributed_optimizer:
        return Saving(host=written, held=written, device=0.0)  # tensor by tensor, or copied to be written later
    gathered = 4.0 * trained
    host = max(written, whole + share + 3 * gathered)
    return Saving(host=host, held=written, device=gathered + share / 3)


def trained_parameters(setting: Setting, held: Mapping[str, int]) -> int:
    """How many of a rank's parameters get gradients."""
    train = setting.train
    return held["language"] + train.train_vision_tower * held["vision"] + train.train_projector * held["projector"]


def optimizer_bytes(setting: Setting, trained: float) -> float:
    """fp32 moments, and fp32 master weights beside bf16 ones; cut over the replicas by the distributed optimizer."""
    per_parameter = 12 if setting.train.dtype == "bfloat16" else 8
    return per_parameter * trained / (setting.replicas if setting.train.distributed_optimizer else 1)


def _fp8_copies(setting: Setting, stage: int) -> float:
    """FP8 weights and their transposes beside the bf16 ones of the decoder layers."""
    if not setting.fp8.used:
        return 0.0
    layers = sum(layers_per_stage(setting.spec.language.num_layers, setting.parallel)[stage])
    return 2.0 * layers * layer_parameters(setting.spec.language, setting.parallel.tensor)


def chunk_bytes(setting: Setting, stage: int, chunk: int) -> dict[str, float]:
    """What one pass of a micro batch through a model chunk keeps until its backward, by part of `Memory`."""
    parallel, language = setting.parallel, setting.spec.language
    chunks = parallel.virtual_pipeline or 1
    first = stage == 0 and chunk == 0
    last = stage == parallel.pipeline - 1 and chunk == chunks - 1
    layers = layers_per_stage(language.num_layers, parallel)[stage][chunk]
    hidden = setting.residual_tokens * language.hidden_size
    own = layers * layer_bytes(setting)
    if last:
        own += _norm_bytes(setting, setting.residual_tokens, language.hidden_size, output=False)
    if first:
        own += _embedding_bytes(setting)
    edge = 0.0
    if not setting.fused:
        # plain torch keeps an fp32 copy of a bf16 input beside the input; gloo needs a sent output to stay
        edge += 0 if first or setting.element == 4 else setting.element * hidden
        edge += 0 if last else setting.element * hidden
    return {
        "activations": own,
        "pipeline": edge,
        "logits": _logit_bytes(setting) if last else 0.0,
        "tower": _tower_bytes(setting) if first else 0.0,
    }


def _stage_buffers(setting: Setting, stage: int) -> float:
    """Held whatever the number of micro batches: the last backward's tensors at the stage's edges; gathered input."""
    hidden = setting.element * setting.residual_tokens * setting.spec.language.hidden_size
    edges = 2 * (stage > 0) + (1 if setting.fused else 2) * (stage < setting.parallel.pipeline - 1)
    gathered = setting.parallel.sequence_parallel * hidden * setting.parallel.tensor
    return edges * hidden + gathered


def layer_bytes(setting: Setting) -> float:
    """One decoder layer's saved tensors."""
    if setting.train.recompute == "full":
        return setting.element * setting.residual_tokens * setting.spec.language.hidden_size
    hidden, (_, _, mlp) = setting.spec.language.hidden_size, setting.widths()
    norms = 2 * _norm_bytes(setting, setting.residual_tokens, hidden)
    low = 1 if setting.fp8.used else setting.element  # inputs of matrix products, kept for their gradient
    if setting.fused:
        # fused SwiGLU keeps its input; its output is the next product's input
        return norms + _attention_bytes(setting) + setting.rank_tokens * mlp * (2 * setting.element + low)
    return norms + _attention_bytes(setting) + 5 * setting.rank_tokens * mlp * setting.element


def _norm_bytes(setting: Setting, tokens: float, width: float, *, output: bool = True, heads: float = 1.0) -> float:
    """RMSNorm of [tokens, width]; `output`: kept too, as the input of the next product."""
    low = 1 if setting.fp8.used else setting.element
    if setting.fused:
        return tokens * (width * (setting.element + output * low) + 4 * heads)
    return tokens * (width * (8 + output * setting.element) + 4 * heads)  # fp32 input and normalised input


def _attention_bytes(setting: Setting) -> float:
    language, size, tokens = setting.spec.language, setting.parallel.tensor, setting.rank_tokens
    (query, key, _), element, context = setting.widths(), setting.element, setting.parallel.context
    heads = language.num_attention_heads / size
    low = 1 if setting.fp8.used else 0  # an FP8 copy of the output, for the next product's gradient
    if setting.fused:
        kept = tokens * (element * (query + 2 * key + query + key + query) + low * query + 4 * heads)
        return kept + language.qk_norm * tokens * (query + key) * element
    kept = tokens * (element * (3 * query + 4 * language.head_dim) + 4 * heads)  # q, two forms of the output, rotary
    if context == 1:
        kept += tokens * element * (query + 3 * key)  # the product's output, which v is a view of, and k
    else:
        kept += setting.row.tokens * (2 * element * key + 8)  # keys and values of all ranks, and their order
        kept += 4 * setting.row.squares * (2 * context + 1) / (2 * context) ** 2  # masks
        kept += language.qk_norm * tokens * element * (query + 2 * key)
    if language.qk_norm:
        copies = 8 if element == 2 else 4  # fp32: the norm's input is a view of what is kept already
        if element == 4 and language.num_key_value_heads > size:
            kept += tokens * element * query  # but with several groups on a rank the queries are copied together
        kept += tokens * ((query + key) * copies + 4 * (heads + language.num_key_value_heads / size))
    if setting.train.recompute == "selective":
        kept -= tokens * (element * query + 4 * heads)  # kept once more inside the checkpointed part, made again
        kept -= 4 * setting.row.squares * (2 * context + 1) / (2 * context) ** 2 if context > 1 else 0
    return kept


def _embedding_bytes(setting: Setting) -> float:
    """Ids of the row, and under sequence parallelism the whole row's embeddings that the rank's share is a view of."""
    extra = 8.0 * setting.row.tokens
    if not setting.fused and setting.parallel.sequence_parallel and setting.element == 4:
        whole = setting.rank_tokens - setting.residual_tokens
        extra += setting.element * whole * setting.spec.language.hidden_size
    return extra


def _logit_bytes(setting: Setting) -> float:
    """Gradients of hidden states and output layer, formed in the forward pass; log-probs and coefficients."""
    hidden = setting.spec.language.hidden_size
    wide = 4 if setting.objective.chunk_tokens >= ONE_PASS_TOKENS else setting.element
    return setting.rank_tokens * (hidden * setting.element + 12) + setting.vocabulary_rows * hidden * wide


def _tower_bytes(setting: Setting) -> float:
    """What a trained tower or projector keeps of a row's pictures; each rank of the row encodes its share."""
    vision, projector, train = setting.spec.vision, setting.spec.projector, setting.train
    if vision is None or projector is None or not (train.train_vision_tower or train.train_projector):
        return 0.0
    share, element = _picture_share(setting), setting.element
    widths = projector.input_size + projector.output_size
    kept = share * setting.picture.tokens * element * widths * (1 + train.train_projector)
    if train.train_vision_tower:
        family = setting.spec.family
        assert family is not None
        layer = vision.hidden_size * element if train.recompute != "none" else family.tower_kept(vision, element)
        kept += share * setting.picture.patches * vision.num_layers * layer
    return kept


def _picture_share(setting: Setting) -> float:
    """Pictures of a row that one rank encodes."""
    return math.ceil(setting.row.pictures / (setting.parallel.tensor * setting.parallel.context))


def _tower_workspace(setting: Setting) -> float:
    """Pixels and features of a row's pictures, and the largest moment of a layer of the tower."""
    vision, projector = setting.spec.vision, setting.spec.projector
    if vision is None or projector is None or setting.row.pictures == 0:
        return 0.0
    element, share = setting.element, _picture_share(setting)
    pixels = setting.row.pictures * 4 * setting.picture.pixels
    features = 2 * setting.row.pictures * setting.picture.tokens * projector.output_size * element  # and in slots
    family = setting.spec.family
    assert family is not None, "a model with a tower"
    at_once = family.rows_at_once / setting.picture.rows
    together = share if setting.train.train_vision_tower else min(share, max(1.0, at_once))
    layer = together * element * (2 * vision.hidden_size + 2 * vision.intermediate_size)
    return pixels + features + setting.picture.patches * (layer + share * vision.hidden_size * element)


def _workspace(setting: Setting, stage: int) -> float:
    """The largest of: logits of one chunk, one layer's activations made again, a gradient before it is summed."""
    language = setting.spec.language
    element, rows = setting.element, setting.vocabulary_rows
    (query, key, mlp), tokens = setting.widths(), setting.rank_tokens
    moment = [
        4 * element * tokens * mlp + element * 2 * mlp * language.hidden_size,  # backward of the MLP
        2 * element * tokens * (query + 2 * key),
    ]
    if setting.train.recompute == "full":
        whole = setting.train.model_copy(update={"recompute": "none"})
        moment = [layer_bytes(replace(setting, train=whole)) + max(moment)]
    if stage in (0, setting.parallel.pipeline - 1):
        moment.append(element * rows * language.hidden_size)
    if stage == setting.parallel.pipeline - 1:
        chunk = min(setting.objective.chunk_tokens, setting.row.targets / setting.parallel.context)
        moment.append(chunk * rows * (4 + (element if element < 4 else 0)))
    return max(moment)


def worst_rank(setting: Setting) -> tuple[int, Memory]:
    """The stage that needs the most memory, and how much."""
    last = setting.parallel.pipeline - 1
    memory = {stage: rank_memory(setting, stage) for stage in {0, min(1, last), last}}  # the others need less than 1
    stage = max(memory, key=lambda number: memory[number].total)
    return stage, memory[stage]


def model_parameters(spec: ModelSpec) -> int:
    """Parameters of the whole model."""
    return sum(parameters(spec).values())
