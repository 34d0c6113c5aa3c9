"""Rewards and group advantages from the full K x N store, recorded log-probs, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sophia_mcore.batch.collate import split_logprobs
from sophia_mcore.batch.loader import Loader
from sophia_mcore.batch.reader import Reader
from sophia_mcore.batch.samples import FRESH, SUPERVISED, Sample
from sophia_mcore.batch.store_samples import from_store, recorded_logprobs, require_same_tokenizer
from sophia_mcore.batch.tokenize import tokenize
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.records import Answer, Kept, Question, Sampled, Trajectory, Verdict
from sophia_mcore.score.advantage import group_weights, weigh
from sophia_mcore.score.reward import Scored
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import write_shard
from tests.support.batch_world import CHAT, SPEC, make_images, make_samples, make_tokenizer
from tests.support.configs import make_config
from tests.support.objectives import objective


def trajectory(question, caption, n, tokenizer, finish="stop"):
    text = f"<think>{'a' * n}</think>{n}"
    ids = (*tokenizer.encode(text, add_special_tokens=False).ids, *([257] if finish == "stop" else []))
    return Trajectory(
        id=f"{question}.{caption}.n{n}",
        question_id=question,
        caption_id=caption,
        index=n,
        text=text,
        token_ids=ids,
        token_logprobs=tuple(-0.1 * (i + 1) for i in range(len(ids))),
        logprob_sum=-1.0,
        finish_reason=finish,
        temperature=1.0,
        top_p=1.0,
        max_tokens=64,
        seed=0,
        model_digest="d",
        prompt_hash="h",
    )


def verdict(row, name):
    return Verdict(
        trajectory_id=row.id,
        question_id=row.question_id,
        caption_id=row.caption_id,
        verdict=name,
        extracted="",
        answer_type="integer",
        seconds=0.0,
        verifier="v",
        verifier_version="1",
    )


# question, caption, verdicts of n = 0, 1, 2, 3
PLAN = [
    ("q1", "c.k0", ["correct", "correct", "correct", "correct"]),
    ("q1", "c.k1", ["correct", "wrong", "no_answer", "timeout"]),
    ("q2", "c.k0", ["wrong", "wrong", "wrong", "wrong"]),
    ("q3", "c.k0", ["correct", "correct", "wrong", "correct"]),
]


@pytest.fixture
def store(tmp_path):
    """A run folder with the plan above; q3's last trajectory is cut off although it was found right."""
    tokenizer = make_tokenizer()
    assert tokenizer.token_to_id("<|im_end|>") == 257
    run = RunFolder(tmp_path / "run")
    folder = run.round(0)
    rows = [
        trajectory(q, c, n, tokenizer, "length" if (q, n) == ("q3", 3) else "stop")
        for q, c, v in PLAN
        for n in range(4)
    ]
    verdicts = [verdict(row, name) for row, name in zip(rows, [name for *_, v in PLAN for name in v], strict=True)]
    write_shard(folder.trajectories / "a.parquet", rows[:7], Trajectory)
    write_shard(folder.trajectories / "b.parquet", rows[7:], Trajectory)
    write_shard(folder.verdicts / "a.parquet", verdicts, Verdict)
    questions = [Question(id=q, question=f"{q}?", answer="1") for q in ("q1", "q2", "q3")]
    write_shard(run.questions_file, questions, Question)
    kept = [
        Kept(
            trajectory_id=rows[1].id,
            question_id="q1",
            caption_id="c.k0",
            images=(),
            question="q1?",
            response=rows[1].text,
            token_count=9,
            outcome=1.0,
            caption_reward=1.0,
        )
    ]
    write_shard(folder.kept_file, kept, Kept)
    for name in ("policy", "reasoner"):
        (tmp_path / name).mkdir()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    return tmp_path, run, folder, rows


def load(store, **options):
    tmp_path, run, folder, _ = store
    config = make_config(tmp_path, objective=objective(**options))
    config = config.model_copy(update={"models": config.models.model_copy(update={"reasoner": tmp_path / "reasoner"})})
    return from_store(config, run, folder, tmp_path / "policy", long_thinking="LONG")


def weights_of(found):
    return {sample.id: round(sample.weight, 4) for sample in found.samples}


def test_kept_is_the_default(store):
    found = load(store)
    assert weights_of(found) == {"q1.c.k0.n1": 1.0} and not found.behaviour


