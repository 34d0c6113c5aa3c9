"""Terms of the reward and efficiency of answers in the report."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sophia_mcore.config.schema import Config
from sophia_mcore.launch.phases import PHASES
from sophia_mcore.records import Rollout, Trajectory, Verdict
from sophia_mcore.report.build import write_report
from sophia_mcore.report.rewards import first_to_last, reward_curves, reward_figures
from sophia_mcore.score.efficiency import outcome_efficiency
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_folder, write_shard
from sophia_mcore.track.metrics import MetricsLog
from tests.support.report_stage import add_stage
from tests.support.report_world import make_finished_run


def test_terms_and_efficiency(tmp_path: Path) -> None:
    from sophia_mcore.report.collect import collect

    run, config = make_finished_run(tmp_path, questions=6)
    summary = json.loads(run.round(0).kept_summary_file.read_text())
    terms = {"terms": {"format": {"weight": 0.1, "judged": 3, "not_judged": 1, "mean": 0.5}}}
    run.round(0).kept_summary_file.write_text(json.dumps(summary | {"rewards": terms}))
    log = MetricsLog(run.rl.train / "metrics.jsonl")
    for batch in range(3):
        log.log(
            batch + 1, "batch", {"accuracy": 0.5, "reward_mean": batch, "reward_format": 0.25, "reward_deviation": 1.0}
        )
    log.close()
    report = collect(config, run, PHASES)
    found = report["rewards"]
    assert found["terms"] == {"correct": {"weight": 1.0, "function": "correct"}}
    assert found["rounds"] == {"0": terms}
    assert found["stage"] == {"reward_mean": [0, 2], "reward_format": [0.25, 0.25], "reward_deviation": [1.0, 1.0]}
    (base,) = [one for one in report["outcome_efficiency"] if one["of"] == "base, paper"]
    assert 0.0 < base["share"] <= 1.0 and base["answers"] == 6


def share(*answers: tuple[str, str, bool, int]) -> float | None:
    found = outcome_efficiency(answers)
    return None if found is None else found.share


def test_what_is_said_behind_the_first_right_answer() -> None:
    short, long = "So it is 5.", "3 + 2 = 5. Wait, check again: 3 + 2 = 5. It is 5"
    assert share((short, "5", True, 4)) == 10 / 11
    assert share((long, "5", True, 30)) == 9 / len(long)
    assert share((short, "5", True, 4), (long, "6", False, 30)) == 5 / 11
    assert share(("fifty-five", "55", True, 3)) == 1.0 and outcome_efficiency([]) is None
    assert share(("15 then 5", "5", True, 5)) == 1.0
    both = outcome_efficiency([(short, "5", True, 11), (long, "5", True, 2 * len(long)), (long, "6", False, 99)])
    assert both is not None and both.tokens == (10 + 18) / 2 and both.answers == 3
    wrong = outcome_efficiency([(long, "6", False, 99)])
    assert wrong is not None and wrong.tokens is None and wrong.share == 0.0


def efficiencies(run: RunFolder, config: Config) -> dict[str, dict[str, float]]:
    page = write_report(config, run, PHASES).read_text()
    found = json.loads(run.report_json.read_text())["outcome_efficiency"]
    assert ('id="efficiency"' in page) == bool(found) and all(one["of"] in page for one in found)
    return {one.pop("of"): one for one in found}


def test_every_report_that_has_answers_has_their_efficiency(tmp_path: Path) -> None:
    """Trajectories of a round, answers of a stage and of an evaluation; of a stage without an evaluation, too."""
    pytest.importorskip("plotly", reason="plotly is not installed (pip install '.[report]')")
    run, config = make_finished_run(tmp_path / "run", questions=6)
    found = efficiencies(run, config)
    assert list(found) == ["trajectories of round 0", "base, paper", "round-0, paper"]
    rows = outcome_efficiency(
        (row.text, verdict.extracted, verdict.verdict == "correct", len(row.token_ids))
        for row, verdict in judged_trajectories(run)
    )
    assert rows is not None and found["trajectories of round 0"] == rows.as_json()
    shutil.rmtree(run.evaluation("base", "paper").parents[1])
    shutil.rmtree(run.round(0).path)
    add_stage(run)
    found = efficiencies(run, config)
    assert list(found) == ["on-policy stage, first batches (1 to 3)", "on-policy stage, last batches (4 to 6)"]
    assert found["on-policy stage, first batches (1 to 3)"]["answers"] == 3 * 16


def test_of_several_turns_the_last_one_speaks_for_the_episode(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed (pip install '.[report]')")
    run, config = make_finished_run(tmp_path / "run", questions=6)
    shutil.rmtree(run.evaluation("base", "paper").parents[1])
    add_stage(run, batches=1, questions=1, answers=1)
    (first,) = read_folder(run.rl.batch(0), Rollout)
    right = replace(first, id="t1", turn=1, text="It is 7, so 7", extracted="7", verdict="correct")
    helper = replace(right, id="t2", turn=2, asked="reader", verdict="wrong")
    rethought = replace(right, id="r", parent=first.id, verdict="wrong", turn=3)
    wrong = replace(first, verdict="wrong", text="no", extracted="")
    write_shard(run.rl.batch(0) / "000001-b.parquet", [helper, rethought, right], Rollout)
    (run.rl.batch(0) / "000000-a.parquet").unlink()
    write_shard(run.rl.batch(0) / "000000-a.parquet", [wrong], Rollout)
    found = efficiencies(run, config)
    assert found["on-policy stage, first batches (1)"] == {"share": round(7 / 13, 4), "tokens": 5.38, "answers": 1}
    assert len([name for name in found if name.startswith("on-policy")]) == 1  # one batch is not compared with itself


def judged_trajectories(run: RunFolder) -> list[tuple[Trajectory, Verdict]]:
    verdicts = {one.trajectory_id: one for one in read_folder(run.round(0).verdicts, Verdict)}
    return [(one, verdicts[one.id]) for one in read_folder(run.round(0).trajectories, Trajectory)]


def test_curves_and_rows() -> None:
    lines = [{"phase": "batch", "reward_mean": 0.5, "reward_brevity": 0.1, "accuracy_turn_1": 0.2, "accuracy": 0.2}]
    charts = reward_curves([("run", lines)])
    assert [(title, [name for _, name, _ in named]) for title, _, _, named in charts] == [
        ("Terms of the reward, means of each batch", ["mean", "brevity"]),
        ("Right answers by turn", ["accuracy turn 1"]),
    ]
    assert reward_curves([("run", [{"phase": "batch", "accuracy": 0.2}])]) == []
    assert reward_figures(lines)["reward brevity, first to last batches"] == "0.100 (one batch)"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (1, "1 (one batch)"),
        (2, "1 to 2 (one batch each)"),
        (3, "1 to 3 (one batch each)"),
        (5, "1.5 to 4.5 (2 batches each)"),
        (9, "2.5 to 7.5 (4 batches each)"),
        (10, "3 to 8 (5 batches each)"),
        (60, "3 to 58 (5 batches each)"),
    ],
)
def test_the_first_and_the_last_batches_have_none_in_common(count: int, shown: str) -> None:
    values = [float(number) for number in range(1, count + 1)]
    assert first_to_last("x", values, "{:g}".format) == ("x, first to last batches", shown)
