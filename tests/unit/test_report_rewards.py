"""Terms of the reward and efficiency of answers in the report."""

from __future__ import annotations

import json
from pathlib import Path

from sophia_mcore.report.rewards import outcome_efficiency, reward_curves, reward_figures
from sophia_mcore.track.metrics import MetricsLog
from tests.support.report_world import make_finished_run


def test_terms_and_efficiency(tmp_path: Path) -> None:
    from sophia_mcore.launch.phases import PHASES
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
    found = collect(config, run, PHASES)["rewards"]
    assert found["terms"] == {"correct": {"weight": 1.0, "function": "correct"}}
    assert found["rounds"] == {"0": terms}
    assert found["stage"] == {"reward_mean": [0, 2], "reward_format": [0.25, 0.25], "reward_deviation": [1.0, 1.0]}
    assert 0.0 < found["outcome_efficiency"]["base"]["paper"] <= 1.0


def test_what_is_said_behind_the_first_right_answer() -> None:
    short, long = "So it is 5.", "3 + 2 = 5. Wait, check again: 3 + 2 = 5. It is 5"
    assert outcome_efficiency([(short, "5", True)]) == 10 / 11
    assert outcome_efficiency([(long, "5", True)]) == 9 / len(long)
    assert outcome_efficiency([(short, "5", True), (long, "6", False)]) == 5 / 11
    assert outcome_efficiency([("fifty-five", "55", True)]) == 1.0 and outcome_efficiency([]) is None
    assert outcome_efficiency([("15 then 5", "5", True)]) == 1.0


def test_curves_and_rows() -> None:
    lines = [{"phase": "batch", "reward_mean": 0.5, "reward_brevity": 0.1, "accuracy_turn_1": 0.2, "accuracy": 0.2}]
    charts = reward_curves([("run", lines)])
    assert [(title, [name for _, name, _ in named]) for title, _, _, named in charts] == [
        ("Terms of the reward, means of each batch", ["mean", "brevity"]),
        ("Right answers by turn", ["accuracy turn 1"]),
    ]
    assert reward_curves([("run", [{"phase": "batch", "accuracy": 0.2}])]) == []
    assert reward_figures(lines)["reward brevity, first and last five batches"] == "0.100 to 0.100"
