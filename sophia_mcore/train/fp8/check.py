"""FP8 against the same training without it, from a round's stored trajectories: log-probs, gradients, loss curve.

Both start from the policy's weights and see the same rows. The loss is the filtered NLL on the kept trajectories,
whatever the run's objective is: every objective reaches the weights through these log-probs and gradients.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from sophia_mcore.batch.collate import PackedBatch
from sophia_mcore.config.precision import Fp8Check
from sophia_mcore.config.schema import Config, Objective
from sophia_mcore.errors import listed
from sophia_mcore.model.fp8_linear import switch_layers
from sophia_mcore.model.names import canonical_parameters, unwrap
from sophia_mcore.parallel.backend import Backend
from sophia_mcore.parallel.groups import Groups
from sophia_mcore.progress import Progress
from sophia_mcore.store.layout import Round
from sophia_mcore.train.job import Job, RoundJob, build_job
from sophia_mcore.train.mismatch import gap_statistics, gather_values, targets_of
from sophia_mcore.train.policy_logprobs import target_logprobs
from sophia_mcore.train.step import backward, train_step

Gradients = dict[str, torch.Tensor]
_PREFIX = "language.decoder.layers."


def check_fp8(round_: Round, groups: Groups, backend: Backend, progress: Progress) -> dict[str, Any]:
    """Everything but the digest of fp8_check.json; the same on every rank.

    {"passed", "failures": [text], "logprob_gap": gap_statistics, "layers": [{"layer", "in_fp8", "cosine", "norm_ratio",
    "alone": mean log-prob gap with this layer alone in FP8}], "loss": {"reference": [...], "fp8": [...], "gap"},
    "proposed": layers to keep in bf16, or None}.
    """
    config = round_.config
    limits = config.fp8.check
    progress.start("FP8 check", 4)
    job = build_job(replace(round_, config=variant(config, "none")), groups, backend, from_policy=True)
    batches = job.loader.fixed(limits.samples)
    known = targets_of(batches, target_logprobs(job, batches))
    wanted = layer_gradients(job, batches)
    progress.advance()
    reference_curve = curve(job, limits.steps)
    progress.advance()
    del job
    gc.collect()
    job = build_job(replace(round_, config=variant(config, config.fp8.recipe)), groups, backend, from_policy=True)
    probe = _Probe(job, batches, known, wanted)
    gap, layers = probe.gap(), probe.layers()
    failures = numerics_failures(gap, layers, limits)
    proposed = None
    if config.fp8.recipe != "delayed":
        alone = probe.sensitivities([row["layer"] for row in layers if row["in_fp8"]])
        layers = [row | {"alone": alone.get(row["layer"])} for row in layers]
        proposed = smallest(sorted(alone, key=lambda layer: -alone[layer]), probe.passes) if failures else []
    progress.advance()
    fp8_curve = curve(job, limits.steps)
    progress.advance()
    loss_gap = curve_gap(reference_curve, fp8_curve)
    if not loss_gap <= limits.max_loss_gap:
        failures.append(
            f"the loss differs by {loss_gap:.2%}, more than fp8.check.max_loss_gap = {limits.max_loss_gap:.2%}"
        )
    return {
        "passed": not failures,
        "failures": failures,
        "logprob_gap": gap,
        "layers": layers,
        "loss": {"reference": reference_curve, "fp8": fp8_curve, "gap": loss_gap},
        "proposed": proposed,
    }


def variant(config: Config, recipe: str) -> Config:
    """The configuration with this recipe, whole gradients on every replica, and the filtered NLL."""
    train = config.train.model_copy(update={"distributed_optimizer": False, "term_gradients_every_steps": 0})
    fp8 = config.fp8.model_copy(update={"recipe": recipe})
    objective = Objective(chunk_tokens=config.objective.chunk_tokens)
    return config.model_copy(update={"train": train, "fp8": fp8, "objective": objective})


def layer_gradients(job: Job, batches: Sequence[PackedBatch]) -> Gradients:
    """This rank's parts of the gradients of the decoder layers' matrices, in host memory."""
    backward(job, batches)
    chunks = [unwrap(chunk) for chunk in job.chunks]
    return {
        name: parameter.main_grad.detach().to("cpu", torch.float32, copy=True)  # type: ignore[attr-defined]
        for name, parameter, _ in canonical_parameters(chunks, chunks[0].spec)
        if name.startswith(_PREFIX) and parameter.dim() == 2 and parameter.requires_grad
    }


def curve(job: RoundJob, steps: int) -> list[float]:
    """Losses of the first updates of the run's own schedule; the job's weights are changed."""
    count = min(steps, job.steps)
    batches = job.loader.prefetch(0, count)
    return [train_step(job, rows, step, False).loss for step, rows in enumerate(batches)]


def curve_gap(reference: Sequence[float], other: Sequence[float]) -> float:
    """Relative difference of the mean losses over the last half of the steps.

    >>> curve_gap([4.0, 2.0, 2.0], [4.0, 2.2, 2.2])
    0.10000000000000009
    """
    half = len(reference) // 2
    wanted, found = float(np.mean(reference[half:])), float(np.mean(other[half:]))
    return abs(found - wanted) / max(abs(wanted), 1e-12)


def numerics_failures(gap: dict[str, float], layers: Iterable[dict[str, Any]], limits: Fp8Check) -> list[str]:
    """Which thresholds are not met (a value that is not a number meets none)."""
    failures = []
    for name in ("mean", "p99"):
        limit = getattr(limits, f"max_logprob_gap_{name}")
        if not gap[name] <= limit:
            failures.append(f"log-prob gap {name} {gap[name]:.4f} exceeds fp8.check.max_logprob_gap_{name} = {limit}")
    used = [row for row in layers if row["in_fp8"]]
    low = [row["layer"] for row in used if not row["cosine"] >= limits.min_gradient_cosine]
    off = [row["layer"] for row in used if not abs(row["norm_ratio"] - 1.0) <= limits.max_gradient_norm_gap]
    if low:
        failures.append(f"gradient cosine below {limits.min_gradient_cosine} in layers {_list(low)}")
    if off:
        failures.append(f"gradient norm off by more than {limits.max_gradient_norm_gap:.0%} in layers {_list(off)}")
    return failures


def smallest(ranked: Sequence[int], passes: Callable[[set[int]], bool]) -> list[int]:
    """The shortest beginning of `ranked` that passes when kept in bf16, sorted; all of them if nothing less does.

    Found by bisection, as keeping more layers does not make it worse. (Not the smallest of all sets: these are 2^L.)

    >>> smallest([5, 1, 3, 0], lambda kept: kept >= {5, 1})
    [1, 5]
    """
    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if passes(set(ranked[:middle])):
            high = middle
        else:
            low = middle + 1
    return sorted(ranked[:high])


class _Probe:
    """Measures the FP8 job against the reference's log-probs and gradients, with more or fewer layers in FP8."""

    def __init__(self, job: Job, batches: Sequence[PackedBatch], known: NDArray[np.float64], wanted: Gradients) -> None:
        self.job, self.batches, self.known, self.wanted = job, batches, known, wanted
        self.count = unwrap(job.chunks[0]).spec.language.num_layers
        self._kept: set[int] = set()

    def gap(self) -> dict[str, float]:
        found = targets_of(self.batches, target_logprobs(self.job, self.batches))
        gaps = gather_values(np.abs(found - self.known), self.job.reports)
        return gap_statistics(gaps, self.job.config.fp8.check.max_logprob_gap_p99)

    def layers(self) -> list[dict[str, Any]]:
        """Cosine and norm ratio of each layer's gradient, over all its matrices and ranks."""
        sums = torch.zeros(self.count, 3, dtype=torch.float64, device=self.job.backend.device)
        for name, found in layer_gradients(self.job, self.batches).items():
            wanted = self.wanted[name]
            products = (found * wanted, found * found, wanted * wanted)
            sums[int(name.split(".")[3])] += torch.stack([p.sum(dtype=torch.float64) for p in products]).to(sums.device)
        dist.all_reduce(sums)  # copies on replicas count alike in all three
        return [
            {
                "layer": layer,
                "in_fp8": not (self.job.config.fp8.in_bf16(layer, self.count) or layer in self._kept),
                "cosine": dot / max((ours * theirs) ** 0.5, 1e-300),
                "norm_ratio": (ours / max(theirs, 1e-300)) ** 0.5,
            }
            for layer, (dot, ours, theirs) in enumerate(sums.tolist())
        ]

    def sensitivities(self, layers: Sequence[int]) -> dict[int, float]:
        """Mean log-prob gap with one layer alone in FP8."""
        found = {}
        for layer in layers:
            self._keep(set(layers) - {layer})
            found[layer] = self.gap()["mean"]
        self._keep(set())
        return found

    def passes(self, kept: set[int]) -> bool:
        """Whether log-probs and gradients meet the thresholds with these layers in bf16 too."""
        self._keep(kept)
        good = not numerics_failures(self.gap(), self.layers(), self.job.config.fp8.check)
        self._keep(set())
        return good

    def _keep(self, layers: set[int]) -> None:
        self._kept = layers
        kept = {layer for layer in range(self.count) if self.job.config.fp8.in_bf16(layer, self.count)} | layers
        for chunk in self.job.chunks:
            switch_layers(unwrap(chunk).language.decoder, lambda layer: layer not in kept)


def _list(layers: Sequence[int]) -> str:
    return listed([str(layer) for layer in layers], 8)
