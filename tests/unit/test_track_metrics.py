"""The metrics log survives crashes and rewinds."""

import json
import math
import multiprocessing
import os
import signal

import pytest

from sophia_mcore.errors import SophiaError
from sophia_mcore.track.metrics import MetricsLog, read_metrics


def test_lines_are_read_back_in_order(tmp_path):
    log = MetricsLog(tmp_path / "train" / "metrics.jsonl", clock=lambda: 12.0)
    log.log(1, "train", {"loss": 2.5, "samples": 16})
    log.log(2, "train", {"loss": math.nan, "note": "x"})
    assert read_metrics(log.path) == [
        {"step": 1, "phase": "train", "time": 12.0, "loss": 2.5, "samples": 16},
        {"step": 2, "phase": "train", "time": 12.0, "loss": None, "note": "x"},
    ]
    assert all(json.loads(line) for line in log.path.read_text().splitlines())


@pytest.mark.parametrize("torn", [b'{"step": 3, "ph', b"\x00" * 70000, b'{"step": 3, "phase": "train"}'])
def test_a_torn_last_line_is_ignored_and_repaired(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).log(1, "train", {"loss": 1.0})
    with open(path, "ab") as file:
        file.write(torn)
    assert [line["step"] for line in read_metrics(path)] == [1]
    MetricsLog(path).log(2, "train", {"loss": 0.5})
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert path.read_bytes().count(b"\n") == 2


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step"')
    MetricsLog(path).log(1, "train", {})
    assert [line["step"] for line in read_metrics(path)] == [1]


def test_rewind_drops_only_later_lines_of_the_phase(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(4):
        log.log(step, "train", {"loss": step})
        log.log(step, "score", {"kept": step})
    log.rewind(1, "train")
    log.log(2, "train", {"loss": 2})
    lines = read_metrics(log.path)
    assert [line["step"] for line in lines if line["phase"] == "train"] == [0, 1, 2]
    assert [line["step"] for line in lines if line["phase"] == "score"] == [0, 1, 2, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def _log_forever(path, ready):
    log = MetricsLog(path)
    for step in range(10**9):
        log.log(step, "train", {"loss": 1.0, "padding": "x" * 500})
        if step == 100:
            ready.set()


def test_a_killed_writer_leaves_whole_lines(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_log_forever, args=(tmp_path / "metrics.jsonl", ready))
    process.start()
    assert ready.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert len(steps) > 100
    assert steps == list(range(len(steps)))


def test_errors_are_clear(tmp_path):
    with pytest.raises(ValueError, match="step: reserved"):
        MetricsLog(tmp_path / "m.jsonl").log(1, "train", {"step": 2})
    (tmp_path / "folder").mkdir()
    with pytest.raises(SophiaError, match="folder: cannot be written"):
        MetricsLog(tmp_path / "folder").log(1, "train", {})
    assert read_metrics(tmp_path / "absent.jsonl") == []
