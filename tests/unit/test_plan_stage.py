"""The planner's on-policy stage: who waits for whom, how GPUs are shared, what a batch takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sophia_mcore.config import load_config
from sophia_mcore.config.engines import TransformersEngine
from sophia_mcore.config.rl import Rl
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.plan.command import Plan, make_plan
from sophia_mcore.plan.hardware import load_gpu
from sophia_mcore.plan.show import show
from sophia_mcore.plan.show_stage import tail_advice
from sophia_mcore.plan.stage import (
    StagePlan,
    divide,
    divisions,
    draws,
    old_logprob_seconds,
    stage_plan,
    useful_share,
    with_rethinking,
)
from sophia_mcore.plan.turns import Parties, Turns, batches_of, simulate
from sophia_mcore.plan.workload import Assumptions
from tests.support import plan_models

STAGE = """
[rl]
batches = 480
placement = "separate"
rollout_nodes = 4
lag = 1
engine = { kind = "vllm", tensor_parallel = 4, max_sequences = 256 }
[rl.objective]
correction = "tis"
[parallel]
tensor = 8
pipeline = 2
sequence_parallel = true
processes = 32
[train]
dtype = "bfloat16"
recompute = "full"
[score]
workers = 8
"""
SHARED = (
    "rl.lag=0", "rl.placement=colocated", "rl.rollout_nodes=0", "rl.engine.tensor_parallel=1", "parallel.tensor=4",
    "parallel.pipeline=1", "parallel.processes=8", "train.recompute=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for model in ("internvl3-38b", "internvl3-8b"):
        found[model] = plan_models.write_config(tmp_path_factory.mktemp(model), model)
        found[model].write_text(found[model].read_text() + STAGE)
    return found


@pytest.fixture(scope="module")
def on_two_groups(files: dict[str, Path]) -> Plan:
    """The 38B on 64 GPUs; the planner tries every division of the nodes, which takes seconds."""
    return make_plan(load_config(files["internvl3-38b"]), "h100", 64, Assumptions())


def planned(config: Config, gpus: int, **given: float) -> StagePlan:
    plan = make_plan(config, "h100", gpus, Assumptions(**given)).stage
    assert isinstance(plan, StagePlan)
    return plan


def play(tokens: list[float], per_unit: int, lag: int, **parties: float) -> Turns:
    """One engine with room for all, unless told otherwise; a decoding step takes a second."""
    known = {"engines": 1, "places": 64} | parties
    return simulate(batches_of(tokens, per_unit, 6 + lag), Parties(step=lambda running: 1.0, **known), lag)  # type: ignore[arg-type]


def test_without_a_lag_everything_adds_up() -> None:
    """2 s to load, two units of 10 steps on two engines, 5 s to train, 3 s to publish."""
    turns = play([10.0] * 8, 4, 0, engines=2, load=2.0, train=5.0, publish=3.0)
    assert turns.seconds == pytest.approx(20.0)
    assert turns.trainer_idle == pytest.approx(12 / 20)
    assert turns.engine_idle == pytest.approx(8 / 20)
    assert turns.filled == pytest.approx(10 / 20 * 4 / 64)


def test_without_a_lag_units_do_not_join() -> None:
    """Two units on one engine: one after the other, although there is room for both."""
    assert play([10.0] * 8, 4, 0, train=5.0).seconds == pytest.approx(25.0)
    assert play([10.0] * 8, 8, 0, train=5.0).seconds == pytest.approx(15.0)


def test_with_a_lag_the_slower_side_sets_the_pace() -> None:
    slow_engines = play([10.0] * 8, 4, 1, places=4, load=2.0, train=5.0)
    assert slow_engines.seconds == pytest.approx(22.0)  # two units after each other, and a load
    assert slow_engines.engine_idle == pytest.approx(0.0)
    slow_trainer = play([10.0] * 8, 4, 1, train=30.0, publish=1.0)
    assert slow_trainer.seconds == pytest.approx(31.0)
    assert slow_trainer.trainer_idle == pytest.approx(0.0)


def test_a_new_version_waits_for_the_longest_answer() -> None:
    """An engine drains before it loads: with lag 1 a batch takes at least half of the longest answer."""
    tail = [1.0] * 15 + [100.0]
    with_lag = play(tail, 1, 1, train=1.0)
    assert 50.0 <= with_lag.seconds <= 101.0
    assert play(tail, 16, 0, train=1.0).seconds == pytest.approx(101.0)


def test_more_places_or_engines_never_take_longer() -> None:
    tokens = [float(1 + i % 7) for i in range(48)]
    for lag in (0, 1):
        few = play(tokens, 6, lag, places=4, train=3.0).seconds
        assert play(tokens, 6, lag, places=8, train=3.0).seconds <= few
        assert play(tokens, 6, lag, places=4, engines=3, train=3.0).seconds <= few


def test_engines_go_on_while_a_version_is_copied() -> None:
    """Without a lag there is nothing to go on with. With one the copy is hidden, as long as there is."""
    assert play([10.0] * 8, 8, 0, load=2.0, train=5.0, copy=4.0).seconds == pytest.approx(21.0)
    slow = {"places": 4, "load": 2.0, "train": 1.0}
    assert play([10.0] * 8, 4, 1, copy=4.0, **slow).seconds <= play([10.0] * 8, 4, 1, **slow).seconds
    assert play([10.0] * 8, 4, 1, load=6.0, places=4, train=1.0).seconds > play([10.0] * 8, 4, 1, **slow).seconds


def test_reading_prompts_takes_its_time() -> None:
    assert play([10.0] * 4, 4, 0, read=0.5).seconds == pytest.approx(12.0)


def test_too_few_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        simulate(batches_of([1.0], 1, 3), Parties(engines=1, places=1, step=lambda running: 1.0), 0)


def test_the_share_of_useful_groups_follows_from_the_selection() -> None:
    assert useful_share(Rl(), 0.3) == (0.3, ())
    wide, words = useful_share(Rl.model_validate({"select": {"samples": 8, "minimum": 0.0, "maximum": 1.0}}), None)
    assert wide == pytest.approx(1 - 2 / 9, abs=1e-3)  # the integral of 1 - p^8 - (1-p)^8
    narrow, _ = useful_share(Rl.model_validate({"select": {"samples": 16}}), None)
    assert narrow > wide and "78%" in words[0]
    assert "(--kept)" in useful_share(Rl(), None)[1][0]


def test_divisions_are_whole_nodes() -> None:
    h100 = load_gpu("h100")
    assert list(divisions(h100, 64)) == [8, 16, 24, 32, 40, 48, 56]
    assert all(count % 8 == 0 for count in divisions(h100, 512)) and len(list(divisions(h100, 512))) <= 8
    assert list(divisions(h100, 8)) == [1, 2, 3, 4, 5, 6, 7]
    assert list(divisions(h100, 1)) == []


def test_the_plan_of_a_stage_on_two_groups_of_nodes(files: dict[str, Path], on_two_groups: Plan) -> None:
    plan = on_two_groups.stage
    assert isinstance(plan, StagePlan) and plan.own is not None
    assert plan.own.training_gpus == 32 and plan.own.engines == 8
    seconds = [stage.turns.seconds for stage in plan.others]
    assert seconds == sorted(seconds) and 32 not in [stage.training_gpus for stage in plan.others]
    assert plan.own.publishing > 0 and plan.own.host == 0
    assert plan.days(plan.own, 480) == pytest.approx(480 * plan.own.turns.seconds / 86400)
    synchronous = planned(load_config(files["internvl3-38b"], sets=["rl.lag=0"]), 64)
    assert synchronous.own is not None
    assert synchronous.own.turns.seconds > plan.own.turns.seconds


def test_the_plan_of_copies_in_memory(files: dict[str, Path], on_two_groups: Plan) -> None:
    """The trainer publishes as before; a load reads memory, and the copy is another's time."""
    plain = on_two_groups.stage
    assert isinstance(plain, StagePlan) and plain.own is not None and plain.own.copying == 0.0
    copied = divide(
        load_config(files["internvl3-38b"], sets=["rl.versions=memory"]), on_two_groups.spec, plain.work,
        load_gpu("h100"), 64, 32,
    )  # fmt: skip
    assert copied.publishing == plain.own.publishing and 0 < copied.copying < plain.own.loading
    assert copied.loading < plain.own.loading / 3
    alone = planned(load_config(files["internvl3-8b"], sets=[*SHARED, "rl.versions=memory"]), 8).own
    assert alone is not None and alone.copying == 0.0


