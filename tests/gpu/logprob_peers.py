"""The objective's log-probs and gradients on one GPU beside other kernels: seconds, memory, errors; JSON in one call.

python -m tests.gpu.logprob_peers OUT.json [--tokens 8192] [--vocabulary 151674] [--hidden 3584 5120]
    [--chunks 512 1024 4096]

Cases: `naive` (logits, log_softmax, gather, autograd), `floor` (its three matrix products), `nll N`, `ratio N`,
`sequence N` (filtered NLL, GRPO, GSPO with chunk_tokens = N), and where they are installed `te` (Transformer Engine's
cross entropy on whole logits), `liger` (fused linear cross entropy), `cce` (cut cross entropy, no gradient filter).
The peers know the plain NLL only. Errors are relative to fp32 products of the same bf16 inputs. A case that fails is
written down with its error; the rest goes on. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.gpu.gpu_world import require_gpu

Loss = Callable[[Tensor, Tensor], Tensor]  # (hidden, weight) -> summed loss
REPEATS = 5


def ours(objective: str, chunk: int, targets: Tensor, vocabulary: int) -> Loss:
    """The sum of the objective's loss through `token_logprobs`, every token with weight 1."""
    from sophia_mcore.config.schema import Objective
    from sophia_mcore.objective.logprob import token_logprobs
    from sophia_mcore.objective.losses import Tokens, coefficients, objective_loss

    count, device = len(targets), targets.device
    config = Objective.model_validate({"loss": {"name": objective}, "behaviour": "reference", "chunk_tokens": chunk})
    tokens = Tokens(
        mask_T=torch.ones(count, dtype=torch.bool, device=device),
        weights_T=torch.ones(count, device=device),
        scale_T=torch.ones(count, device=device),
        sequence_ids_T=torch.arange(count, device=device) * 8 // count,
        sequences=8,
        kind_T=torch.zeros(count, dtype=torch.long, device=device),
        behaviour_T=torch.full((count,), -12.0, device=device),
    )

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        known = coefficients(tokens, config)
        logprobs = token_logprobs(
            hidden, weight, targets, vocab_size=vocabulary, chunk_tokens=chunk, coefficients_T=known
        )
        return objective_loss(logprobs, tokens, config).sum

    return loss


def peers(targets: Tensor) -> dict[str, Loss]:
    """The naive way, and what is installed."""

    def naive(hidden: Tensor, weight: Tensor) -> Tensor:
        logprobs = torch.log_softmax((hidden @ weight.T).float(), -1)
        return -logprobs.gather(1, targets[:, None]).sum()

    found: dict[str, Loss] = {"naive": naive}
    if importlib.util.find_spec("transformer_engine"):
        from transformer_engine.pytorch.cross_entropy import parallel_cross_entropy

        found["te"] = lambda hidden, weight: parallel_cross_entropy((hidden @ weight.T)[None], targets[None]).sum()
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
        found["liger"] = lambda hidden, weight: liger(weight, hidden, targets)
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        found["cce"] = lambda hidden, weight: linear_cross_entropy(
            hidden, weight, targets, reduction="sum", filter_eps=None
        )
    return found


def measure(work: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of one call, and how far peak memory rises above what was there, in MB."""
    work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(REPEATS):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()
        stop.synchronize()
        seconds.append(start.elapsed_time(stop) / 1e3)
    extra = torch.cuda.max_memory_allocated() - before
    return {"seconds": sorted(seconds)[REPEATS // 2], "extra_mb": extra / 1e6}


def case(loss: Loss, hidden: Tensor, weight: Tensor, wanted: Tensor | None) -> dict[str, float]:
    """Time and memory of loss and both gradients; error of the hidden states' gradient relative to `wanted`."""

    def work() -> None:
        hidden.grad = weight.grad = None
        loss(hidden, weight).backward()

    found = measure(work)
    if wanted is not None:
        assert hidden.grad is not None
        found["gradient_error"] = float((hidden.grad.float() - wanted).norm() / wanted.norm())
    hidden.grad = weight.grad = None
    return found


def exact_gradient(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """d sum of NLL / d hidden with fp32 products, 512 tokens at a time."""
    parts, matrix = [], weight.detach().float()
    for rows in torch.arange(len(targets), device=targets.device).split(512):
        probabilities = torch.softmax(hidden.detach()[rows].float() @ matrix.T, -1)
        probabilities[torch.arange(len(rows), device=rows.device), targets[rows]] -= 1.0
        parts.append(probabilities @ matrix)
    return torch.cat(parts)


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns, or its error in one line."""
    try:
        return work()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    finally:
        torch.cuda.empty_cache()


def width(hidden_size: int, options: argparse.Namespace, device: str) -> dict[str, Any]:
    """All cases at one width of the hidden states."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.vocabulary, hidden_size)
    hidden = torch.randn(options.tokens, hidden_size, generator=generator).to(device, torch.bfloat16).requires_grad_()
    weight = torch.randn(shape, generator=generator).mul_(hidden_size**-0.5).to(device, torch.bfloat16).requires_grad_()
    targets = torch.randint(0, options.vocabulary, (options.tokens,), generator=generator).to(device)
    wanted = exact_gradient(hidden, weight, targets)

    def floor() -> Any:
        with torch.no_grad():
            logits = hidden @ weight.T
            return logits @ weight, logits.T @ hidden

    found = {"floor": attempt(lambda: measure(floor))}
    for name, loss in peers(targets).items():
        found[name] = attempt(partial(case, loss, hidden, weight, wanted))
    for chunk in options.chunks:
        for name, objective in (("nll", "sophia"), ("ratio", "grpo"), ("sequence", "gspo")):
            loss = ours(objective, chunk, targets, options.vocabulary)
            compared = wanted if name == "nll" else None
            found[f"{name} {chunk}"] = attempt(partial(case, loss, hidden, weight, compared))
    return found


def main() -> None:
    """Measure everything; the file is rewritten after each width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151_674)
    parser.add_argument("--hidden", type=int, nargs="+", default=[3584, 5120])
    parser.add_argument("--chunks", type=int, nargs="+", default=[512, 1024, 4096])
    options = parser.parse_args()
    require_gpu()
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "hidden": {}}
    for hidden_size in options.hidden:
        result["hidden"][str(hidden_size)] = width(hidden_size, options, "cuda")
        options.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
