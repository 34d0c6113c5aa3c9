"""Qwen's released models at their real sizes, their configurations, and where the reference data lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures" / "qwen_vl"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"needs the reference data at {FIXTURES}")
TINY = ("qwen2_5-vl-tied", "qwen2_5-vl-untied", "qwen3-vl-tied", "qwen3-vl-untied")

# hidden, layers, heads, key-value heads, ffn, vocabulary, tied, the tower's ffn (2.5) or depth, width and ffn (3),
# all parameters as counted in public
RELEASES: dict[str, tuple[Any, ...]] = {
    "Qwen2.5-VL-3B": (2048, 36, 16, 2, 11008, 151936, True, 3420, 3_754_622_976),
    "Qwen2.5-VL-7B": (3584, 28, 28, 4, 18944, 152064, False, 3420, 8_292_166_656),
    "Qwen2.5-VL-32B": (5120, 64, 40, 8, 27648, 152064, False, 3456, 33_452_718_336),
    "Qwen2.5-VL-72B": (8192, 80, 64, 8, 29568, 152064, False, 3456, 73_410_777_344),
    "Qwen3-VL-2B": (2048, 28, 16, 8, 6144, 151936, True, (24, 1024, 4096), 2_127_532_032),
    "Qwen3-VL-4B": (2560, 36, 32, 8, 9728, 151936, True, (24, 1024, 4096), 4_437_815_808),
    "Qwen3-VL-8B": (4096, 36, 32, 8, 12288, 151936, False, (27, 1152, 4304), 8_767_123_696),
    "Qwen3-VL-32B": (5120, 64, 64, 8, 25600, 151936, False, (27, 1152, 4304), 33_357_390_064),
}


def config_of(name: str) -> dict[str, Any]:
    """config.json of a release: flat for 2.5 as on the hub, nested for 3."""
    hidden, layers, heads, groups, ffn, words, tied, tower, _ = RELEASES[name]
    text = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": groups, "intermediate_size": ffn, "vocab_size": words, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "max_position_embeddings": 128000, "use_sliding_window": False, "sliding_window": 32768,
    }  # fmt: skip
    ids = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}
    if isinstance(tower, int):
        vision: dict[str, Any] = {
            "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": tower, "num_heads": 16,
            "in_chans": 3, "out_hidden_size": hidden, "patch_size": 14, "spatial_merge_size": 2, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31], "temporal_patch_size": 2,
        }  # fmt: skip
        rope = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
        return {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", **ids, **text, **rope,
            "tie_word_embeddings": tied, "vision_config": vision,
        }  # fmt: skip
    depth, width, wide = tower
    vision = {
        "depth": depth, "hidden_act": "gelu_pytorch_tanh", "hidden_size": width, "intermediate_size": wide,
        "num_heads": 16, "in_channels": 3, "out_hidden_size": hidden, "patch_size": 16, "spatial_merge_size": 2,
        "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17] if depth == 24 else [8, 16, 24],
        "temporal_patch_size": 2,
    }  # fmt: skip
    rope = {"rope_theta": 5_000_000, "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20]}}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", **ids,
        "tie_word_embeddings": tied, "vision_config": vision,
        "text_config": {**text, **rope, "head_dim": 128, "model_type": "qwen3_vl_text", "attention_bias": False},
    }  # fmt: skip


def processor(patch: int, low: int, high: int, mean: Any = None, std: Any = None) -> dict[str, Any]:
    """preprocessor_config.json."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor", "size": {"shortest_edge": low, "longest_edge": high},
        "patch_size": patch, "merge_size": 2, "temporal_patch_size": 2, "do_resize": True,
        "image_mean": mean or [0.48145466, 0.4578275, 0.40821073],
        "image_std": std or [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip


def folder_of(folder: Path, config: dict[str, Any], settings: dict[str, Any], template: str | None = None) -> Path:
    """A model folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
