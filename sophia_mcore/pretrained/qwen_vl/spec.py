"""The vision towers of Qwen2.5-VL and Qwen3-VL (dense) and the projectors behind them, read from config.json.

Configurations come flat (the language model's fields at the top, as the hub's Qwen2.5-VL) or nested in `text_config`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sophia_mcore.errors import UsageError
from sophia_mcore.pretrained.family import ImageLimits, Layout, Parts, Picture, Shown
from sophia_mcore.pretrained.fields import Fields
from sophia_mcore.pretrained.language import LanguageSpec, MRope, parse_language, rope_settings

NORM_EPS = 1e-6  # of towers and projectors; no config field exists
FRAMES = 2  # a patch covers two frames of a video; a still picture is shown twice
PATCHES_AT_ONCE = 16_384  # a frozen tower encodes its share in parts of about this size
MOST_TOKENS = 16_384  # of an image under the processors' default limits


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """What both towers have. Sizes in channels, pixels and layers."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    intermediate_size: int
    patch_size: int
    num_channels: int
    merge: int  # side of the square of patches that becomes one token

    @property
    def row_width(self) -> int:
        """Numbers of one row of pixels: a patch in all colours and frames."""
        return self.num_channels * FRAMES * self.patch_size**2


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowVisionSpec(VisionSpec):
    """Qwen2.5-VL: RMSNorm, gated MLP; attention inside windows, except in some layers."""

    window: int  # side in tokens; windows at the right and lower edge are smaller
    full_layers: tuple[int, ...]  # layers that attend to the whole picture


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepVisionSpec(VisionSpec):
    """Qwen3-VL: LayerNorm, a table of positions, features of several layers (DeepStack)."""

    positions_side: int  # the table is a square of this side, interpolated to the picture's grid
    deepstack: tuple[int, ...]  # layers whose output goes to language layers 0, 1, ... through a projector of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorSpec:
    """Norm, then a square of patches as one row, Linear, exact GELU, Linear."""

    width: int  # of the tower
    input_size: int  # merge * merge * width
    output_size: int
    deep: int  # further projectors, one per DeepStack layer; their norm is over input_size
    layer_norm: bool  # LayerNorm, not RMSNorm


def levels(vision: VisionSpec) -> int:
    """Features of an image token: 1, and one for each DeepStack layer."""
    return 1 + (len(vision.deepstack) if isinstance(vision, DeepVisionSpec) else 0)


def picture(vision: VisionSpec, projector: ProjectorSpec, tokens: float | None) -> Picture:
    """A picture of so many tokens, as a square."""
    patches = (tokens or 1.0) * vision.merge**2
    seen = patches
    if isinstance(vision, WindowVisionSpec):
        full = len(vision.full_layers) / vision.num_layers
        seen = full * patches + (1 - full) * min(patches, (vision.window * vision.merge) ** 2)
    return Picture(
        pixels=patches * vision.row_width, patches=patches, seen=seen, tokens=patches / vision.merge**2, rows=patches
    )


