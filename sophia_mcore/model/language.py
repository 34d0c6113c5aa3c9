"""The language model from megatron-core's parts, and the `TransformerConfig` that describes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.distributed import finalize_model_grads
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint
from torch import Tensor

from sophia_mcore.config.schema import Config, Fp8, Train
from sophia_mcore.errors import SophiaError
from sophia_mcore.model.deepstack import add_deep_features
from sophia_mcore.model.fp8_linear import Emulation, keep_in_bf16, parts_of
from sophia_mcore.model.padding import zero_padding
from sophia_mcore.model.parts import CoreAttention, LoneNorm, Norm
from sophia_mcore.model.rotary import mrope_angles
from sophia_mcore.model.sizes import padded_vocab_size
from sophia_mcore.parallel.backend import Backend
from sophia_mcore.parallel.context import ContextCut
from sophia_mcore.parallel.groups import Groups
from sophia_mcore.pretrained.spec import LanguageSpec


def transformer_config(
    spec: LanguageSpec, train: Train, fp8: Fp8, groups: Groups, backend: Backend
) -> TransformerConfig:
    """megatron-core's description of the language model in this layout and on this backend."""
    parallel = groups.parallel
    interleaved = parallel.virtual_pipeline is not None
    dtype = getattr(torch, train.dtype)
    return TransformerConfig(
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        ffn_hidden_size=spec.intermediate_size,
        num_attention_heads=spec.num_attention_heads,
        num_query_groups=spec.num_key_value_heads,
        kv_channels=spec.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=spec.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=spec.qkv_bias,
        qk_layernorm=spec.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=train.dtype == "bfloat16",
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence_parallel,
        num_layers_in_first_pipeline_stage=parallel.layers_on_first_stage,
        num_layers_in_last_pipeline_stage=parallel.layers_on_last_stage,
        # With two stages, interleaving without overlapped transfers gives wrong numbers: never build it.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        # gloo still reads a sent tensor after the schedule has gone on: do not free it early there
        deallocate_pipeline_outputs=backend.ordered_sends,
        calculate_per_token_loss=True,
        finalize_model_grads_func=finalize_model_grads,
        use_cpu_initialization=backend.kind == "cpu",
        perform_initialization=False,  # parameters come from a checkpoint
        gradient_accumulation_fusion=backend.fused_weight_gradient,
        bias_activation_fusion=backend.fused_kernels,
        bias_dropout_fusion=backend.fused_kernels,
        # the fused kernel counts positions from 0 in every sequence and takes no table of tokens
        apply_rope_fusion=backend.transformer_engine and spec.mrope is None,
        masked_softmax_fusion=False,
        transformer_impl="transformer_engine" if backend.transformer_engine else "local",
        **_recompute(train),
        **_fp8(fp8),
    )


def _fp8(fp8: Fp8) -> dict[str, object]:
    """megatron-core's settings for Transformer Engine; the emulation is in the layers instead (`layer_specs`).

    Embedding, output layer and vision tower are not part of the decoder and stay in the parameters' dtype.
    """
    if not fp8.native:
        return {}
    start, end = fp8.layers_at_start_in_bf16, fp8.layers_at_end_in_bf16
    return {
        "fp8": fp8.format,
        "fp8_recipe": fp8.recipe,
        "fp8_amax_history_len": fp8.amax_history,
        "fp8_amax_compute_algo": fp8.amax_algorithm,
        "first_last_layers_bf16": bool(start or end),
        "num_layers_at_start_in_bf16": start,
        "num_layers_at_end_in_bf16": end,
    }


def _recompute(train: Train) -> dict[str, object]:
    if train.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if train.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {}


def layer_specs(
    spec: LanguageSpec, config: TransformerConfig, backend: Backend, layers: range, emulated: Emulation | None = None
) -> TransformerBlockSubmodules:
    """Which module is which part of the decoder layers with these numbers.

    Transformer Engine's fused layers, or megatron-core's with plain torch parts, where `emulated` says which products
    are FP8.
    """
    if backend.transformer_engine:
        layer = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=spec.qk_norm)
        if spec.qk_norm:
            parts_of(layer.submodules.self_attention).q_layernorm = LoneNorm
            parts_of(layer.submodules.self_attention).k_layernorm = LoneNorm
        return TransformerBlockSubmodules(layer_specs=[layer] * len(layers), layer_norm=LoneNorm)
    found = []
    for number in layers:
        layer = get_gpt_layer_local_spec(qk_layernorm=spec.qk_norm, normalization="RMSNorm")
        parts = layer.submodules
        parts.input_layernorm = parts.pre_mlp_layernorm = Norm
        attention = parts.self_attention.submodules
        attention.core_attention = CoreAttention
        if spec.qk_norm:
            attention.q_layernorm = attention.k_layernorm = Norm
        if emulated is not None:
            emulated.replace(layer, number, config.num_layers)
        found.append(layer)
    return TransformerBlockSubmodules(layer_specs=found, layer_norm=Norm)


@dataclass(frozen=True, slots=True)
class Stage:
    """Which part of the pipeline a model chunk is."""

    first: bool  # has the embedding
    last: bool  # has the output layer
    chunk: int | None  # of the rank's virtual chunks; None: the rank has one

    @classmethod
    def of_rank(cls, groups: Groups, chunk: int | None) -> Stage:
        """The stage of this rank's chunk with this number."""
        chunks = groups.parallel.virtual_pipeline or 1
        number = chunk or 0
        return cls(groups.is_first_stage and number == 0, groups.is_last_stage and number == chunks - 1, chunk)


