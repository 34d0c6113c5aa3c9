"""What a model is, read from its Hugging Face config.json: sizes and conventions, no tensor and no rank.

Two layouts are read: transformers' `InternVLForConditionalGeneration` and the original `InternVLChatModel`.

    >>> spec = ModelSpec.from_model_dir("models/InternVL3-8B")          # doctest: +SKIP
    >>> spec.language.num_layers, spec.tokens_per_tile                      # doctest: +SKIP
    (28, 256)
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sophia_mcore.errors import UsageError

Layout = Literal["hf", "hf-custom"]
Family = Literal["qwen2", "qwen3", "internlm2", "llama"]
FAMILIES: dict[str, Family] = {
    "Qwen2ForCausalLM": "qwen2",
    "qwen2": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "qwen3": "qwen3",
    "InternLM2ForCausalLM": "internlm2",
    "internlm2": "internlm2",
    "LlamaForCausalLM": "llama",
    "llama": "llama",
}
ARCHITECTURES: dict[str, Layout] = {"InternVLForConditionalGeneration": "hf", "InternVLChatModel": "hf-custom"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """InternViT. Sizes in channels, pixels and layers."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    num_channels: int
    qkv_bias: bool
    qk_norm: bool  # RMSNorm over the full width, all heads together
    norm_type: Literal["layer_norm", "rms_norm"]
    norm_eps: float

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of one tile, without the class token."""
        return self.patches_per_side**2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorSpec:
    """Pixel shuffle, LayerNorm, Linear, exact GELU, Linear."""

    shuffle: int  # side of the square of patches that becomes one token
    input_size: int
    output_size: int
    norm_eps: float = 1e-5  # torch's default in both implementations; no config field exists


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageSpec:
    """The language model. `head_dim` is its own field: Qwen3's differs from hidden / heads."""

    family: Family
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A vision-language model of the InternVL family, or (vision and projector None) a text model alone."""

    vision: VisionSpec | None
    projector: ProjectorSpec | None
    language: LanguageSpec
    layout: Layout
    image_token_id: int | None  # None: the custom layout leaves it to the tokenizer (<IMG_CONTEXT>)

    @property
    def tokens_per_tile(self) -> int:
        """Image tokens of one tile; 0 for a text model."""
        if self.vision is None or self.projector is None:
            return 0
        return self.vision.patches // self.projector.shuffle**2

    @classmethod
    def from_model_dir(cls, model_dir: str | Path) -> ModelSpec:
        """Read `config.json` (and the tokenizer's added tokens, for `<IMG_CONTEXT>`).

        Raises:
            UsageError: no config.json, no known architecture, or a setting that this implementation does not have.
        """
        folder = Path(model_dir)
        file = folder / "config.json"
        try:
            config = json.loads(file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{folder}: no config.json; is this a Hugging Face model folder?") from None
        except OSError as error:
            raise UsageError(f"{file}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file}: not JSON ({error})") from None
        spec = cls.from_config(config, where=str(file))
        if spec.vision is None or spec.image_token_id is not None:
            return spec
        return replace(spec, image_token_id=image_token_of_tokenizer(folder))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> ModelSpec:
        """The spec of a parsed config; `where` is named in errors.

        Raises:
            UsageError: what `from_model_dir` says, or values of a wrong kind.
        """
        if not isinstance(config, Mapping):
            raise UsageError(f"{where}: a JSON object is expected, not {type(config).__name__}")
        try:
            return cls._parsed(config, where)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UsageError(f"{where}: a value is of a wrong kind ({error})") from error

    @classmethod
    def _parsed(cls, config: Mapping[str, Any], where: str) -> ModelSpec:
        architecture = (config.get("architectures") or ["none"])[0]
        fields = _Fields(config, where)
        if architecture in FAMILIES:
            text_layout: Layout = "hf-custom" if FAMILIES[architecture] == "internlm2" else "hf"
            return cls(vision=None, projector=None, language=_language(fields), layout=text_layout, image_token_id=None)
        if architecture not in ARCHITECTURES:
            nearest = _nearest(architecture, {**ARCHITECTURES, **FAMILIES})
            raise UsageError(f"{where}: architecture {architecture!r} is not known; {nearest}")
        layout: Layout = ARCHITECTURES[architecture]
        vision = _vision(fields.section("vision_config"), layout)
        language = _language(fields.section("text_config" if layout == "hf" else "llm_config"))
        ratio = fields.positive("downsample_ratio", 0.5)
        shuffle = round(1 / ratio)
        if abs(shuffle * ratio - 1) > 1e-6:
            raise UsageError(f"{where}: downsample_ratio = {ratio} is not one over a whole number, such as 0.5")
        _check_conventions(fields, layout)
        if vision.patches_per_side < shuffle or vision.patches_per_side % shuffle:
            raise UsageError(f"{where}: {vision.patches_per_side} patches per side do not divide by {shuffle}")
        width = vision.hidden_size * shuffle**2
        projector = ProjectorSpec(shuffle=shuffle, input_size=width, output_size=language.hidden_size)
        token = config.get("image_token_id") if layout == "hf" else config.get("img_context_token_id")
        return cls(vision=vision, projector=projector, language=language, layout=layout, image_token_id=token)


class _Fields:
    """Reads keys of a config section and names the section when one is missing."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def need(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise UsageError(f"{self.where}: {key} is missing")
        return self.values[key]

    def get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self.need(key) if default is None else self.get(key, default)
        if type(value) is not int or value < 1:
            raise UsageError(f"{self.where}: {key} = {value!r} is not a whole number above 0")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.need(key) if default is None else self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise UsageError(f"{self.where}: {key} = {value!r} is not a number above 0")
        return float(value)

    def divides(self, name: str, part: int, of: str, whole: int) -> None:
        """Refuse heads that do not come out even."""
        if whole % part:
            raise UsageError(f"{self.where}: {name} = {part} does not divide {of} = {whole}")

    def section(self, key: str) -> _Fields:
        return _Fields(self.need(key), f"{self.where}: {key}")

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse a value that this implementation does not have (absent is allowed)."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise UsageError(f"{self.where}: {key} = {value!r} is not supported, only {choices}")


def _side(value: int | list[int], where: str, key: str) -> int:
    """One side of a square given as a number or as [side, side]."""
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise UsageError(f"{where}: {key} = {value} is not square")
    side = int(sides.pop())
    if side < 1:
        raise UsageError(f"{where}: {key} = {value} is not above 0")
    return side


def _vision(fields: _Fields, layout: Layout) -> VisionSpec:
    native = layout == "hf"
    fields.only("hidden_act", "gelu")
    fields.only("norm_type", "layer_norm", "rms_norm")
    fields.only("use_absolute_position_embeddings", True)
    fields.only("use_mask_token", False)
    fields.divides("num_attention_heads", fields.size("num_attention_heads"), "hidden_size", fields.size("hidden_size"))
    return VisionSpec(
        hidden_size=fields.size("hidden_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_attention_heads=fields.size("num_attention_heads"),
        intermediate_size=fields.size("intermediate_size"),
        image_size=_side(fields.need("image_size"), fields.where, "image_size"),
        patch_size=_side(fields.need("patch_size"), fields.where, "patch_size"),
        num_channels=fields.size("num_channels", 3),
        qkv_bias=bool(fields.get("attention_bias" if native else "qkv_bias", False)),
        qk_norm=bool(fields.get("use_qk_norm" if native else "qk_normalization", False)),
        norm_type=fields.get("norm_type", "layer_norm"),
        norm_eps=float(fields.get("layer_norm_eps", 1e-6)),
    )


def _language(fields: _Fields) -> LanguageSpec:
    name = (fields.get("architectures", None) or [fields.get("model_type", "none")])[0]
    if name not in FAMILIES:
        raise UsageError(f"{fields.where}: language model {name!r} is not known; {_nearest(name, FAMILIES)}")
    family = FAMILIES[name]
    fields.only("hidden_act", "silu")
    fields.only("use_sliding_window", False)
    fields.only("bias" if family == "internlm2" else "attention_bias", False)
    rope = fields.get("rope_scaling", None) or fields.get("rope_parameters", {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "dynamic"):  # dynamic acts only beyond max_position_embeddings, where we refuse to go
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


def _check_conventions(fields: _Fields, layout: Layout) -> None:
    """Refuse the variants of the family that would silently give other numbers."""
    if layout == "hf":
        fields.only("vision_feature_layer", -1)
        fields.only("vision_feature_select_strategy", "default")
        fields.only("projector_hidden_act", "gelu")
    else:
        fields.only("select_layer", -1)
        fields.only("ps_version", "v2")
        fields.only("use_backbone_lora", 0)
        fields.only("use_llm_lora", 0)
        size = fields.get("force_image_size", None)
        vision_size = fields.section("vision_config").get("image_size", size)
        if size is not None and _side(vision_size, fields.where, "image_size") != size:
            raise UsageError(f"{fields.where}: force_image_size = {size} differs from vision_config.image_size")


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def image_token_of_tokenizer(folder: Path) -> int | None:
    """Id of `<IMG_CONTEXT>` in the tokenizer files beside the model; None when they do not say."""
    readers = {
        "added_tokens.json": _from_added_tokens,
        "tokenizer_config.json": _from_tokenizer_config,
        "tokenizer.json": _from_tokenizer,
    }
    for name, read in readers.items():
        file = folder / name
        if file.exists():
            try:
                token = read(json.loads(file.read_text()))
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                raise UsageError(f"{file}: not what a tokenizer file holds ({error!r})") from None
            if token is not None:
                return token
    return None


def _from_added_tokens(values: dict[str, Any]) -> int | None:
    return values.get("<IMG_CONTEXT>")


def _from_tokenizer_config(values: dict[str, Any]) -> int | None:
    entries = values.get("added_tokens_decoder", {}).items()
    return next((int(i) for i, entry in entries if entry.get("content") == "<IMG_CONTEXT>"), None)


def _from_tokenizer(values: dict[str, Any]) -> int | None:
    return next((e["id"] for e in values.get("added_tokens", ()) if e.get("content") == "<IMG_CONTEXT>"), None)
