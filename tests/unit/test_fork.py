"""`sophia fork`: a variant shares what still holds, does the rest anew, and leaves its source alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sophia_mcore import cli
from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.fork import fork
from sophia_mcore.launch.local import claim_folder
from sophia_mcore.launch.phases import PHASES
from sophia_mcore.launch.state import states
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.report.build import write_report
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import run_uid
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.track.lineage import lineage_of
from tests.support.provenance_world import make_whole_run


@pytest.fixture
def source(tmp_path: Path) -> tuple[RunFolder, Config]:
    run, config = make_whole_run(tmp_path / "a")
    (run.round(0).captions / "claims").mkdir()
    return run, config


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_variant_of_the_reward_shares_the_samples(source: tuple[RunFolder, Config], tmp_path: Path) -> None:
    run, _ = source
    run_uid(run.path)
    before = files(run.path)
    made = fork(run.path, tmp_path / "b", sets=["reward.alpha=0.5"])
    assert made.shared == ["questions", "captions", "reasoning", "score", "evaluate"]  # verdicts, answers of the base
    assert made.left == ["score", "train", "export", "evaluate", "report"]
    new = made.run
    assert new.round(0).verdicts.is_dir() and not new.round(0).kept_file.exists() and not new.round(0).train.exists()
    assert new.evaluation("base", "paper").is_dir() and not new.evaluation("round-0", "paper").exists()
    shard = next(run.round(0).captions.glob("*.parquet"))
    assert (new.round(0).captions / shard.name).samefile(shard)
    assert not (new.round(0).captions / "claims").exists()
    config = load_config(new.config_file)
    assert (config.run.name, config.reward.alpha, config.run.folder) == ("b", 0.5, tmp_path / "b")
    assert [state.phase for state in states(config, new, [0]) if state.stale] == []
    claim_folder(config, new)  # goes on without --new-settings
    assert run_uid(new.path) != run_uid(run.path)
    link = lineage_of(new, 0, PHASES)["fork"]
    assert (link["of"], link["uid"]) == (str(run.path), run_uid(run.path)) and "captions" in link["shared"]
    assert "A variant of" in write_report(config, new, PHASES).read_text()
    assert {name: data for name, data in files(run.path).items() if name != "lock"} == {
        name: data for name, data in before.items() if name != "lock"
    }


def test_what_grows_is_copied(source: tuple[RunFolder, Config], tmp_path: Path) -> None:
    new = fork(source[0].path, tmp_path / "b").run
    with open(new.round(0).train_metrics_file, "a") as file:
        file.write("more\n")
    with open(new.metrics_file, "a") as file:
        file.write("more\n")
    assert "more" not in source[0].round(0).train_metrics_file.read_text() + source[0].metrics_file.read_text()
    assert (new.round(0).model / "model.safetensors").read_bytes() == b"old weights"


def test_from_shares_nothing_from_there_on(source: tuple[RunFolder, Config], tmp_path: Path) -> None:
    made = fork(source[0].path, tmp_path / "b", first="train")
    assert made.shared == ["questions", "captions", "reasoning", "score", "evaluate"][:4]
    assert not made.run.round(0).train.exists() and not made.run.evaluation("base", "paper").exists()


def test_of_an_older_run(source: tuple[RunFolder, Config], tmp_path: Path) -> None:
    run, _ = source
    shutil.rmtree(run.path / "records")
    made = fork(run.path, tmp_path / "b", sets=["train.learning_rate=1e-4"])
    assert made.left == ["train", "export", "evaluate", "report"]
    config = load_config(made.run.config_file)
    assert Provenance(config, made.run, PHASES).unchecked_phases() == [
        "questions",
        "captions",
        "reasoning",
        "score",
        "evaluate",
    ]


def test_stale_results_are_not_shared(source: tuple[RunFolder, Config], tmp_path: Path) -> None:
    run, _ = source
    kept = run.round(0).kept_file
    kept.write_bytes(kept.read_bytes()[:-8])
    made = fork(run.path, tmp_path / "b")
    assert "train" not in made.shared and "export" not in made.shared
    second = fork(made.run.path, tmp_path / "c")
    assert json.loads(second.run.fork_file.read_text())["forked_from"]["path"] == str(run.path)


def test_what_cannot_be_forked(source: tuple[RunFolder, Config], tmp_path: Path) -> None:
    run, _ = source
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").touch()
    for target, words in ((tmp_path / "b", "is there already"), (run.path / "b", "lies in the run")):
        with pytest.raises(UsageError, match=words):
            fork(run.path, target)
    with pytest.raises(UsageError, match="did you mean 'train'"):
        fork(run.path, tmp_path / "c", first="trian")
    with pytest.raises(UsageError, match=r"unknown key \(did you mean 'alpha'"):
        fork(run.path, tmp_path / "c", sets=["reward.alhpa=0.5"])
    with pytest.raises(UsageError, match="the second argument"):
        fork(run.path, tmp_path / "c", sets=["run.folder=d"])
    with pytest.raises(UsageError, match="no such run"):
        fork(tmp_path / "nowhere", tmp_path / "c")
    with folder_lock(run.lock_file), pytest.raises(SophiaError, match="is in use by"):
        fork(run.path, tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()].count("c") == 0 and not list(tmp_path.glob(".c-*"))


def test_the_command(source: tuple[RunFolder, Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.app(["fork", str(source[0].path), str(tmp_path / "b"), "--set", "train.steps=3"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "to be done: train, export, evaluate, report" in out and f"next: sophia run {tmp_path / 'b'}" in out
