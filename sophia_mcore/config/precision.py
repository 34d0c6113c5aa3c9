"""Settings of FP8 training and of the check that admits it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from sophia_mcore.config.base import Fraction, Positive, Section

Recipe = Literal["none", "tensorwise", "delayed", "blockwise"]


class Fp8(Section):
    """Details of `train.fp8`, in force when that is not "none". "bf16" here means `train.dtype`.

    Only the linear layers of the language model's decoder are FP8: embeddings, output layer (lm_head), norms, the
    product of queries and keys, vision tower and projector always stay in bf16. Kept layers cost speed, not memory.
    """

    format: Literal["hybrid", "e4m3"] = "hybrid"  # hybrid: gradients in E5M2
    layers_at_start_in_bf16: int = Field(default=0, ge=0)
    layers_at_end_in_bf16: int = Field(default=0, ge=0)
    layers_in_bf16: tuple[int, ...] = ()  # further ones, counted from 0: what `sophia fp8-check` proposes
    attention_in_bf16: bool = False  # the projections to queries, keys, values and back
    primary_weights: bool = False  # weights live in FP8 (master weights stay fp32); Transformer Engine only
    amax_history: PositiveInt = 1024  # delayed: how many forward passes a scale looks back
    amax_algorithm: Literal["max", "most_recent"] = "max"  # delayed
    without_check: bool = False  # True: train although `sophia fp8-check` has not passed
    check_samples: PositiveInt = 64  # of the round's training set, for log-probs and gradients
    check_steps: PositiveInt = 200  # of the two loss curves
    max_logprob_gap_mean: Positive = 0.05  # nats per target token, absolute
    max_logprob_gap_p99: Positive = 0.5
    min_gradient_cosine: Fraction = 0.95  # of every FP8 layer
    max_gradient_norm_gap: Positive = 0.1  # |norm ratio - 1| of every FP8 layer
    max_loss_gap: Positive = 0.01  # relative, of the mean loss over the last half of the curve

    def in_bf16(self, layer: int, layers: int) -> bool:
        """Whether decoder layer number ``layer`` of ``layers`` stays in bf16."""
        start, end = self.layers_at_start_in_bf16, self.layers_at_end_in_bf16
        return layer < start or layer >= layers - end or layer in self.layers_in_bf16

    def problem(self, recipe: Recipe, backend: str) -> str | None:
        """Why these settings cannot be used together, or None."""
        keeps = self.layers_at_start_in_bf16 or self.layers_at_end_in_bf16 or self.layers_in_bf16
        if recipe == "delayed" and (keeps or self.attention_in_bf16):
            return "fp8: the delayed recipe shares its scales' update between layers, so none can stay in bf16"
        if any(layer < 0 for layer in self.layers_in_bf16):
            return f"fp8.layers_in_bf16 = {list(self.layers_in_bf16)}: layers are counted from 0"
        if self.primary_weights and backend != "transformer_engine":
            return "fp8.primary_weights needs train.fp8_backend = 'transformer_engine'"
        if self.primary_weights and (self.layers_in_bf16 or self.attention_in_bf16):
            return "fp8.primary_weights: only whole layers at start and end can stay in bf16 (layers_at_*_in_bf16)"
        return None
