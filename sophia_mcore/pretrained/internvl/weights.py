"""The weight tables of InternViT (300M and 6B) and the projector, and the spellings of their names.

Legend: C/F/G hidden, MLP and projector-input sizes of the tower; H hidden size of the language model.
"""

from __future__ import annotations

from sophia_mcore.pretrained.internvl.spec import ProjectorSpec, VisionSpec
from sophia_mcore.pretrained.table import Row, Table, join, one

_V, _HV, _CV = "vision.layers.{i}", "vision_tower.encoder.layer.{i}", "vision_model.encoder.layers.{i}"
VISION: tuple[Row, ...] = (
    Row("vision.class_token", (1, 1, "C"),
        one("vision_tower.embeddings.cls_token"), one("vision_model.embeddings.class_embedding")),
    Row("vision.position_embedding", (1, "positions", "C"),
        one("vision_tower.embeddings.position_embeddings"), one("vision_model.embeddings.position_embedding")),
    Row("vision.patch_embedding.weight", ("C", "channels", "patch", "patch"),
        one("vision_tower.embeddings.patch_embeddings.projection.weight"),
        one("vision_model.embeddings.patch_embedding.weight")),
    Row("vision.patch_embedding.bias", ("C",),
        one("vision_tower.embeddings.patch_embeddings.projection.bias"),
        one("vision_model.embeddings.patch_embedding.bias")),
    Row(f"{_V}.norm1.weight", ("C",), one(f"{_HV}.layernorm_before.weight"), one(f"{_CV}.norm1.weight")),
    Row(f"{_V}.norm1.bias", ("C",), one(f"{_HV}.layernorm_before.bias"), one(f"{_CV}.norm1.bias"),
        when="vision_norm_bias"),
    Row(f"{_V}.norm2.weight", ("C",), one(f"{_HV}.layernorm_after.weight"), one(f"{_CV}.norm2.weight")),
    Row(f"{_V}.norm2.bias", ("C",), one(f"{_HV}.layernorm_after.bias"), one(f"{_CV}.norm2.bias"),
        when="vision_norm_bias"),
    Row(f"{_V}.ls1", ("C",), one(f"{_HV}.lambda_1"), one(f"{_CV}.ls1")),
    Row(f"{_V}.ls2", ("C",), one(f"{_HV}.lambda_2"), one(f"{_CV}.ls2")),
    Row(f"{_V}.attention.qkv.weight", ("3C", "C"),
        join(f"{_HV}.attention.q_proj.weight", f"{_HV}.attention.k_proj.weight", f"{_HV}.attention.v_proj.weight",
             parts=("C", "C", "C")),
        one(f"{_CV}.attn.qkv.weight")),
    Row(f"{_V}.attention.qkv.bias", ("3C",),
        join(f"{_HV}.attention.q_proj.bias", f"{_HV}.attention.k_proj.bias", f"{_HV}.attention.v_proj.bias",
             parts=("C", "C", "C")),
        one(f"{_CV}.attn.qkv.bias"), when="vision_qkv_bias"),
    Row(f"{_V}.attention.q_norm.weight", ("C",),
        one(f"{_HV}.attention.q_norm.weight"), one(f"{_CV}.attn.q_norm.weight"), when="vision_qk_norm"),
    Row(f"{_V}.attention.k_norm.weight", ("C",),
        one(f"{_HV}.attention.k_norm.weight"), one(f"{_CV}.attn.k_norm.weight"), when="vision_qk_norm"),
    Row(f"{_V}.attention.proj.weight", ("C", "C"),
        one(f"{_HV}.attention.projection_layer.weight"), one(f"{_CV}.attn.proj.weight")),
    Row(f"{_V}.attention.proj.bias", ("C",),
        one(f"{_HV}.attention.projection_layer.bias"), one(f"{_CV}.attn.proj.bias")),
    Row(f"{_V}.mlp.fc1.weight", ("F", "C"), one(f"{_HV}.mlp.fc1.weight"), one(f"{_CV}.mlp.fc1.weight")),
    Row(f"{_V}.mlp.fc1.bias", ("F",), one(f"{_HV}.mlp.fc1.bias"), one(f"{_CV}.mlp.fc1.bias")),
    Row(f"{_V}.mlp.fc2.weight", ("C", "F"), one(f"{_HV}.mlp.fc2.weight"), one(f"{_CV}.mlp.fc2.weight")),
    Row(f"{_V}.mlp.fc2.bias", ("C",), one(f"{_HV}.mlp.fc2.bias"), one(f"{_CV}.mlp.fc2.bias")),
)  # fmt: skip

_HP = "multi_modal_projector"
PROJECTOR: tuple[Row, ...] = (
    Row("projector.norm.weight", ("G",), one(f"{_HP}.layer_norm.weight"), one("mlp1.0.weight")),
    Row("projector.norm.bias", ("G",), one(f"{_HP}.layer_norm.bias"), one("mlp1.0.bias")),
    Row("projector.fc1.weight", ("H", "G"), one(f"{_HP}.linear_1.weight"), one("mlp1.1.weight")),
    Row("projector.fc1.bias", ("H",), one(f"{_HP}.linear_1.bias"), one("mlp1.1.bias")),
    Row("projector.fc2.weight", ("H", "H"), one(f"{_HP}.linear_2.weight"), one("mlp1.3.weight")),
    Row("projector.fc2.bias", ("H",), one(f"{_HP}.linear_2.bias"), one("mlp1.3.bias")),
)  # fmt: skip

# Files on the hub use the names of the tables. Some versions of transformers wrote their in-memory names.
SPELLINGS = (
    (),
    (
        ("language_model.model.", "model.language_model."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("language_model.lm_head.", "lm_head."),
    ),
)


def tables() -> tuple[Table, ...]:
    """The weight tables of the tower and of the projector."""
    return Table(VISION, "vision_layers"), Table(PROJECTOR, "vision_layers")


def symbols(vision: VisionSpec, projector: ProjectorSpec) -> dict[str, int]:
    """Values of the symbols in these tables."""
    return {
        "C": vision.hidden_size, "3C": 3 * vision.hidden_size, "F": vision.intermediate_size,
        "patch": vision.patch_size, "channels": vision.num_channels, "positions": vision.patches + 1,
        "vision_qkv_bias": int(vision.qkv_bias), "vision_qk_norm": int(vision.qk_norm),
        "vision_norm_bias": int(vision.norm_type == "layer_norm"), "vision_layers": vision.num_layers,
        "G": projector.input_size,
    }  # fmt: skip
