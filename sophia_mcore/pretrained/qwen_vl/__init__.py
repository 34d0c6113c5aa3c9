"""Qwen2.5-VL and Qwen3-VL (dense): pictures of any size as grids of patches, rotary positions with three axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sophia_mcore.pretrained.family import Family, Layout, Parts
from sophia_mcore.pretrained.qwen_vl import processor, weights
from sophia_mcore.pretrained.qwen_vl.spec import (
    PATCHES_AT_ONCE,
    DeepVisionSpec,
    WindowVisionSpec,
    levels,
    parse_deep,
    parse_windowed,
    picture,
    shown,
    tower_kept,
)

# where the resize is that Qwen2VLImageProcessor calls when it has found the size
RESIZER = "transformers.image_processing_backends:TorchvisionBackend"
_MOE = "mixture-of-experts models are not supported, only the dense ones"


def image_text(tokens: int) -> str:
    """The tokens of an image; what stands around them is the chat template's.

    >>> image_text(2)
    '<|image_pad|><|image_pad|>'
    """
    return processor.IMAGE_PAD * tokens


def _translate(files: Mapping[str, Any], parts: Parts, to: Layout) -> Mapping[str, dict[str, Any]]:
    raise ValueError("this family has one layout")


def _family(name: str, model_type: str, architecture: str, **own: Any) -> Family:
    return Family(
        name=name,
        model_types={model_type: "hf"},
        architectures={architecture: "hf"},
        language_sections=("text_config",),
        image_token=processor.IMAGE_PAD,
        image_text=image_text,
        reserved=("<|vision_start|>", processor.IMAGE_PAD, "<|vision_end|>"),
        video_tokens=(processor.VIDEO_PAD,),
        text_has_image_token=False,
        templates={},
        default_template=None,
        image_processor=processor.read,
        symbols=weights.symbols,
        language_prefix="",
        translate=_translate,
        picture=picture,
        picture_name="images",
        rows_at_once=PATCHES_AT_ONCE,
        shown=shown,
        levels=levels,
        tokens_vary=True,
        tower_kept=tower_kept,
        unquantized=("*visual*",),
        **own,
    )


QWEN2_5_VL = _family(
    "Qwen2.5-VL",
    "qwen2_5_vl",
    "Qwen2_5_VLForConditionalGeneration",
    parse=parse_windowed,
    vision_type=WindowVisionSpec,
    tables=weights.windowed_tables,
    spellings=weights.WINDOWED_SPELLINGS,
    hf_image_processor=RESIZER,
    refused=dict.fromkeys(
        ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
        "Qwen2-VL is not supported (another vision tower); Qwen2.5-VL and Qwen3-VL are",
    ),
)
QWEN3_VL = _family(
    "Qwen3-VL",
    "qwen3_vl",
    "Qwen3VLForConditionalGeneration",
    parse=parse_deep,
    vision_type=DeepVisionSpec,
    tables=weights.deep_tables,
    spellings=weights.DEEP_SPELLINGS,
    hf_image_processor=RESIZER,
    refused=dict.fromkeys(("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"), f"Qwen3-VL: {_MOE}"),
)
FAMILIES = (QWEN2_5_VL, QWEN3_VL)
