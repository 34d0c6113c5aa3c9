"""Uploads to MLflow are idempotent, resumable, and never stop a run."""

import json
import os
import socket
from pathlib import Path

import pytest

pytest.importorskip("mlflow", reason="mlflow-skinny is not installed (pip install '.[track]')")

from sophia_mcore.doctor import configuration as doctor
from sophia_mcore.launch.phases import PHASES
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.track import mlflow_upload
from sophia_mcore.track.metrics import MetricsLog
from sophia_mcore.track.runs import redact
from tests.support.configs import make_config


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def config(tmp_path, database, request):
    return _config(tmp_path, database, request.node.name)


def _config(folder, uri, experiment):
    return make_config(
        folder / "run", "models/policy", "models/reasoner", run={"name": "digits"},
        data={"questions": [{"kind": "jsonl", "path": "https://me:hunter2@example.org/q.jsonl"}]},
        track={"tracking_uri": uri, "experiment": experiment, "timeout_seconds": 1.0},
    )  # fmt: skip


@pytest.fixture
def run(config):
    folder = RunFolder(config.run.folder)
    log = MetricsLog(folder.round(0).train / "metrics.jsonl", clock=lambda: 1000.0)
    log.log(0, "train", {"logprob_before": -3.0})
    for step in range(1, 4):
        log.log(step, "train", {"loss": 1.0 / step, "samples": 16})
    folder.config_file.write_text('tracking_uri = "http://me:hunter2@host"\n')
    return folder


def _client(config):
    from mlflow.tracking import MlflowClient

    return MlflowClient(config.track.tracking_uri)


def _all_runs(config):
    client = _client(config)
    experiment = client.get_experiment_by_name(config.track.experiment)
    return client.search_runs([experiment.experiment_id])


def _runs(config):
    return {run.data.tags["sophia.phase"]: run for run in _all_runs(config)}


def _history(config, name):
    run = _runs(config)["train"]
    return [(m.step, m.value) for m in _client(config).get_metric_history(run.info.run_id, name)]