def test_the_plan_of_a_shared_node(files: dict[str, Path]) -> None:
    plan = planned(load_config(files["internvl3-8b"], sets=SHARED), 8)
    stage = plan.own
    assert stage is not None and not plan.others and stage.training_gpus == 8 and stage.engines == 8
    whole = stage.loading + stage.training + stage.old + stage.publishing
    assert stage.turns.seconds >= whole  # they take turns
    assert stage.old == 0.0  # one update a batch
    assert 2 * 7.6e9 < stage.host < 512e9
    longer = planned(load_config(files["internvl3-8b"], sets=SHARED), 8, response_tokens=6000)
    assert longer.own is not None and longer.own.turns.seconds > stage.turns.seconds


def test_old_logprobs_are_a_part_of_the_updates(files: dict[str, Path]) -> None:
    several = load_config(files["internvl3-8b"], sets=[*SHARED, "rl.samples_per_update=64"])
    stage = planned(several, 8).own
    assert stage is not None and 0 < stage.old < stage.training / 2
    engine = several.model_copy(update={"rl": several.on_policy.model_copy(update={"old": "engine"})})
    assert old_logprob_seconds(engine.on_policy, stage.option) == 0.0


def test_rethinking_samples_more(files: dict[str, Path]) -> None:
    rl = Rl.model_validate({"rethink": {"share": 0.25, "most_tokens": 1000}})
    assert with_rethinking(rl, [10.0] * 8) == [510.0, 10.0, 10.0, 10.0, 510.0, 10.0, 10.0, 10.0]
    assert with_rethinking(Rl(), [10.0] * 8) == [10.0] * 8
    plan = planned(load_config(files["internvl3-8b"], sets=[*SHARED, "rl.rethink.share=0.5"]), 8)
    assert "50% of them go on for 512 tokens" in plan.assumed


