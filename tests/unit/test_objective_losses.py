"""Every objective against a slow float64 loop written from its formula, and what must not change a loss."""

import math
from dataclasses import replace

import pytest
import torch

from sophia_mcore.batch.samples import FRESH, STORED, SUPERVISED
from sophia_mcore.config.losses import LOSSES
from sophia_mcore.errors import SophiaError
from sophia_mcore.objective.logprob import token_logprobs
from sophia_mcore.objective.losses import OBJECTIVES, Tokens, coefficients, objective_loss, sequence_sum
from sophia_mcore.objective.metrics import add, finish
from tests.support.objectives import objective

NAMES = sorted(LOSSES)
LENGTHS = (5, 3, 7, 4, 6)
GAP = 2  # positions without a target behind each sequence


def make(seed=0, kinds=None, dtype=torch.float64, spread=0.4):
    """Random log-probs and tokens of five sequences, one of them without any target."""
    generator = torch.Generator().manual_seed(seed)
    kinds = kinds or (STORED, FRESH, STORED, SUPERVISED, STORED)
    total = sum(LENGTHS) + GAP * len(LENGTHS)
    mask, ids, kind = torch.zeros(total, dtype=torch.bool), torch.zeros(total, dtype=torch.long), torch.zeros(total)
    weights = torch.zeros(total, dtype=dtype)
    start = 0
    for index, length in enumerate(LENGTHS):
        here = slice(start, start + length + GAP)
        ids[here], kind[here] = index, kinds[index]
        mask[start : start + length] = index != 2
        weights[start : start + length] = (1.0, -0.7, 0.3, 1.0, -1.3)[index]
        start += length + GAP
    logprobs = -torch.rand(total, generator=generator, dtype=torch.float64).to(dtype) * mask
    noise = torch.randn(2, total, generator=generator, dtype=torch.float64).to(dtype) * spread
    tokens = Tokens(
        mask_T=mask,
        weights_T=weights,
        scale_T=torch.ones(total, dtype=dtype),
        sequence_ids_T=ids,
        sequences=len(LENGTHS),
        kind_T=kind.long(),
        behaviour_T=(logprobs + noise[0]).clamp_max(0.0) * mask,
        rollout_T=(logprobs + 1.5 * noise[1]).clamp_max(0.0) * mask,
    )
    return logprobs, tokens


def per_sequence(tokens):
    lengths = sequence_sum(tokens.mask_T.to(tokens.scale_T.dtype), tokens).clamp_min(1.0)
    return replace(tokens, scale_T=1.0 / lengths[tokens.sequence_ids_T])


def _float(value):
    return float(value.detach()) if torch.is_tensor(value) else value


def slow(logprobs, tokens, config):
    """The sum over positions from the formulas of method.md 6, with math.* on Python floats; sg by `constants`."""
    x, constants = logprobs, [float(value) for value in logprobs.detach()]
    total = 0.0
    for sequence in range(tokens.sequences):
        own = [t for t in range(len(x)) if tokens.mask_T[t] and tokens.sequence_ids_T[t] == sequence]
        if not own:
            continue
        kind, a = int(tokens.kind_T[own[0]]), float(tokens.weights_T[own[0]])
        divide = len(own) if config.normalization == "sequence_mean" else 1
        mu, sg_mu = {}, {}
        for t in own:
            behaviour = float(tokens.behaviour_T[t])
            if kind == FRESH or config.behaviour in ("reference", "recorded"):
                mu[t] = sg_mu[t] = behaviour
            elif config.behaviour == "unit":
                mu[t] = sg_mu[t] = 0.0
            else:
                mu[t] = sg_mu[t] = constants[t]
        s = torch.exp(sum(x[t] - mu[t] for t in own) / len(own))
        whole = min(1.0, math.exp(sum(constants[t] - sg_mu[t] for t in own)))
        for t in own:
            r, sg_r, log_pi = torch.exp(x[t] - mu[t]), math.exp(constants[t] - sg_mu[t]), x[t]
            low, high = 1 - getattr(config.loss, "clip_low", 0), 1 + getattr(config.loss, "clip_high", 0)
            name = config.loss.name
            if name == "luffy" and kind == FRESH:
                name = "grpo"
            if kind == SUPERVISED or name == "sophia":
                term = -a * log_pi
            elif name == "dft":
                term = -math.exp(constants[t]) * a * log_pi
            elif name == "awr":
                term = -min(math.exp(a / config.loss.beta), config.loss.max_weight) * log_pi
            elif name == "topr":
                term = -a * log_pi if a >= 0 else -whole * a * log_pi
            elif name == "luffy":
                term = -(r / (r + config.loss.shaping)) * a
            elif name in ("grpo", "gspo"):
                ratio = s if name == "gspo" else r
                inside = min(max(_float(ratio), low), high)
                clipped = ratio if inside == _float(ratio) else inside
                term = -min(ratio * a, clipped * a, key=_float)
                if name == "grpo" and getattr(config.loss, "dual_clip", 0) and a < 0:
                    term = min(term, torch.tensor(-config.loss.dual_clip * a, dtype=x.dtype), key=_float)
            elif name == "cispo":
                term = -min(max(sg_r, low), high) * a * log_pi
            if config.correction != "none" and kind == FRESH:
                gap = math.exp(float(tokens.behaviour_T[t]) - float(tokens.rollout_T[t]))
                inside = config.correction_low <= gap <= config.correction_high
                if config.correction == "icepop":
                    term = term * (gap if inside else 0.0)
                else:
                    term = term * min(max(gap, config.correction_low), config.correction_high)
            total = total + term / divide
    return total


