"""Gradients and optimizer: Megatron's DistributedDataParallel and (distributed) AdamW, learning rate by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from megatron.core import optimizer as mcore_optimizer
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, distrib_optimizer, get_megatron_optimizer
from megatron.core.transformer.module import MegatronModule
from megatron.core.utils import get_model_config
from torch.optim.adamw import adamw

from sophia_mcore.config.schema import Train

ADAM_EPSILON = 1e-8


def learning_rate(step: int, total_steps: int, train: Train) -> float:
    """Learning rate of update number ``step`` (from 0): linear warm-up, then cosine to its final fraction.

    The first update after warm-up has the peak rate, the last one peak x final_learning_rate_fraction.
    """
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    after = max(1, total_steps - train.warmup_steps - 1)
    progress = min(1.0, (step - train.warmup_steps) / after)
    floor = train.final_learning_rate_fraction
    return train.learning_rate * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def wrap_ddp(chunks: Sequence[MegatronModule], train: Train) -> list[DistributedDataParallel]:
    """Model chunks with contiguous fp32 gradient buffers, summed (not averaged) over data and context parallel ranks.

    The denominator is already in the loss coefficients, so nothing is divided here. Gradients are exchanged after the
    backward pass and parameters gathered right after the update, on every device: docs/gpu.md says what overlapping
    them with computation would gain, and which three faults it brought.
    """
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=train.distributed_optimizer,
        overlap_grad_reduce=False,
        overlap_param_gather=False,
    )
    model_config = get_model_config(chunks[0])
    if not model_config.calculate_per_token_loss:
        raise ValueError("the model's config needs calculate_per_token_loss=True: losses here are sums")
    wrapped = [
        DistributedDataParallel(model_config, config, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    model_config.finalize_model_grads_func = _without_token_count(model_config.finalize_model_grads_func)
    return wrapped


def require_current_parameters(chunks: Sequence[DistributedDataParallel]) -> None:
    """Make sure that the parameters of all ranks are those of the last update; call it before they are written.

    With overlap_param_gather a rank has only its own share of them until the next forward pass gathers the others':
    they are gathered now. All ranks call it together.

    Raises ValueError where the optimizer's state cannot be saved: megatron-core takes the state of parameters behind
    padding inside a buffer from the wrong places.
    """
    for chunk in chunks:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            last = buffer.buckets[-1]
            padded = [bucket for bucket in buffer.buckets if bucket.numel_unpadded != bucket.grad_data.numel()]
            if chunk.ddp_config.use_distributed_optimizer and any(bucket is not last for bucket in padded):
                raise ValueError(
                    "a gradient buffer is padded between its buckets: its optimizer state is saved wrongly"
                )
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def build_optimizer(
    wrapped: Sequence[DistributedDataParallel], train: Train, fp8_recipe: str | None = None
) -> MegatronOptimizer:
    """AdamW over the trainable parameters: fp32 master weights, no decay on vectors (norms, biases, layer scales).

    ``fp8_recipe``: of Transformer Engine's products, None without them.
    """
    if mcore_optimizer.USING_PYTORCH_OPTIMIZER:
        _provide_fused_adam()
    config = OptimizerConfig(
        optimizer="adam",
        lr=train.learning_rate,
        min_lr=train.learning_rate * train.final_learning_rate_fraction,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_eps=ADAM_EPSILON,
        clip_grad=train.clip_gradient_norm,
        bf16=train.dtype == "bfloat16",
        fp8_recipe=fp8_recipe,
        params_dtype=torch.bfloat16 if train.dtype == "bfloat16" else torch.float32,
        use_distributed_optimizer=train.distributed_optimizer,
    )
    return get_megatron_optimizer(config, list(wrapped), use_gloo_process_groups=False)


def set_learning_rate(optimizer: MegatronOptimizer, rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]


class Adam(torch.optim.Optimizer):
    """torch's fused AdamW with the interface of FusedAdam, the optimizer of apex and Transformer Engine.

    The step count lives in the parameter group and the state holds exp_avg and exp_avg_sq only. With torch's own
    AdamW the distributed optimizer takes another branch, which saves but cannot load.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = ADAM_EPSILON,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        if not adam_w_mode or capturable:
            raise ValueError("only decoupled weight decay (AdamW) is implemented, and no capture in CUDA graphs")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; groups without parameters do not count steps."""
        if closure is not None:
            raise ValueError("a closure is not supported")
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            parameters = [p for p in group["params"] if p.grad is not None and p.numel() > 0]
            if parameters:
                self._update(group, parameters)

    def _update(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [self.state[p]["exp_avg"] for p in parameters],
            [self.state[p]["exp_avg_sq"] for p in parameters],
            [],
            [torch.tensor(float(group["step"] - 1), device=p.device) for p in parameters],  # adamw adds 1
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _provide_fused_adam() -> None:
    """Let megatron-core find `Adam` above where neither apex nor Transformer Engine brings a FusedAdam."""
    mcore_optimizer.Adam = Adam
    mcore_optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.Adam = Adam
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True


def _without_token_count(finalize: Callable[..., None] | None) -> Callable[..., None]:
    """Gradient finalisation that does not divide by the schedule's token count: the loss holds the denominator."""

    def finalize_sums(model: list[DistributedDataParallel], num_tokens: Any = None, **kwargs: Any) -> None:
        (finalize or finalize_model_grads)(model, None, **kwargs)

    return finalize_sums
