"""Settings of FP8 training and of the check that admits it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from sophia_mcore.config.base import Fraction, Positive, Section

Recipe = Literal["none", "tensorwise", "delayed", "blockwise"]


class Fp8Check(Section):
    """How `sophia fp8-check` measures, and the thresholds that admit FP8 to training."""

    skip: bool = False  # True: train even if `sophia fp8-check` has not passed
    samples: PositiveInt = 64  # samples of the training set for which log-probs and gradients are compared
    steps: PositiveInt = 200  # length of the two loss curves
    max_logprob_gap_mean: Positive = 0.05  # nats per target token, absolute
    max_logprob_gap_p99: Positive = 0.5
    min_gradient_cosine: Fraction = 0.95  # of every FP8 layer
    max_gradient_norm_gap: Positive = 0.1  # |norm ratio - 1| of every FP8 layer
    max_loss_gap: Positive = 0.01  # relative, of the mean loss over the last half of the curve


class Fp8(Section):
    """Which matrix products of training are FP8, and how. "bf16" here means `train.dtype`.

    Only the linear layers of the language model's decoder are FP8. Embeddings, output layer (lm_head), norms, the
    product of queries and keys, vision tower and projector are always bf16. Layers that stay in bf16 cost speed, not
    memory.
    """

    recipe: Recipe = "none"  # how the operands of the products are scaled
    # emulated: values are rounded to FP8 and multiplied in fp32; slow, for checks without an FP8 device
    backend: Literal["transformer_engine", "emulated"] = "transformer_engine"
    format: Literal["hybrid", "e4m3"] = "hybrid"  # hybrid: gradients in E5M2
    layers_at_start_in_bf16: int = Field(default=0, ge=0)
    layers_at_end_in_bf16: int = Field(default=0, ge=0)
    layers_in_bf16: tuple[int, ...] = ()  # further layers, counted from 0, such as `sophia fp8-check` proposes
    attention_in_bf16: bool = False  # the projections to queries, keys, values and back
    amax_history: PositiveInt = 1024  # delayed: number of earlier forward passes that decide a scale
    amax_algorithm: Literal["max", "most_recent"] = "max"  # delayed
    check: Fp8Check = Fp8Check()

    @property
    def used(self) -> bool:
        """Whether training uses FP8."""
        return self.recipe != "none"

    @property
    def native(self) -> bool:
        """Whether training uses FP8 of Transformer Engine."""
        return self.used and self.backend == "transformer_engine"

    @property
    def emulated(self) -> bool:
        """Whether training emulates FP8 by rounding."""
        return self.used and self.backend == "emulated"

    def in_bf16(self, layer: int, layers: int) -> bool:
        """Whether decoder layer number ``layer`` of ``layers`` stays in bf16."""
        start, end = self.layers_at_start_in_bf16, self.layers_at_end_in_bf16
        return layer < start or layer >= layers - end or layer in self.layers_in_bf16

    @model_validator(mode="after")
    def _check_combination(self) -> Fp8:
        keeps = self.layers_at_start_in_bf16 or self.layers_at_end_in_bf16 or self.layers_in_bf16
        if self.recipe == "delayed" and (keeps or self.attention_in_bf16):
            raise ValueError("the delayed recipe shares its scales' update between layers, so none can stay in bf16")
        if any(layer < 0 for layer in self.layers_in_bf16):
            raise ValueError(f"layers_in_bf16 = {list(self.layers_in_bf16)}: layers are counted from 0")
        return self
