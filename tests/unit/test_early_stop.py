"""Sampling that stops where nothing can be won keeps what sampling everything keeps."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sophia_mcore.config.schema import Reward
from sophia_mcore.score.early_stop import Rule, is_dead, unjustified, waves_of
from sophia_mcore.score.reward import Candidate, visual_rewards
from tests.support.early_world import cuts_of, make_world, sample, unit_of

ALPHAS = (0.01, 0.25, 0.5, 0.6, 0.75, 0.9, 0.99)


@pytest.mark.parametrize("broken", ["not_correct", "left_out"])
def test_a_caption_is_given_up_exactly_when_nothing_can_save_it(broken: str) -> None:
    """All verdicts of up to five trajectories, all that can follow, each alpha."""
    names = ("correct", "wrong", "timeout")
    for per_caption, alpha in itertools.product(range(1, 6), ALPHAS):
        rule = Rule(Reward(alpha=alpha, broken=broken), per_caption)
        for begun in range(per_caption + 1):
            for first in itertools.product(names, repeat=begun):
                if "timeout" in first:
                    continue  # may be another verdict in the score phase; counted as not decided
                can_pass = any(
                    reward_of((*first, *rest), broken) > alpha
                    for rest in itertools.product(names, repeat=per_caption - begun)
                )
                assert is_dead(rule, candidates(first)) == (not can_pass), (per_caption, alpha, first)


def candidates(verdicts: tuple[str, ...]) -> list[Candidate]:
    return [Candidate(f"q.k.n{n}", "q", "k", 5, False, verdict) for n, verdict in enumerate(verdicts)]


def reward_of(verdicts: tuple[str, ...], broken: str) -> float:
    return visual_rewards(candidates(verdicts), broken)["q", "k"]


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    captions=st.integers(1, 5),
    per_caption=st.integers(1, 9),
    alpha=st.sampled_from(ALPHAS),
    keep=st.integers(1, 4),
    waves=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    right=st.sampled_from([0.1, 0.5, 0.8, 0.95]),
    options=st.fixed_dictionaries(
        {
            "use_visual_reward": st.sampled_from([True, True, False]),
            "select": st.sampled_from(["shortest", "shortest", "random"]),
            "require_correct": st.sampled_from([True, True, False]),
            "broken": st.sampled_from(["not_correct", "left_out"]),
        }
    ),
)
def test_the_kept_set_is_that_of_sampling_everything(
    seed: int, captions: int, per_caption: int, alpha: float, keep: int, waves: list[int], right: float, options: dict
) -> None:
    rng = random.Random(seed)
    world = make_world(rng, 3, captions, per_caption, right=right)
    reward = Reward(alpha=alpha, keep=keep, **options)
    whole = world.kept(reward)
    found = []
    for places, cuts in ((1, True), (7, True), (1000, True), (1000, False)):
        unit = unit_of(world, reward, waves)
        stored, tokens = sample(world, unit, random.Random(rng.random()), places, cuts=cuts)
        given = [world.candidates[name] for name in stored]
        assert world.kept(reward, stored) == whole  # with the exact rewards of their captions
        assert not unjustified(Rule(reward, per_caption), given, cuts_of(unit))
        assert tokens <= sum(candidate.length for candidate in world.candidates.values())
        found.append(stored)
    stored, _ = sample(world, unit_of(world, reward, waves, cuts=False), random.Random(seed), 7)
    assert world.kept(reward, stored) == whole and set(stored) >= set(found[0])  # an engine that cannot cut
    assert all(stored == found[0] for stored in found)  # whatever ended first, and whatever was cut


@pytest.mark.parametrize("alpha", [0.5, 0.75, 0.9])
@pytest.mark.parametrize(("captions", "per_caption"), [(1, 1), (2, 4), (4, 8), (8, 8)])
def test_tokens_are_saved_and_the_paper_s_sizes_hold(captions: int, per_caption: int, alpha: float) -> None:
    world = make_world(random.Random(5), 20, captions, per_caption, right=0.5, longest=400)
    reward = Reward(alpha=alpha)
    everything = sum(candidate.length for candidate in world.candidates.values())
    spent = {}
    for waves in ((1,), (2,), (per_caption,)):
        stored, spent[waves] = sample(world, unit_of(world, reward, waves), random.Random(1), 64)
        assert world.kept(reward, stored) == world.kept(reward)
    if per_caption > 1:
        assert max(spent.values()) < everything  # in one wave by cutting alone


def test_changed_verdicts_are_noticed() -> None:
    """A wrong answer that another verifier takes as right: the caption might have passed, and nobody knows."""
    world = make_world(random.Random(2), 12, 3, 8, right=0.6)
    reward = Reward()
    unit = unit_of(world, reward, (1,))
    stored, _ = sample(world, unit, random.Random(1), 64)
    cuts = cuts_of(unit)
    found = [world.candidates[name] for name in stored]
    rule = Rule(reward, 8)
    assert cuts and not unjustified(rule, found, cuts)
    righted = [
        Candidate(one.id, one.question_id, one.caption_id, one.length, one.truncated, "correct") for one in found
    ]
    assert unjustified(rule, righted, cuts)
    assert unjustified(Rule(Reward(alpha=0.3), 8), found, cuts)  # another reward
    assert not unjustified(Rule(Reward(alpha=0.8), 8), found, cuts)
    assert unjustified(rule, found, {})


def test_waves_cover_every_trajectory_once() -> None:
    for per_caption in range(1, 10):
        for waves in ((1,), (2,), (1, 3), (9,), (3, 1)):
            assert [n for wave in waves_of(waves, per_caption) for n in wave] == list(range(per_caption))
