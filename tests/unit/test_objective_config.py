"""The objective section: defaults by name, strict options, nearest names."""

import pytest
from pydantic import ValidationError

from sophia_mcore.config.load import load_config
from sophia_mcore.config.schema import OBJECTIVE_OPTIONS, Objective
from sophia_mcore.errors import UsageError
from tests.support.configs import MINIMAL_TOML


def load(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL_TOML + text)
    return load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[objective]\nname = 'sofia'", "objective.name: unknown objective .did you mean 'sophia'"),
        ("[objective]\nname = 'gsop'", "did you mean 'gspo'"),
        ("[objective]\nname = 'GRPO'", "did you mean 'grpo'"),
        ("[objective]\nname = 'dapo'", "DAPO is 'grpo' with clip_high = 0.28"),
        ("[objective]\nname = 'grpo'\ntrajectories_per_question = 1", "at least 2 are needed to compare"),
        ("[objective]\nname = ['grpo']", "objective.name: input should be a valid string"),
        ("[objective]\nadvantage = 'signed'", "advantage = 'signed' needs trajectories = 'all'"),
        ("[objective]\ntrajectories_per_question = 4", "trajectories_per_question needs trajectories = 'all'"),
        ("[objective]\ncorrection = 'tis'", "correction = 'tis' weighs .* the reasoner's: set it to 'none'"),
        ("[objective]\nfresh_share = 1.0", "objective.fresh_share: the shares must sum to less than 1"),
        ("[objective]\nbeta = 1.0", "'beta' is not an option of objective 'sophia'"),
        ("[objective]\nname = 'grpo'\nshaping = 0.1", "its own: clip_low, clip_high, dual_clip"),
        ("[objective]\nname = 'grpo'\nclip_lo = 0.1", "objective.clip_lo: unknown key .did you mean 'clip_low'"),
        ("[objective]\nname = 'grpo'\nclip_low = 1.5", "clip_low = 1.5 must be at most 1"),
        ("[objective]\nname = 'grpo'\ndual_clip = 0.5", "dual_clip = 0.5 must be 0 .off. or greater than 1"),
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


def test_defaults_depend_on_the_name(tmp_path):
    assert load(tmp_path, "").objective == Objective()
    sophia, gspo, luffy, topr = (Objective(name=name) for name in ("sophia", "gspo", "luffy", "topr"))
    assert (sophia.trajectories, sophia.advantage, sophia.behaviour) == ("kept", "reward", "none")
    assert (gspo.normalization, gspo.clip_low, gspo.clip_high) == ("sequence_mean", 3e-4, 4e-4)
    assert (luffy.behaviour, luffy.shaping) == ("unit", 0.1)
    assert (topr.trajectories, topr.advantage) == ("all", "signed")
    assert Objective(name="grpo", trajectories="kept").advantage == "reward"
    assert Objective(name="grpo", trajectories="kept", fresh_share=0.5).advantage == "group_normalized"
    assert Objective(name="awr").max_weight == 20.0 and Objective(name="awr", beta=0.5).beta == 0.5


@pytest.mark.parametrize("name", sorted(OBJECTIVE_OPTIONS))
def test_resolved_settings_load_again(name):
    resolved = Objective(name=name)
    assert Objective.model_validate(resolved.model_dump()) == resolved
    assert Objective.model_validate(resolved.model_dump(exclude_none=True)) == resolved


def test_sections_stay_frozen():
    with pytest.raises(ValidationError):
        Objective().name = "dft"
