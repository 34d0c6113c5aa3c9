"""Log-probs of tokens from hidden states. The whole [tokens, vocabulary] matrix of logits is never stored.

Shapes: T tokens, H hidden size, V vocabulary rows held by this tensor-parallel rank (padding rows included),
C tokens of one chunk, B vocabulary rows of one block.

There are two ways to compute the gradient of log p(target) = z_target - logsumexp(z), z = hidden weight^T:

* In the forward pass, if the coefficient d loss / d log-prob of each token is known there. This holds for the filtered
  NLL, and for every objective in which the coefficient depends on that token alone.
* In the backward pass, which recomputes the logits from the stored log-sum-exp.

There are two ways to divide the matrix:

* Chunks of tokens with all their logits. This needs three matrix products, but it reads the weight and adds to its
  gradient once per chunk. It is faster for large chunks.
* Blocks of the vocabulary with all tokens. This reads and writes everything once and needs no fp32 copy of the weight's
  gradient. But it needs a fourth product, because the softmax is known only after the last block. It is faster for
  small chunks, and the only way when the backward pass recomputes the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

# With fewer tokens per chunk, reading the weight for each chunk costs more than a fourth matrix product.
ONE_PASS_TOKENS = 512

Coefficients = Tensor | Callable[[Tensor, Tensor], Tensor]


def token_logprobs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    vocab_size: int,
    chunk_tokens: int,
    coefficients_T: Coefficients | None = None,
) -> Tensor:
    """Natural-log probability [T] fp32 of each target; 0 where the target is negative (`batch.samples.IGNORE`).

    Args:
        hidden_TH: final hidden states, the same on every rank of `group` (after the sequence-parallel gather).
        weight_VH: this rank's rows of the output layer; rank r holds vocabulary ids [r V, (r + 1) V).
        targets_T: int64 vocabulary ids, the same on every rank of `group`.
        group: tensor-parallel process group. None or a group of one rank: weight_VH is the whole weight.
        vocab_size: true size of the vocabulary. Rows from there on are padding: they are not part of the softmax and
            get no gradient.
        chunk_tokens: at most about chunk_tokens x V logits exist at any time.
        coefficients_T: d loss / d log-prob up to one common factor, as [T] or as a function
            (log-probs [C], positions [C] in T) -> [C]. If given, the gradient is computed in the forward pass, and the
            backward pass only scales it. So the incoming gradient must be a multiple of these coefficients.

    Gradients: the gradient of the weight is complete (ordinary autograd, so DDP hooks and `main_grad` see it). The
    gradient of hidden_TH covers only this rank's part of the vocabulary. THE CALLER must sum it over `group`. The
    backward of megatron-core's `copy_to_tensor_model_parallel_region` (all-reduce) does this; under sequence
    parallelism `gather_from_sequence_parallel_region(..., tensor_parallel_output_grad=True)` (reduce-scatter) does.

    Raises:
        ValueError: shapes do not fit, a target is not below vocab_size, chunk_tokens < 1.
        RuntimeError: the incoming gradient is not a multiple of coefficients_T, or backward runs twice.
    """
    shard = _Shard(weight_VH, vocab_size, group)
    rows_N = _wanted_rows(hidden_TH, weight_VH, targets_T, vocab_size, chunk_tokens)
    needs_gradient = torch.is_grad_enabled() and (hidden_TH.requires_grad or weight_VH.requires_grad)
    if not needs_gradient:
        logsumexp_N, target_N = _values(hidden_TH[rows_N], shard, targets_T[rows_N], chunk_tokens)
        return _spread(target_N - logsumexp_N, rows_N, len(targets_T))
    if coefficients_T is None:
        return _Recompute.apply(hidden_TH, weight_VH, targets_T, rows_N, shard, chunk_tokens)
    return _InForward.apply(hidden_TH, weight_VH, targets_T, rows_N, shard, chunk_tokens, coefficients_T)


@torch.no_grad()
def token_entropies(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    vocab_size: int,
    chunk_tokens: int,
) -> Tensor:
    """Entropy [T] fp32 (nats) of the next-token distribution at positions with a target, else 0. Has no gradient.

    Arguments and memory as in `token_logprobs`. This costs one more matrix product.
    """
    shard = _Shard(weight_VH, vocab_size, group)
    rows_N = _wanted_rows(hidden_TH, weight_VH, targets_T, vocab_size, chunk_tokens)
    hidden_NH = hidden_TH[rows_N]
    logsumexp_N, _ = _values(hidden_NH, shard, targets_T[rows_N], chunk_tokens)
    entropy_N = torch.zeros_like(logsumexp_N)
    for start, stop in shard.blocks(len(rows_N), chunk_tokens):
        logprobs_NB = _matmul(hidden_NH, shard.weight_VH[start:stop].T).sub_(logsumexp_N[:, None])
        entropy_N -= (logprobs_NB.exp() * logprobs_NB).sum(1)
        del logprobs_NB
    return _spread(shard.sum(entropy_N), rows_N, len(targets_T))


class _Shard:
    """This rank's rows of the vocabulary without padding, and reductions over the tensor-parallel ranks."""

    def __init__(self, weight_VH: Tensor, vocab_size: int, group: dist.ProcessGroup | None) -> None:
        self.group = group if group is not None and group.size() > 1 else None
        rank = self.group.rank() if self.group is not None else 0
        self.first = rank * weight_VH.shape[0]
        rows = min(max(vocab_size - self.first, 0), weight_VH.shape[0])
        self.weight_VH = weight_VH.detach()[:rows]

    def max(self, values: Tensor) -> Tensor:
        if self.group is not None:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values

    def sum(self, values: Tensor) -> Tensor:
        if self.group is not None:
            dist.all_reduce(values, group=self.group)
        return values

    def locate(self, targets_N: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Find targets_N in local vocabulary rows [start, stop): (column [N, 1], clamped; 1.0 if inside, else 0.0)."""
        column_N = targets_N - (self.first + start)
        inside_N = (column_N >= 0) & (column_N < stop - start)
        return column_N.clamp(0, max(stop - start - 1, 0))[:, None], inside_N[:, None].float()

    def room(self, hidden_NH: Tensor, chunk_tokens: int) -> Tensor | None:
        """Memory for the fp32 logits of any block: new memory for each leaves a hole of its size in the heap."""
        if hidden_NH.dtype != torch.float32 or hidden_NH.is_cuda:
            return None
        widest = max((stop - start for start, stop in self.blocks(len(hidden_NH), chunk_tokens)), default=0)
        return hidden_NH.new_empty(len(hidden_NH) * widest)

    def blocks(self, tokens: int, chunk_tokens: int) -> list[tuple[int, int]]:
        """(start, stop) of vocabulary blocks; tokens x block has at most as many logits as chunk_tokens x V."""
        rows = self.weight_VH.shape[0]
        step = max(1, chunk_tokens * rows // max(tokens, 1))
        return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _wanted_rows(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, vocab_size: int, chunk_tokens: int) -> Tensor:
    """Check the arguments; returns the indices [N] of the tokens that have a target."""
    if hidden_TH.dim() != 2 or weight_VH.dim() != 2 or hidden_TH.shape[1] != weight_VH.shape[1]:
        raise ValueError(f"hidden {tuple(hidden_TH.shape)} and weight {tuple(weight_VH.shape)} must be [T, H], [V, H]")
    if targets_T.shape != hidden_TH.shape[:1]:
        raise ValueError(f"targets {tuple(targets_T.shape)} must be [T] = [{hidden_TH.shape[0]}]")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens = {chunk_tokens} must be at least 1")
    if len(targets_T) and int(targets_T.max()) >= vocab_size:
        raise ValueError(f"target {int(targets_T.max())} is not below the vocabulary size {vocab_size}")
    return torch.nonzero(targets_T >= 0).squeeze(1)


def _spread(values_N: Tensor, rows_N: Tensor, length: int) -> Tensor:
    return values_N.new_zeros(length).index_copy_(0, rows_N, values_N)


def _matmul(a: Tensor, b: Tensor, room: Tensor | None = None) -> Tensor:
    """a @ b with an fp32 result. Inputs of low precision are multiplied in their own type, which is fast.

    ``room``: memory for the result, if there is any (`_Shard.room`).
    """
    if a.dtype == torch.float32:
        return a @ b if room is None else torch.mm(a, b, out=room[: len(a) * b.shape[1]].view(len(a), b.shape[1]))
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else (a @ b).float()


def _add_matmul(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b, where out is fp32."""
    if a.dtype == torch.float32:
        out.addmm_(a, b)
    else:
        out += _matmul(a, b)


def _values(hidden_NH: Tensor, shard: _Shard, targets_N: Tensor, chunk_tokens: int) -> tuple[Tensor, Tensor]:
    """Log-sum-exp [N] over the whole vocabulary and target logit [N], fp32, one vocabulary block at a time."""
    hidden_NH = hidden_NH.detach()
    max_N = hidden_NH.new_full(hidden_NH.shape[:1], -torch.inf, dtype=torch.float32)
    total_N, target_N = torch.zeros_like(max_N), torch.zeros_like(max_N)
    room = shard.room(hidden_NH, chunk_tokens)
    for start, stop in shard.blocks(len(hidden_NH), chunk_tokens):
        logits_NB = _matmul(hidden_NH, shard.weight_VH[start:stop].T, room)
        column_N1, inside_N1 = shard.locate(targets_N, start, stop)
        target_N += (logits_NB.gather(1, column_N1) * inside_N1).squeeze(1)
        new_max_N = torch.maximum(max_N, logits_NB.amax(1))
        block_N = logits_NB.sub_(new_max_N[:, None]).exp_().sum(1)
        total_N = total_N * (max_N - new_max_N).exp() + block_N
        max_N = new_max_N
        del logits_NB  # free the memory before the next block is computed
    global_max_N = shard.max(max_N.clone())
    total_N, target_N = shard.sum(torch.stack((total_N * (max_N - global_max_N).exp(), target_N)))
    return global_max_N + total_N.log(), target_N


class _Recompute(torch.autograd.Function):
    """Stores the log-sum-exp. Backward recomputes the logits of all tokens, one vocabulary block at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        targets_T: Tensor,
        rows_N: Tensor,
        shard: _Shard,
        chunk_tokens: int,
    ) -> Tensor:
        logsumexp_N, target_N = _values(hidden_TH[rows_N], shard, targets_T[rows_N], chunk_tokens)
        ctx.save_for_backward(hidden_TH, weight_VH, targets_T, rows_N, logsumexp_N)
        ctx.shard, ctx.chunk_tokens = shard, chunk_tokens
        return _spread(target_N - logsumexp_N, rows_N, len(targets_T))

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, targets_T, rows_N, logsumexp_N = ctx.saved_tensors
        gradients = _block_gradients(
            hidden_TH, weight_VH, targets_T, rows_N, logsumexp_N, grad_T,
            ctx.shard, ctx.chunk_tokens, ctx.needs_input_grad[:2],
        )  # fmt: skip
        return (*gradients, None, None, None, None)


class _InForward(torch.autograd.Function):
    """Computes the gradients in the forward pass, together with the logits. Backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        targets_T: Tensor,
        rows_N: Tensor,
        shard: _Shard,
        chunk_tokens: int,
        coefficients_T: Coefficients,
    ) -> Tensor:
        form = _form_by_chunks if chunk_tokens >= ONE_PASS_TOKENS else _form_by_blocks
        logprobs_T, ctx.used_T, ctx.gradients = form(
            hidden_TH, weight_VH, targets_T, rows_N, shard, chunk_tokens, coefficients_T, ctx.needs_input_grad[:2]
        )
        ctx.rows_N, ctx.weight_dtype = rows_N, weight_VH.dtype
        return logprobs_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients were formed in the forward pass and are used up: one backward only")
        (grad_hidden_TH, grad_weight_VH), ctx.gradients = ctx.gradients, None
        scale = _common_factor(grad_T[ctx.rows_N].float(), ctx.used_T[ctx.rows_N])
        if grad_hidden_TH is not None:
            grad_hidden_TH *= scale
        if grad_weight_VH is not None:
            grad_weight_VH = grad_weight_VH.mul_(scale).to(ctx.weight_dtype)
        return grad_hidden_TH, grad_weight_VH, None, None, None, None, None


