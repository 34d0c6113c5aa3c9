"""The type of the weight tables, and the table of the language model.

A row says from which tensors of each Hugging Face layout one tensor of the Megatron model ("ours") is made, by an
invertible operation, and how tensor parallelism cuts it. Sizes are symbols; `language_symbols` and a family's `symbols`
give their values. A family has the tables of its tower and projector.

Layouts: ``hf`` is that of transformers with the hub's key names, ``hf-custom`` that of the original release.

Legend: H/I/V hidden, MLP and vocabulary sizes of the language model; q, kv, d: rows of one group's queries, number of
key-value heads, size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

from sophia_mcore.pretrained.language import LanguageSpec

Size = int | str  # a number, or a symbol


@dataclass(frozen=True, slots=True)
class Join:
    """Names of source tensors and how they are interleaved (`weights.ops`). ``parts`` (): one source, copied."""

    names: tuple[str, ...]
    parts: tuple[Size, ...] = ()
    groups: Size = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """How tensor parallelism cuts a tensor along ``axis``: each of ``blocks`` equal blocks is cut into equal shares.

    ``uneven``: the length may have a remainder (the vocabulary); then the last ranks get fewer rows.
    """

    axis: int
    blocks: int = 1
    uneven: bool = False


ROWS, COLUMNS, GATED, VOCABULARY = Cut(0), Cut(1), Cut(0, 2), Cut(0, uneven=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table. ``name``, ``shape``: of our tensor. ``hf``, ``custom``: its sources in these layouts."""

    name: str
    shape: tuple[Size, ...]
    hf: Join
    custom: Join | None  # None: the tensor does not exist in this layout
    cut: Cut | None = None
    when: str = ""  # a symbol that must be non-zero for the tensor to exist


def one(name: str) -> Join:
    return Join((name,))


def join(*names: str, parts: tuple[Size, ...], groups: Size = 1) -> Join:
    return Join(names, parts, groups)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows in the order of the network. Rows with ``{i}`` are repeated ``layers`` (a symbol) times."""

    rows: tuple[Row, ...]
    layers: str


# `hf` has the names of Qwen2, Qwen3 and Llama, `custom` those of InternLM2 (its grouped wqkv is laid out like ours).
# In an InternVL model both have the prefix "language_model."; Qwen in hf-custom keeps the `hf` names.
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

# Transformer Engine fuses a norm into the linear layer after it; distributed checkpoints use these names too.
FUSED_NORMS = (
    ("input_layernorm.", "self_attention.linear_qkv.layer_norm_"),
    ("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"),
)

# InternLM2 is a Llama model. In hf-custom it has the names of column `custom`, in hf those of Llama.
LLAMA_LIKE = ("internlm2", "llama")


def language_symbols(spec: LanguageSpec) -> dict[str, int]:
    """Values of the symbols in the language model's table."""
    group = spec.num_attention_heads // spec.num_key_value_heads * spec.head_dim
    return {
        "H": spec.hidden_size, "I": spec.intermediate_size, "2I": 2 * spec.intermediate_size, "V": spec.vocab_size,
        "q": group, "kv": spec.num_key_value_heads, "d": spec.head_dim, "layers": spec.num_layers,
        "Q": spec.num_attention_heads * spec.head_dim, "QKV": spec.num_key_value_heads * (group + 2 * spec.head_dim),
        "qkv_bias": int(spec.qkv_bias), "qk_norm": int(spec.qk_norm), "untied": int(not spec.tied_embeddings),
    }  # fmt: skip
