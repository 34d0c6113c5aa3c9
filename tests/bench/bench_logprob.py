"""Token log-probs and their gradients from hidden states, against the naive way and its three matrix products.

python -m tests.bench.bench_logprob [--tokens 2048] [--vocabulary 151674] [--hidden 256] [--chunk 16] [--repeats 3]

Prints one JSON line. Every case runs in a fresh process on one thread; figures are CPU-seconds, best of the interleaved
repeats, and growth of peak memory over what the inputs take. Cases: `naive` (logits, log_softmax, gather, autograd),
`floor` (the naive way's three products and nothing else), `floor_blocked` (the same products over blocks of the
vocabulary, best of two block sizes: faster, as no large matrix goes through memory), `nll` (the filtered NLL), `ratio`
(GRPO: gradient formed in the forward pass), `sequence` (GSPO: recomputed in the backward pass).
memory_ratio: extra memory of `nll` over the naive way's; floor_ratio: its time over `floor`'s.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CASES = ("naive", "floor", "floor_blocked", "nll", "ratio", "sequence")


def case(name: str, options: argparse.Namespace) -> Callable[[], object]:
    """The work of one case on inputs that exist already."""
    import torch

    from sophia_mcore.config.schema import Objective
    from sophia_mcore.objective.logprob import token_logprobs
    from sophia_mcore.objective.losses import Tokens, coefficients, objective_loss

    torch.set_num_threads(1)
    count, rows = options.tokens, options.vocabulary
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, options.hidden, generator=generator).requires_grad_()
    weight = torch.randn(rows, options.hidden, generator=generator).mul_(0.05).requires_grad_()
    targets = torch.randint(0, rows, (count,), generator=generator)
    weights = torch.randn(count, generator=generator)

    def naive() -> None:
        logprobs = torch.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None]).squeeze(1)
        (-(weights * logprobs).sum() / count).backward()

    def floor() -> object:
        with torch.no_grad():
            logits = hidden @ weight.T
            return logits @ weight, logits.T @ hidden

    def floor_blocked() -> object:
        block = options.block
        with torch.no_grad():
            grad_hidden, grad_weight = torch.zeros_like(hidden), torch.empty_like(weight)
            for start in range(0, rows, block):
                part = weight[start : start + block]
                logits = hidden @ part.T
                grad_hidden.addmm_(logits, part)
                torch.mm(logits.T, hidden, out=grad_weight[start : start + block])
            return grad_hidden, grad_weight

    def ours(config: Objective) -> Callable[[], None]:
        tokens = Tokens(
            mask_T=torch.ones(count, dtype=torch.bool),
            weights_T=weights,
            scale_T=torch.ones(count),
            sequence_ids_T=torch.arange(count) * 8 // count,
            sequences=8,
            kind_T=torch.zeros(count, dtype=torch.long),
            behaviour_T=torch.full((count,), -12.0),
        )

        def work() -> None:
            known = coefficients(tokens, config)
            logprobs = token_logprobs(
                hidden, weight, targets, vocab_size=rows, chunk_tokens=options.chunk, coefficients_T=known
            )
            (objective_loss(logprobs, tokens, config).sum / count).backward()

        return work

    objectives = {"nll": "sophia", "ratio": "grpo", "sequence": "gspo"}
    if name in objectives:
        return ours(Objective.model_validate({"loss": {"name": objectives[name]}, "behaviour": "reference"}))
    return {"naive": naive, "floor": floor, "floor_blocked": floor_blocked}[name]


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """CPU-seconds and growth of peak memory (MB) of one case in this process."""
    work = case(name, options)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in memory now
    before = _memory("VmRSS")
    start = time.process_time()
    keep = work()
    seconds = time.process_time() - start
    del keep
    return {"cpu_seconds": seconds, "extra_mb": (_memory("VmHWM") - before) / 1e6}


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    """Run all cases, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 2048), ("vocabulary", 151_674), ("hidden", 256), ("chunk", 16), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--block", type=int, default=256, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options)))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for _ in range(options.repeats):
        for name in CASES:
            for block in (256, 1024) if name == "floor_blocked" else (256,):
                runs[name].append(_child(name, block, options))
    seconds = {name: min(run["cpu_seconds"] for run in runs[name]) for name in CASES}
    extra = {name: min(run["extra_mb"] for run in runs[name]) for name in CASES}
    print(
        json.dumps(
            {
                "name": "logprob",
                "ours": round(options.tokens / seconds["nll"], 1),
                "peer": round(options.tokens / seconds["naive"], 1),
                "ratio": round(seconds["naive"] / seconds["nll"], 3),
                "unit": "tokens/cpu-second, log-prob and gradient",
                "peer_name": "naive: logits, log_softmax, gather, autograd",
                "memory_ratio": round(extra["nll"] / extra["naive"], 4),
                "floor_ratio": round(seconds["nll"] / seconds["floor"], 3),
                "floor_ratio_ratio_objective": round(seconds["ratio"] / seconds["floor"], 3),
                "floor_ratio_sequence_objective": round(seconds["sequence"] / seconds["floor"], 3),
                "floor_ratio_blocked": round(seconds["nll"] / seconds["floor_blocked"], 3),
                "cpu_seconds": {name: round(value, 2) for name, value in seconds.items()},
                "extra_mb": {name: round(value, 1) for name, value in extra.items()},
                "shape": {name: getattr(options, name) for name in ("tokens", "vocabulary", "hidden", "chunk")},
            }
        )
    )


def _child(name: str, block: int, options: argparse.Namespace) -> dict[str, float]:
    shape = [f"--{key}={getattr(options, key)}" for key in ("tokens", "vocabulary", "hidden", "chunk")]
    command = [sys.executable, "-m", "tests.bench.bench_logprob", f"--case={name}", f"--block={block}", *shape]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
