"""The weight tables of Qwen2.5-VL's and Qwen3-VL's towers and projectors, and the spellings of their names.

Legend: C/F/G hidden, MLP and projector-input sizes of the tower; H hidden size of the language model. Rows of pixels
are (colour, frame, row, column). No layout but transformers' own exists.
"""

from __future__ import annotations

from sophia_mcore.pretrained.qwen_vl.spec import FRAMES, DeepVisionSpec, ProjectorSpec, VisionSpec
from sophia_mcore.pretrained.table import Row, Size, Table, join, one

_V, _HV = "vision.layers.{i}", "visual.blocks.{i}"


def _pair(name: str, source: str, rows: Size, columns: Size) -> tuple[Row, Row]:
    """Weight and bias of a linear layer."""
    return (
        Row(f"{name}.weight", (rows, columns), one(f"{source}.weight"), None),
        Row(f"{name}.bias", (rows,), one(f"{source}.bias"), None),
    )


def _norm(name: str, source: str, width: Size) -> tuple[Row, Row]:
    """Weight and bias of a LayerNorm."""
    return (
        Row(f"{name}.weight", (width,), one(f"{source}.weight"), None),
        Row(f"{name}.bias", (width,), one(f"{source}.bias"), None),
    )


_PATCHES = Row(
    "vision.patch_embedding.weight", ("C", "channels", "frames", "patch", "patch"),
    one("visual.patch_embed.proj.weight"), None,
)  # fmt: skip
_ATTENTION = (
    *_pair(f"{_V}.attention.qkv", f"{_HV}.attn.qkv", "3C", "C"),
    *_pair(f"{_V}.attention.proj", f"{_HV}.attn.proj", "C", "C"),
)


def _gated(kind: str, shape: tuple[Size, ...]) -> Row:
    return Row(
        f"{_V}.mlp.fc1.{kind}", shape,
        join(f"{_HV}.mlp.gate_proj.{kind}", f"{_HV}.mlp.up_proj.{kind}", parts=("F", "F")), None,
    )  # fmt: skip


WINDOWED = (
    _PATCHES,
    Row(f"{_V}.norm1.weight", ("C",), one(f"{_HV}.norm1.weight"), None),
    Row(f"{_V}.norm2.weight", ("C",), one(f"{_HV}.norm2.weight"), None),
    *_ATTENTION,
    _gated("weight", ("2F", "C")),
    _gated("bias", ("2F",)),
    *_pair(f"{_V}.mlp.fc2", f"{_HV}.mlp.down_proj", "C", "F"),
)
WINDOWED_PROJECTOR = (
    Row("projector.norm.weight", ("C",), one("visual.merger.ln_q.weight"), None),
    *_pair("projector.fc1", "visual.merger.mlp.0", "G", "G"),
    *_pair("projector.fc2", "visual.merger.mlp.2", "H", "G"),
)

DEEP = (
    Row("vision.position_embedding", ("positions", "C"), one("visual.pos_embed.weight"), None),
    _PATCHES,
    Row("vision.patch_embedding.bias", ("C",), one("visual.patch_embed.proj.bias"), None),
    *_norm(f"{_V}.norm1", f"{_HV}.norm1", "C"),
    *_norm(f"{_V}.norm2", f"{_HV}.norm2", "C"),
    *_ATTENTION,
    *_pair(f"{_V}.mlp.fc1", f"{_HV}.mlp.linear_fc1", "F", "C"),
    *_pair(f"{_V}.mlp.fc2", f"{_HV}.mlp.linear_fc2", "C", "F"),
)
DEEP_PROJECTOR = (
    *_norm("projector.norm", "visual.merger.norm", "C"),
    *_pair("projector.fc1", "visual.merger.linear_fc1", "G", "G"),
    *_pair("projector.fc2", "visual.merger.linear_fc2", "H", "G"),
)
_P, _HP = "projector.deepstack.{i}", "visual.deepstack_merger_list.{i}"
DEEPSTACK = (
    *_norm(f"{_P}.norm", f"{_HP}.norm", "G"),
    *_pair(f"{_P}.fc1", f"{_HP}.linear_fc1", "G", "G"),
    *_pair(f"{_P}.fc2", f"{_HP}.linear_fc2", "H", "G"),
)

# The hub's Qwen2.5-VL has the tables' names, transformers in memory the other; for Qwen3-VL both are the same.
_IN_MEMORY = (("visual.", "model.visual."), ("model.", "model.language_model."))
WINDOWED_SPELLINGS = ((), _IN_MEMORY)
DEEP_SPELLINGS = (_IN_MEMORY, ())


def windowed_tables() -> tuple[Table, ...]:
    """Qwen2.5-VL's."""
    return Table(WINDOWED, "vision_layers"), Table(WINDOWED_PROJECTOR, "vision_layers")


def deep_tables() -> tuple[Table, ...]:
    """Qwen3-VL's."""
    return Table(DEEP, "vision_layers"), Table(DEEP_PROJECTOR, "vision_layers"), Table(DEEPSTACK, "deepstack")


def symbols(vision: VisionSpec, projector: ProjectorSpec) -> dict[str, int]:
    """Values of the tables' symbols."""
    side = vision.positions_side if isinstance(vision, DeepVisionSpec) else 0
    return {
        "C": vision.hidden_size, "3C": 3 * vision.hidden_size, "F": vision.intermediate_size,
        "2F": 2 * vision.intermediate_size, "G": projector.input_size, "patch": vision.patch_size,
        "channels": vision.num_channels, "frames": FRAMES, "positions": side**2, "vision_layers": vision.num_layers,
        "deepstack": projector.deep,
    }  # fmt: skip