def test_resampling_samples_more(files: dict[str, Path]) -> None:
    plain = planned(load_config(files["internvl3-8b"], sets=[*SHARED, "rl.fill=none"]), 8, kept=0.25).own
    again = planned(load_config(files["internvl3-8b"], sets=[*SHARED, "rl.fill=resample"]), 8, kept=0.25).own
    assert plain is not None and again is not None
    assert again.sampling > 2 * plain.sampling and again.training > plain.training


def test_resampling_ends_where_it_may_not_go_on() -> None:
    resample = Rl.model_validate({"fill": "resample", "max_resamples": 2})
    assert [draws(resample, useful) for useful in (1.0, 0.5, 0.34, 0.1)] == [1, 2, 3, 3]
    assert draws(Rl(), 0.1) == 1


def test_what_is_refused(files: dict[str, Path], on_two_groups: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(files["internvl3-38b"])
    others = planned(load_config(files["internvl3-38b"], sets=["rl.rollout_nodes=9"]), 32)
    assert others.own is None and "no GPU of 32 is left to train: 72 would sample" in others.refused
    spec = on_two_groups.spec
    with pytest.raises(SophiaError, match="does not fit 1 x h100: no GPU of 1 is left to train: 32 would sample"):
        stage_plan(config, spec, load_gpu("h100"), 1, Assumptions())
    other = config.on_policy.model_copy(update={"engine": TransformersEngine(kind="transformers")})
    unplanned = make_plan(config.model_copy(update={"rl": other}), "h100", 64, Assumptions())
    assert unplanned.stage == "rl.engine.kind = 'transformers': only vLLM engines are planned"
    show(unplanned, Console(width=140), 1)
    assert "the on-policy stage is not planned: rl.engine.kind" in capsys.readouterr().out


def test_advice_where_both_sides_wait(files: dict[str, Path]) -> None:
    config = load_config(files["internvl3-38b"])
    stage = planned(config, 64).own
    assert stage is not None

    def advice(lag: int, **idle: float) -> list[str]:
        turns = replace(stage.turns, **idle)
        return tail_advice(replace(stage, turns=turns), config.on_policy.model_copy(update={"lag": lag}))

    (line,) = advice(2, engine_idle=0.2, trainer_idle=0.3)
    assert "wait for each other: 3 batches take at least as long" in line and "larger rl.lag" in line
    assert advice(1, engine_idle=0.2, trainer_idle=0.05) == []  # the trainer is the slower side
    assert advice(1, engine_idle=0.05, trainer_idle=0.3) == []


def test_the_plan_is_printed(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(load_config(files["internvl3-8b"], sets=SHARED), "h100", 8, Assumptions())
    show(plan, Console(width=140), 1)
    text = capsys.readouterr().out
    assert "on-policy stage: batches of 64 x 8 answers, updates of 512 answers, 480 batches, lag 0, colocated" in text
    assert "8 shared" in text and "host memory of a shared node" in text
    assert "raise rl.questions_per_unit, up to 8 (one unit per engine)" in text


def test_a_narrow_terminal_breaks_no_word(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    show(make_plan(load_config(files["internvl3-38b"]), "h100", 64, Assumptions()), Console(width=80), 1)
    heading, _, rest = capsys.readouterr().out.partition("who waits")[2].partition("──")
    names = {"engines", "sample", "load", "train", "publish", "batch", "trainer", "idle", "places", "filled", "days"}
    assert set(heading.split()) == names
    lines = rest.splitlines()
    rows = [line for line in lines if " x TP" in line and line.count("%") == 3]
    assert len(rows) == sum("GPUs to train + sample: " in line for line in lines) > 1  # a division is one line