class LanguageModel(MegatronModule):
    """Embedding, decoder and output layer, each only on the stages that own it. Hidden states are [s, b, h]."""

    def __init__(
        self, spec: LanguageSpec, config: TransformerConfig, settings: Config, groups: Groups, backend: Backend,
        stage: Stage, deep: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(config)
        fp8, self.spec = settings.fp8, spec
        self.padded_vocab_size = padded_vocab_size(spec.vocab_size, groups.tensor_size)
        self.collection, self.tp_group = groups.collection, groups.tensor
        self.pre_process, self.post_process, self.vp_stage = stage.first, stage.last, stage.chunk
        if stage.first:
            self.embedding = LanguageModelEmbedding(
                config=config,
                vocab_size=self.padded_vocab_size,
                max_sequence_length=spec.max_positions,
                position_embedding_type="rope",
                scatter_to_sequence_parallel=False,
                tp_group=groups.tensor,
            )
        self.rotary_pos_emb = RotaryEmbedding(
            kv_channels=spec.head_dim,
            rotary_percent=1.0,
            rotary_base=spec.rope_theta,  # type: ignore[arg-type]
            use_cpu_initialization=True,
            cp_group=groups.context,
        )
        first = get_transformer_layer_offset(config, stage.chunk, groups.pipeline_rank)
        layers = range(first, first + get_num_layers_to_build(config, stage.chunk, groups.pipeline_rank))
        emulated = Emulation(fp8.recipe, fp8) if fp8.emulated else None
        self.decoder = TransformerBlock(
            config=config,
            spec=layer_specs(spec, config, backend, layers, emulated),
            pre_process=stage.first,
            post_process=stage.last,
            pg_collection=groups.collection,
            vp_stage=stage.chunk,
        )
        if stage.first:
            add_deep_features(self.decoder, deep)
        if fp8.used:
            zero_padding(self.decoder)
        if config.fp8 and fp8.recipe != "delayed":
            keep_in_bf16(self.decoder, fp8)
        if stage.last:
            self.output_layer = ColumnParallelLinear(
                config.hidden_size,
                self.padded_vocab_size,
                config=config,
                init_method=config.init_method,
                bias=False,
                gather_output=True,
                skip_weight_param_allocation=spec.tied_embeddings and stage.first,
                tp_group=groups.tensor,
            )
        if spec.tied_embeddings:
            self._mark_tied(stage)

    def _mark_tied(self, stage: Stage) -> None:
        """With stages apart, the last one has a copy of the embedding: megatron-core sums the gradients of both, keeps
        them apart in its buffers, and leaves the copy out of norms."""
        if stage.first and not stage.last:
            self.embedding.word_embeddings.weight.shared_embedding = True
        elif stage.last and not stage.first:
            self.output_layer.weight.shared = self.output_layer.weight.shared_embedding = True

    @property
    def output_weight(self) -> Tensor:
        """[V / TP, h] of the output layer, which may be the embedding's."""
        own = self.output_layer.weight
        return self.embedding.word_embeddings.weight if own is None else own

    def embed(self, input_ids: Tensor) -> Tensor:
        """[b, S] ids -> [S, b, h], whole on every tensor-parallel rank."""
        return self.embedding(input_ids=input_ids, position_ids=None)

    def angles(
        self, position_ids: Tensor | None, length: int, packed: PackedSeqParams | None, cut: ContextCut
    ) -> Tensor:
        """Rotary angles as megatron-core's layers take them; `length`: the whole longest sequence's.

        With one axis [length, 1, 1, d], looked up from 0 in every sequence; with three (M-RoPE) [S, b, 1, d] by token
        from position_ids [3, b, S]: of the whole row if packed (the layers cut it), else of this rank's tokens.

        Raises:
            SophiaError: the model needs position_ids [3, b, S].
        """
        if self.spec.mrope is None:
            return self.rotary_pos_emb(length, packed_seq=packed is not None)
        if position_ids is None or position_ids.dim() != 3 or len(position_ids) != 3:
            shape = None if position_ids is None else list(position_ids.shape)
            raise SophiaError(f"the model needs position_ids [3, b, S], one row per axis, not {shape}")
        table = mrope_angles(position_ids, self.spec)
        return table if packed is not None else cut.select(table, 0)

    def decode(
        self, hidden: Tensor | None, angles: Tensor, packed: PackedSeqParams | None, deep: Tensor | None = None
    ) -> Tensor:
        """Run this stage's layers on [s, b, h] of this rank; `deep` [s, b, levels, h] is added behind the first layers.

        `hidden` None: the input came from the stage before (`set_input_tensor`).
        """
        return self.decoder(
            hidden_states=hidden, attention_mask=None, context=deep, rotary_pos_emb=angles, packed_seq_params=packed
        )

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """As megatron-core's language models: the vocabulary may be padded to another size where it is loaded."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        name = f"{prefix}output_layer.weight"
        if self.post_process and not self.spec.tied_embeddings:
            state[name].allow_shape_mismatch = True
        elif self.post_process and not self.pre_process:
            # a copy of the embedding, which the first stage saves
            rank = (metadata or {})["dp_cp_group"].rank()
            state[name] = make_tp_sharded_tensor_for_checkpoint(
                self.output_weight,
                f"{prefix}embedding.word_embeddings.weight",
                replica_id=(1, 0, rank),
                allow_shape_mismatch=True,
                tp_group=self.tp_group,
                dp_cp_group=(metadata or {})["dp_cp_group"],
            )
        return state
