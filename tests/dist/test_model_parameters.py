"""Parameter counts of the weight tables against formulas written by hand."""

from __future__ import annotations

import pytest

from sophia_mcore.pretrained.internvl.spec import ProjectorSpec, VisionSpec
from sophia_mcore.pretrained.spec import LanguageSpec
from sophia_mcore.pretrained.tensors import layer_parameters, parameters
from tests.support.layouts import tiny_spec
from tests.support.real_models import MODELS

SPECS = MODELS | {
    f"{family} {tower}": tiny_spec(family, tower == "6b")
    for family in ("qwen2", "qwen3", "internlm2")
    for tower in ("6b", "300m")
}


def tower(spec: VisionSpec) -> int:
    """Parameters of the vision tower."""
    width, norm = spec.hidden_size, spec.hidden_size * (2 if spec.norm_type == "layer_norm" else 1)
    embedding = width * (1 + spec.patches + 1) + width * (spec.num_channels * spec.patch_size**2 + 1)
    attention = 3 * width * (width + spec.qkv_bias) + width * (width + 1) + 2 * width * spec.qk_norm
    mlp = 2 * width * spec.intermediate_size + spec.intermediate_size + width
    return embedding + spec.num_layers * (attention + mlp + 2 * norm + 2 * width)


def projector(spec: ProjectorSpec) -> int:
    """Parameters of the projector."""
    return 2 * spec.input_size + (spec.input_size + 1) * spec.output_size + (spec.output_size + 1) * spec.output_size


def layer(spec: LanguageSpec, tensor_size: int = 1) -> int:
    """Parameters of one language layer that a tensor-parallel rank holds."""
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    attention = (queries + 2 * keys) * (spec.hidden_size + spec.qkv_bias) + queries * spec.hidden_size
    mlp = 3 * spec.hidden_size * spec.intermediate_size
    norms = 2 * spec.hidden_size + 2 * spec.head_dim * spec.qk_norm
    return (attention + mlp) // tensor_size + norms


@pytest.mark.parametrize("name", SPECS)
def test_the_tables_hold_what_the_formulas_say(name: str) -> None:
    spec = SPECS[name]
    text = spec.language
    assert spec.vision is not None and spec.projector is not None
    assert parameters(spec) == {
        "vision": tower(spec.vision),
        "projector": projector(spec.projector),
        "language": text.num_layers * layer(text)
        + (1 if text.tied_embeddings else 2) * text.vocab_size * text.hidden_size
        + text.hidden_size,
    }
    for ranks in (1, 2, 4):
        assert layer_parameters(text, ranks) == layer(text, ranks)
