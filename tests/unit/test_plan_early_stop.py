"""`sophia plan` and `reasoning.waves`: which share of the trajectories is expected to be sampled."""

from __future__ import annotations

from pathlib import Path

import pytest

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Reward
from sophia_mcore.errors import UsageError
from sophia_mcore.plan.command import make_plan
from sophia_mcore.plan.workload import Assumptions, sampled_share
from sophia_mcore.score.early_stop import Rule, waves_of
from tests.support import plan_models


def test_an_early_stop_is_planned(tmp_path: Path) -> None:
    """By the moments of Beta(1/2, 1/2), from which a caption's share of right answers is drawn; and in seconds."""
    config_38b = plan_models.write_config(tmp_path, "internvl3-38b")
    rule = Rule(Reward(), 4)  # alpha = 0.75: one wrong one of four is fatal
    assert sampled_share(0.5, rule, waves_of((4,), 4)) == 1.0
    assert sampled_share(1.0, rule, waves_of((1,), 4)) == pytest.approx(1.0)
    assert sampled_share(0.0, rule, waves_of((1,), 4)) == pytest.approx(0.25)
    ups = [1.0, 0.5, 0.5 * 1.5 / 2, 0.5 * 1.5 / 2 * 2.5 / 3]  # E[p^n] of Beta(1/2, 1/2)
    assert sampled_share(0.5, rule, waves_of((1,), 4)) == pytest.approx(sum(ups) / 4)
    plans = [
        make_plan(load_config(config_38b, sets=sets), "h100", 64, Assumptions(accuracy=accuracy))
        for sets, accuracy in (([], None), (["reasoning.waves=[1]"], 0.3), (["reasoning.waves=[1]"], 0.8))
    ]
    assert plans[0].work.sampled == 1.0 > plans[2].work.sampled > plans[1].work.sampled > 0.25
    seconds = [plan.phases[1].seconds for plan in plans]
    assert seconds[1] < seconds[2] < seconds[0]
    assert "early stop" in plans[1].phases[1].note and "early stop" not in plans[0].phases[1].note
    with pytest.raises(UsageError, match=r"--accuracy 1\.5"):
        make_plan(load_config(config_38b), "h100", 64, Assumptions(accuracy=1.5))
