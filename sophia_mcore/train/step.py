"""One update: the algorithm on one screen.

    L = 1/D * sum over the tokens of the global batch of  loss(log pi(y_t | y_<t, x, v), weight)

D is the step's one denominator, summed over the data-parallel ranks before any micro batch (auxiliary samples have
another: objective.reduce). Then: forward and
backward of every micro batch through the pipeline, sum over replicas, clip, AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sophia_mcore.batch.collate import PackedBatch
from sophia_mcore.config.schema import Config
from sophia_mcore.model.lvlm import Scores
from sophia_mcore.objective.losses import TERMS, Tokens, coefficients, objective_loss, term_mask
from sophia_mcore.objective.metrics import Metrics, mean
from sophia_mcore.objective.reduce import global_denominators, reduce_metrics
from sophia_mcore.train.job import Job
from sophia_mcore.train.optim import learning_rate, set_learning_rate
from sophia_mcore.train.pipeline import model_inputs, run_schedule
from sophia_mcore.train.step_report import StepReport, counts, not_finite


def train_step(job: Job, batches: Sequence[PackedBatch], step: int, stop: bool) -> StepReport:
    """Update number ``step`` (from 0) on this rank's micro batches; every rank calls it together."""
    device = job.backend.device
    every = job.config.train.term_gradients_every_steps
    by_term = term_gradient_norms(job, batches) if every and step % every == 0 else {}
    reports, bad_samples = backward(job, batches)
    own = [sum(value for value, _ in reports), *counts(batches)] if job.reports else [0.0] * 4
    states = [float(stop), float(job.checkpoints.writing)]
    totals = torch.tensor([*own, *states], dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    loss, tokens, target_tokens, samples, stops, writing = totals.tolist()

    rate = learning_rate(step, job.steps, job.config.train)
    set_learning_rate(job.optimizer, rate)
    # before the step: clipping by a norm that is not a number spreads it over every rank
    own_gradient = [buffer.grad_data.sum() for chunk in job.chunks for buffer in chunk.buffers]
    _, gradient_norm, _ = job.optimizer.step()
    measures = reduce_metrics([metrics for _, metrics in reports], job.groups.data, device) if job.reports else {}
    return StepReport(
        loss=loss,
        gradient_norm=float(gradient_norm),
        learning_rate=rate,
        tokens=int(tokens),
        target_tokens=int(target_tokens),
        samples=int(samples),
        stop=stops > 0,
        writing=writing > 0,
        bad_samples=tuple(bad_samples),
        bad_gradient=not math.isfinite(gradient_norm) and not all(math.isfinite(total) for total in own_gradient),
        measures=measures | by_term,
    )


def term_gradient_norms(job: Job, batches: Sequence[PackedBatch]) -> dict[str, float]:
    """Norm of each term's part of the gradient, on every rank; costs one forward and backward pass per term.

    {} where the run has one term only: that is `gradient_norm`. The gradients are left behind; no update.
    """
    norms = {}
    for term in _terms_of(job.config):
        backward(job, batches, term)
        job.optimizer.prepare_grads()
        norms[f"gradient_norm_{term}"] = float(job.optimizer.get_grad_norm() or 0.0)
    return norms


def _terms_of(config: Config) -> tuple[str, ...]:
    """Terms that the run's samples can have, or () for one alone."""
    objective, pairs = config.objective, config.train.data is not None
    possible = {
        "positive": not pairs,
        "negative": not pairs
        and not objective.only_kept
        and (objective.advantage != "reward" or objective.loss.learns_from_zero),
        "supervised": pairs or bool(config.batch.mixtures),
        "auxiliary": config.rl is not None and (config.rl.rethink.share > 0 or bool(config.rl.relabel)),
    }
    found = tuple(term for term in TERMS if possible[term])
    return found if len(found) > 1 else ()


def backward(
    job: Job, batches: Sequence[PackedBatch], term: str | None = None
) -> tuple[list[tuple[float, Metrics]], list[str]]:
    """Gradients of the loss over the global batch, or of one of its terms, into `main_grad`, summed over replicas.

    Returns (loss, metrics) of each micro batch, on the last stage, and the samples whose loss is not finite.
    """
    objective, device = job.config.objective, job.backend.device
    denominators = global_denominators(
        batches, objective.normalization, job.groups.data, device, objective.fixed_tokens
    )
    denominator = denominators.objective
    bad_samples: list[str] = []

    def forward_step(iterator: Iterator[PackedBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
        batch = next(iterator).to(device)
        tokens = Tokens.from_batch(batch, objective.normalization, denominators.auxiliary_scale)
        if term is not None:
            tokens = replace(tokens, mask_T=term_mask(tokens, term))

        def loss_function(scores: Scores) -> tuple[Tensor, Tensor, Any]:
            loss = objective_loss(scores.logprobs, tokens, objective, job.own_term)
            value = float(loss.sum.detach()) / denominator
            if not math.isfinite(value):
                bad_samples.extend(not_finite(scores.logprobs, batch))
            if scores.entropies is not None:
                loss.metrics["entropy"] = mean(scores.entropies.reshape(-1), tokens.mask_T)
            # three values, so that the schedule divides by nothing: the denominator is in the loss already
            return loss.sum / denominator, torch.zeros((), dtype=torch.int, device=device), (value, loss.metrics)

        slopes = coefficients(tokens, objective, job.own_term) if job.groups.is_last_stage else None
        return model(**model_inputs(batch, slopes), entropies=objective.log_entropy), loss_function

    for chunk in job.chunks:
        chunk.zero_grad_buffer()
    job.optimizer.zero_grad()
    return run_schedule(job, forward_step, batches), bad_samples
