"""The on-policy loss against the float64 reference of its design, value and gradient, and what must not change it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sophia_mcore.batch.collate import PackedBatch
from sophia_mcore.batch.samples import AUXILIARY, FRESH
from sophia_mcore.config.rl import RlObjective
from sophia_mcore.objective.losses import Tokens, coefficients, k3, objective_loss, term_mask
from sophia_mcore.objective.metrics import finish
from sophia_mcore.objective.reduce import global_denominators

WEIGHT, FIXED = 0.05, 50


@dataclass
class Drawn:
    """A sample of the update: log-probs now, at sampling time in the trainer and in the engine, and at the start."""

    lp: Tensor
    old: Tensor
    roll: Tensor
    ref: Tensor
    advantage: float = 0.0


def draw(lengths: tuple[int, ...], seed: int) -> list[Drawn]:
    rng = torch.Generator().manual_seed(seed)

    def near(values: Tensor, spread: float) -> Tensor:
        return (values + spread * torch.randn(values.shape, generator=rng, dtype=torch.float64)).clamp_max(0.0)

    found = []
    for length in lengths:
        lp = -2.0 * torch.rand(length, generator=rng, dtype=torch.float64)
        old = near(lp, 0.4)
        found.append(Drawn(lp, old, near(old, 0.6), near(lp, 0.5)))
    return found


def loss64(samples: list[Drawn], auxiliary: list[Drawn], config: RlObjective, old: str, leaves: list[Tensor]) -> Tensor:
    """The loss from its formula. ``leaves``: log-probs that carry the gradient, samples first."""
    lengths = [len(s.lp) for s in samples]
    policy = {"token_mean": sum(lengths), "sequence_mean": len(samples), "fixed": len(samples) * FIXED, "sum": 1}
    total = torch.zeros((), dtype=torch.float64)
    for s, lp in zip(samples, leaves, strict=False):
        pi_old = {"trainer": s.old, "engine": s.roll, "now": lp.detach()}[old]
        own = torch.zeros((), dtype=torch.float64)
        for t in range(len(lp)):
            r = (lp[t] - pi_old[t]).exp()
            gap = math.exp(float(pi_old[t] - s.roll[t]))
            inside = config.correction_low <= gap <= config.correction_high
            w = {
                "none": 1.0,
                "tis": min(max(gap, config.correction_low), config.correction_high),
                "icepop": gap if inside else 0.0,
            }[config.correction]
            plain, cut = r * s.advantage, r.clamp(1 - 0.2, 1 + 0.35) * s.advantage
            own = own - w * torch.minimum(plain, cut)
            own = own + config.kl * ((s.ref[t] - lp[t]).exp() - (s.ref[t] - lp[t]) - 1)
        total = total + (own / len(lp) if config.normalization == "sequence_mean" else own)
    loss = total / policy[config.normalization or ""]
    targets = sum(len(s.lp) for s in auxiliary)
    if targets:
        loss = loss + WEIGHT * sum(-lp.sum() for lp in leaves[len(samples) :]) / targets
    return loss


def pack(samples: list[Drawn], auxiliary: list[Drawn], old: str) -> tuple[Tensor, PackedBatch]:
    """One row with all of them, two positions without a target behind each."""
    columns: dict[str, list[Tensor]] = {
        name: [] for name in ("lp", "mask", "weight", "id", "kind", "old", "roll", "ref")
    }
    for index, s in enumerate([*samples, *auxiliary]):
        kind = FRESH if index < len(samples) else AUXILIARY
        gap = torch.zeros(2, dtype=torch.float64)
        old_values = s.roll if old == "engine" else s.old
        for name, values in (("lp", s.lp), ("old", old_values), ("roll", s.roll), ("ref", s.ref)):
            columns[name].append(torch.cat([values, gap]))
        size = len(s.lp) + 2
        columns["mask"].append(torch.arange(size) < len(s.lp))
        columns["weight"].append(torch.full((size,), s.advantage if kind == FRESH else WEIGHT, dtype=torch.float64))
        columns["id"].append(torch.full((size,), index))
        columns["kind"].append(torch.full((size,), kind))
    row = {name: torch.cat(values)[None] for name, values in columns.items()}
    nothing: Any = None
    return row["lp"], PackedBatch(
        input_ids=nothing,
        position_ids=nothing,
        targets=nothing,
        target_mask=row["mask"],
        weights=row["weight"] * row["mask"],
        sequence_ids=row["id"],
        kinds=row["kind"],
        cu_seqlens=nothing,
        max_seqlen=0,
        pixel_values=None,
        feature_index=nothing,
        picture_grids=(),
        sample_ids=tuple(f"s{i}" for i in range(len(samples) + len(auxiliary))),
        behaviour_logprobs=None if old == "now" else row["old"],
        rollout_logprobs=row["roll"],
        reference_logprobs=row["ref"],
    )


def ours(
    samples: list[Drawn], auxiliary: list[Drawn], config: RlObjective, old: str
) -> tuple[Tensor, list[Tensor], Any]:
    """Value, gradient of each sample's log-probs, metrics: as the trainer's step does it."""
    lp, batch = pack(samples, auxiliary, old)
    denominators = global_denominators([batch], config.normalization, None, fixed_tokens=FIXED)
    tokens = Tokens.from_batch(batch, config.normalization, denominators.auxiliary_scale)
    leaf = lp.clone().requires_grad_()
    loss = objective_loss(leaf, tokens, config)
    value = loss.sum / denominators.objective
    value.backward()
    known = coefficients(tokens, config)
    if callable(known):
        rows = torch.arange(lp.numel())
        found = torch.cat([known(lp.reshape(-1)[part], part) for part in rows.split(5)]) / denominators.objective
        torch.testing.assert_close(found[None], leaf.grad, rtol=1e-9, atol=1e-12)
    mask, ids = batch.target_mask, batch.sequence_ids
    gradients = [leaf.grad[mask & (ids == i)] for i in range(len(samples) + len(auxiliary))]  # type: ignore[index]
    return value.detach(), gradients, finish(loss.metrics)


def reference(
    samples: list[Drawn], auxiliary: list[Drawn], config: RlObjective, old: str
) -> tuple[Tensor, list[Tensor]]:
    leaves = [s.lp.clone().requires_grad_() for s in [*samples, *auxiliary]]
    value = loss64(samples, auxiliary, config, old, leaves)
    value.backward()
    return value.detach(), [leaf.grad for leaf in leaves]  # type: ignore[misc]


def update(seed: int = 0) -> tuple[list[Drawn], list[Drawn]]:
    samples = [replace(s, advantage=a) for s, a in zip(draw((5, 9, 3, 7), seed), (1.3, -0.8, 0.6, -1.1), strict=True)]
    return samples, draw((4, 6), seed + 100)


ALL = itertools.product(
    ("token_mean", "sequence_mean", "fixed", "sum"),
    ("none", "tis", "icepop"),
    (0.0, 0.1),
    ("trainer", "engine", "now"),
    (True, False),
)


@pytest.mark.parametrize(("normalization", "correction", "kl", "old", "auxiliary"), ALL)
def test_value_and_gradient(normalization: Any, correction: Any, kl: float, old: str, auxiliary: bool) -> None:
    config = RlObjective(normalization=normalization, correction=correction, kl=kl)
    samples, further = update()
    further = further if auxiliary else []
    value, gradients, _ = ours(samples, further, config, old)
    wanted, wanted_gradients = reference(samples, further, config, old)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-14)
    for found, expected in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_synchronous_with_one_update_has_ratio_one() -> None:
    samples, _ = update()
    same = [replace(s, old=s.lp, roll=s.lp) for s in samples]
    config = RlObjective(correction="tis", normalization="token_mean")
    for old in ("trainer", "engine", "now"):
        _, gradients, metrics = ours(same, [], config, old)
        assert metrics["correction"] == 1.0 and metrics["rollout_gap"] == 0.0 and metrics["share_clipped"] == 0.0
        total = sum(len(s.lp) for s in same)
        for s, gradient in zip(same, gradients, strict=True):
            torch.testing.assert_close(gradient, torch.full_like(gradient, -s.advantage / total))


def test_the_clip_holds_on_the_side_of_the_advantage() -> None:
    for advantage, ratio, passes in ((1.0, 1.36, False), (1.0, 1.34, True), (-1.0, 0.79, False), (-1.0, 0.81, True)):
        lp = torch.tensor([-0.5], dtype=torch.float64)
        sample = Drawn(lp, lp - math.log(ratio), lp, lp, advantage)
        _, (gradient,), metrics = ours([sample], [], RlObjective(), "trainer")
        assert (abs(float(gradient)) > 0) == passes, (advantage, ratio)
        assert metrics["share_clipped"] == float(not passes)


def test_the_auxiliary_term_is_apart() -> None:
    """Its gradient stays when policy tokens are added, theirs when it is added; no metric of the policy sees it."""
    samples, further = update()
    config = RlObjective(correction="tis", kl=0.1)
    _, both, measures = ours(samples, further, config, "trainer")
    _, without, alone = ours(samples, [], config, "trainer")
    _, fewer, _ = ours(samples[:2], further, config, "trainer")
    _, only, _ = ours([], further, config, "trainer")
    for one, other in zip(both[len(samples) :], fewer[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
        torch.testing.assert_close(one, torch.full_like(one, -WEIGHT / 10))
    for one, other in zip(both[len(samples) :], only, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    for one, other in zip(both, without, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    apart = {"logprob", "nll_auxiliary"}
    assert {k: v for k, v in measures.items() if k not in apart} == {k: v for k, v in alone.items() if k not in apart}
    assert measures["nll_auxiliary"] == pytest.approx(float(-torch.cat([s.lp for s in further]).mean()))
    _, batch = pack(samples, further, "trainer")
    tokens = Tokens.from_batch(batch, "token_mean")
    parts = sum(term_mask(tokens, term).int() for term in ("positive", "negative", "supervised", "auxiliary"))
    assert torch.equal(parts, tokens.mask_T.int())


@pytest.mark.parametrize("normalization", ["token_mean", "sequence_mean", "fixed"])
def test_a_sample_that_is_drawn_twice_counts_twice(normalization: Any) -> None:
    samples, _ = update()
    config = RlObjective(normalization=normalization, correction="tis", kl=0.05)
    twice = [*samples, samples[1]]
    value, gradients, _ = ours(twice, [], config, "trainer")
    wanted, _ = reference(twice, [], config, "trainer")
    torch.testing.assert_close(value, wanted)
    single, once, _ = ours(samples, [], config, "trainer")
    sizes = {"token_mean": sum(len(s.lp) for s in samples), "sequence_mean": 4, "fixed": 4}[normalization]
    more = {"token_mean": len(samples[1].lp), "sequence_mean": 1, "fixed": 1}[normalization]
    torch.testing.assert_close(gradients[1] + gradients[4], 2 * once[1] * sizes / (sizes + more))
    assert float(value) != float(single)


def test_the_kl_estimate_is_never_negative_and_zero_at_the_start() -> None:
    samples, _ = update()
    config = RlObjective(kl=1.0)
    flat = [replace(s, advantage=0.0) for s in samples]
    value, _, metrics = ours(flat, [], config, "trainer")
    assert float(value) == pytest.approx(metrics["kl"]) and metrics["kl"] > 0
    value, gradients, metrics = ours([replace(s, ref=s.lp) for s in flat], [], config, "trainer")
    assert float(value) == metrics["kl"] == 0.0
    assert all(not gradient.any() for gradient in gradients)


def test_the_gradient_of_the_kl_estimate_is_exact_right_beside_the_starting_model() -> None:
    """There exp(d) - 1 is rounding alone, and a stage whose samples have no weight but this one could not begin."""
    rng = torch.Generator().manual_seed(0)
    lp = (-3.0 * torch.rand(256, generator=rng)).requires_grad_()
    ref = lp.detach() + torch.randint(-4, 5, (256,), generator=rng) * 2.0**-22
    flat = {"mask_T": torch.ones(256, dtype=torch.bool), "kind_T": torch.full((256,), FRESH)}
    zero = torch.zeros(256)
    tokens = Tokens(weights_T=zero, scale_T=zero, sequence_ids_T=zero.long(), sequences=1, reference_T=ref, **flat)
    (gradient,) = torch.autograd.grad(0.37 * k3(lp, tokens).sum(), lp)
    exact = -0.37 * torch.expm1(ref.double() - lp.detach().double())
    assert exact.count_nonzero() > 200
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-6, atol=0.0)
