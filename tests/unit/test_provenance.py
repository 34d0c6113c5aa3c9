"""No stale result: what was made with other settings or from other results is named, set aside and made anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch import local
from sophia_mcore.launch.local import claim_folder, run_phases
from sophia_mcore.launch.phases import PHASES, phase_named, phases_in, starting_at
from sophia_mcore.launch.slurm.status import status_text
from sophia_mcore.launch.state import states
from sophia_mcore.phase import Phase
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.provenance.prepare import prepare
from sophia_mcore.report.build import write_report
from sophia_mcore.report.compare import write_comparison
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.track.metrics import MetricsLog
from sophia_mcore.track.runs import children_of
from tests.support.provenance_world import make_whole_run, record_all, with_values


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunFolder, Config, list[str]]:
    """A whole run, and the phases that were started since: score and report as they are, the others do nothing."""
    run, config = make_whole_run(tmp_path / "run")
    began: list[str] = []
    really = local.run_here

    def start(phase: Phase, round: Round, progress: Any) -> None:
        began.append(phase.name)
        if phase.name in ("score", "report"):
            really(phase, round, progress)

    monkeypatch.setattr(local, "run_here", start)
    monkeypatch.setattr(local, "preflight", lambda round: None)
    return run, config, began


def why(config: Config, run: RunFolder, phase: str) -> str:
    return Provenance(config, run, PHASES).why_stale(phase_named(phase), 0)


def test_a_changed_reward_trains_anew(world: tuple[RunFolder, Config, list[str]]) -> None:
    run, config, _ = world
    changed = with_values(config, {"reward.keep": 2})
    with pytest.raises(UsageError, match=r"reward.keep 1 -> 2\), and score depends on them: .*--new-settings"):
        run_phases(changed, ["score"], [0])
    run_phases(changed, ["score"], [0], new_settings=True)
    assert "made from other kept of round 0 (score: reward.keep 1 -> 2)" in why(changed, run, "train")
    assert "train of round 0 is no longer valid" in why(changed, run, "export")
    assert why(changed, run, "score") == why(changed, run, "captions") == ""
    page = write_report(changed, run, PHASES).read_text()
    assert 'id="stale"' in page and "reward.keep 1 -&gt; 2" in page
    assert "train of round 0 is stale" in status_text(changed, run)
    other, same = make_whole_run(run.path.parent / "b")
    assert "A: train of round 0" in write_comparison((run, changed), (other, same), PHASES).read_text()
    run_phases(changed, starting_at("questions"), [0])
    assert not run.round(0).train.exists() and not run.round(0).model.exists()  # the false workers make nothing
    assert not run.evaluation("round-0", "paper").exists()
    assert run.evaluation("base", "paper").exists()  # the base model's answers hold
    assert not run.evaluation("round-0", "paper").exists()
    (old,) = run.aside.glob("*/round-0/model/model.safetensors")
    assert old.read_bytes() == b"old weights"
    assert 'id="stale"' not in run.report_html.read_text()
    MetricsLog(run.round(0).train_metrics_file).log(1, "train", {"loss": 3.0})
    names = {child.phase for child in children_of(run, changed, 0, PHASES)}
    assert "train again 1" in names and "train" not in names  # the curve does not go on in the old MLflow run


def test_the_same_again_changes_nothing(world: tuple[RunFolder, Config, list[str]]) -> None:
    run, config, began = world
    shutil.rmtree(run.round(0).verdicts)
    run_phases(config, ["score"], [0])
    run_phases(config, starting_at("questions"), [0])
    assert began[1:] == [phase.name for phase in phases_in("round") if phase.name != "fp8-check"]
    assert Provenance(config, run, PHASES).stale_lines() == [] and not run.aside.exists()
    assert run.round(0).train.exists()


def test_a_phase_before_a_stale_one_is_named(world: tuple[RunFolder, Config, list[str]]) -> None:
    run, config, _ = world
    changed = with_values(config, {"captions.per_image": 3})
    claim_folder(changed, run, new_settings=True)
    assert [s.phase for s in states(changed, run, [0]) if s.stale] == [
        "captions", "reasoning", "score", "train", "export", "evaluate"
    ]  # fmt: skip
    with pytest.raises(SophiaError, match=r"train of round 0 cannot start: score .* again first .*captions.per_image"):
        run_phases(changed, ["train"], [0], new_settings=True)
    assert run.round(0).train.exists()


def test_from_does_it_anew_once(world: tuple[RunFolder, Config, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    run, config, began = world

    def stop(phase: Phase, round: Round, progress: Any) -> None:
        began.append(phase.name)
        if phase.name == "train":
            assert not run.round(0).train_summary_file.exists()
            (run.round(0).checkpoints / "step-00000001").mkdir(parents=True, exist_ok=True)
        if phase.name == "export":
            raise KeyboardInterrupt

    monkeypatch.setattr(local, "run_here", stop)
    for _ in range(2):  # the second time it goes on: the new training stays
        with pytest.raises(KeyboardInterrupt):
            run_phases(config, starting_at("train"), [0], again="train")
    assert began == ["train", "export", "train", "export"]
    assert (run.round(0).checkpoints / "step-00000001").is_dir()
    assert len(list(run.aside.glob("*/round-0/train"))) == len(list(run.aside.glob("*/round-0/model"))) == 1
    monkeypatch.setattr(local, "run_here", lambda *given: None)
    run_phases(config, starting_at("train"), [0], again="train")
    assert not run.again_file.exists() and not run.evaluation("round-0", "paper").exists()
    run_phases(config, starting_at("train"), [0], again="train")
    assert len(list(run.aside.glob("*/round-0/train"))) == 2


def test_from_takes_new_settings_of_what_it_does_anew(world: tuple[RunFolder, Config, list[str]]) -> None:
    run, config, _ = world
    changed = with_values(config, {"train.steps": 60})
    run_phases(changed, starting_at("train"), [0], again="train")
    assert not run.round(0).train.exists()
    with pytest.raises(UsageError, match=r"reward\.alpha"):
        run_phases(with_values(changed, {"reward.alpha": 0.5}), starting_at("train"), [0], again="train")


@pytest.mark.parametrize(
    "phase", [phase.name for phase in phases_in("round") if not phase.again and phase.name != "fp8-check"]
)
def test_changed_content_is_found(world: tuple[RunFolder, Config, list[str]], phase: str) -> None:
    """Another result of a phase, with the same settings: what has read it does not hold, what has not does."""
    run, config, _ = world
    follows = {
        "questions": {"captions", "reasoning", "score", "train", "export", "evaluate"},
        "captions": {"reasoning", "score", "train", "export", "evaluate"},
        "reasoning": {"score", "train", "export", "evaluate"},
        "score": {"train", "export", "evaluate"},
        "train": {"export", "evaluate"},
        "export": {"evaluate"},
    }
    (part, *_) = [p for p in Provenance(config, run, PHASES).parts(phase_named(phase), 0) if p.name != "verdicts"]
    for path in part.results.values():
        change(path)
    stale = {state.phase for state in states(config, run, [0]) if state.stale}
    assert stale == follows.get(phase, set())


def change(path: Path) -> None:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    file = next((f for f in files if f.suffix in (".parquet", ".json")), files[0])
    if file.suffix == ".parquet":
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])  # damaged, so another content
    else:
        file.write_text(file.read_text() + " ")


def test_other_verdicts_take_the_kept_with_them(world: tuple[RunFolder, Config, list[str]]) -> None:
    run, config, _ = world
    changed = with_values(config, {"score.timeout_seconds": 2.0})
    prepare(Provenance(changed, run, PHASES), phase_named("score"), 0, print)
    assert not run.round(0).verdicts.exists() and not run.round(0).kept_file.exists()
    assert "made from other kept of round 0" in why(changed, run, "train")  # already now, without new ones


def test_a_run_of_an_older_version_is_told_in_one_line(
    world: tuple[RunFolder, Config, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, config, _ = world
    shutil.rmtree(run.path / "records")
    line = "score, train, export, evaluate: made by a version that did not record settings and inputs"
    assert line in status_text(config, run)
    assert line in " ".join(
        json.loads(write_report(config, run, PHASES).with_name("report.json").read_text())["unchecked"]
    )
    changed = with_values(config, {"reward.keep": 2})
    with pytest.raises(UsageError, match=r"reward\.keep"):
        run_phases(changed, ["score"], [0])
    assert capsys.readouterr().err.count(line) == 1
    run_phases(changed, ["score"], [0], new_settings=True)
    assert "reward.keep 1 -> 2" in why(changed, run, "train")


def test_a_setting_that_a_record_does_not_know_had_its_default(world: tuple[RunFolder, Config, list[str]]) -> None:
    run, config, _ = world
    provenance = Provenance(config, run, PHASES)
    phase = phase_named("score")
    for part in provenance.parts(phase, 0):
        file = provenance.record_file(phase, 0, part)
        record = json.loads(file.read_text())
        if part.name == "kept":
            del record["settings"]["reward.keep"]  # as if a later version had brought it
        file.write_text(json.dumps(record))
    assert why(config, run, "score") == ""
    assert "reward.keep none -> 2" in why(with_values(config, {"reward.keep": 2}), run, "score")


def test_older_results_after_newer_ones_do_not_hold(world: tuple[RunFolder, Config, list[str]]) -> None:
    run, config, _ = world
    shutil.rmtree(run.records(0, "train"))
    assert "it was made before score was done again" in why(config, run, "train")


def test_settings_bind_from_the_first_finished_work_on(
    world: tuple[RunFolder, Config, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, config, _ = world
    for name in ("trajectories", "verdicts", "train", "model"):
        shutil.rmtree(run.round(0).path / name)
    run.round(0).kept_file.unlink()
    shutil.rmtree(run.evaluation("round-0", "paper"))
    changed = with_values(config, {"reasoning.per_caption": 5, "data.max_image_pixels": 5})
    with pytest.raises(UsageError, match=r"\(data.max_image_pixels 100000000 -> 5\), and questions depends"):
        claim_folder(changed, run)
    changed = with_values(config, {"reasoning.per_caption": 5})
    claim_folder(changed, run)
    assert "before any work that depends on it was finished: reasoning.per_caption" in capsys.readouterr().err
    assert run.config_file.read_text() == dump_toml(changed)


def test_a_changed_prompt_file_is_a_changed_setting(world: tuple[RunFolder, Config, list[str]], tmp_path: Path) -> None:
    run, config, _ = world
    prompt = tmp_path / "describe.txt"
    prompt.write_text("Describe it.")
    config = with_values(config, {"captions.prompt_file": prompt})
    record_all(config, run)
    claim_folder(config, run)
    prompt.write_text("Describe it well.")
    with pytest.raises(UsageError, match=r"captions.prompt_file the content of .*describe.txt has changed"):
        claim_folder(config, run)
    moved = tmp_path / "moved.txt"
    moved.write_text("Describe it.")
    claim_folder(with_values(config, {"captions.prompt_file": moved}), run)  # the same text elsewhere
    prompt.unlink()
    claim_folder(config, run)  # nobody can say


def test_a_model_that_was_replaced_is_found(world: tuple[RunFolder, Config, list[str]], tmp_path: Path) -> None:
    run, config, _ = world
    model = tmp_path / "policy"
    model.mkdir()
    (model / "config.json").write_text("{}")
    weights = bytearray(20 << 20)
    (model / "model.safetensors").write_bytes(weights)
    config = with_values(config, {"models.policy": model})
    record_all(config, run)
    assert Provenance(config, run, PHASES).changed() == {}
    (model / "model.safetensors").write_bytes(b"\x01" + weights[1:])
    assert list(Provenance(config, run, PHASES).changed()) == ["captions", "train", "export", "evaluate"]


def test_a_model_by_its_name_on_the_hub_is_the_folder_in_the_cache(
    world: tuple[RunFolder, Config, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    run, config, _ = world
    snapshot = tmp_path / "cache" / "models--tiny--policy" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    record_all(with_values(config, {"models.policy": snapshot}), run)  # as the phases saw it
    assert Provenance(with_values(config, {"models.policy": Path("tiny/policy")}), run, PHASES).changed() == {}
    assert Provenance(with_values(config, {"models.policy": Path("tiny/other")}), run, PHASES).changed()


def test_partial_work_of_other_settings_is_not_mixed(world: tuple[RunFolder, Config, list[str]]) -> None:
    run, config, _ = world
    changed = with_values(config, {"reasoning.questions_per_unit": 1})
    run_phases(changed, ["reasoning"], [0], new_settings=True)
    assert not run.round(0).trajectories.exists()
    assert next(run.aside.glob("*/round-0/trajectories/*.parquet"))
    assert "reasoning.questions_per_unit" in json.loads(next(run.aside.glob("*/why.json")).read_text())["why"]
