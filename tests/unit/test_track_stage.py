"""The on-policy stage in MLflow: a child of the round that it began from, sent once, with what it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow", reason="mlflow-skinny is not installed (pip install '.[track]')")

from sophia_mcore.config.rl import Rl
from sophia_mcore.config.schema import Config
from sophia_mcore.launch.phases import PHASES
from sophia_mcore.rl.versions import read_version
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import run_uid
from sophia_mcore.track import mlflow_upload
from sophia_mcore.track.metrics import MetricsLog
from sophia_mcore.track.stage import Origin, origin_of, stage_of
from tests.support import configs, tiny_models
from tests.support.versions import publish


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_internvl(tmp_path_factory.mktemp("models") / "one", seed=1)


def make_run(
    folder: Path, model: Path, database: str, *, start: str, batches: int = 2, rounds: bool = True
) -> tuple[Config, RunFolder]:
    """A run with a round and a stage of which two batches are trained."""
    config = configs.make_config(
        folder, model, "reasoner", run={"name": "digits"}, data={"questions": [{"kind": "jsonl", "path": "q.jsonl"}]},
        track={"tracking_uri": database, "experiment": folder.parent.name, "timeout_seconds": 5.0},
        rl={"start": start, "batches": batches, "validate_every_batches": 1, "max_tokens": 64},
        evaluate={"protocols": [{"name": "greedy", "sampling": {"temperature": 0.0}}]},
    )  # fmt: skip
    run = RunFolder(folder)
    if rounds:
        MetricsLog(run.round(0).train / "metrics.jsonl").log(1, "train", {"loss": 1.0})
    run.rl.versions.mkdir(parents=True)
    log = MetricsLog(run.rl.train / "metrics.jsonl", clock=lambda: 1000.0)
    for version in range(3):
        publish(model, run.rl.versions, version)
        if version:
            log.log(version, "update", {"loss": 1.0 / version})
            log.log(version, "batch", {"accuracy": 0.5 + version / 10, "seconds_waiting": 1.0})
    MetricsLog(run.metrics_file).log(0, "rl-loop", {"seconds": 12.5})
    run.rl.engines.mkdir()
    unit = {"batch": 0, "unit": "a", "rollouts": 8, "tokens": 160, "seconds": 2.0, "seconds_loading": 0.5}
    (run.rl.engines / "a-1.jsonl").write_text(json.dumps(unit) + "\n" + json.dumps(unit) + '\n{"torn')
    return config, run


def all_of(config: Config) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(config.track.tracking_uri)
    experiment = client.get_experiment_by_name(config.track.experiment)
    return list(client.search_runs([experiment.experiment_id]))


def runs_of(config: Config) -> dict[tuple[str, str], Any]:
    return {(run.data.tags["sophia.round"], run.data.tags["sophia.phase"]): run for run in all_of(config)}


def history(config: Config, run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    found = MlflowClient(config.track.tracking_uri).get_metric_history(run.info.run_id, name)
    return sorted((one.step, one.value) for one in found)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def test_the_stage_is_a_child_of_its_round_and_is_sent_once(tmp_path: Path, model: Path, database: str) -> None:
    config, run = make_run(tmp_path / "run", model, database, start="round-0")
    assert mlflow_upload.upload(run, config, PHASES) and mlflow_upload.upload(run, config, PHASES)
    MetricsLog(run.rl.train / "metrics.jsonl").log(3, "batch", {"accuracy": 0.9})
    run.rl.summary_file.write_text(json.dumps({"batches": 3, "version": 3, "digest": "abc"}))
    assert mlflow_upload.upload(run, config, PHASES)

    runs = runs_of(config)
    assert sorted(runs) == [("0", "round"), ("0", "train"), ("rl", "rl"), ("rl", "rl engines")]
    stage, round_ = runs["rl", "rl"], runs["0", "round"]
    assert stage.data.tags["mlflow.parentRunId"] == round_.info.run_id
    assert runs["rl", "rl engines"].data.tags["mlflow.parentRunId"] == stage.info.run_id
    assert history(config, stage, "batch/accuracy") == [(1, 0.6), (2, 0.7), (3, 0.9)]
    assert history(config, stage, "update/loss") == [(1, 1.0), (2, 0.5)]
    assert stage.data.metrics["seconds.loop"] == 12.5 and stage.data.metrics["batches"] == 3
    assert runs["rl", "rl engines"].data.metrics["tokens"] == 320
    assert stage.info.status == "FINISHED" and stage.data.params["rl.batches"] == "2"
    first = read_version(run.rl.versions, 0)
    assert first is not None and stage.data.tags["lineage.start.digest"] == first.digest
    assert stage.data.tags["lineage.model.digest"] == "abc" and stage.data.tags["lineage.start.name"] == "round-0"


def test_a_stage_of_another_run_leads_back_to_that_runs_round(tmp_path: Path, model: Path, database: str) -> None:
    config, run = make_run(tmp_path / "one", model, database, start="round-0")
    (run.round(0).model / "x").mkdir(parents=True)
    uid = run_uid(run.path)
    later, folder = make_run(tmp_path / "two", model, database, start=str(run.round(0).model), rounds=False)
    assert origin_of(folder, later, run_uid(folder.path)) == Origin(uid=uid, round="0", phase="round")
    assert mlflow_upload.upload(folder, later, PHASES)  # before the round is there
    second = runs_of(later)["rl", "rl"]
    assert "mlflow.parentRunId" not in second.data.tags and second.data.tags["lineage.start.run"] == uid
    assert mlflow_upload.upload(run, config, PHASES) and mlflow_upload.upload(folder, later, PHASES)
    found = [one for one in all_of(later) if one.data.tags["sophia.run_uid"] == run_uid(folder.path)]
    above = next(one for one in all_of(later) if one.data.tags["sophia.phase"] == "round")
    assert {one.data.tags["mlflow.parentRunId"] for one in found if one.data.tags["sophia.phase"] == "rl"} == {
        above.info.run_id
    }
    follows, _ = make_run(tmp_path / "three", model, database, start=str(run.rl.model), rounds=False)
    assert origin_of(folder, follows, "mine") == Origin(uid=uid, round="rl", phase="rl")


@pytest.mark.parametrize("start", ["base", "models/one", "elsewhere/round-0/model"])
def test_a_model_of_no_run_has_no_origin(tmp_path: Path, model: Path, start: str) -> None:
    config = configs.make_config(tmp_path / "run", model, "reasoner", rl={"start": start, "max_tokens": 64})
    assert origin_of(RunFolder(tmp_path / "run"), config, "mine") is None


def test_a_name_that_is_no_uid_is_not_asked_for(tmp_path: Path, model: Path) -> None:
    other = tmp_path / "other"
    (other / "round-0" / "model").mkdir(parents=True)
    (other / "track.uid").write_text("x' or tags.a = 'b")
    rl = {"start": str(other / "round-0" / "model"), "max_tokens": 64}
    config = configs.make_config(tmp_path / "run", model, "reasoner", rl=rl)
    assert origin_of(RunFolder(tmp_path / "run"), config, "mine") is None


def test_validation_is_a_series_up_to_the_first_gap(
    tmp_path: Path, model: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = make_run(tmp_path / "run", model, database, start="base")
    known = {0: 0.5, 2: 0.75}
    monkeypatch.setattr("sophia_mcore.track.stage.accuracy", lambda config, run, number: known.get(number))

    def series() -> list[tuple[int, float]]:
        tracked = next(one for one in stage_of(run, config) if one.phase == "rl validation")
        return [(step, value) for line in tracked.lines for _, value, step, _ in line]

    assert series() == [(0, 0.5)]
    known[1] = 0.625
    assert series() == [(0, 0.5), (1, 0.625), (2, 0.75)]


def test_without_a_stage_there_is_nothing(tmp_path: Path, model: Path) -> None:
    plain = configs.make_config(tmp_path / "run", model, "reasoner")
    assert stage_of(RunFolder(tmp_path / "run"), plain) == []
    assert stage_of(RunFolder(tmp_path / "run"), plain.model_copy(update={"rl": Rl(max_tokens=64)})) == []
