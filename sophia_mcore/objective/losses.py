"""Objectives as pure functions of [T] tensors. T: positions of one packed row, or of any number of whole sequences.

Notation: y is a trajectory, t counts its tokens, pi is the policy, mu the behaviour probability,
r_t = pi(y_t) / mu(y_t), A the weight of a sample (reward R or advantage), sg stop-gradient. All losses are minimised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sophia_mcore.batch.samples import AUXILIARY, FRESH, STORED, SUPERVISED
from sophia_mcore.config.losses import Awr, Cispo, Dft, Grpo, Gspo, Luffy, OwnLoss, Sophia, Topr
from sophia_mcore.config.schema import Objective, Section
from sophia_mcore.errors import SophiaError
from sophia_mcore.objective import metrics as measure
from sophia_mcore.objective.metrics import Sums

_MAX_LOG_RATIO = 60.0  # exp(60) is finite in fp32; an infinite ratio in a clipped branch would give inf * 0 = nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The values of each position that an objective may use."""

    mask_T: Tensor  # bool: True if the position has a target
    weights_T: Tensor  # A of the sample
    scale_T: Tensor  # 1, or 1 / number of targets of the sequence (sequence_mean)
    sequence_ids_T: Tensor  # int64 in [0, sequences); undefined where mask_T is False
    sequences: int
    kind_T: Tensor  # STORED (by another model), FRESH (by the policy), SUPERVISED (further data) or AUXILIARY
    behaviour_T: Tensor | None = None  # log mu(y_t), natural log
    rollout_T: Tensor | None = None  # log-prob of y_t in the engine that sampled it
    reference_T: Tensor | None = None  # log-prob of y_t under the starting model
    kl_T: Tensor | None = None  # weight of the sample's own k3 term, beside that of the objective

    @staticmethod
    def from_batch(batch: Any, normalization: str | None, auxiliary_scale: float = 1.0) -> Tokens:
        """Flat view of a `PackedBatch`. ``auxiliary_scale``: `Denominators.auxiliary_scale` of the step."""

        def flat(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.reshape(-1)

        tokens = Tokens(
            mask_T=batch.target_mask.reshape(-1),
            weights_T=batch.weights.reshape(-1),
            scale_T=torch.ones_like(batch.weights).reshape(-1),
            sequence_ids_T=batch.sequence_ids.reshape(-1).clamp_min(0),
            sequences=max(1, len(batch.sample_ids)),
            kind_T=batch.kinds.reshape(-1),
            behaviour_T=flat(batch.behaviour_logprobs),
            rollout_T=flat(batch.rollout_logprobs),
            reference_T=flat(batch.reference_logprobs),
            kl_T=flat(batch.kl) if batch.reference_logprobs is not None else None,
        )
        scale_T = tokens.scale_T
        if normalization == "sequence_mean":
            lengths_S = sequence_sum(tokens.mask_T.to(tokens.weights_T.dtype), tokens)
            scale_T = 1.0 / lengths_S.clamp_min(1.0)[tokens.sequence_ids_T]
        is_auxiliary_T = tokens.kind_T == AUXILIARY
        return replace(tokens, scale_T=torch.where(is_auxiliary_T, torch.full_like(scale_T, auxiliary_scale), scale_T))

    def select(self, rows: Tensor) -> Tokens:
        """The values of the positions `rows` (indices or mask) only."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {name: value[rows] for name, value in values.items() if torch.is_tensor(value)}
        return replace(self, **chosen)


# The loss is the sum of these terms. Every token with a target belongs to exactly one.
TERMS = ("positive", "negative", "supervised", "auxiliary")
_KINDS = {"supervised": SUPERVISED, "auxiliary": AUXILIARY}


def term_mask(tokens: Tokens, term: str) -> Tensor:
    """Mask [T] of the targets in one of `TERMS`: answers with A > 0, with A <= 0, further data, auxiliary samples."""
    if term in _KINDS:
        return tokens.mask_T & (tokens.kind_T == _KINDS[term])
    return tokens.mask_T & _weighed(tokens) & ((tokens.weights_T > 0) == (term == "positive"))


def _weighed(tokens: Tokens) -> Tensor:
    """Mask [T] of the positions to which the objective applies. The loss of all others is plain NLL."""
    return (tokens.kind_T == STORED) | (tokens.kind_T == FRESH)


class Loss(NamedTuple):
    """`sum` []: over all positions, to be divided by the step's global denominator. `metrics`: sums over positions."""

    sum: Tensor
    metrics: dict[str, Sums]


class Terms(NamedTuple):
    """Loss of each position, and a mask of positions where clipping removed the gradient (None: no clipping)."""

    loss_T: Tensor
    clipped_T: Tensor | None = None


OwnTerm = Callable[[Tensor, Tensor, Tokens], Terms]  # a user's function of (logprobs_T, log_ratio_T, tokens)


def objective_loss(logprobs: Tensor, tokens: Tokens, config: Objective, own: OwnTerm | None = None) -> Loss:
    """Loss sum and diagnostics of one micro batch.

    Args:
        logprobs: natural-log probability of each target, any shape with T elements, 0 where there is no target.
        tokens: the positions; `Tokens.from_batch(batch, config.normalization)`.
        own: the user's function, if `config.loss` names one.

    Raises:
        SophiaError: the batch has no log-probs that the configuration needs, or `own` does not return `Terms`.
    """
    logprobs_T = logprobs.reshape(-1)
    terms, log_ratio_T = _terms(logprobs_T, tokens, config, own)
    loss_T = _scaled(terms.loss_T, tokens)
    gradient_T = _gradient(logprobs_T.detach(), tokens, config, own)
    return Loss(loss_T.sum(), _diagnostics(logprobs_T, log_ratio_T, gradient_T, terms, tokens, config))


def coefficients(
    tokens: Tokens, config: Objective, own: OwnTerm | None = None
) -> Tensor | Callable[[Tensor, Tensor], Tensor] | None:
    """d loss sum / d log-prob for `token_logprobs(coefficients_T=...)`, if it can be known in the forward pass.

    Returns a tensor [T] if it does not depend on the log-probs, a function of (log-probs [C], positions [C]) if it
    depends on the token's own log-prob, None if it depends on the whole sequence.
    """
    depends_on = config.loss.gradient
    if config.loss.wrong_gradient and bool((tokens.weights_T[tokens.mask_T] < 0).any()):
        depends_on = config.loss.wrong_gradient
    if depends_on == "sequence":
        return None

    def gradient(logprobs_C: Tensor, rows_C: Tensor) -> Tensor:
        with torch.enable_grad():
            logprobs_C = logprobs_C.detach().requires_grad_()
            chosen = tokens.select(rows_C)
            loss = _scaled(_terms(logprobs_C, chosen, config, own)[0].loss_T, chosen).sum()
            return torch.autograd.grad(loss, logprobs_C)[0]

    if depends_on == "token" or config.correction != "none" or _has_kl(tokens, config):
        return gradient
    everything = torch.arange(len(tokens.mask_T), device=tokens.mask_T.device)
    return gradient(torch.zeros_like(tokens.weights_T), everything)


def sequence_sum(values_T: Tensor, tokens: Tokens) -> Tensor:
    """Sum [S] over each sequence of its values at positions with a target."""
    masked_T = torch.where(tokens.mask_T, values_T, torch.zeros_like(values_T))
    return masked_T.new_zeros(tokens.sequences).index_add(0, tokens.sequence_ids_T, masked_T)


def _terms(logprobs_T: Tensor, tokens: Tokens, config: Objective, own: OwnTerm | None) -> tuple[Terms, Tensor]:
    log_ratio_T = log_ratios(logprobs_T, tokens, config.behaviour or "none")
    if isinstance(config.loss, OwnLoss):
        terms = _own_terms(logprobs_T, log_ratio_T, tokens, config.loss, own)
    else:
        terms = OBJECTIVES[type(config.loss)](logprobs_T, log_ratio_T, tokens, config.loss)
    loss_T = terms.loss_T * _correction(logprobs_T, tokens, config)
    if _has_kl(tokens, config):
        own_T = torch.zeros_like(logprobs_T) if tokens.kl_T is None else tokens.kl_T
        loss_T = loss_T + (config.kl + own_T) * k3(logprobs_T, tokens)
    nll_T = -tokens.weights_T * logprobs_T  # the loss of further data and auxiliary samples under every objective
    return Terms(torch.where(_weighed(tokens), loss_T, nll_T), terms.clipped_T), log_ratio_T


def _has_kl(tokens: Tokens, config: Objective) -> bool:
    """Whether there is a k3 term: for all samples, or for some (the same for every micro batch of a stage)."""
    return bool(config.kl) or tokens.kl_T is not None


def k3(logprobs_T: Tensor, tokens: Tokens) -> Tensor:
    """Estimate of KL(pi | pi_ref) at each token: exp(d) - d - 1 with d = log pi_ref - log pi (arXiv 2402.03300, eq. 4).

    It is 0 at d = 0 and never negative. d is clamped at 60. The gradient -expm1(d) is written down: autograd would take
    exp(d) from 1, which leaves nothing but rounding where pi is still close to pi_ref. Raises SophiaError without
    reference log-probs.
    """
    if tokens.reference_T is None:
        raise SophiaError("objective.kl: the batch has no log-probs of the starting model")
    fixed_T = logprobs_T.detach()
    gap_T = (tokens.reference_T - fixed_T).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    slope_T = torch.where(gap_T.abs() < _MAX_LOG_RATIO, -gap_T.expm1(), torch.zeros_like(gap_T))
    return gap_T.expm1() - gap_T + slope_T * (logprobs_T - fixed_T)


def _own_terms(logprobs_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, config: OwnLoss, own: OwnTerm | None) -> Terms:
    if own is None:
        raise SophiaError(f"objective.loss.name = {config.name!r}: the function was not loaded")
    terms = own(logprobs_T, log_ratio_T, tokens)
    if not isinstance(terms, Terms):
        raise SophiaError(f"{config.name}: must return Terms(loss_T), not {type(terms).__name__}")
    for name, values in zip(Terms._fields, terms, strict=True):
        if values is not None and tuple(values.shape) != tuple(logprobs_T.shape):
            shapes = f"{list(values.shape)}, not {list(logprobs_T.shape)}"
            raise SophiaError(f"{config.name}: {name} has the shape {shapes}; it needs one value for each position")
    return terms


def _scaled(loss_T: Tensor, tokens: Tokens) -> Tensor:
    return torch.where(tokens.mask_T, loss_T * tokens.scale_T, torch.zeros_like(loss_T))


def log_ratios(logprobs_T: Tensor, tokens: Tokens, behaviour: str) -> Tensor:
    """log r_t [T] = log pi - log mu. For STORED trajectories `behaviour` chooses mu.

    none: mu = sg(pi), so the ratio is 1 with the gradient of log pi (method.md 2, the paper's reading). unit: mu = 1.
    reference, recorded: mu from the batch. For FRESH trajectories mu is the policy that sampled them: the log-probs of
    the batch, or ratio 1 if it has none. Log-ratios are clamped to [-60, 60].
    """
    one_T = logprobs_T - logprobs_T.detach()
    given_T = one_T if tokens.behaviour_T is None else logprobs_T - tokens.behaviour_T
    if behaviour in ("reference", "recorded"):
        if tokens.behaviour_T is None:
            raise SophiaError(f"objective.behaviour = {behaviour!r}: the batch has no behaviour log-probs")
        stored_T = given_T
    else:
        stored_T = logprobs_T if behaviour == "unit" else one_T
    chosen_T = torch.where(tokens.kind_T == FRESH, given_T, stored_T)
    chosen_T = torch.where(_weighed(tokens), chosen_T, one_T)
    return chosen_T.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def _correction(logprobs_T: Tensor, tokens: Tokens, config: Objective) -> Tensor:
    """Correction [T] of the gap between trainer and sampling engine; 1 for everything that the policy did not sample.

    tis: sg(clip(pi_old / pi_rollout, low, high)). icepop: the ratio if it is in [low, high], else 0. pi_old is the
    trainer's probability at sampling time (from the batch, or the present one), pi_rollout that of the sampling engine.
    Sources: truncated importance sampling (fengyao 2025); IcePop (Ling team 2025).
    """
    if config.correction == "none":
        return torch.ones_like(logprobs_T)
    if tokens.rollout_T is None:
        raise SophiaError(f"objective.correction = {config.correction!r}: the batch has no rollout log-probs")
    old_T = logprobs_T.detach() if tokens.behaviour_T is None else tokens.behaviour_T
    ratio_T = (old_T - tokens.rollout_T).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    low, high = config.correction_low, config.correction_high
    if config.correction == "tis":
        correction_T = ratio_T.clamp(low, high)
    else:
        correction_T = torch.where((ratio_T >= low) & (ratio_T <= high), ratio_T, torch.zeros_like(ratio_T))
    return torch.where(tokens.kind_T == FRESH, correction_T, torch.ones_like(ratio_T))


def sophia(logprobs_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, config: Sophia) -> Terms:
    """Reward-filtered NLL: -R log pi (arXiv 2507.16814, eq. 7)."""
    return Terms(-tokens.weights_T * logprobs_T)


def dft(logprobs_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, config: Dft) -> Terms:
    """Dynamic fine-tuning: -sg(pi(y_t)) log pi(y_t), times the sample's weight (arXiv 2508.05629)."""
    return Terms(-tokens.weights_T * logprobs_T.detach().exp() * logprobs_T)


def awr(logprobs_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, config: Awr) -> Terms:
    """Advantage-weighted regression: -min(exp(A / beta), w_max) log pi, A normalised (arXiv 1910.00177)."""
    weights_T = (tokens.weights_T / config.beta).clamp_max(_MAX_LOG_RATIO).exp().clamp_max(config.max_weight)
    return Terms(-weights_T * logprobs_T)


def topr(logprobs_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, config: Topr) -> Terms:
    """Tapered off-policy REINFORCE: -w R log pi with w = 1 for R >= 0, else sg(clip(pi(y) / mu(y), 0, 1)) of the
    whole sequence (arXiv 2503.14286).
    """
    log_ratio_S = sequence_sum(log_ratio_T.detach(), tokens)
    taper_T = log_ratio_S.clamp_max(0.0).exp()[tokens.sequence_ids_T]
    weights_T = torch.where(tokens.weights_T < 0, taper_T, torch.ones_like(taper_T)) * tokens.weights_T
    return Terms(-weights_T * logprobs_T)


def luffy(logprobs_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, config: Luffy) -> Terms:
    """LUFFY (arXiv 2504.14945). STORED: -f(r) A with f(x) = x / (x + shaping), not clipped. FRESH: as in `grpo`."""
    ratio_T = log_ratio_T.exp()
    shaped_T = -ratio_T / (ratio_T + config.shaping) * tokens.weights_T
    fresh_T, clipped_T = _clipped(ratio_T, tokens.weights_T, config.clip_low, config.clip_high)
    stored_T = tokens.kind_T == STORED
    return Terms(torch.where(stored_T, shaped_T, fresh_T), clipped_T & ~stored_T)


def grpo(logprobs_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, config: Grpo) -> Terms:
    """GRPO: -min(r A, clip(r, 1 - low, 1 + high) A), A is the advantage in the group (arXiv 2402.03300).

    DAPO (arXiv 2503.14476) has high > low and token_mean. dual_clip c > 1: for A < 0 the loss is at most -c A
    (arXiv 1912.09729).
    """
    weights_T = tokens.weights_T
    loss_T, was_clipped_T = _clipped(log_ratio_T.exp(), weights_T, config.clip_low, config.clip_high)
    if config.dual_clip:
        bound_T = -config.dual_clip * weights_T
        bounded_T = (weights_T < 0) & (loss_T > bound_T)
        loss_T = torch.where(bounded_T, bound_T, loss_T)
        was_clipped_T = was_clipped_T | bounded_T
    return Terms(loss_T, was_clipped_T)


def gspo(logprobs_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, config: Gspo) -> Terms:
    """GSPO: -min(s A, clip(s, 1 - low, 1 + high) A), s = exp(mean_t log r_t) of the sequence (arXiv 2507.18071)."""
    lengths_S = sequence_sum(torch.ones_like(log_ratio_T), tokens).clamp_min(1.0)
    ratio_S = (sequence_sum(log_ratio_T, tokens) / lengths_S).exp()
    return Terms(*_clipped(ratio_S[tokens.sequence_ids_T], tokens.weights_T, config.clip_low, config.clip_high))


def cispo(logprobs_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, config: Cispo) -> Terms:
    """CISPO: -sg(clip(r, 1 - low, 1 + high)) A log pi. Clipped tokens keep their gradient (arXiv 2506.13585)."""
    low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
    ratio_T = log_ratio_T.detach().exp()
    return Terms(-ratio_T.clamp(low, high) * tokens.weights_T * logprobs_T, (ratio_T < low) | (ratio_T > high))


def _clipped(ratio_T: Tensor, weights_T: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """(-min(r A, clip(r, 1 - low, 1 + high) A), mask of positions where the clipped value is the smaller one)."""
    plain_T = ratio_T * weights_T
    clipped_T = ratio_T.clamp(1.0 - clip_low, 1.0 + clip_high) * weights_T
    return -torch.minimum(plain_T, clipped_T), clipped_T < plain_T


OBJECTIVES: dict[type[Section], Callable[[Tensor, Tensor, Tokens, Any], Terms]] = {
    Sophia: sophia,
    Dft: dft,
    Awr: awr,
    Topr: topr,
    Luffy: luffy,
    Grpo: grpo,
    Gspo: gspo,
    Cispo: cispo,
}


def _diagnostics(
    logprobs_T: Tensor, log_ratio_T: Tensor, gradient_T: Tensor, terms: Terms, tokens: Tokens, config: Objective
) -> dict[str, Sums]:
    """Measurements of one micro batch. All micro batches of a run have the same names, so that ranks can add them."""
    logprobs_T, log_ratio_T = logprobs_T.detach(), log_ratio_T.detach()
    learned_T = tokens.mask_T & _weighed(tokens)
    right_T = tokens.mask_T & (tokens.kind_T == STORED) & (tokens.weights_T > 0)
    parts = {term: term_mask(tokens, term) for term in TERMS}
    found = {
        "logprob_kept": measure.mean(logprobs_T, right_T),  # the paper assumes it, but does not measure it
        "logprob": measure.mean(logprobs_T, tokens.mask_T),
        "nll_supervised": measure.mean(-logprobs_T, parts["supervised"]),
        "nll_auxiliary": measure.mean(-logprobs_T, parts["auxiliary"]),
        **{f"coefficient_norm_{name}": measure.norm(gradient_T, parts[name]) for name in TERMS[:3]},
    }
    if _has_kl(tokens, config):
        found["kl"] = measure.mean(k3(logprobs_T, tokens), learned_T)
    if config.behaviour != "none" or tokens.behaviour_T is not None:
        has_S = sequence_sum(learned_T.to(logprobs_T.dtype), tokens) > 0
        found |= {
            "ratio": measure.ratio_histogram(log_ratio_T, learned_T),
            "effective_sample_share_tokens": measure.effective_sample_share(log_ratio_T, learned_T),
            "effective_sample_share": measure.effective_sample_share(sequence_sum(log_ratio_T, tokens), has_S),
        }
    if terms.clipped_T is not None:
        found["share_clipped"] = measure.mean(terms.clipped_T.double(), learned_T)
    if config.correction != "none":
        correction_T = _correction(logprobs_T, tokens, config)
        fresh_T = learned_T & (tokens.kind_T == FRESH)
        found["correction"] = measure.mean(correction_T, fresh_T)
        rollout_T = cast(Tensor, tokens.rollout_T)  # `_correction` has checked that it is not None
        found["rollout_gap"] = measure.mean((logprobs_T - rollout_T).abs(), fresh_T)
    return found


def _gradient(logprobs_T: Tensor, tokens: Tokens, config: Objective, own: OwnTerm | None) -> Tensor:
    with torch.enable_grad():
        leaf_T = logprobs_T.clone().requires_grad_()
        return torch.autograd.grad(_scaled(_terms(leaf_T, tokens, config, own)[0].loss_T, tokens).sum(), leaf_T)[0]
