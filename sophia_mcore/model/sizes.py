"""How many parameters each rank of a layout holds. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sophia_mcore.config.schema import Parallel
from sophia_mcore.parallel.layout import layers_per_stage
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.tensors import layer_parameters, parameters

VOCABULARY_MULTIPLE = 128  # rows of the embedding and output layer; the same at every usual tensor-parallel size


def padded_vocab_size(vocab_size: int, tensor_size: int) -> int:
    """Rows of the embedding and output layer: a multiple of 128 and of the tensor-parallel size.

    >>> padded_vocab_size(151674, 8)
    151680
    """
    multiple = math.lcm(VOCABULARY_MULTIPLE, tensor_size)
    return -(-vocab_size // multiple) * multiple


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
        tables = 1 if first and last and language.tied_embeddings else first + last  # a tied head apart is a copy
        tables = tables * rows * language.hidden_size + last * language.hidden_size
        held.append(
            {"vision": first * whole["vision"], "projector": first * whole["projector"], "language": layers + tables}
        )
    return held
