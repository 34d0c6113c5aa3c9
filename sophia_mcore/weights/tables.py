"""The weight tables: for every tensor of our Megatron model, the tensors of each Hugging Face layout it is made of.

Three tables (vision tower, projector, language model) cover InternViT-300M and 6B, InternVL 2.5, 3 and 3.5 with
InternLM2, Qwen2 and Qwen3, and plain Qwen2, Qwen3 and Llama text models. A row reads: this tensor of ours, of this
shape, is these source tensors through this invertible operation. The inverse is derived (`ops`).

Layouts: ``hf`` is transformers' own (``InternVLForConditionalGeneration`` with the hub's key names), ``hf-custom`` the
original release's (``InternVLChatModel``). Sizes in the rows are symbols; ``sizes_of`` gives their values.

Legend: C/F/G hidden, MLP and projector-input sizes of the tower; H/I/V hidden, MLP and vocabulary sizes of the language
model; q, kv, d: rows of one group's queries, number of key-value heads, size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.weights.ops import Interleave, copy, matrix_shape

HfLayout = Literal["hf", "hf-custom"]
Size = int | str  # a number, or a symbol of `sizes_of`


@dataclass(frozen=True, slots=True)
class Join:
    """Source names and how they interleave; ``parts`` () means a single source, copied."""

    names: tuple[str, ...]
    parts: tuple[Size, ...] = ()
    groups: Size = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """How tensor parallelism shares a tensor: along ``axis``, each of ``blocks`` equal blocks cut into equal shares.

    ``uneven``: the length need not divide (the vocabulary), the last ranks then get less.
    """

    axis: int
    blocks: int = 1
    uneven: bool = False


ROWS, COLUMNS, GATED, VOCABULARY = Cut(0), Cut(1), Cut(0, 2), Cut(0, uneven=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: ``name`` and ``shape`` are ours, ``hf`` and ``custom`` say what it is made of there."""

    name: str
    shape: tuple[Size, ...]
    hf: Join
    custom: Join | None  # None: no model has it there
    cut: Cut | None = None
    when: str = ""  # a symbol that must be non-zero for the tensor to exist


def one(name: str) -> Join:
    return Join((name,))


def join(*names: str, parts: tuple[Size, ...], groups: Size = 1) -> Join:
    return Join(names, parts, groups)


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

# In this table `hf` are the names of Qwen2, Qwen3 and Llama, `custom` those of InternLM2 (whose grouped wqkv is ours).
# Inside an InternVL model both carry the prefix "language_model."; Qwen inside hf-custom keeps the `hf` names.
_L, _HL = "language.decoder.layers.{i}", "model.layers.{i}"
LANGUAGE: tuple[Row, ...] = (
    Row("language.embedding.word_embeddings.weight", ("V", "H"),
        one("model.embed_tokens.weight"), one("model.tok_embeddings.weight"), VOCABULARY),
    Row(f"{_L}.input_layernorm.weight", ("H",),
        one(f"{_HL}.input_layernorm.weight"), one(f"{_HL}.attention_norm.weight")),
    Row(f"{_L}.self_attention.linear_qkv.weight", ("QKV", "H"),
        join(f"{_HL}.self_attn.q_proj.weight", f"{_HL}.self_attn.k_proj.weight", f"{_HL}.self_attn.v_proj.weight",
             parts=("q", "d", "d"), groups="kv"),
        one(f"{_HL}.attention.wqkv.weight"), ROWS),
    Row(f"{_L}.self_attention.linear_qkv.bias", ("QKV",),
        join(f"{_HL}.self_attn.q_proj.bias", f"{_HL}.self_attn.k_proj.bias", f"{_HL}.self_attn.v_proj.bias",
             parts=("q", "d", "d"), groups="kv"),
        None, ROWS, when="qkv_bias"),
    Row(f"{_L}.self_attention.q_layernorm.weight", ("d",),
        one(f"{_HL}.self_attn.q_norm.weight"), None, when="qk_norm"),
    Row(f"{_L}.self_attention.k_layernorm.weight", ("d",),
        one(f"{_HL}.self_attn.k_norm.weight"), None, when="qk_norm"),
    Row(f"{_L}.self_attention.linear_proj.weight", ("H", "Q"),
        one(f"{_HL}.self_attn.o_proj.weight"), one(f"{_HL}.attention.wo.weight"), COLUMNS),
    Row(f"{_L}.pre_mlp_layernorm.weight", ("H",),
        one(f"{_HL}.post_attention_layernorm.weight"), one(f"{_HL}.ffn_norm.weight")),
    Row(f"{_L}.mlp.linear_fc1.weight", ("2I", "H"),
        join(f"{_HL}.mlp.gate_proj.weight", f"{_HL}.mlp.up_proj.weight", parts=("I", "I")),
        join(f"{_HL}.feed_forward.w1.weight", f"{_HL}.feed_forward.w3.weight", parts=("I", "I")),
        GATED),
    Row(f"{_L}.mlp.linear_fc2.weight", ("H", "I"),
        one(f"{_HL}.mlp.down_proj.weight"), one(f"{_HL}.feed_forward.w2.weight"), COLUMNS),
    Row("language.decoder.final_layernorm.weight", ("H",), one("model.norm.weight"), one("model.norm.weight")),
    Row("language.output_layer.weight", ("V", "H"), one("lm_head.weight"), one("output.weight"), VOCABULARY,
        when="untied"),
)  # fmt: skip