def test_group_advantages_over_the_full_store(store):
    """q1: six right of... seven judged (5 right, 2 wrong); q2 teaches nothing; q3: the cut-off one counts as wrong."""
    found = load(store, name="grpo")
    weights = weights_of(found)
    high, low = (2 / 5) ** 0.5, -((5 / 2) ** 0.5)
    assert {k: v for k, v in weights.items() if k.startswith("q1")} == pytest.approx(
        {f"q1.c.k0.n{n}": high for n in range(4)} | {"q1.c.k1.n0": high, "q1.c.k1.n1": low, "q1.c.k1.n2": low}, abs=1e-4
    )
    assert {k: v for k, v in weights.items() if k.startswith("q3")} == {
        "q3.c.k0.n0": 1.0, "q3.c.k0.n1": 1.0, "q3.c.k0.n2": -1.0, "q3.c.k0.n3": -1.0,
    }  # fmt: skip
    assert not any(sample.startswith("q2") for sample in weights)
    assert found.dropped == {"timeout": 1, "zero_weight": 4}
    cut = next(sample for sample in found.samples if sample.id == "q3.c.k0.n3")
    assert not cut.complete and cut.system == "LONG"
    tokens = tokenize([cut], make_tokenizer(), CHAT, lambda digest: None, 1000).samples[0]
    assert tokens.input_ids[-1] != 257  # no end token is learned where there was none


def test_signed_and_filtered(store):
    weights = weights_of(load(store, name="topr", reward="filtered"))
    # 1/3 of q1.c.k1 and 3/4 of q3 do not exceed alpha = 0.75 (the verdict "correct" of the cut-off one counts for c)
    assert {k for k, v in weights.items() if v > 0} == {f"q1.c.k0.n{n}" for n in range(4)}
    assert weights["q2.c.k0.n0"] == -1.0 and weights["q1.c.k1.n0"] == -1.0


def test_limited_draw_is_balanced_and_reproducible(store):
    first = weights_of(load(store, name="grpo", trajectories_per_question=2))
    assert first == weights_of(load(store, name="grpo", trajectories_per_question=2))
    for question in ("q1", "q3"):
        own = [v for k, v in first.items() if k.startswith(question)]
        assert len(own) == 2 and min(own) < 0 < max(own)


def test_weights_of_groups():
    assert group_weights([1.0, 0.0], "reward") == [1.0, 0.0]
    assert group_weights([1.0, 0.0], "signed") == [1.0, -1.0]
    assert group_weights([1.0, 0.0, 0.0, 0.0], "group_mean") == [0.75, -0.25, -0.25, -0.25]
    assert group_weights([1.0, 1.0], "group_normalized") == [0.0, 0.0]
    weights, _ = weigh([Scored("a", "q", 1.0)], "group_normalized", 0, keep_zero=True)
    assert weights == {"a": 0.0}
    assert weigh([Scored("a", "q", 1.0)], "group_normalized", 0) == ({}, {"zero_weight": 1})


def test_verdicts_without_a_trajectory_are_counted(store):
    _, _, folder, _ = store
    write_shard(folder.verdicts / "b.parquet", [verdict_of("gone", "correct")], Verdict)
    assert load(store, name="grpo").dropped == {"timeout": 1, "zero_weight": 4, "no_trajectory": 1}
    assert {s.id for s in load(store, name="awr").samples if s.weight == 0.0} == {f"q2.c.k0.n{n}" for n in range(4)}


def verdict_of(name, value):
    return Verdict(
        trajectory_id=name, question_id="q", caption_id="c", verdict=value, extracted="", answer_type="",
        seconds=0.0, verifier="v", verifier_version="1",
    )  # fmt: skip


def test_recorded_uses_the_sampled_tokens(store):
    found = load(store, name="grpo", behaviour="recorded")
    rows = {row.id: row for row in store[3]}
    for sample in found.samples:
        assert sample.response_ids == rows[sample.id].token_ids
        assert found.behaviour[sample.id].tolist() == pytest.approx(list(rows[sample.id].token_logprobs))
    kept = load(store, behaviour="recorded")
    assert list(kept.behaviour) == ["q1.c.k0.n1"] and kept.samples[0].response_ids is not None


def test_recorded_with_another_tokenizer_is_refused(store):
    path = store[0] / "reasoner" / "tokenizer.json"
    value = json.loads(path.read_text())
    value["model"]["vocab"]["a"], value["model"]["vocab"]["b"] = (
        value["model"]["vocab"]["b"],
        value["model"]["vocab"]["a"],
    )
    path.write_text(json.dumps(value))
    with pytest.raises(UsageError, match=r"differ \(vocabulary\).*none, unit or reference"):
        load(store, name="grpo", behaviour="recorded")
    load(store, name="grpo", behaviour="unit")
    with pytest.raises(UsageError, match="endpoint"):
        require_same_tokenizer(store[0] / "policy", None)
    with pytest.raises(UsageError, match="cannot be read"):
        require_same_tokenizer(store[0] / "policy", store[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((), "recorded no log-probs"),
        ((-0.1,), "1 log-probs for 5 tokens"),
        ((-0.1, float("nan"), -0.1, -0.1, -0.1), "token 1 is nan"),
        ((-0.1, -float("inf"), -0.1, -0.1, -0.1), "token 1 is -inf"),
        ((-0.1, -0.1, 0.5, -0.1, -0.1), "token 2 is 0.5"),
    ],
)
def test_bad_recorded_logprobs_are_named(values, message):
    row = replace(trajectory("q", "c", 0, make_tokenizer()), token_ids=(1, 2, 3, 4, 5), token_logprobs=values)
    with pytest.raises(SophiaError, match=rf"trajectory q.c.n0: .*{message}"):
        recorded_logprobs(row, "objective.behaviour = 'recorded'")