def _form_by_blocks(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    rows_N: Tensor,
    shard: _Shard,
    chunk_tokens: int,
    coefficients_T: Coefficients,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    """(log-probs [T], coefficients [T], gradients of hidden and weight), with four matrix products."""
    logsumexp_N, target_N = _values(hidden_TH[rows_N], shard, targets_T[rows_N], chunk_tokens)
    logprobs_N = target_N - logsumexp_N
    used_T = _spread(_coefficients(coefficients_T, logprobs_N, rows_N), rows_N, len(targets_T))
    gradients = _block_gradients(
        hidden_TH, weight_VH, targets_T, rows_N, logsumexp_N, used_T, shard, chunk_tokens, wanted
    )
    return _spread(logprobs_N, rows_N, len(targets_T)), used_T, gradients


def _form_by_chunks(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    rows_N: Tensor,
    shard: _Shard,
    chunk_tokens: int,
    coefficients_T: Coefficients,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    """Like `_form_by_blocks`, with three matrix products. The gradient of the weight is fp32."""
    grad_hidden_TH = torch.zeros_like(hidden_TH) if wanted[0] else None
    grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if wanted[1] else None
    logprobs_T = hidden_TH.new_zeros(len(targets_T), dtype=torch.float32)
    used_T = torch.zeros_like(logprobs_T)
    for rows_C in rows_N.split(chunk_tokens):
        hidden_CH = hidden_TH[rows_C]
        logprobs_C, gap_CV, norm_C = _chunk(hidden_CH, shard, targets_T[rows_C])
        coefficients_C = _coefficients(coefficients_T, logprobs_C, rows_C)
        logprobs_T[rows_C], used_T[rows_C] = logprobs_C, coefficients_C
        # d loss / d logits = -coefficient / norm * gap. Scaling rows of [C, H] is cheaper than rows of [C, V].
        factor_C1 = (-coefficients_C / norm_C)[:, None]
        if grad_hidden_TH is not None:
            grad_hidden_TH[rows_C] = _matmul(gap_CV, shard.weight_VH).mul_(factor_C1).to(hidden_TH.dtype)
        if grad_weight_VH is not None:
            scaled_CH = (hidden_CH * factor_C1).to(hidden_CH.dtype)
            _add_matmul(grad_weight_VH[: gap_CV.shape[1]], gap_CV.T, scaled_CH)
        del gap_CV
    return logprobs_T, used_T, (grad_hidden_TH, grad_weight_VH)


def _block_gradients(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    rows_N: Tensor,
    logsumexp_N: Tensor,
    grad_T: Tensor,
    shard: _Shard,
    chunk_tokens: int,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of hidden and weight for d loss / d log-prob = grad_T. Recomputes the logits block by block."""
    hidden_NH, targets_N, factor_N1 = hidden_TH[rows_N], targets_T[rows_N], -grad_T[rows_N].float()[:, None]
    scaled_NH = (hidden_NH * factor_N1).to(hidden_NH.dtype)
    grad_hidden_NH = torch.zeros_like(hidden_NH, dtype=torch.float32) if wanted[0] else None
    grad_weight_VH = torch.zeros_like(weight_VH) if wanted[1] else None
    room = shard.room(hidden_NH, chunk_tokens)
    for start, stop in shard.blocks(len(rows_N), chunk_tokens):
        block_BH = shard.weight_VH[start:stop]
        gap_NB = _matmul(hidden_NH, block_BH.T, room).sub_(logsumexp_N[:, None]).exp_()  # softmax - one-hot
        column_N1, inside_N1 = shard.locate(targets_N, start, stop)
        gap_NB = gap_NB.scatter_add_(1, column_N1, -inside_N1).to(hidden_NH.dtype)
        if grad_hidden_NH is not None:
            _add_matmul(grad_hidden_NH, gap_NB, block_BH)
        if grad_weight_VH is not None:
            torch.mm(gap_NB.T, scaled_NH, out=grad_weight_VH[start:stop])
        del gap_NB
    if grad_hidden_NH is None:
        return None, grad_weight_VH
    grad_hidden_NH = grad_hidden_NH.mul_(factor_N1).to(hidden_TH.dtype)
    return torch.zeros_like(hidden_TH).index_copy_(0, rows_N, grad_hidden_NH), grad_weight_VH


def _chunk(hidden_CH: Tensor, shard: _Shard, targets_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [C], norm (softmax - one-hot) [C, V] in the hidden dtype, and norm [C] = sum exp(z - max z)."""
    logits_CV = _matmul(hidden_CH, shard.weight_VH.T)
    column_C1, inside_C1 = shard.locate(targets_C, 0, logits_CV.shape[1])
    if logits_CV.shape[1] == 0:  # this rank has only padding rows, but it must join the reductions
        column_C1, inside_C1 = column_C1[:, :0], inside_C1[:, :0]
        max_C = shard.max(logits_CV.new_full(targets_C.shape, -torch.inf))
    else:
        max_C = shard.max(logits_CV.amax(1))
    target_C = (logits_CV.gather(1, column_C1) * inside_C1).sum(1)
    exp_CV = logits_CV.sub_(max_C[:, None]).exp_()
    norm_C, target_C = shard.sum(torch.stack((exp_CV.sum(1), target_C)))
    # subtract before rounding to low precision: for a confident token softmax - 1 is tiny and would be lost
    exp_CV.scatter_add_(1, column_C1, -inside_C1 * norm_C[:, None])
    return target_C - max_C - norm_C.log(), exp_CV.to(hidden_CH.dtype), norm_C


def _coefficients(coefficients_T: Coefficients, logprobs_C: Tensor, rows_C: Tensor) -> Tensor:
    if isinstance(coefficients_T, Tensor):
        return coefficients_T[rows_C].float()
    return coefficients_T(logprobs_C, rows_C).detach().float()


def _common_factor(grad_N: Tensor, used_N: Tensor) -> Tensor:
    """The scalar s with grad_N = s used_N (the loss scale); 0 if used_N is all 0. Raises RuntimeError if none fits."""
    square = used_N.square().sum()
    scale = torch.where(square > 0, (grad_N * used_N).sum() / square, square)
    wrong_N = (grad_N - scale * used_N).abs() > 1e-4 * (grad_N.abs() + (scale * used_N).abs())
    if bool(wrong_N.any()):
        raise RuntimeError("the loss's gradient is not a multiple of coefficients_T: these must be d loss / d log-prob")
    return scale