def test_one_parent_and_a_child_and_nothing_is_sent_twice(config, run):
    assert mlflow_upload.upload(run, config, PHASES)
    assert mlflow_upload.upload(run, config, PHASES)
    log = MetricsLog(run.round(0).train / "metrics.jsonl")
    log.log(4, "train", {"loss": 0.2})
    (run.round(0).train / "summary.json").write_text(json.dumps({"steps": 4, "loss_last": 0.2}))
    assert mlflow_upload.upload(run, config, PHASES)

    runs = _runs(config)
    assert sorted(runs) == ["round", "train"]
    assert runs["train"].data.tags["mlflow.parentRunId"] == runs["round"].info.run_id
    assert _history(config, "loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.2)]
    assert _history(config, "logprob_before") == [(0, -3.0)]
    assert runs["train"].data.metrics["steps"] == 4
    assert (runs["train"].info.status, runs["round"].info.status) == ("FINISHED", "RUNNING")
    assert runs["round"].data.params["train.learning_rate"] == "2e-05"


def test_a_phase_is_finished_when_its_line_is_there_and_shows_its_own_settings(config, run):
    log = MetricsLog(run.metrics_file)
    log.log(0, "captions", {"seconds": 3.0})
    log.log(1, "captions", {"seconds": 4.0})  # of the next round
    assert mlflow_upload.upload(run, config, PHASES)
    runs = [r for r in _all_runs(config) if r.data.tags["sophia.phase"] == "captions"]
    assert [(r.info.status, r.data.metrics["seconds"]) for r in runs] == [("FINISHED", 3.0)]
    sections = {name.split(".")[0] for name in runs[0].data.params}
    assert sections == {"run", "models", "captions", "batch", "objective", "fresh"}  # what the captions depend on
    assert "models.reasoner" not in runs[0].data.params
    assert {"captions", "train"} < {name.split(".")[0] for name in _runs(config)["round"].data.params}


def test_the_report_is_an_artifact_of_the_round_as_it_is(config, run):
    run.report_html.write_text("<p>token = hf_x, a user's text</p>")
    assert mlflow_upload.upload(run, config, PHASES)
    round_id = _runs(config)["round"].info.run_id
    assert (
        Path(_client(config).download_artifacts(round_id, "report.html")).read_bytes() == run.report_html.read_bytes()
    )
    run.report_html.write_text("a newer one")
    assert mlflow_upload.upload(run, config, PHASES)
    assert Path(_client(config).download_artifacts(round_id, "report.html")).read_text() == "a newer one"


def test_no_secret_leaves_the_machine(config, run):
    assert mlflow_upload.upload(run, config, PHASES)
    parent = _runs(config)["round"]
    assert not [value for value in parent.data.params.values() if "hunter2" in value]
    text = _client(config).download_artifacts(parent.info.run_id, "config.toml")
    assert "hunter2" not in Path(text).read_text()
    assert redact('hf_token = "abc"\nname = "x"') == 'hf_token = "***"\nname = "x"'


def test_an_upload_killed_between_batches_is_completed_without_doubles(config, run, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(mlflow_upload, "METRICS_PER_REQUEST", 2)
    sent = MlflowClient.log_batch

    def dies(self, run_id, **kwargs):
        if kwargs.get("metrics") and any(m.step == 2 for m in kwargs["metrics"]):
            raise ConnectionError("gone")
        return sent(self, run_id, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", dies)
    assert not mlflow_upload.upload(run, config, PHASES)
    monkeypatch.setattr(MlflowClient, "log_batch", sent)
    assert mlflow_upload.upload(run, config, PHASES)
    assert [step for step, _ in _history(config, "loss")] == [1, 2, 3]
    assert [step for step, _ in _history(config, "logprob_before")] == [0]


def test_a_moved_run_folder_keeps_its_mlflow_runs(config, run, tmp_path):
    assert mlflow_upload.upload(run, config, PHASES)
    before = _runs(config)["round"].info.run_id
    run.path.rename(tmp_path / "moved")
    assert mlflow_upload.upload(RunFolder(tmp_path / "moved"), config, PHASES)
    client = _client(config)
    experiment = client.get_experiment_by_name(config.track.experiment)
    assert len(client.search_runs([experiment.experiment_id])) == 2
    assert _runs(config)["round"].info.run_id == before


def test_many_metrics_go_in_batches(config, run):
    log = MetricsLog(run.round(0).train / "metrics.jsonl")
    for step in range(4, 1204):
        log.log(step, "train", {"loss": 1.0, "learning_rate": 0.1})
    assert mlflow_upload.upload(run, config, PHASES)
    assert [step for step, _ in _history(config, "loss")] == list(range(1, 1204))


def test_a_dead_server_costs_one_line_and_nothing_is_lost(tmp_path, run, config, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dead = _config(tmp_path, f"http://me:hunter2@127.0.0.1:{port}", "dead")
    assert not mlflow_upload.upload(run, dead, PHASES)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "not reachable" in lines[0] and "sophia track" in lines[0] and "hunter2" not in lines[0]
    assert mlflow_upload.upload(run, config, PHASES)
    assert len(_history(config, "loss")) == 3


def test_a_server_that_never_answers_is_given_up(tmp_path, run, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        hanging = _config(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", "silent")
        assert not mlflow_upload.upload(run, hanging, PHASES)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


def test_a_deleted_experiment_is_named_with_what_helps(config, run, capsys):
    client = _client(config)
    number = client.create_experiment(config.track.experiment)
    client.delete_experiment(number)
    assert not mlflow_upload.upload(run, config, PHASES)
    (line,) = capsys.readouterr().err.splitlines()
    for words in (repr(config.track.experiment), "was deleted", f"restore -x {number}", "track.experiment"):
        assert words in line
    row = doctor.tracking(config.model_copy(update={"track": config.track.model_copy(update={"enabled": True})}))
    assert row.state == "warning" and "was deleted" in row.found
    client.restore_experiment(number)
    assert mlflow_upload.upload(run, config, PHASES)


def test_an_address_in_the_environment_is_not_passed_over_in_silence(config, run, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@elsewhere:5000")
    assert mlflow_upload.upload(run, config, PHASES)
    (line,) = capsys.readouterr().err.splitlines()
    assert "MLFLOW_TRACKING_URI" in line and "elsewhere:5000 is not used" in line and "hunter2" not in line
    row = doctor.tracking(config.model_copy(update={"track": config.track.model_copy(update={"enabled": True})}))
    assert row.state == "warning" and "is not used" in row.found and "hunter2" not in row.found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.track.tracking_uri)
    assert mlflow_upload.upload(run, config, PHASES)
    assert capsys.readouterr().err == ""


def test_without_mlflow_the_warning_names_the_extra(config, run, capsys, monkeypatch):
    def lacking(*arguments):
        raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow.tracking")

    monkeypatch.setattr(mlflow_upload, "_Uploader", lacking)
    assert not mlflow_upload.upload(run, config, PHASES)
    assert "pip install 'sophia-mcore[track]'" in capsys.readouterr().err