def shown(vision: VisionSpec, projector: ProjectorSpec, limits: ImageLimits) -> Shown:
    """One picture for each image, whose tokens lie between the limits of pixels."""
    pixels = (vision.patch_size * vision.merge) ** 2  # of a token
    most = MOST_TOKENS if limits.max_pixels is None else max(1, limits.max_pixels // pixels)
    fewest = 1 if limits.min_pixels is None else max(1, math.ceil(limits.min_pixels / pixels))
    return Shown(pictures=1.0, fewest=min(fewest, most), most=most)


def tower_kept(vision: VisionSpec, element: int) -> float:
    """Bytes per position that a trained layer keeps: norms, q k v turned in fp32, output twice, branches, MLP."""
    gated = isinstance(vision, WindowVisionSpec)
    norms = 2 * (8 + element) if gated else 4 * element
    mlp = (4 if gated else 2) * vision.intermediate_size
    return vision.hidden_size * (norms + 7 * element + 16) + mlp * element


def parse_windowed(fields: Fields, layout: Layout) -> Parts:
    """Qwen2.5-VL. Raises UsageError for what this implementation does not have."""
    vision = fields.section("vision_config")
    common = _common(vision, "silu")
    patch, merge = common["patch_size"], common["merge"]
    window = vision.size("window_size")
    if window % (patch * merge):
        raise UsageError(f"{vision.where}: window_size = {window} is not a multiple of patch x merge = {patch * merge}")
    spec = WindowVisionSpec(
        **common, window=window // (patch * merge), full_layers=_layers(vision, "fullatt_block_indexes")
    )
    return _parts(fields, spec, "qwen2", interleaved=False)


def parse_deep(fields: Fields, layout: Layout) -> Parts:
    """Qwen3-VL, dense. Raises UsageError for what this implementation does not have."""
    vision = fields.section("vision_config")
    common = _common(vision, "gelu_pytorch_tanh")
    positions = vision.size("num_position_embeddings")
    side = round(positions**0.5)
    if side**2 != positions:
        raise UsageError(f"{vision.where}: num_position_embeddings = {positions} is not a square")
    deepstack = _layers(vision, "deepstack_visual_indexes")
    if list(deepstack) != sorted(set(deepstack)):
        raise UsageError(f"{vision.where}: deepstack_visual_indexes = {list(deepstack)} do not rise")
    return _parts(fields, DeepVisionSpec(**common, positions_side=side, deepstack=deepstack), "qwen3", interleaved=True)


def _parts(fields: Fields, vision: VisionSpec, language_model: str, *, interleaved: bool) -> Parts:
    language = _language(fields, language_model, interleaved)
    out = fields.section("vision_config").size("out_hidden_size", language.hidden_size)
    if out != language.hidden_size:
        raise UsageError(
            f"{fields.where}: vision_config.out_hidden_size = {out}, but the language model's hidden_size is "
            f"{language.hidden_size}"
        )
    deep = vision.deepstack if isinstance(vision, DeepVisionSpec) else ()
    if len(deep) > language.num_layers:
        raise UsageError(f"{fields.where}: {len(deep)} DeepStack layers, but {language.num_layers} language layers")
    projector = ProjectorSpec(
        width=vision.hidden_size,
        input_size=vision.hidden_size * vision.merge**2,
        output_size=language.hidden_size,
        deep=len(deep),
        layer_norm=isinstance(vision, DeepVisionSpec),
    )
    token = fields.get("image_token_id", None)
    return Parts(vision=vision, projector=projector, language=language, image_token_id=token)


def _common(vision: Fields, activation: str) -> dict[str, Any]:
    """Fields of `VisionSpec`."""
    vision.only("hidden_act", activation)
    vision.only("temporal_patch_size", FRAMES)
    heads, hidden = vision.size("num_heads"), vision.size("hidden_size")
    vision.divides("num_heads", heads, "hidden_size", hidden)
    if hidden // heads % 4:
        raise UsageError(f"{vision.where}: heads of {hidden // heads} channels do not divide by 4 for rotary positions")
    patch = vision.size("patch_size")
    vision.only("spatial_patch_size", patch)
    return {
        "hidden_size": hidden,
        "num_layers": vision.size("depth"),
        "num_attention_heads": heads,
        "intermediate_size": vision.size("intermediate_size"),
        "patch_size": patch,
        "num_channels": vision.size("in_channels", vision.size("in_chans", 3)),
        "merge": vision.size("spatial_merge_size", 2),
    }


def _layers(vision: Fields, key: str) -> tuple[int, ...]:
    """Numbers of layers of the tower."""
    numbers, depth = vision.need(key), vision.size("depth")
    if not all(type(number) is int and 0 <= number < depth for number in numbers):
        raise UsageError(f"{vision.where}: {key} = {numbers} names layers that the tower of {depth} does not have")
    return tuple(numbers)


def _language(fields: Fields, model_type: str, interleaved: bool) -> LanguageSpec:
    nested = fields.values.get("text_config") is not None
    text = fields.section("text_config") if nested else fields
    _refuse_variants(text)
    plain = {key: value for key, value in text.values.items() if key not in ("architectures", "rope_parameters")}
    rope = rope_settings(text, {"mrope": "default"})
    if rope.get("rope_type", "default") != "default":
        raise UsageError(f"{text.where}: rope type {rope['rope_type']!r} is not supported, only 'mrope' or 'default'")
    plain |= {"model_type": model_type, "tie_word_embeddings": _tied(fields, text)}
    plain["rope_scaling"] = {"rope_type": "default", "rope_theta": rope.get("rope_theta")}
    language = parse_language(Fields(plain, text.where))
    return replace(language, mrope=_mrope(rope, text.where, language.head_dim, interleaved))


def _refuse_variants(text: Fields) -> None:
    for key in ("num_experts", "num_local_experts"):
        if text.values.get(key):
            raise UsageError(f"{text.where}: {key} = {text.values[key]}: mixture-of-experts models are not supported")
    other = sorted({kind for kind in text.get("layer_types", ()) if kind != "full_attention"})
    if other:
        raise UsageError(f"{text.where}: layer_types holds {other[0]!r}; only 'full_attention' is supported")


def _mrope(rope: Mapping[str, Any], where: str, head_dim: int, interleaved: bool) -> MRope:
    sections = rope.get("mrope_section")
    if sections is None:
        raise UsageError(f"{where}: mrope_section is missing in rope_scaling (or rope_parameters)")
    if not isinstance(sections, (list, tuple)) or len(sections) != 3 or not all(type(n) is int for n in sections):
        raise UsageError(f"{where}: mrope_section = {sections!r} is not three whole numbers")
    if sum(sections) != head_dim // 2 or min(sections) < 0:
        raise UsageError(f"{where}: mrope_section = {list(sections)} does not sum to half a head, {head_dim // 2}")
    if bool(rope.get("mrope_interleaved", interleaved)) is not interleaved:
        raise UsageError(f"{where}: mrope_interleaved = {rope['mrope_interleaved']} is not this family's")
    return MRope(sections=(sections[0], sections[1], sections[2]), interleaved=interleaved)


def _tied(fields: Fields, text: Fields) -> bool:
    """The flag stands at the top, inside `text_config`, or at both places."""
    flags = {
        bool(f.values["tie_word_embeddings"]) for f in (fields, text) if f.values.get("tie_word_embeddings") is not None
    }
    if len(flags) > 1:
        raise UsageError(f"{fields.where}: tie_word_embeddings differs from that in text_config")
    return flags.pop() if flags else False
