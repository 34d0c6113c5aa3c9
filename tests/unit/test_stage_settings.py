"""Settings of an on-policy stage under way: which may change, which set untrained answers aside, which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.launch.local import claim_folder, make_folder
from sophia_mcore.launch.stage_settings import accept_changed_settings, only_weights_changed, refuse_changed_settings
from sophia_mcore.rl.batches import open_batch
from sophia_mcore.store.layout import RunFolder, step_name
from tests.support import configs, tiny_models
from tests.support.versions import publish

UPDATES = 2  # of a batch
OWN = "def half(episode, question):\n    return 0.5\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_internvl(tmp_path_factory.mktemp("models") / "one", seed=1)


BASE: dict[str, Any] = {
    "rl": {
        "start": "policy", "max_tokens": 64, "questions_per_batch": 8, "group": 4, "samples_per_update": 16,
        "batches": 9,
        "validation": ({"kind": "jsonl", "path": "held-out"},),
    },
    "helpers": {"judge": {"engine": {"kind": "openai", "model_name": "m", "base_url": "http://127.0.0.1:1/v1"}}},
    "rewards": ({"function": "correct", "weight": 0.5}, {"function": "mine.py:half", "weight": 0.5}),
}  # fmt: skip


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A stage that was stopped with Ctrl-C behind its third batch (two updates each); its fourth is open."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "policy").symlink_to(model)
    run = make_folder(config_of({}))
    claim_folder(config_of({}), run)
    run.rl.versions.mkdir(parents=True)
    for version in range(4):
        publish(model, run.rl.versions, version, UPDATES)
    (run.rl.checkpoints / step_name(6)).mkdir(parents=True)
    for number in range(4):
        open_batch(run.rl.batch(number), batch=number, minimum_version=number, first_position=0,
                   question_ids=["q"], questions_per_unit=1)  # fmt: skip
    (run.rl.path / "validation" / "00000000").mkdir(parents=True)
    return run


def config_of(other: dict[str, Any]) -> Config:
    return configs.make_config(Path("run"), "policy", "reasoner", **deep(BASE, other))


def deep(values: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """``values`` with some replaced, also within sections."""
    found = dict(values)
    for name, value in other.items():
        found[name] = deep(found.get(name, {}), value) if isinstance(value, dict) else value
    return found


def aside(run: RunFolder) -> set[str]:
    """What was moved aside."""
    names = {"rollouts/00000003", "rollouts/00000002", "validation"}
    there = {name for name in names if list(run.aside.glob(f"*/rl/{name}"))}
    assert all(not (run.rl.path / name).exists() for name in there)
    return there


def test_where_and_how_fast_may_change_at_any_time(run: RunFolder) -> None:
    free = {
        "rl": {"batches": 12, "engines": 2, "questions_per_unit": 5, "placement": "separate", "stall_seconds": 9.0,
               "patience_seconds": 9.0, "max_lost_share": 0.5, "stop_rollout_gap": 2.0,
               "objective": {"chunk_tokens": 128, "log_entropy": True},
               "train": {"save_every_batches": 1, "keep_checkpoints": 5, "term_gradients_every_steps": 7},
               "engine": {"kind": "vllm", "max_sequences": 3}},
        "functions": {"timeout_seconds": 60.0, "workers": 1},
        "helpers": {"judge": {"engine": {"base_url": "http://127.0.0.2:2/v1", "concurrency": 3}}},
        "cluster": {"max_restarts": 9},
    }  # fmt: skip
    accept_changed_settings(config_of(free), run, print, new_settings=False)
    assert not run.aside.exists()


@pytest.mark.parametrize(
    ("other", "key", "moved"),
    [
        ({"rl": {"validate_every_batches": 3}}, "rl.validate_every_batches", set()),
        ({"rl": {"keep": "best"}}, "rl.keep", set()),
        ({"evaluate": {"questions_per_unit": 3}}, "evaluate.questions_per_unit", {"validation"}),
        ({"rl": {"train": {"learning_rate": 1e-3}}}, "rl.train.learning_rate", set()),
        ({"rl": {"objective": {"kl": 0.1}}}, "rl.objective.kl", set()),
        ({"rewards": (BASE["rewards"][0], {"function": "mine.py:half", "weight": 2.0})}, "rewards", set()),
        ({"rewards": (BASE["rewards"][0],)}, "rewards", {"rollouts/00000003", "validation"}),
        ({"rl": {"max_tokens": 65}}, "rl.max_tokens", {"rollouts/00000003", "validation"}),
        ({"rl": {"prompt": "boxed"}}, "rl.prompt", {"rollouts/00000003", "validation"}),
        ({"run": {"seed": 5}}, "run.seed", {"rollouts/00000003", "validation"}),
        ({"helpers": {"judge": {"engine": {"model_name": "n"}}}}, "helpers.judge.engine.model_name",
         {"rollouts/00000003", "validation"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_change_is_named_and_then_accepted(run: RunFolder, other: dict[str, Any], key: str, moved: set[str]) -> None:
    config, said = config_of(other), list[str]()
    with pytest.raises(UsageError, match=rf"started with other settings \({key}\): .* or add --new-settings to go on"):
        accept_changed_settings(config, run, said.append, new_settings=False)
    assert not run.aside.exists()
    accept_changed_settings(config, run, said.append, new_settings=True)
    assert aside(run) == moved and bool(said) == bool(moved)
    assert run.rl.batch(2).is_dir()  # it is trained
    claim_folder(config, run, new_settings=True)
    accept_changed_settings(config, run, said.append, new_settings=False)  # nothing differs any more


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            {"rl": {"samples_per_update": 32}},
            r"another number of updates of a batch \(2 -> 1, by rl.samples_per_update\)",
        ),
        ({"rl": {"group": 8}}, r"another number of updates of a batch \(2 -> 4, by rl.group\)"),
        ({"rl": {"start": "other"}}, r"another rl.start \(policy -> other\), since its weights come from the first"),
    ],
    ids=["updates", "group", "start"],
)
def test_what_never_changes(run: RunFolder, tmp_path: Path, other: dict[str, Any], told: str) -> None:
    """With --new-settings too: the checkpoint counts updates, and the weights come from one model."""
    tiny_models.save_internvl(tmp_path / "other", seed=2)
    for new_settings in (False, True):
        with pytest.raises(UsageError, match=rf"cannot go on with {told}.*: choose another run.folder$"):
            refuse_changed_settings(config_of(other), run, new_settings=new_settings)


def test_the_starting_model_may_be_moved(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "moved").symlink_to((tmp_path / "policy").resolve())
    moved = config_of({"rl": {"start": "moved"}})
    found = refuse_changed_settings(moved, run, new_settings=True)
    assert found is not None and found.keys == ("rl.start",)
    (tmp_path / "policy").unlink()
    assert refuse_changed_settings(moved, run, new_settings=True) == found


def test_a_killed_stage_goes_on_where_its_weights_come_out_the_same(run: RunFolder, model: Path) -> None:
    """Version 4 is announced and no checkpoint has it: its batches are trained again from what is stored."""
    publish(model, run.rl.versions, 4, UPDATES)
    for other in ({"rl": {"validate_every_batches": 3}}, {"evaluate": {"questions_per_unit": 3}}):
        refuse_changed_settings(config_of(other), run, new_settings=True)
    for other in ({"rl": {"train": {"learning_rate": 1e-3}}}, {"rl": {"max_tokens": 65}}):
        with pytest.raises(UsageError, match=r"is at step 8, and its last checkpoint is of step 6"):
            refuse_changed_settings(config_of(other), run, new_settings=True)
    Path("mine.py").write_text(OWN.replace("0.5", "0.6"))
    with pytest.raises(UsageError, match=r"other settings \(the content of mine.py\)"):
        accept_changed_settings(config_of({}), run, print, new_settings=False)
    accept_changed_settings(config_of({}), run, print, new_settings=True)
    assert aside(run) == set() and run.rl.batch(3).is_dir()  # batch 3 is trained on: version 4 is made of it


def test_where_answers_are_replayed_they_must_have_been_judged_alike(run: RunFolder) -> None:
    replayed = {"rl": {"fill": "ssr"}}
    claim_folder(config_of(replayed), run, new_settings=True)
    told = r"replays answers \(rl.fill = 'ssr'\) that were sampled and judged with other settings \(rl.max_tokens\)"
    with pytest.raises(UsageError, match=told):
        refuse_changed_settings(config_of(deep(replayed, {"rl": {"max_tokens": 65}})), run, new_settings=True)
    weights = ({"function": "correct", "weight": 0.5}, {"function": "mine.py:half", "weight": 2.0})
    refuse_changed_settings(config_of(replayed | {"rewards": weights}), run, new_settings=True)


def test_a_stage_that_has_ended_is_weighed_anew_or_names_the_way(run: RunFolder) -> None:
    run.rl.train.mkdir(exist_ok=True)
    run.rl.summary_file.write_text(json.dumps({"batches": 9}))
    weights = config_of({"rewards": (BASE["rewards"][0], {"function": "mine.py:half", "weight": 2.0})})
    told = r"has ended with other weights \(rewards.half 0.5 -> 2\): 'sophia rl' with --new-settings weighs its answers"
    with pytest.raises(UsageError, match=told):
        refuse_changed_settings(weights, run)
    assert only_weights_changed(weights, run) == config_of({})
    assert only_weights_changed(config_of({}), run) is None
    other = config_of({"rl": {"samples_per_update": 32}})
    assert only_weights_changed(other, run) is None
    with pytest.raises(UsageError, match=r"has ended with other settings \(rl.samples_per_update\).*has ended\)$"):
        refuse_changed_settings(other, run, new_settings=True)  # more batches would not help
    other = config_of({"rl": {"max_tokens": 65}})
    with pytest.raises(UsageError, match=r"\(rl.max_tokens\).*rl/model' it begins.*or a larger rl.batches"):
        refuse_changed_settings(other, run, new_settings=True)
