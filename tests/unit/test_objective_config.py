"""The objective section: defaults by name, strict options, nearest names."""

import pytest
from pydantic import ValidationError

from sophia_mcore.config.load import load_config
from sophia_mcore.config.losses import LOSSES, OwnLoss
from sophia_mcore.config.schema import Objective
from sophia_mcore.errors import UsageError
from tests.support.configs import MINIMAL_TOML
from tests.support.objectives import objective


def load(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL_TOML + text)
    return load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[objective.loss]\nname = 'sofia'", "objective.loss.name: unknown objective .did you mean 'sophia'"),
        ("[objective.loss]\nname = 'gsop'", "did you mean 'gspo'"),
        ("[objective.loss]\nname = 'GRPO'", "did you mean 'grpo'"),
        ("[objective.loss]\nname = 'dapo'", "DAPO is 'grpo' with clip_high = 0.28"),
        (
            "[objective.loss]\nname = 'grpo'\n[objective]\ntrajectories_per_question = 1",
            "at least 2 are needed to compare",
        ),
        ("[objective.loss]\nname = ['grpo']", "objective.loss.name: input should be a valid string"),
        ("[objective]\nadvantage = 'signed'", "advantage = 'signed' needs trajectories = 'all'"),
        ("[objective]\ntrajectories_per_question = 4", "trajectories_per_question needs trajectories = 'all'"),
        ("[objective]\ncorrection = 'tis'", "correction = 'tis' weighs .* the reasoner's: set it to 'none'"),
        ("[objective]\nfresh_share = 1.0", "objective.fresh_share: the shares must sum to less than 1"),
        ("[objective.loss]\nbeta = 1.0", "objective.loss.beta: unknown key .valid: name"),
        (
            "[objective.loss]\nname = 'grpo'\nshaping = 0.1",
            "objective.loss.shaping: unknown key .valid: name, clip_low, clip_high, dual_clip",
        ),
        (
            "[objective.loss]\nname = 'grpo'\nclip_lo = 0.1",
            "loss.clip_lo: unknown key .did you mean 'clip_low'",
        ),
        (
            "[objective.loss]\nname = 'grpo'\nclip_low = 1.5",
            "loss.clip_low: input should be less than or equal to 1",
        ),
        ("[objective.loss]\nname = 'grpo'\ndual_clip = 0.5", "dual_clip = 0.5 must be 0 .off. or greater than 1"),
        ("[objective]\nbehaviour = 'recored'", "objective.behaviour: input should be 'none', 'unit'"),
        ("[objective]\ncorrection_low = 3.0", "exceeds correction_high"),
        ("[objective]\nnormalization = 'mean'", "objective.normalization"),
        ("[reward]\nalpha = 1.0", "reward.alpha"),
        ("[reward]\nalpha = 0.0", "reward.alpha"),
        ("[reward]\nalpha = nan", "reward.alpha"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        load(tmp_path, text)


def test_defaults_depend_on_the_loss(tmp_path):
    assert load(tmp_path, "").objective == Objective()
    sophia, gspo, luffy, topr, awr = (objective(name) for name in ("sophia", "gspo", "luffy", "topr", "awr"))
    assert (sophia.trajectories, sophia.advantage, sophia.behaviour) == ("kept", "reward", "none")
    assert (gspo.normalization, gspo.loss.clip_low, gspo.loss.clip_high) == ("sequence_mean", 3e-4, 4e-4)
    assert (luffy.behaviour, luffy.loss.shaping) == ("unit", 0.1)
    assert (topr.trajectories, topr.advantage) == ("all", "signed")
    assert objective("sophia", trajectories="all").advantage == "reward"
    assert objective("grpo", trajectories="kept").advantage == "reward"
    assert objective("grpo", trajectories="kept", fresh_share=0.5).advantage == "group_normalized"
    assert awr.loss.max_weight == 20.0 and objective("awr", beta=0.5).loss.beta == 0.5


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_resolved_settings_load_again(name):
    resolved = objective(name)
    assert Objective.model_validate(resolved.model_dump()) == resolved
    assert Objective.model_validate(resolved.model_dump(exclude_none=True)) == resolved


def test_a_function_of_ones_own_has_settings_instead_of_defaults(tmp_path):
    text = "[objective.loss]\nname = 'mine/margin.py:loss'\nadvantage = 'signed'\n[objective.loss.options]\ntau = 0.5\n"
    found = load(tmp_path, text).objective
    assert isinstance(found.loss, OwnLoss) and found.loss.options == {"tau": 0.5}
    assert (found.advantage, found.trajectories, found.loss.gradient) == ("signed", "all", "sequence")
    assert Objective.model_validate(found.model_dump(exclude_none=True)) == found


def test_sections_stay_frozen():
    with pytest.raises(ValidationError):
        Objective().loss = objective("dft").loss