def test_a_phase_that_was_not_run_is_named(tmp_path):
    run = RunFolder(tmp_path / "empty")
    with pytest.raises(SophiaError, match="run 'sophia score' first"):
        from_store(make_config(tmp_path), run, run.round(0), tmp_path, long_thinking="")
    with pytest.raises(SophiaError, match="run 'sophia generate' first"):
        config = make_config(tmp_path, objective={"loss": {"name": "grpo"}})
        from_store(config, run, run.round(0), tmp_path, long_thinking="")


def test_nothing_left_says_why(store):
    _, _, folder, rows = store
    for path in folder.verdicts.iterdir():
        path.unlink()
    write_shard(folder.verdicts / "b.parquet", [verdict(row, "wrong") for row in rows], Verdict)
    with pytest.raises(SophiaError, match=r"no trajectory left for objective 'grpo' \(zero_weight 16\)"):
        load(store, name="grpo")


def test_sampled_tokens_that_end_otherwise_are_dropped():
    sample = Sample(
        id="a", source="s", images=(), system=None, question="q", response="5", response_ids=(5, 7), complete=True
    )
    done = tokenize([sample], make_tokenizer(), CHAT, lambda digest: None, 1000)
    assert done.dropped == {"other_end_token": 1}
    assert tokenize([replace(sample, complete=False)], make_tokenizer(), CHAT, lambda d: None, 1000).samples


def make_loader(tmp_path, samples, **objective):
    store, _ = make_images(tmp_path / "images")
    config = make_config(
        tmp_path,
        batch={"sequence_length_tokens": 512},
        train={"global_batch_samples": 8, "steps": 4},
        objective=objective,
    )
    return Loader(samples, config, Reader(CHAT, make_tokenizer(), SPEC, store))


def test_logprobs_go_round(tmp_path):
    _, digests = make_images(tmp_path / "images")
    samples = make_samples(digests, 9)
    samples[4] = replace(samples[4], kind=SUPERVISED)
    loader = make_loader(tmp_path, samples)
    rows = list(loader.everything())
    assert sorted(name for row in rows for name in row.sample_ids) == sorted(sample.id for sample in samples)
    logprobs = {}
    for row in rows:
        logprobs |= split_logprobs(row, -row.targets.float().abs() / 300.0)
    del logprobs[samples[4].id]
    given = loader.with_logprobs(behaviour=logprobs)
    for row in given.step(0):
        wanted = (-row.targets.float().abs() / 300.0 * row.target_mask)[row.kinds != SUPERVISED]
        assert np.allclose(row.behaviour_logprobs[row.kinds != SUPERVISED], wanted)
        assert row.rollout_logprobs is None
    assert loader.step(0)[0].behaviour_logprobs is None
    loader.with_logprobs(rollout={})  # what others have written has none
    logprobs[samples[2].id][0] = -np.inf
    with pytest.raises(SophiaError, match="behaviour log-probs of sample kept-2: -inf"):
        loader.with_logprobs(behaviour=logprobs)


def test_fresh_trajectories_by_their_share(tmp_path):
    stored = make_samples(["x"] * 2, 12)
    stored = [replace(sample, images=()) for sample in stored]
    fresh = [replace(sample, id=f"fresh-{sample.id}", kind=FRESH) for sample in stored[:6]]
    loader = make_loader(tmp_path, [*stored, *fresh], fresh_share=0.25)
    for step in range(loader.steps):
        assert sum(name.startswith("fresh") for name in loader.sample_ids(step)) == 2
        assert sum(int((row.kinds == FRESH).sum()) > 0 for row in loader.step(step)) >= 1
    with pytest.raises(SophiaError, match="own trajectories"):
        make_loader(tmp_path, stored, fresh_share=0.25)
    assert make_loader(tmp_path, [*stored, *fresh]).steps == 4


def answer(question, n, verdict, finish="stop"):
    row = trajectory(question, "c.k0", n, make_tokenizer(), finish)
    fields = {name: getattr(row, name) for name in Sampled.__dataclass_fields__}
    return Answer(id=f"{question}.n{n}", question_id=question, index=n, verdict=verdict, extracted="", **fields)