CASES = [
    *({"name": name, "behaviour": behaviour} for name in NAMES for behaviour in ("none", "unit", "reference")),
    *({"name": name, "normalization": "sequence_mean", "behaviour": "recorded"} for name in NAMES),
    *({"name": name, "correction": kind, "behaviour": "reference"} for name in NAMES for kind in ("tis", "icepop")),
    {"name": "grpo", "dual_clip": 1.1, "behaviour": "reference", "clip_high": 0.28},
    {"name": "gspo", "clip_low": 0.2, "clip_high": 0.2, "behaviour": "reference"},
    {"name": "awr", "beta": 0.2, "max_weight": 3.0},
]


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(str(value) for value in options.values()))
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_against_the_formula(options, seed):
    config = objective(**options)
    logprobs, tokens = make(seed)
    if config.normalization == "sequence_mean":
        tokens = per_sequence(tokens)
    ours_leaf, slow_leaf = (logprobs.clone().requires_grad_() for _ in range(2))
    ours = objective_loss(ours_leaf, tokens, config).sum
    reference = slow(slow_leaf, tokens, config)
    ours.backward(), reference.backward()
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours_leaf.grad, slow_leaf.grad, rtol=1e-10, atol=1e-12)
    assert ours_leaf.grad[~tokens.mask_T].eq(0).all() and ours_leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"dft", "topr", "cispo"}))  # these have a stop-gradient in them
def test_gradient_check(name):
    """Finite differences of the value."""
    config = objective(name=name, behaviour="reference", normalization="token_mean")
    logprobs, tokens = make(seed=3)
    leaf = logprobs.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective_loss(x, tokens, config).sum, leaf, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("behaviour", ["none", "unit", "reference"])
def test_forward_coefficients_equal_the_backward_gradient(name, behaviour):
    config = objective(name=name, behaviour=behaviour)
    logprobs, tokens = make(dtype=torch.float32)
    tokens = per_sequence(tokens)
    leaf = logprobs.clone().requires_grad_()
    objective_loss(leaf, tokens, config).sum.backward()
    known = coefficients(tokens, config)
    if name in ("gspo", "topr"):
        assert known is None  # a token's gradient depends on its whole sequence
        return
    rows = torch.arange(len(logprobs))
    found = known if torch.is_tensor(known) else torch.cat([known(logprobs[r], r) for r in rows.split(7)])
    torch.testing.assert_close(found, leaf.grad, rtol=1e-6, atol=1e-7)
    assert torch.is_tensor(known) == (name in ("sophia", "awr"))


