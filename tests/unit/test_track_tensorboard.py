"""TensorBoard's files have the same steps as metrics.jsonl, each once, whatever was killed or rewound."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorboardX", reason="tensorboardX is not installed (pip install '.[tensorboard]')")

from sophia_mcore.launch.phases import PHASES
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.track import send as sending
from sophia_mcore.track.metrics import MetricsLog
from sophia_mcore.track.tensorboard import write_events
from tests.support.configs import make_config


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunFolder, Any]:
    config = make_config(tmp_path / "run", "models/policy", "models/reasoner", track={"to": ["tensorboard"]})
    folder = RunFolder(config.run.folder)
    log = MetricsLog(folder.round(0).train_metrics_file, clock=lambda: 1000.0)
    for step in range(1, 4):
        log.log(step, "train", {"loss": 1.0 / step, "samples": 16})
    log.close()
    stage = MetricsLog(folder.rl.train / "metrics.jsonl", clock=lambda: 2000.0)
    stage.log(1, "batch", {"accuracy": 0.5})
    stage.close()
    return folder, config


def events_of(folder: Path) -> list[tuple[str, int, float, float]]:
    """(name, step, value, seconds) of all event files, read with TFRecord's framing and TensorBoard's own message."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("*tfevents*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(v.tag, event.step, v.simple_value, event.wall_time) for v in event.summary.value]
            data = data[16 + length :]
    return found


def test_scalars_have_the_steps_of_the_metrics(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    assert write_events(folder, config, PHASES) == folder.tensorboard
    train = events_of(folder.tensorboard / "round-0" / "train")
    assert [(step, value, when) for name, step, value, when in train if name == "loss"] == [
        (1, 1.0, 1000.0), (2, 0.5, 1000.0), (3, pytest.approx(1 / 3), 1000.0)
    ]  # fmt: skip
    assert events_of(folder.tensorboard / "rl" / "batch") == [("accuracy", 1, 0.5, 2000.0)]


def test_a_second_call_adds_what_is_new_and_nothing_twice(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    target = write_events(folder, config, PHASES) / "round-0" / "train"
    before = {path: path.read_bytes() for path in target.iterdir()}
    write_events(folder, config, PHASES)
    assert {path: path.read_bytes() for path in target.iterdir()} == before
    log = MetricsLog(folder.round(0).train_metrics_file)
    log.log(4, "train", {"loss": 0.25})
    log.close()
    write_events(folder, config, PHASES)
    assert [step for name, step, *_ in events_of(target) if name == "loss"] == [1, 2, 3, 4]
    (target / "sophia.json").unlink()  # killed before it was written
    write_events(folder, config, PHASES)
    assert [step for name, step, *_ in events_of(target) if name == "loss"] == [1, 2, 3, 4]


def test_a_rewound_training_begins_anew(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    target = write_events(folder, config, PHASES) / "round-0" / "train"
    log = MetricsLog(folder.round(0).train_metrics_file)
    log.rewind(1, "train")
    log.log(2, "train", {"loss": 7.0})
    log.close()
    write_events(folder, config, PHASES)
    assert [(step, value) for name, step, value, _ in events_of(target) if name == "loss"] == [(1, 1.0), (2, 7.0)]


def test_only_what_is_asked_for_is_written(
    run: tuple[RunFolder, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = run
    monkeypatch.chdir(tmp_path)  # a checkout in which MLflow was used has a store, where it is by default
    assert sending.send(folder, config, PHASES)
    assert folder.tensorboard.is_dir() and not Path("mlflow.db").exists()
    other = config.model_copy(update={"track": config.track.model_copy(update={"to": ()})})
    os.rename(folder.tensorboard, folder.path / "gone")
    assert sending.send(folder, other, PHASES) and not folder.tensorboard.exists()


def test_a_missing_package_is_one_line(
    run: tuple[RunFolder, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = run
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert not sending.send(folder, config, PHASES)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install 'sophia-mcore[tensorboard]'")