def fresh_store(store):
    """The policy's own: q1 always right, q2 right once of twice, q3 cut off and not judged."""
    _, _, folder, _ = store
    rows = [answer("q1", 0, "correct"), answer("q1", 1, "correct"), answer("q2", 0, "correct")]
    rows += [answer("q2", 1, "wrong"), answer("q3", 0, "correct", "length"), answer("q3", 1, "timeout")]
    write_shard(folder.fresh / "0.parquet", rows, Answer)
    return store


def test_fresh_answers_join_the_kept(store):
    found = load(fresh_store(store), fresh_share=0.5)
    assert weights_of(found) == {"q1.c.k0.n1": 1.0, "q1.n0": 1.0, "q1.n1": 1.0, "q2.n0": 1.0}
    own = {sample.id: sample for sample in found.samples if sample.kind == FRESH}
    assert len(own) == 3 and {sample.system for sample in own.values()} == {"LONG"}
    assert own["q2.n0"].response_ids is not None and own["q2.n0"].source == "fresh"
    assert found.rollout.keys() == found.behaviour.keys() == own.keys()
    assert found.rollout["q2.n0"].tolist() == pytest.approx(
        [-0.1 * (i + 1) for i in range(len(found.rollout["q2.n0"]))]
    )


@pytest.mark.parametrize(("behaviour", "correction", "has"), [
    ("unit", "none", True), ("unit", "tis", False), ("reference", "none", False), ("recorded", "none", True),
    ("recorded", "tis", True),
])  # fmt: skip
def test_fresh_answers_have_a_behaviour_unless_the_correction_weighs_them(store, behaviour, correction, has):
    found = load(fresh_store(store), name="topr", behaviour=behaviour, correction=correction, fresh_share=0.5)
    own = {sample.id for sample in found.samples if sample.kind == FRESH}
    assert own and own <= found.rollout.keys()
    assert (own & found.behaviour.keys()) == (own if has else set())


def test_fresh_groups_are_their_own_but_for_luffy(store):
    """q2: the store has four wrong ones, the policy one right and one wrong; q1: both kinds."""
    fresh_store(store)
    grpo = weights_of(load(store, name="grpo", fresh_share=0.5))
    assert {name: grpo[name] for name in grpo if name.startswith("q2")} == {"q2.n0": 1.0, "q2.n1": -1.0}
    assert not any(name in grpo for name in ("q1.n0", "q1.n1"))  # all right: nothing to compare
    luffy = weights_of(load(store, name="luffy", fresh_share=0.5))
    assert luffy["q2.n0"] == pytest.approx(5**0.5, abs=1e-3)  # one right of six
    assert luffy["q2.c.k0.n0"] == luffy["q2.n1"] == pytest.approx(-(0.2**0.5), abs=1e-3)
    assert luffy["q1.n0"] > 0 > luffy["q1.c.k1.n1"]


def test_the_limit_per_question_leaves_the_policys_own_alone(store):
    fresh_store(store)
    found = weights_of(load(store, name="luffy", fresh_share=0.5, trajectories_per_question=2))
    assert sum(name.startswith("q1.c") for name in found) == 2
    assert {"q1.n0", "q1.n1"} <= found.keys()


def test_shards_that_have_gone_are_missed(store):
    _, _, folder, _ = store
    counted = {"trajectories": 16, "verdicts": {"correct": 8, "wrong": 6, "no_answer": 1, "timeout": 1}}
    folder.kept_summary_file.write_text(json.dumps(counted))
    assert load(store, name="grpo").samples
    shard = next(path for path in folder.trajectories.iterdir() if "a" in path.stem)
    shard.unlink()
    with pytest.raises(SophiaError, match=r"trajectories: 9 of 16 trajectories are there, a shard has gone"):
        load(store, name="grpo")
    with pytest.raises(SophiaError, match=r"1 of the trajectories to train on are gone, such as 'q1\.c\.k0\.n1'"):
        load(store, behaviour="recorded")
    (folder.verdicts / "a.parquet").unlink()
    folder.kept_summary_file.write_text(json.dumps(counted | {"trajectories": 9}))
    with pytest.raises(SophiaError, match=r"verdicts: 0 of 16 verdicts are there"):
        load(store, name="grpo")


def test_fresh_answers_that_are_missing_or_unknown_are_refused(store):
    with pytest.raises(SophiaError, match=r"3 of 3 questions have no answers .*'q1': run `sophia generate`"):
        load(store, fresh_share=0.5)
    _, _, folder, _ = store
    rows = [replace(answer(q, 0, "correct"), token_logprobs=()) for q in ("q1", "q2", "q3")]
    write_shard(folder.fresh / "0.parquet", rows, Answer)
    with pytest.raises(SophiaError, match=r"q1\.n0: objective\.fresh_share cannot be served, its engine recorded no"):
        load(store, fresh_share=0.5)
