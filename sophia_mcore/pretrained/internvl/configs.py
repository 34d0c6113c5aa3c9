"""Translates config.json and similar files between the original layout and transformers' native layout.

Only names change. A key that has no name in the other layout is kept, since both readers ignore unknown keys. So a
translation there and back loses nothing that describes the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sophia_mcore.pretrained.family import Layout, Parts
from sophia_mcore.pretrained.internvl.spec import tokens_per_tile
from sophia_mcore.pretrained.table import LLAMA_LIKE

Settings = dict[str, Any]

# original name -> native name of the same setting
_VISION = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm"}
_LANGUAGE_MODELS = {
    "internlm2": ("llama", "LlamaForCausalLM")
}  # InternLM2 without bias is a Llama model whose wqkv is split
_NATIVE_FIXED = {
    "architectures": ["InternVLForConditionalGeneration"],
    "model_type": "internvl",
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}
_NATIVE_VISION = {
    "architectures": ["InternVLVisionModel"],
    "model_type": "internvl_vision",
    "use_mask_token": False,
    "use_absolute_position_embeddings": True,
    "use_mean_pooling": True,
    "projection_dropout": 0.0,
    "hidden_dropout_prob": 0.0,
}
_CUSTOM_FIXED = {
    "architectures": ["InternVLChatModel"],
    "model_type": "internvl_chat",
    "ps_version": "v2",
    "select_layer": -1,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
}
_CUSTOM_VISION = {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b"}
_CUSTOM_DEFAULTS = {
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 12,
    "pad2square": False,
    "template": "internvl2_5",
}
_TOKENS_AFTER_CONTEXT = 7  # the releases append <img>, </img>, <IMG_CONTEXT> and six more at the end of the vocabulary


def translate(files: Mapping[str, Mapping[str, Any]], parts: Parts, to: Layout) -> dict[str, Settings]:
    """Settings files of layout ``to``, by name, from those of the other layout (``files``; missing files are {})."""
    config, image = files["config.json"], files.get("preprocessor_config.json", {})
    if to == "hf-custom":
        return {"config.json": custom_config(config, parts, image)}
    found = {"config.json": native_config(config, parts), **native_processor(config, image, parts)}
    if "tokenizer_config.json" in files:
        found["tokenizer_config.json"] = native_tokenizer(files["tokenizer_config.json"])
    return found


def native_config(config: Mapping[str, Any], parts: Parts) -> Settings:
    """config.json of the native layout, from that of the original layout."""
    vision, language = dict(config["vision_config"]), dict(config["llm_config"])
    vision = {_VISION.get(key, key): value for key, value in vision.items()} | _NATIVE_VISION
    for key in ("image_size", "patch_size"):
        vision[key] = [getattr(parts.vision, key)] * 2
    kind, architecture = _LANGUAGE_MODELS.get(parts.language.family, ("", ""))
    if kind:
        language |= {"model_type": kind, "architectures": [architecture], "attention_bias": False, "mlp_bias": False}
        language.pop("bias", None)
    kept = {k: v for k, v in config.items() if k not in (*_CUSTOM_FIXED, "vision_config", "llm_config", "auto_map")}
    token = parts.image_token_id
    return kept | _NATIVE_FIXED | {
        "image_seq_length": tokens_per_tile(parts.vision, parts.projector),
        "image_token_id": parts.language.vocab_size - _TOKENS_AFTER_CONTEXT if token is None else token,
        "text_config": language,
        "vision_config": vision,
        "tie_word_embeddings": parts.language.tied_embeddings,
    }  # fmt: skip


def custom_config(config: Mapping[str, Any], parts: Parts, processor: Mapping[str, Any]) -> Settings:
    """config.json of the original layout, from the native one. ``processor``: the native image processor's settings."""
    back = {new: old for old, new in _VISION.items()}
    dropped = (*_NATIVE_VISION, "layer_scale_init_value")
    vision = {back.get(k, k): v for k, v in config["vision_config"].items() if k not in dropped} | _CUSTOM_VISION
    vision |= {key: getattr(parts.vision, key) for key in ("image_size", "patch_size")}
    language = _old_rope(config["text_config"])
    if parts.language.family in LLAMA_LIKE:
        language |= {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": False}
        language = {k: v for k, v in language.items() if k not in ("attention_bias", "mlp_bias")}
    dropped = (*_NATIVE_FIXED, "image_seq_length", "image_token_id", "text_config", "vision_config")
    tiles = {ours: processor[theirs] for theirs, ours in (("max_patches", "max_dynamic_patch"),
             ("min_patches", "min_dynamic_patch")) if processor.get(theirs) is not None}  # fmt: skip
    kept = {k: v for k, v in config.items() if k not in dropped}
    return _CUSTOM_DEFAULTS | tiles | kept | _CUSTOM_FIXED | {
        "force_image_size": parts.vision.image_size,
        "img_context_token_id": parts.image_token_id,
        "llm_config": language,
        "vision_config": vision,
    }  # fmt: skip


def _old_rope(language: Mapping[str, Any]) -> Settings:
    """Rotary settings and dtype under the names that the original code reads; transformers 5 has other names."""
    settings = dict(language)
    rope = dict(settings.pop("rope_parameters", None) or {})
    if "rope_theta" in rope:
        settings["rope_theta"] = rope.pop("rope_theta")
        settings["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    if "dtype" in settings:
        settings.setdefault("torch_dtype", settings.pop("dtype"))
    return settings


def native_processor(config: Mapping[str, Any], image: Mapping[str, Any], parts: Parts) -> dict[str, Settings]:
    """Native preprocessor_config.json and processor_config.json. ``image``: the original's image settings."""
    side = parts.vision.image_size
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    dynamic = bool(config.get("dynamic_image_size", True))
    preprocessor = {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": dynamic,
        "min_patches": config.get("min_dynamic_patch", 1) if dynamic else 1,
        "max_patches": config.get("max_dynamic_patch", 12) if dynamic else 1,
        "size": {"height": side, "width": side},
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": image.get("image_mean", mean),
        "image_std": image.get("image_std", std),
    }
    processor = {
        "processor_class": "InternVLProcessor",
        "image_seq_length": tokens_per_tile(parts.vision, parts.projector),
    }
    return {"preprocessor_config.json": preprocessor, "processor_config.json": processor}


def native_tokenizer(settings: Mapping[str, Any]) -> Settings:
    """tokenizer_config.json with the keys in which transformers' processor looks for the image tokens."""
    tokens = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    more = settings.get("extra_special_tokens")
    return dict(settings) | tokens | {
        "extra_special_tokens": (dict(more) if isinstance(more, Mapping) else {}) | tokens,
        "processor_class": "InternVLProcessor",
    }  # fmt: skip