# Keys that carry no weights of the model; they are left behind on purpose, by name.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


# InternLM2 is Llama with the names of the `custom` column: in hf-custom it carries those, in hf Llama's.
LLAMA_LIKE = ("internlm2", "llama")


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of a Hugging Face layout."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A resolved row: our tensor is ``sources`` joined by ``op``, shared by ``cut``."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    op: Interleave
    cut: Cut | None


def sizes_of(spec: ModelSpec) -> dict[str, int]:
    """Values of the tables' symbols for a model."""
    text = spec.language
    group = text.num_attention_heads // text.num_key_value_heads * text.head_dim
    sizes = {
        "H": text.hidden_size, "I": text.intermediate_size, "2I": 2 * text.intermediate_size, "V": text.vocab_size,
        "q": group, "kv": text.num_key_value_heads, "d": text.head_dim,
        "Q": text.num_attention_heads * text.head_dim, "QKV": text.num_key_value_heads * (group + 2 * text.head_dim),
        "qkv_bias": int(text.qkv_bias), "qk_norm": int(text.qk_norm), "untied": int(not text.tied_embeddings),
    }  # fmt: skip
    if spec.vision is not None and spec.projector is not None:
        tower = spec.vision
        sizes |= {
            "C": tower.hidden_size, "3C": 3 * tower.hidden_size, "F": tower.intermediate_size,
            "patch": tower.patch_size, "channels": tower.num_channels, "positions": tower.patches + 1,
            "vision_qkv_bias": int(tower.qkv_bias), "vision_qk_norm": int(tower.qk_norm),
            "vision_norm_bias": int(tower.norm_type == "layer_norm"), "G": spec.projector.input_size,
        }  # fmt: skip
    return sizes


def resolve(spec: ModelSpec, layout: HfLayout) -> list[Entry]:
    """All tensors of a model and what each is made of in a layout, in the order of the tables."""
    sizes = sizes_of(spec)
    internlm2 = spec.language.family in LLAMA_LIKE and layout == "hf-custom"
    entries: list[Entry] = []
    if spec.vision is not None:
        custom = layout == "hf-custom"
        entries += _resolve_table(VISION, sizes, spec.vision.num_layers, custom=custom, prefix="")
        entries += _resolve_table(PROJECTOR, sizes, 0, custom=custom, prefix="")
    prefix = "" if spec.vision is None else "language_model."
    return entries + _resolve_table(LANGUAGE, sizes, spec.language.num_layers, custom=internlm2, prefix=prefix)


def _resolve_table(
    table: tuple[Row, ...], sizes: Mapping[str, int], layers: int, *, custom: bool, prefix: str
) -> list[Entry]:
    entries = []
    for block in _layer_blocks(table):
        repeats = range(layers) if "{i}" in block[0].name else range(1)
        entries += [_entry(row, row.custom if custom else row.hf, sizes, i, prefix) for i in repeats for row in block
                    if not row.when or sizes[row.when]]  # fmt: skip
    return entries


def _layer_blocks(table: tuple[Row, ...]) -> Iterator[list[Row]]:
    """Consecutive rows that are repeated together per layer, or stand alone, so that order follows the network."""
    block: list[Row] = []
    for row in table:
        if block and ("{i}" in row.name) != ("{i}" in block[0].name):
            yield block
            block = []
        block.append(row)
    if block:
        yield block


def _entry(row: Row, cell: Join | None, sizes: Mapping[str, int], i: int, prefix: str) -> Entry:
    def number(size: Size) -> int:
        return size if isinstance(size, int) else sizes[size]

    if cell is None:
        raise SophiaError(f"{row.name} has no place in this layout")
    shape = tuple(number(s) for s in row.shape)
    names = [prefix + name.format(i=i) for name in cell.names]
    if cell.parts:
        op = Interleave(number(cell.groups), tuple(number(p) for p in cell.parts))
        sources = tuple(Source(n, (length, *shape[1:])) for n, length in zip(names, op.source_lengths, strict=True))
    else:
        op, sources = copy(matrix_shape(shape)[0]), (Source(names[0], shape),)
    return Entry(row.name.format(i=i), shape, sources, op, row.cut)
