"""How many parameters a model has, by part, and how many of them each rank of a layout holds. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sophia_mcore.config.schema import Parallel
from sophia_mcore.parallel.layout import layers_per_stage
from sophia_mcore.pretrained.spec import LanguageSpec, ModelSpec, ProjectorSpec, VisionSpec

VOCABULARY_MULTIPLE = 128  # rows of the embedding and output layer; the same at every usual tensor-parallel size


def padded_vocab_size(vocab_size: int, tensor_size: int) -> int:
    """Rows of the embedding and output layer: a multiple of 128 and of the tensor-parallel size.

    >>> padded_vocab_size(151674, 8)
    151680
    """
    multiple = math.lcm(VOCABULARY_MULTIPLE, tensor_size)
    return -(-vocab_size // multiple) * multiple


def vision_parameters(spec: VisionSpec) -> int:
    """Parameters of the vision tower."""
    width, norm = spec.hidden_size, spec.hidden_size * (2 if spec.norm_type == "layer_norm" else 1)
    embedding = width * (1 + spec.patches + 1) + width * (spec.num_channels * spec.patch_size**2 + 1)
    attention = 3 * width * (width + spec.qkv_bias) + width * (width + 1) + 2 * width * spec.qk_norm
    mlp = 2 * width * spec.intermediate_size + spec.intermediate_size + width
    return embedding + spec.num_layers * (attention + mlp + 2 * norm + 2 * width)


def projector_parameters(spec: ProjectorSpec) -> int:
    """Parameters of the projector."""
    return 2 * spec.input_size + (spec.input_size + 1) * spec.output_size + (spec.output_size + 1) * spec.output_size


def layer_parameters(spec: LanguageSpec, tensor_size: int = 1) -> int:
    """Parameters of one language layer that a tensor-parallel rank holds."""
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    attention = (queries + 2 * keys) * (spec.hidden_size + spec.qkv_bias) + queries * spec.hidden_size
    mlp = 3 * spec.hidden_size * spec.intermediate_size
    norms = 2 * spec.hidden_size + 2 * spec.head_dim * spec.qk_norm
    return (attention + mlp) // tensor_size + norms


def parameters(spec: ModelSpec) -> Mapping[str, int]:
    """Parameters of the whole model by part, without the vocabulary's padding: vision, projector, language."""
    language = spec.language
    tables = 1 if language.tied_embeddings else 2
    return {
        "vision": 0 if spec.vision is None else vision_parameters(spec.vision),
        "projector": 0 if spec.projector is None else projector_parameters(spec.projector),
        "language": language.num_layers * layer_parameters(language)
        + tables * language.vocab_size * language.hidden_size
        + language.hidden_size,
    }


def rank_parameters(spec: ModelSpec, parallel: Parallel) -> list[Mapping[str, int]]:
    """Parameters that one tensor-parallel rank of each pipeline stage holds, by part (vocabulary padded).

    Raises:
        UsageError: the layers do not fit the stages.
    """
    language, whole = spec.language, parameters(spec)
    rows = padded_vocab_size(language.vocab_size, parallel.tensor) // parallel.tensor
    stages = layers_per_stage(language.num_layers, parallel)
    held: list[Mapping[str, int]] = []
    for number, chunks in enumerate(stages):
        first, last = number == 0, number == len(stages) - 1
        layers = sum(chunks) * layer_parameters(language, parallel.tensor)
        tables = (first + last) * rows * language.hidden_size + last * language.hidden_size
        held.append(
            {"vision": first * whole["vision"], "projector": first * whole["projector"], "language": layers + tables}
        )
    return held
