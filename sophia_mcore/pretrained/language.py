"""Reads the language model of a folder: Qwen2, Qwen3, InternLM2 or Llama, alone or in a vision-language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from sophia_mcore.errors import UsageError
from sophia_mcore.pretrained.fields import Fields, nearest

LanguageFamily = Literal["qwen2", "qwen3", "internlm2", "llama"]
LANGUAGE_MODELS: dict[str, LanguageFamily] = {
    "Qwen2ForCausalLM": "qwen2",
    "qwen2": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "qwen3": "qwen3",
    "InternLM2ForCausalLM": "internlm2",
    "internlm2": "internlm2",
    "LlamaForCausalLM": "llama",
    "llama": "llama",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MRope:
    """Rotary positions with three axes (time, height, width): the axis for each rotary frequency of a head.

    Chunked: the first sections[0] frequencies use the time axis, the next sections[1] height, the rest width.
    Interleaved: frequency i uses height if i % 3 == 1 and i < 3 * sections[1], width if i % 3 == 2 and
    i < 3 * sections[2], otherwise time.
    """

    sections: tuple[int, int, int]
    interleaved: bool

    def axes(self) -> tuple[int, ...]:
        """The axis (0, 1 or 2) of every frequency.

        >>> MRope(sections=(1, 2, 1), interleaved=False).axes(), MRope(sections=(2, 1, 1), interleaved=True).axes()
        ((0, 1, 1, 2), (0, 1, 2, 0))
        """
        if not self.interleaved:
            return tuple(axis for axis, count in enumerate(self.sections) for _ in range(count))
        return tuple(
            i % 3 if i % 3 and i < 3 * self.sections[i % 3] else 0 for i in range(sum(self.sections))
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageSpec:
    """Sizes and conventions of the language model. `head_dim` of Qwen3 is not hidden_size / num_attention_heads."""

    family: LanguageFamily
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    max_positions: int
    qkv_bias: bool
    qk_norm: bool  # RMSNorm per head (Qwen3)
    tied_embeddings: bool
    mrope: MRope | None = None  # None: one position per token


def rope_settings(fields: Fields, same_kind: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """The rotary settings, from rope_scaling and rope_theta or from rope_parameters of transformers 5.

    ``same_kind``: names of rope types -> other names for the same. Raises UsageError that names both places if they
    have different values.
    """
    found: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place in ("rope_parameters", "rope_scaling", "rope_theta"):
        values = fields.get(place, {})
        pairs = [(place, values)] if place == "rope_theta" else list(values.items())
        for key, value in pairs:
            if value in (None, {}):
                continue
            if key in ("type", "rope_type"):
                key, value = "rope_type", same_kind.get(value, value)
            if found.setdefault(key, value) != value:
                raise UsageError(f"{fields.where}: {key} is {found[key]!r} in {places[key]} and {value!r} in {place}")
            places.setdefault(key, place)
    return found


def parse_language(fields: Fields) -> LanguageSpec:
    """Parse the language model in a section of config.json. Raises UsageError for settings that are not supported."""
    name = (fields.get("architectures", None) or [fields.get("model_type", "none")])[0]
    if name not in LANGUAGE_MODELS:
        raise UsageError(f"{fields.where}: language model {name!r} is not known; {nearest(name, LANGUAGE_MODELS)}")
    family = LANGUAGE_MODELS[name]
    fields.only("hidden_act", "silu")
    fields.only("use_sliding_window", False)
    fields.only("bias" if family == "internlm2" else "attention_bias", False)
    rope = rope_settings(fields)
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "dynamic"):  # dynamic changes only positions beyond max_position_embeddings
        raise UsageError(f"{fields.where}: rope_scaling type {kind!r} is not supported, only 'default' or 'dynamic'")
    heads, hidden = fields.size("num_attention_heads"), fields.size("hidden_size")
    groups = fields.size("num_key_value_heads", heads)
    fields.divides("num_key_value_heads", groups, "num_attention_heads", heads)
    if fields.get("head_dim", None) is None:
        fields.divides("num_attention_heads", heads, "hidden_size", hidden)
    return LanguageSpec(
        family=family,
        num_layers=fields.size("num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=fields.size("head_dim", hidden // heads),
        vocab_size=fields.size("vocab_size"),
        norm_eps=fields.positive("rms_norm_eps"),
        rope_theta=float(rope.get("rope_theta") or fields.need("rope_theta")),
        max_positions=fields.size("max_position_embeddings", 32_768),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
    )
