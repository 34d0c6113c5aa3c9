"""Random models in every layout, written without the package's tables: the oracle that these are tested against."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """A small model. `tower`: "300m" (biases, LayerNorm), "6b" (q/k norms, RMSNorm) or "" for a text model."""

    tower: str = "300m"
    family: str = "qwen2"  # qwen2, qwen3, internlm2
    vit_heads: int = 3
    vit_head_size: int = 4
    vit_layers: int = 2
    vit_mlp: int = 20
    layers: int = 2
    groups: int = 2  # key-value heads
    heads_per_group: int = 3
    head_size: int = 4
    hidden: int = 12
    mlp: int = 10
    vocabulary: int = 37
    dtype: torch.dtype = torch.bfloat16
    tied: bool = False

    @property
    def vit(self) -> int:
        return self.vit_heads * self.vit_head_size

    @property
    def heads(self) -> int:
        return self.groups * self.heads_per_group


@dataclass(frozen=True)
class Model:
    """The same weights three times: our names, transformers' native names, the original release's names."""

    ours: State
    native: State
    custom: State


def make(sizes: Sizes, seed: int = 0) -> Model:
    """Random weights; every tensor of a model differs from every other."""
    generator = torch.Generator().manual_seed(seed)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(sizes.dtype)

    model = Model({}, {}, {})
    if sizes.tower:
        _tower(sizes, new, model)
    _language(sizes, new, model)
    return model


def _tower(s: Sizes, new: Any, model: Model) -> None:
    c, big = s.vit, s.tower == "6b"

    def add(ours: str, native: str, custom: str, value: Tensor) -> None:
        model.ours[ours], model.native[native], model.custom[custom] = value, value, value

    n, o = "vision_tower.", "vision_model."
    add("vision.class_token", n + "embeddings.cls_token", o + "embeddings.class_embedding", new(1, 1, c))
    place = "embeddings.position_embedding"
    add("vision.position_embedding", f"{n}{place}s", f"{o}{place}", new(1, 17, c))
    for kind, value in (("weight", new(c, 3, 2, 2)), ("bias", new(c))):
        native, custom = f"{n}embeddings.patch_embeddings.projection.{kind}", f"{o}embeddings.patch_embedding.{kind}"
        add(f"vision.patch_embedding.{kind}", native, custom, value)
    for i in range(s.vit_layers):
        v, n, o = f"vision.layers.{i}.", f"vision_tower.encoder.layer.{i}.", f"vision_model.encoder.layers.{i}."
        for ours, native in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
            for kind in ("weight",) if big else ("weight", "bias"):
                add(f"{v}{ours}.{kind}", f"{n}{native}.{kind}", f"{o}{ours}.{kind}", new(c))
        add(f"{v}ls1", f"{n}lambda_1", f"{o}ls1", new(c))
        add(f"{v}ls2", f"{n}lambda_2", f"{o}ls2", new(c))
        for kind, shape in (("weight", (c, c)),) if big else (("weight", (c, c)), ("bias", (c,))):
            parts = [new(*shape) for _ in range(3)]
            for letter, part in zip("qkv", parts, strict=True):
                model.native[f"{n}attention.{letter}_proj.{kind}"] = part
            model.ours[f"{v}attention.qkv.{kind}"] = model.custom[f"{o}attn.qkv.{kind}"] = torch.cat(parts)
        for norm in ("q_norm", "k_norm") if big else ():
            add(f"{v}attention.{norm}.weight", f"{n}attention.{norm}.weight", f"{o}attn.{norm}.weight", new(c))
        for kind, shape in (("weight", (c, c)), ("bias", (c,))):
            native = f"{n}attention.projection_layer.{kind}"
            add(f"{v}attention.proj.{kind}", native, f"{o}attn.proj.{kind}", new(*shape))
        for layer, shape in (("fc1", (s.vit_mlp, c)), ("fc2", (c, s.vit_mlp))):
            for kind, value in (("weight", new(*shape)), ("bias", new(shape[0]))):
                add(f"{v}mlp.{layer}.{kind}", f"{n}mlp.{layer}.{kind}", f"{o}mlp.{layer}.{kind}", value)
    wide = 4 * c
    rows = (("norm", "layer_norm", 0, (wide,)), ("fc1", "linear_1", 1, (s.hidden, wide)),
            ("fc2", "linear_2", 3, (s.hidden, s.hidden)))  # fmt: skip
    for ours, native, number, shape in rows:
        for kind, value in (("weight", new(*shape)), ("bias", new(shape[0]))):
            add(f"projector.{ours}.{kind}", f"multi_modal_projector.{native}.{kind}", f"mlp1.{number}.{kind}", value)


def _language(s: Sizes, new: Any, model: Model) -> None:
    prefix = "language_model." if s.tower else ""
    old = s.family == "internlm2"

    def add(ours: str, native: str, custom: str, value: Tensor) -> None:
        model.ours[f"language.{ours}"] = model.native[prefix + native] = value
        model.custom[prefix + (custom if old else native)] = value

    embedding = new(s.vocabulary, s.hidden)
    table = "model.tok_embeddings.weight"
    add("embedding.word_embeddings.weight", "model.embed_tokens.weight", table, embedding)
    for i in range(s.layers):
        g, n, o = f"decoder.layers.{i}.", f"model.layers.{i}.", f"model.layers.{i}."
        add(f"{g}input_layernorm.weight", f"{n}input_layernorm.weight", f"{o}attention_norm.weight", new(s.hidden))
        for kind in ("weight", "bias") if s.family == "qwen2" else ("weight",):
            rest = (s.hidden,) if kind == "weight" else ()
            q, k, v = (new(count * s.head_size, *rest) for count in (s.heads, s.groups, s.groups))
            grouped = [part.view(s.groups, -1, *rest) for part in (q, k, v)]
            fused = torch.cat(grouped, dim=1).reshape(-1, *rest)
            model.ours[f"language.{g}self_attention.linear_qkv.{kind}"] = fused
            split = {f"{n}self_attn.{x}_proj.{kind}": y for x, y in zip("qkv", (q, k, v), strict=True)}
            model.native.update({prefix + key: value for key, value in split.items()})
            model.custom.update(
                {f"{prefix}{o}attention.wqkv.{kind}": fused} if old else {prefix + key: y for key, y in split.items()}
            )
        for norm in ("q", "k") if s.family == "qwen3" else ():
            own = f"{n}self_attn.{norm}_norm.weight"
            add(f"{g}self_attention.{norm}_layernorm.weight", own, own, new(s.head_size))
        width = s.heads * s.head_size
        attended = f"{o}attention.wo.weight"
        add(f"{g}self_attention.linear_proj.weight", f"{n}self_attn.o_proj.weight", attended, new(s.hidden, width))
        after = f"{n}post_attention_layernorm.weight"
        add(f"{g}pre_mlp_layernorm.weight", after, f"{o}ffn_norm.weight", new(s.hidden))
        gate, up = new(s.mlp, s.hidden), new(s.mlp, s.hidden)
        model.ours[f"language.{g}mlp.linear_fc1.weight"] = torch.cat((gate, up))
        for name, letter, value in (("gate", "w1", gate), ("up", "w3", up)):
            native = f"{prefix}{n}mlp.{name}_proj.weight"
            model.native[native] = value
            model.custom[f"{prefix}{o}feed_forward.{letter}.weight" if old else native] = value
        down = f"{n}mlp.down_proj.weight"
        add(f"{g}mlp.linear_fc2.weight", down, f"{o}feed_forward.w2.weight", new(s.hidden, s.mlp))
    add("decoder.final_layernorm.weight", "model.norm.weight", "model.norm.weight", new(s.hidden))
    if not s.tied:
        add("output_layer.weight", "lm_head.weight", "output.weight", new(s.vocabulary, s.hidden))


def config(sizes: Sizes, layout: str) -> dict[str, Any]:
    """config.json of a model; the native name of InternLM2 is Llama."""
    kinds = {"qwen2": "Qwen2", "qwen3": "Qwen3", "internlm2": "InternLM2" if layout == "hf-custom" else "Llama"}
    kind = kinds[sizes.family]
    language = {
        "architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower(), "hidden_size": sizes.hidden,
        "intermediate_size": sizes.mlp, "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.groups, "head_dim": sizes.head_size, "vocab_size": sizes.vocabulary,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu", "tie_word_embeddings": sizes.tied,
    }  # fmt: skip
    if not sizes.tower:
        return language
    big, native = sizes.tower == "6b", layout == "hf"
    bias, norms = ("attention_bias", "use_qk_norm") if native else ("qkv_bias", "qk_normalization")
    vision = {
        "hidden_size": sizes.vit, "num_hidden_layers": sizes.vit_layers, "num_attention_heads": sizes.vit_heads,
        "intermediate_size": sizes.vit_mlp, "image_size": 8, "patch_size": 2, "num_channels": 3, "hidden_act": "gelu",
        "layer_norm_eps": 1e-6, "norm_type": "rms_norm" if big else "layer_norm", bias: not big, norms: big,
    }  # fmt: skip
    common = {"vision_config": vision, "downsample_ratio": 0.5, "tie_word_embeddings": sizes.tied}
    if native:
        return common | {"architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl",
                         "text_config": language, "image_token_id": sizes.vocabulary - 7}  # fmt: skip
    return common | {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "llm_config": language,
                     "ps_version": "v2", "select_layer": -1, "force_image_size": 8}  # fmt: skip


def write(folder: Path, sizes: Sizes, model: Model, layout: str) -> Path:
    """A model folder with one weights file."""
    folder.mkdir(parents=True)
    state = model.native if layout == "hf" else model.custom
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config(sizes, layout)))
    (folder / "tokenizer.json").write_text("{}")
    return folder


FAMILIES = {
    "300m + qwen2": Sizes(),
    "6b + qwen2": Sizes(tower="6b", vit_heads=5),
    "6b + qwen3": Sizes(tower="6b", family="qwen3", head_size=8, dtype=torch.float32),
    "300m + internlm2": Sizes(family="internlm2"),
    "qwen2 text": Sizes(tower="", groups=1),
    "qwen3 text": Sizes(tower="", family="qwen3", groups=3, heads_per_group=1),
    "qwen2 text, tied": Sizes(tower="", tied=True),
    "300m + qwen2, tied": Sizes(tied=True),
}


def layouts(sizes: Sizes) -> tuple[str, ...]:
    """Layouts that a family exists in."""
    return ("hf", "hf-custom") if sizes.tower else ("hf",)
