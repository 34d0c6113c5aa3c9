"""The model as one megatron-core module per pipeline stage: images into the text, language model, log-probs of targets.

Order inside `forward`, which context and sequence parallelism depend on: merge image features into the whole row's
embeddings, cut for context parallelism, scatter for sequence parallelism.

Legend: b rows of S tokens, s = S / CP tokens of this rank, H hidden size, V vocabulary, T rows of pixels, N pictures,
F features of image tokens in L levels (`model.images`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.model.images import (
    Grid,
    ImageEncoder,
    PictureCache,
    Pixels,
    check_image_tokens,
    fill_image_tokens,
    spread_image_tokens,
    trainable,
)
from sophia_mcore.model.language import LanguageModel, Stage, transformer_config
from sophia_mcore.model.names import canonical_name
from sophia_mcore.model.padding import mark_padding
from sophia_mcore.model.vision import kind_of
from sophia_mcore.objective.logprob import Coefficients, token_entropies, token_logprobs
from sophia_mcore.parallel.backend import Backend
from sophia_mcore.parallel.context import ContextCut
from sophia_mcore.parallel.groups import Groups
from sophia_mcore.parallel.layout import check_run_layout
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.tensors import cut_of


@dataclass(frozen=True, slots=True)
class Scores:
    """What the last stage says about the targets of whole rows, the same on every rank of the row."""

    logprobs: Tensor  # [b, S] fp32, natural logarithm; 0 without a target
    entropies: Tensor | None = None  # [b, S] fp32, nats, without gradient; None: not asked for


class VisionLanguageModel(MegatronModule):
    """One pipeline stage (or virtual chunk) of the model.

    The first has the vision tower, projector and embedding; the last the output layer.
    """

    def __init__(
        self, spec: ModelSpec, config: Config, groups: Groups, backend: Backend, vp_stage: int | None = None
    ) -> None:
        stage = Stage.of_rank(groups, vp_stage)
        super().__init__(transformer_config(spec.language, config.train, config.fp8, groups, backend))
        self.spec, self.groups, self.vp_stage = spec, groups, vp_stage
        self.pre_process, self.post_process = stage.first, stage.last
        self.chunk_tokens = config.objective.chunk_tokens
        self.fp8 = config.fp8.used
        # megatron-core's schedules and gradient finalisation read these
        self.model_type = ModelType.encoder_or_decoder
        self.share_embeddings_and_output_weights = spec.language.tied_embeddings
        self.tp_group = groups.tensor
        if self.pre_process and spec.vision is not None and spec.projector is not None:
            dtype, recompute = self.config.params_dtype, config.train.recompute != "none"
            device = backend.device if backend.kind == "cuda" else None  # None: a meta context may choose
            recompute = recompute and config.train.train_vision_tower
            build_images = kind_of(spec).build
            self.vision, self.projector = build_images(spec.vision, spec.projector, dtype, device, recompute)
            self.vision.requires_grad_(config.train.train_vision_tower)
            self.projector.requires_grad_(config.train.train_projector)
        self.language = LanguageModel(spec.language, self.config, config, groups, backend, stage, deep=spec.levels - 1)
        self.padded_vocab_size = self.language.padded_vocab_size
        self._pictures = PictureCache()
        self._mark_parameters()

    def _mark_parameters(self) -> None:
        """Mark the parameters that are cut, and those whose gradient is combined over the tensor-parallel ranks."""
        for name, parameter in self.named_parameters():
            cut = cut_of(canonical_name(self, name))
            if cut is not None and not hasattr(parameter, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(parameter, True, cut.axis, 1)
            if name.startswith(("vision.", "projector.")) and self.groups.tensor_size > 1:
                parameter.average_gradients_across_tp_domain = True  # type: ignore[attr-defined]

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor | None] | None) -> None:
        """Take the hidden states [s, b, H] of the stage before (called by the pipeline schedule)."""
        if isinstance(input_tensor, list):
            (input_tensor,) = input_tensor
        self.language.decoder.set_input_tensor(input_tensor)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        pixel_values: Tensor | None = None,
        feature_index: Tensor | None = None,
        targets: Tensor | None = None,
        coefficients: Coefficients | None = None,
        *,
        picture_grids: Sequence[Grid] | None = None,
        picture_keys: Sequence[str] = (),
        sample_ids: Sequence[str] = (),
        real_tokens: Tensor | None = None,
        entropies: bool = False,
    ) -> Tensor | Scores:
        """Hidden states, log-probs or logits of whole rows; all ranks of a row get the same arguments.

        Args:
            input_ids: [b, S]. Packed rows: b = 1 and `packed_seq_params` in "thd" format covering all S tokens.
            position_ids: [3, b, S] for a model with three axes (M-RoPE); for others unused, positions count from 0 in
                every sequence.
            pixel_values: [T, *row_shape] rows of pixels of distinct pictures; feature_index [image tokens]: which of
                their features fills each image token, in the order of the rows.
            picture_grids: rows and columns of the N pictures; None: every row of pixels is one (tiles).
            targets: [b, S] ids whose log-prob is wanted, already shifted; negative: none.
            coefficients: d loss / d log-prob up to a factor, [b, S], or a function (log-probs [C], places [C] in the
                flattened [b, S]) -> [C]; see `objective.logprob`.
            picture_keys: names of the N pictures, for `start_step`; () encodes every picture of every row.
            sample_ids: names of the sequences, for error messages.
            entropies: also compute the entropies at the targets.
            real_tokens: [b, S] bool, False on padding; under FP8 padding then takes no part in scales (packed rows).

        Returns:
            Not last stage: hidden states [s, b, H]. Last stage: Scores; without `targets` logits [b, S, V], for checks
            only.

        Raises:
            SophiaError: image tokens and features do not match (names the sample), or the positions are missing.
            ValueError: a sequence's length does not fit the layout.
        """
        boundaries = self._boundaries(input_ids, packed_seq_params)
        cut = ContextCut(boundaries, self.groups.context, input_ids.device)
        hidden = deep = None
        if self.pre_process:
            features = self._features(pixel_values, picture_grids, picture_keys)
            hidden, deep = self._embed(input_ids, feature_index, features, boundaries, sample_ids)
            hidden, deep = (self._own_part(whole, cut) for whole in (hidden, deep))
        longest = max(end - start for start, end in pairwise(boundaries))
        if self.fp8 and packed_seq_params is not None and real_tokens is not None:
            shares = self.groups.tensor_size if self.config.sequence_parallel else 1
            mark_padding(packed_seq_params, cut.select(real_tokens.transpose(0, 1), 0), self.groups.tensor_rank, shares)
        angles = self.language.angles(position_ids, longest, packed_seq_params, cut)
        hidden = self.language.decode(hidden, angles, packed_seq_params, deep)
        if not self.post_process:
            return hidden
        if targets is None:
            logits, _ = self.language.output_layer(hidden, weight=self.language.output_weight)
            return cut.join(logits, 0).transpose(0, 1)[..., : self.spec.language.vocab_size]
        return self._scores(hidden, targets, coefficients, cut, entropies)

    def _own_part(self, whole: Tensor | None, cut: ContextCut) -> Tensor | None:
        """This rank's tokens of [S, b, ...]."""
        if whole is None:
            return None
        own = cut.select(whole, 0)
        if self.config.sequence_parallel:
            own = scatter_to_sequence_parallel_region(own, group=self.tp_group)
        return own

    def shared_embedding_or_output_weight(self) -> Tensor:
        """The embedding, or the last stage's copy of it; megatron-core sums both gradients of a tied one."""
        return self.language.embedding.word_embeddings.weight if self.pre_process else self.language.output_weight

    def start_step(self, rows_of_pictures: Mapping[str, int]) -> None:
        """Begin a step: in how many of its rows each picture appears, by `picture_keys`; a frozen tower encodes each
        once.

        Call before every step (parameters or pictures may have changed since); {} encodes every row's pictures anew.
        """
        self._pictures.start(rows_of_pictures)

    def encode_images(self, pixel_values: Tensor, grids: Sequence[Grid] | None = None) -> Tensor:
        """Rows of pixels -> features [F, L, H], each picture on one of the ranks that hold the row."""
        return self._encoder()(Pixels.of(pixel_values, grids))

    def _encoder(self) -> ImageEncoder:
        assert self.spec.family is not None, "a model with a tower"
        return ImageEncoder(
            self.vision, self.projector, self.groups.collection.tp_cp, self.groups.context,
            tokens=self._tokens, levels=self.spec.levels, rows_at_once=self.spec.family.rows_at_once,
        )  # fmt: skip

    def _tokens(self, rows: int) -> int:
        """Image tokens of a picture of so many rows of pixels."""
        return kind_of(self.spec).tokens(self.spec.vision, self.spec.projector, rows)

    def _boundaries(self, input_ids: Tensor, packed: PackedSeqParams | None) -> list[int]:
        """Where the row's sequences begin, and its end; checked against the layout and the model's positions."""
        rows, length = input_ids.shape
        boundaries = [0, length] if packed is None else packed.cu_seqlens_q.tolist()
        if boundaries[-1] != length or (packed is not None and rows != 1):
            raise ValueError(f"packed sequences end at {boundaries[-1]}, the batch is {rows} x {length} tokens")
        longest = max(end - start for start, end in pairwise(boundaries))
        if longest > self.spec.language.max_positions:
            raise SophiaError(
                f"a sequence of {longest} tokens exceeds the model's {self.spec.language.max_positions} positions"
            )
        unit = self.groups.parallel.row_multiple(self.fp8)
        if length % unit:
            raise ValueError(f"a row of {length} tokens is not a multiple of {unit}, which the layout needs: pad it")
        return boundaries

    def _features(
        self, pixel_values: Tensor | None, grids: Sequence[Grid] | None, keys: Sequence[str]
    ) -> Tensor | None:
        """[F, L, H] of the row's pictures, None without any."""
        if pixel_values is None or len(pixel_values) == 0:
            return None
        kind_of(self.spec)  # refuses a model without a tower
        pictures, encoder = Pixels.of(pixel_values, grids), self._encoder()
        if not keys or trainable(self.vision):
            return encoder(pictures)
        if trainable(self.projector):
            seen = self._pictures.encode(keys, pictures, lambda rows: rows, encoder.see)
            return encoder.project(seen, pictures.grids)
        return self._pictures.encode(keys, pictures, self._tokens, encoder)

    def _embed(
        self, input_ids: Tensor, feature_index: Tensor | None, features: Tensor | None, boundaries: list[int],
        sample_ids: Sequence[str],
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """[b, S] ids and image features -> [S, b, H], and [S, b, L - 1, H] for the first layers if there are levels."""
        hidden = self.language.embed(input_ids)
        spec = self.spec
        if spec.vision is None or spec.image_token_id is None:
            return hidden, None
        index = feature_index if feature_index is not None else input_ids.new_empty(0)
        count = 0 if features is None else len(features)
        check_image_tokens(input_ids, index, count, spec.image_token_id, boundaries, sample_ids)
        if features is not None and len(index):
            chosen = features[index]
            hidden = fill_image_tokens(hidden, chosen[:, 0], input_ids, spec.image_token_id)
            deep = chosen[:, 1:].to(hidden.dtype)
            return hidden, spread_image_tokens(deep, input_ids, spec.image_token_id) if deep.shape[1] else None
        if torch.is_grad_enabled() and (trainable(self.vision) or trainable(self.projector)):
            # every trained parameter must take part in every backward: data parallelism waits for its gradient
            blank = kind_of(spec).blank(spec.vision)
            hidden = hidden + 0.0 * self.encode_images(blank.values.to(input_ids.device), blank.grids).sum()
        return hidden, None

    def _scores(
        self, hidden: Tensor, targets: Tensor, coefficients: Coefficients | None, cut: ContextCut, entropies: bool
    ) -> Scores:
        """From [s, b, H] of this rank and whole-row targets [b, S]."""
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True, group=self.tp_group)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=self.tp_group)
        rows, length = targets.shape
        local = cut.select(targets.transpose(0, 1), 0)

        def of_places(logprobs: Tensor, places: Tensor) -> Tensor:
            whole = places % rows * length + cut.positions(places // rows)
            return coefficients(logprobs, whole)  # type: ignore[operator,misc]

        if isinstance(coefficients, Tensor):
            coefficients_T: Coefficients | None = cut.select(coefficients.transpose(0, 1), 0).reshape(-1)
        else:
            coefficients_T = None if coefficients is None else of_places
        where: Any = {
            "group": self.tp_group,
            "vocab_size": self.spec.language.vocab_size,
            "chunk_tokens": self.chunk_tokens,
        }
        inputs = (hidden.reshape(-1, hidden.shape[-1]), self.language.output_weight, local.reshape(-1))
        logprobs = token_logprobs(*inputs, coefficients_T=coefficients_T, **where)

        def whole_rows(values_T: Tensor) -> Tensor:
            return cut.join(values_T.view(-1, rows), 0).transpose(0, 1)

        return Scores(whole_rows(logprobs), whole_rows(token_entropies(*inputs, **where)) if entropies else None)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """Keys are the canonical names (norms under Transformer Engine's), one per layer, so any stage split loads."""
        return super().sharded_state_dict(prefix, sharded_offsets, {**(metadata or {}), "non_homogeneous_layers": True})


def build(spec: ModelSpec, config: Config, groups: Groups, backend: Backend) -> list[nn.Module]:
    """This rank's part of the model: one module per virtual pipeline chunk, parameters allocated but not filled.

    Call inside `backend.adapt()`. Fill with `weights.load.load_hf` or a distributed checkpoint.

    Raises:
        UsageError: the layout does not fit the model, or the model needs something that this implementation lacks.
    """
    check_run_layout(spec, config, groups.parallel)
    backend.check_attention(config.train.dtype, groups.context_size)
    backend.check_fp8(config.fp8.recipe, config.fp8.backend)
    if spec.vision is not None and spec.image_token_id is None:
        raise UsageError(
            "the id of the image token is unknown: the model folder has no tokenizer and no image_token_id"
        )
    stages = groups.parallel.virtual_pipeline
    numbers = [None] if stages is None else list(range(stages))
    return [VisionLanguageModel(spec, config, groups, backend, stage) for stage in numbers]