@pytest.mark.parametrize("name", NAMES)
def test_from_hidden_states_forward_and_recompute_agree(name):
    config = objective(name=name, behaviour="reference")
    _, tokens = make(dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    length = len(tokens.mask_T)
    hidden, weight = torch.randn(length, 8, generator=generator), torch.randn(32, 8, generator=generator)
    targets = torch.where(tokens.mask_T, torch.randint(0, 30, (length,), generator=generator), -100)
    gradients = []
    for known in (None, coefficients(tokens, config)):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        logprobs = token_logprobs(*leaves, targets, vocab_size=30, chunk_tokens=6, coefficients_T=known)
        (objective_loss(logprobs, tokens, config).sum / 17.0).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for recomputed, formed in zip(*gradients, strict=True):
        torch.testing.assert_close(formed, recomputed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("normalization", ["token_mean", "sequence_mean"])
def test_packing_does_not_matter(name, normalization):
    """The sum over rows with one sequence each equals the row with all; order and gaps are irrelevant."""
    config = objective(name=name, behaviour="reference", normalization=normalization)
    logprobs, tokens = make()
    if normalization == "sequence_mean":
        tokens = per_sequence(tokens)
    whole = objective_loss(logprobs, tokens, config)
    parts = []
    for sequence in range(tokens.sequences):
        rows = (tokens.sequence_ids_T == sequence).nonzero().squeeze(1)
        own = tokens.select(rows)
        own = replace(own, sequence_ids_T=torch.zeros_like(own.sequence_ids_T), sequences=1)
        parts.append(objective_loss(logprobs[rows], own, config))
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum, rtol=1e-12, atol=1e-12)
    together, apart = finish(whole.metrics), finish(add(part.metrics for part in parts))
    assert together.keys() == apart.keys()
    assert all(together[key] == pytest.approx(apart[key], rel=1e-9) for key in together)
    order = torch.randperm(len(logprobs), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(objective_loss(logprobs[order], tokens.select(order), config).sum, whole.sum)


def test_diagnostics_are_what_they_say():
    config = objective(name="grpo", behaviour="reference")
    logprobs, tokens = make(spread=1.0)
    numbers = finish(objective_loss(logprobs, tokens, config).metrics)
    learned = tokens.mask_T & (tokens.kind_T != SUPERVISED)
    ratio = (logprobs - tokens.behaviour_T).exp()
    kept = tokens.mask_T & (tokens.kind_T == STORED) & (tokens.weights_T > 0)
    assert numbers["logprob_kept"] == pytest.approx(float(logprobs[kept].mean()))
    assert numbers["logprob"] == pytest.approx(float(logprobs[tokens.mask_T].mean()))
    assert numbers["ratio_p50"] == pytest.approx(float(ratio[learned].median()), rel=0.1)
    expected = float(ratio[learned].sum() ** 2 / ratio[learned].square().sum() / learned.sum())
    assert numbers["effective_sample_share_tokens"] == pytest.approx(expected)
    a = tokens.weights_T
    clipped = ((ratio > 1.2) & (a > 0)) | ((ratio < 0.8) & (a < 0))
    assert numbers["share_clipped"] == pytest.approx(float(clipped[learned].double().mean()))
    leaf = logprobs.clone().requires_grad_()
    objective_loss(leaf, tokens, config).sum.backward()
    assert numbers["coefficient_norm_negative"] == pytest.approx(float(leaf.grad[learned & (a < 0)].norm()))
    stored = replace(tokens, kind_T=torch.full_like(tokens.kind_T, STORED))
    unclipped = finish(objective_loss(logprobs, stored, objective(name="luffy", behaviour="reference")).metrics)
    assert unclipped["share_clipped"] == 0.0
    same = finish(objective_loss(logprobs, replace(tokens, behaviour_T=logprobs - 1.0), config).metrics)
    assert same["effective_sample_share_tokens"] == pytest.approx(1.0)
    assert same["ratio_p99"] == pytest.approx(math.e, rel=0.05)


@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_topr_tapers_only_what_became_less_likely(shift):
    logprobs, tokens = make()
    tokens = replace(tokens, behaviour_T=logprobs - shift)
    ours = objective_loss(logprobs, tokens, objective(name="topr", behaviour="reference")).sum
    assert float(ours) == pytest.approx(float(slow(logprobs, tokens, objective(name="topr", behaviour="reference"))))
    nll = objective_loss(logprobs, tokens, objective(behaviour="reference")).sum
    assert (float(ours) == pytest.approx(float(nll))) == (shift > 0)


def test_a_mode_that_the_batch_cannot_serve_is_refused():
    logprobs, tokens = make()
    bare = replace(tokens, behaviour_T=None, rollout_T=None)
    for mode in ("reference", "recorded"):
        with pytest.raises(SophiaError, match=f"behaviour = '{mode}'"):
            objective_loss(logprobs, bare, objective(name="grpo", behaviour=mode))
    with pytest.raises(SophiaError, match="correction = 'tis'"):
        objective_loss(logprobs, bare, objective(name="grpo", correction="tis"))


@pytest.mark.parametrize("name", NAMES)
def test_extreme_ratios_stay_finite(name):
    config = objective(name=name, behaviour="reference")
    logprobs, tokens = make(dtype=torch.float32)
    for behaviour in (-1e30, -200.0, 0.0):
        leaf = (logprobs * 100).requires_grad_()
        there = replace(tokens, behaviour_T=torch.full_like(logprobs, behaviour), weights_T=tokens.weights_T.abs())
        objective_loss(leaf, there, config).sum.backward()
        assert leaf.grad.isfinite().all()


def test_table_and_config_name_the_same_objectives():
    assert set(OBJECTIVES) == set(LOSSES.values())


def test_no_target_gives_zero():
    logprobs, tokens = make()
    empty = replace(tokens, mask_T=torch.zeros_like(tokens.mask_T))
    for name in NAMES:
        leaf = logprobs.clone().requires_grad_()
        loss = objective_loss(leaf, empty, objective(name=name, behaviour="reference"))
        loss.sum.backward()
        assert loss.sum == 0 and leaf.grad.eq(0).all() and "logprob" not in finish(loss.metrics)
