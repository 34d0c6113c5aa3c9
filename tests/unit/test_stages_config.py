"""[[stages]] in a TOML: what each stage is made of, and what `sophia check` refuses before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config import load_config
from sophia_mcore.config.load import dump_given
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.launch.stage_configs import stage_run, stage_runs
from tests.support.stages_world import TOML

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = TOML[: TOML.index("[[stages]]")]
EXAMPLES = sorted(path for path in ROOT.glob("examples/*/*.toml") if path.parent.name != "internvl")  # those are bases


def loaded(folder: Path, stages: str, settings: str = SETTINGS) -> Config:
    (folder / "run.toml").write_text(settings + stages)
    return load_config(folder / "run.toml")


def stage(kind: str = "rl", **fields: str) -> str:
    given = {"name": '"one"', "kind": f'"{kind}"', **fields}
    return "[[stages]]\n" + "".join(f"{key} = {value}\n" for key, value in given.items())


def test_a_stage_is_the_file_with_its_own_settings_folder_and_model(tmp_path: Path) -> None:
    first, second = stage_runs(
        loaded(
            tmp_path,
            stage("sophia", set='{ "reward.alpha" = 0.5, train.steps = 7, train.learning_rate = 1e-4 }')
            + stage(name='"two"', set='{ "rl.group" = 4, "evaluate.questions.1.limit" = 3 }'),
        )
    )
    assert (first.label, first.run.path, first.config.run.name) == ("00-one", Path("run/stages/00-one"), "x-one")
    assert (first.config.reward.alpha, first.config.train.steps, first.config.train.learning_rate) == (0.5, 7, 1e-4)
    assert first.config.rl is None and first.config.stages is None
    assert first.config.captions.images_per_unit == 64  # the rest is the file's
    assert (second.label, second.config.on_policy.group, second.config.on_policy.start) == ("01-two", 4, "base")
    assert [source.limit for source in second.config.evaluate.questions] == [None, 3]
    assert second.config.reward.alpha == 0.75  # one stage's settings are no other's


def test_a_stage_begins_with_the_model_that_it_is_given(tmp_path: Path) -> None:
    one = stage_run(loaded(tmp_path, stage()), 0, Path("run/stages/00-x/round-0/model"))
    assert one.config.models.policy == Path("run/stages/00-x/round-0/model")
    assert one.config.on_policy.start == "run/stages/00-x/round-0/model"


def test_a_quoted_key_replaces_and_a_table_is_merged(tmp_path: Path) -> None:
    engine = '{ kind = "transformers", max_sequences = 3 }'
    config = loaded(tmp_path, stage("sophia", set=f'{{ "captions.engine" = {engine}, captions.per_image = 2 }}'))
    captions = stage_runs(config)[0].config.captions
    assert (captions.engine.kind, captions.per_image, captions.images_per_unit) == ("transformers", 2, 64)
    loss = loaded(tmp_path, stage(set='{ "rl.objective.loss" = { name = "cispo" } }'))
    assert stage_runs(loss)[0].config.on_policy.objective.loss.name == "cispo"


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ("stages = []\n", "stages: the list is empty: name a stage, or remove the key"),
        (stage() + stage(), "stages: two stages have the name 'one'"),
        (stage(nam='"x"'), "stages.0.nam: unknown key (did you mean 'name'?)"),
        (stage("superviced"), "stages.0.kind: input should be 'sophia', 'supervised' or 'rl' (got 'superviced')"),
        (stage(promote='"lst"'), "stages.0.promote: unknown rule 'lst' (did you mean 'last'?"),
        (stage(name='"a/b"'), "stages.0.name: "),
    ],
)
def test_a_list_that_is_none(tmp_path: Path, stages: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path, *(("", stages + SETTINGS) if stages.startswith("stages") else (stages,)))
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (stage(set='{ "rl.grup" = 4 }'), "rl.grup: unknown key (did you mean 'group'?)"),
        (stage(set='{ "rll.group" = 4 }'), "rll: unknown key (did you mean 'rl'?)"),
        (stage("sophia", set='{ "rl.grup" = 4 }'), "rl.grup: unknown key (did you mean 'group'?)"),  # though not used
        (stage(set='{ "rl.group" = 1 }'), "rl.group: input should be greater than or equal to 2 (got 1)"),
        (stage(set='{ "run.name.x" = 1 }'), "set 'run.name.x': 'name' is a value, not a section"),
        (stage(set='{ "evaluate.questions.2.limit" = 1 }'), "'2' is no entry of a list of 2, counted from 0"),
        (stage(set='{ "run.folder" = "x" }'), "set 'run.folder': it follows from"),
        (stage(set='{ models.policy = "x" }'), "set 'models.policy': the stage begins with the model"),
        (stage(set='{ rl.start = "round-0" }'), "set 'rl.start': the stage begins with the model"),
        (stage("supervised"), "kind = 'supervised' needs train.data"),
        (stage("sophia", set='{ train.data = "p" }'), "kind = 'sophia' trains on kept trajectories"),
        (stage(set="{ evaluate.only = true }"), "evaluate.only trains nothing"),
        (stage("sophia", promote='"validation"'), "promote = 'validation' belongs to kind = 'rl'"),
        (stage(promote='"validation"'), "promote = 'validation' needs rl.keep = 'best' and [[rl.validation]]"),
        (stage(promote='"evaluate.gredy"'), "not evaluated (did you mean 'evaluate.greedy'? valid: evaluate.pass_at_1"),
        (
            stage(promote='"evaluate.pass_at_1"', set='{ "evaluate.questions" = [] }'),
            "promote = 'evaluate.pass_at_1': nothing is evaluated: [[evaluate.questions]] is missing",
        ),
        (
            stage(promote='"evaluate.pass_at_1"', set="{ evaluate.evaluate_base = false }"),
            "promote = 'evaluate.pass_at_1' needs evaluate.evaluate_base",
        ),
        (
            stage(promote='"evaluate.other"', set='{ "evaluate.protocols.1.name" = "other" }'),
            "'other' is a protocol and a set of questions: rename one",
        ),
    ],
)
def test_what_a_stage_cannot_be(tmp_path: Path, stages: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        stage_runs(loaded(tmp_path, stages))
    assert str(caught.value).startswith("stages.0 (one): ") and told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_on_policy_stage_without_its_section(tmp_path: Path) -> None:
    without = SETTINGS[: SETTINGS.index("[rl]")]
    with pytest.raises(UsageError, match=r"stages.0 \(one\): kind = 'rl' needs the section \[rl\]"):
        stage_runs(loaded(tmp_path, stage(), without))
    given = loaded(tmp_path, stage(set="{ rl = { group = 4, max_tokens = 64 } }"), without)
    assert stage_runs(given)[0].config.on_policy.group == 4
    with pytest.raises(UsageError, match=r"rl.start = 'round-0': .*set it to 'base'"):
        stage_runs(loaded(tmp_path, stage(), f'{SETTINGS}start = "round-0"\n'))


def sophia(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sophia_mcore.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def test_check_looks_at_every_stage_and_ends_with_2(tmp_path: Path) -> None:
    good = stage("sophia")
    loaded(tmp_path, good + stage(name='"two"'))
    done = sophia(tmp_path, "check", "run.toml")
    assert done.returncode == 0 and "# stage 01-two (rl, promote 'last') in run/stages/01-two" in done.stdout
    for command in ("check", "run", "submit", "doctor"):
        loaded(tmp_path, good + stage(name='"two"', set="{ rl.grup = 4 }"))
        done = sophia(tmp_path, command, "run.toml")
        assert done.returncode == 2 and not (tmp_path / "run").exists()
        assert done.stderr == "error: stages.1 (two): rl.grup: unknown key (did you mean 'group'?)\n"


def test_commands_that_work_on_one_run(tmp_path: Path) -> None:
    loaded(tmp_path, stage())
    for command in (("train",), ("rl",), ("evaluate",), ("export",), ("submit", "--rl")):
        done = sophia(tmp_path, command[0], "run.toml", *command[1:])
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "run.toml is a run of several stages, and this command works on one" in done.stderr
        assert "run/stages/00-one/config.toml" in done.stderr
    done = sophia(tmp_path, "run", "run.toml", "--only", "train")
    assert done.returncode == 2 and "--rounds, --from and --only belong to one of them" in done.stderr


def given_again(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_unset=True, exclude_none=True)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_is_given_says_the_whole(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages are made from what a file gives: the defaults must follow from it, here and in RUN/config.toml."""
    monkeypatch.chdir(ROOT)
    config = load_config(path)
    assert Config.model_validate(given_again(config)) == config
    (tmp_path / "run.toml").write_text(dump_given(config))
    assert load_config(tmp_path / "run.toml") == config


def test_the_example_on_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its questions are made by world.py, so that nothing but its settings is looked at here."""
    monkeypatch.chdir(ROOT)
    first, second = stage_runs(load_config(ROOT / "examples" / "digits" / "stages.toml"))
    assert (first.label, second.label) == ("00-round", "01-on-policy")
    assert (second.config.on_policy.batches, second.config.on_policy.start) == (30, "base")
    assert {one.stage.promote for one in (first, second)} == {"evaluate.digits-validation"}
