"""Reads InternViT and its projector from a config.json of either layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sophia_mcore.errors import UsageError
from sophia_mcore.pretrained.family import ImageLimits, Layout, Parts, Picture, Shown
from sophia_mcore.pretrained.fields import Fields, side_of_square
from sophia_mcore.pretrained.language import parse_language

TILES_AT_ONCE = 32  # a frozen tower encodes its share in parts of this size


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """Sizes and conventions of InternViT. Image and patch sizes are in pixels."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    num_channels: int
    qkv_bias: bool
    qk_norm: bool  # RMSNorm over the full width, over all heads together
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
    """Sizes of the projector: pixel shuffle, LayerNorm, Linear, exact GELU, Linear."""

    shuffle: int  # side of the square of patches that becomes one token
    input_size: int
    output_size: int
    norm_eps: float = 1e-5  # torch's default in both implementations; there is no setting for it


def tokens_per_tile(vision: VisionSpec, projector: ProjectorSpec) -> int:
    """Number of image tokens of one tile."""
    return vision.patches // projector.shuffle**2


def picture(vision: VisionSpec, projector: ProjectorSpec, tokens: float | None) -> Picture:
    """Sizes of a tile, which are always the same; ``tokens`` is ignored."""
    positions = vision.patches + 1
    return Picture(
        pixels=vision.num_channels * vision.image_size**2,
        patches=positions,
        seen=positions,
        tokens=tokens_per_tile(vision, projector),
        rows=1,
    )


def shown(vision: VisionSpec, projector: ProjectorSpec, limits: ImageLimits) -> Shown:
    """Half of the tiles that an image may have; each has the same number of tokens."""
    tokens = tokens_per_tile(vision, projector)
    return Shown(pictures=0.5 * (limits.max_tiles + 1), fewest=tokens, most=tokens)


def tower_kept(vision: VisionSpec, element: int) -> float:
    """Bytes per position that a trained layer keeps for the backward pass. ``element``: bytes of one value.

    It keeps the inputs of norms, q, k, v, the output twice, the scaled branches and the MLP.
    """
    norms = 2 * (8 + element) if vision.norm_type == "rms_norm" else 4 * element
    norms += vision.qk_norm * 2 * (element + (8 if element == 2 else 4))
    return vision.hidden_size * (norms + 7 * element) + 2 * vision.intermediate_size * element


def parse(fields: Fields, layout: Layout) -> Parts:
    """Parse tower, projector and language model. Raises UsageError for settings that are not supported."""
    vision = _vision(fields.section("vision_config"), layout)
    language = parse_language(fields.section("text_config" if layout == "hf" else "llm_config"))
    ratio = fields.positive("downsample_ratio", 0.5)
    shuffle = round(1 / ratio)
    if abs(shuffle * ratio - 1) > 1e-6:
        raise UsageError(f"{fields.where}: downsample_ratio = {ratio} is not one over a whole number, such as 0.5")
    _check_conventions(fields, layout)
    if vision.patches_per_side < shuffle or vision.patches_per_side % shuffle:
        raise UsageError(f"{fields.where}: {vision.patches_per_side} patches per side do not divide by {shuffle}")
    projector = ProjectorSpec(
        shuffle=shuffle, input_size=vision.hidden_size * shuffle**2, output_size=language.hidden_size
    )
    token = fields.get("image_token_id" if layout == "hf" else "img_context_token_id", None)
    return Parts(vision=vision, projector=projector, language=language, image_token_id=token)


def _vision(fields: Fields, layout: Layout) -> VisionSpec:
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
        image_size=side_of_square(fields.need("image_size"), fields.where, "image_size"),
        patch_size=side_of_square(fields.need("patch_size"), fields.where, "patch_size"),
        num_channels=fields.size("num_channels", 3),
        qkv_bias=bool(fields.get("attention_bias" if native else "qkv_bias", False)),
        qk_norm=bool(fields.get("use_qk_norm" if native else "qk_normalization", False)),
        norm_type=fields.get("norm_type", "layer_norm"),
        norm_eps=float(fields.get("layer_norm_eps", 1e-6)),
    )


def _check_conventions(fields: Fields, layout: Layout) -> None:
    """Raise UsageError for variants of the family that would silently give other results."""
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
        if size is not None and side_of_square(vision_size, fields.where, "image_size") != size:
            raise UsageError(f"{fields.where}: force_image_size = {size} differs from vision_config.image_size")
