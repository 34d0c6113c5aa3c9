"""Equations 4 to 6, ties, ablations, and independence of order."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sophia_mcore.config.schema import Reward
from sophia_mcore.score.reward import Candidate, outcome, select, trajectory_rewards, visual_rewards

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def candidates(question, caption, verdicts, lengths=None, truncated=()):
    lengths = lengths or [10] * len(verdicts)
    return [
        Candidate(f"{question}.{caption}.n{n}", question, caption, lengths[n], n in truncated, verdict)
        for n, verdict in enumerate(verdicts)
    ]


def run(items, seed=0, **settings):
    config = Reward(**settings)
    return select(items, visual_rewards(items, config.broken), config, seed)


def test_outcome():
    assert outcome("correct") == 1.0
    assert [outcome(v) for v in ("wrong", "no_answer", "timeout", "error")] == [0.0] * 4
    assert outcome("correct", truncated=True) == 0.0


@pytest.mark.parametrize(("broken", "passes"), [("not_correct", False), ("left_out", True)])
def test_rewards_of_trajectories(broken, passes):
    """Of four, one was cut off and one timed out: eq. 5 is 3/4 or 3/3."""
    items = candidates("q", "c", ["correct", "correct", "correct", "timeout"], truncated=(1,))
    config = Reward(alpha=0.75, broken=broken)
    scored, dropped = trajectory_rewards(items, "outcome", config)
    assert [row.reward for row in scored] == [1.0, 0.0, 1.0] and dropped == {"timeout": 1}
    own = Candidate("q.n0", "q", "", 0, False, "correct", "policy")
    scored, _ = trajectory_rewards([*items, own], "filtered", config)
    assert {row.id: row.reward for row in scored} == {
        "q.c.n0": float(passes), "q.c.n1": 0.0, "q.c.n2": float(passes), "q.n0": 1.0,
    }  # fmt: skip
    assert [row.source for row in scored] == ["reasoner"] * 3 + ["policy"]


@pytest.mark.parametrize(("correct", "passes"), [(5, False), (6, False), (7, True), (8, True)])
def test_alpha_is_strict(correct, passes):
    items = candidates("q", "c", ["correct"] * correct + ["wrong"] * (8 - correct))
    assert visual_rewards(items) == {("q", "c"): correct / 8}
    selection = run(items)
    assert len(selection.kept) == passes
    assert selection.dropped["caption_reward"] == (0 if passes else correct)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_a_reward_of_exactly_alpha_fails(alpha):
    items = candidates("q", "c", ["correct"] * round(alpha * 10) + ["wrong"] * (10 - round(alpha * 10)))
    assert run(items, alpha=alpha).kept == ()


def test_the_shortest_is_kept_and_ties_go_to_the_lowest_id():
    items = candidates("q", "c", ["correct"] * 4, [9, 7, 7, 8])
    assert run(items).kept == ("q.c.n1",)
    assert run(items, keep=3).kept == ("q.c.n1", "q.c.n2", "q.c.n3")
    assert run(items).dropped == {"not_shortest": 3}


def test_the_shortest_of_all_captions_of_a_question_is_kept():
    items = candidates("q", "c1", ["correct"] * 4, [9, 9, 9, 6]) + candidates("q", "c2", ["correct"] * 4, [5, 9, 9, 9])
    items += candidates(
        "q", "c3", ["correct", "wrong", "wrong", "wrong"], [1, 1, 1, 1]
    )  # shortest, but its caption fails
    assert run(items).kept == ("q.c2.n0",)


def test_a_truncated_trajectory_is_never_kept():
    items = candidates("q", "c", ["correct"] * 8, [1] + [5] * 7, truncated={0})
    selection = run(items)
    assert selection.kept == ("q.c.n1",)
    assert selection.dropped["truncated"] == 1


def test_the_reward_of_a_shared_caption_is_per_question():
    items = candidates("q1", "c", ["correct"] * 4) + candidates("q2", "c", ["wrong"] * 3 + ["correct"])
    assert visual_rewards(items) == {("q1", "c"): 1.0, ("q2", "c"): 0.25}
    assert run(items).kept == ("q1.c.n0",)


def test_broken_verdicts_count_as_configured():
    items = candidates("q", "c", ["correct"] * 6 + ["timeout", "error"])
    assert visual_rewards(items)["q", "c"] == 0.75
    assert visual_rewards(items, "left_out")["q", "c"] == 1.0
    assert run(items).kept == ()
    assert run(items, broken="left_out").kept == ("q.c.n0",)
    assert visual_rewards(candidates("q", "c", ["error"] * 3), "left_out") == {("q", "c"): 0.0}


def test_a_caption_without_a_judged_trajectory_has_no_reward():
    """Of totals of terms: None never counts as 0, in no mean."""
    items = [
        replace(item, by_terms=True, total=total)
        for item, total in zip(
            candidates("q", "c", ["correct"] * 2) + candidates("q", "d", ["correct"] * 2),
            (1.0, None, None, None),
            strict=True,
        )
    ]
    assert visual_rewards(items) == {("q", "c"): 1.0}
    selection = run(items)
    assert selection.kept == ("q.c.n0",) and selection.dropped == {"not_judged": 3}


def test_every_drop_has_its_reason():
    items = candidates("q", "c", ["correct"] * 5 + ["wrong"], truncated={4}) + candidates(
        "r", "d", ["correct", "wrong", "no_answer", "timeout", "error"]
    )
    selection = run(items)
    assert selection.kept == ("q.c.n0",)
    assert selection.dropped == {
        "not_shortest": 3, "truncated": 1, "wrong": 2, "no_answer": 1, "timeout": 1, "error": 1, "caption_reward": 1,
    }  # fmt: skip
    assert len(selection.kept) + selection.dropped.total() == len(items)


def test_ablations():
    items = candidates("q", "c", ["correct", "wrong", "wrong", "wrong"], [9, 1, 2, 3])
    assert run(items).kept == ()
    assert run(items, use_visual_reward=False).kept == ("q.c.n0",)
    assert run(items, use_visual_reward=False, require_correct=False).kept == ("q.c.n1",)
    assert run(items, require_correct=False).kept == ()
    many = [c for n in range(50) for c in candidates(f"q{n}", "c", ["correct"] * 8, list(range(8)))]
    drawn = run(many, select="random")
    assert len(drawn.kept) == 50
    assert drawn.dropped == {"not_drawn": 350}
    assert len({name.rpartition(".")[2] for name in drawn.kept}) > 3
    assert drawn.kept != run(many, select="random", seed=1).kept
    assert drawn.kept == run(many, select="random", seed=0).kept


verdict_names = st.sampled_from(["correct", "correct", "correct", "wrong", "no_answer", "timeout", "error"])


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), verdict_names, st.integers(1, 5), st.booleans()), max_size=60
    ),
    st.integers(0, 10**6),
    st.sampled_from(["shortest", "random"]),
    st.integers(1, 3),
)
def test_the_order_of_reading_does_not_matter(rows, seed, how, keep):
    items = [
        Candidate(f"q{q}.c{c}.n{n}", f"q{q}", f"c{c}", length, cut, verdict)
        for n, (q, c, verdict, length, cut) in enumerate(rows)
    ]
    shuffled = items[:]
    random.Random(seed).shuffle(shuffled)
    first = run(items, select=how, keep=keep, alpha=0.5)
    second = run(shuffled, select=how, keep=keep, alpha=0.5)
    assert first == second
    assert len(first.kept) + first.dropped.total() == len(items)
    assert len(set(first.kept)) == len(first.kept)
    rewards = visual_rewards(items)
    for candidate in items:
        if candidate.id in first.kept:
            assert candidate.verdict == "correct"
            assert not candidate.truncated
            assert rewards[candidate.question_id, candidate.caption_id] > 0.5
