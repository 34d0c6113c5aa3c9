"""`sophia watch` shows a run while it goes on, ends with it or with Ctrl-C, and stops nothing."""

from __future__ import annotations

import io
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from sophia_mcore.track.metrics import MetricsLog
from tests.support.report_stage import add_stage
from tests.support.report_world import HOSTILE, make_finished_run, sampled

pytest.importorskip("plotly", reason="plotly is not installed (pip install '.[report]')")

from sophia_mcore.errors import UsageError
from sophia_mcore.launch.watch import look, watch
from sophia_mcore.phase import PhaseState
from sophia_mcore.records import Caption
from sophia_mcore.report.newest import curves, newest_texts
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_shard, write_shard

COMMAND = [sys.executable, "-m", "sophia_mcore.cli", "watch"]


def seen(path: Path, **options: bool) -> str:
    out = io.StringIO()
    watch(path, 0.2, out=out, **options)
    return out.getvalue()


def test_newest_texts_and_figures_are_shown(tmp_path: Path) -> None:
    run, _ = make_finished_run(tmp_path / "run", questions=6)
    shown = seen(run.path, once=True)
    assert "caption" in shown and "trajectory" in shown and "logprob kept" in shown and "step 19" in shown
    assert "verdicts: wrong 13, correct 11" in shown
    late = run.round(0).captions / "000009-z.parquet"
    write_shard(late, [Caption(id="late.k0", images=("x",), index=0, **sampled("the newest " + HOSTILE, 3))], Caption)
    first = newest_texts(run, [0])[0]
    assert first.kind == "caption" and first.about == "late.k0" and first.text.startswith("the newest ")
    assert "\u202e" not in first.text and "\x00" not in first.text, "what turns a terminal's text is written out"


def test_at_80_columns_a_curve_is_one_line_and_no_phase_has_a_number(tmp_path: Path) -> None:
    run, _ = make_finished_run(tmp_path / "run", questions=6)
    log = MetricsLog(run.round(0).train_metrics_file)
    for step in range(12_000, 12_050):
        log.log(step, "train", {"loss": 1.0 / step, "step_seconds": 1.0})
    lines = seen(run.path, once=True).splitlines()
    (loss,) = [line for line in lines if line.startswith("loss ")]
    assert loss.rstrip().endswith("step 12049") and max(map(len, lines)) <= 80
    (done,) = [line for line in lines if line.startswith("done: ")]
    assert done.startswith("done: questions, ")


def test_markup_of_a_model_is_text(tmp_path: Path) -> None:
    run, _ = make_finished_run(tmp_path / "run", questions=3)
    late = run.round(0).captions / "000009-z.parquet"
    write_shard(late, [Caption(id="k", images=("x",), index=0, **sampled("[red]not[/red] \x1b[2J [/]", 3))], Caption)
    shown = seen(run.path, once=True)
    assert "[red]not[/red]" in shown and "\x1b" not in shown


def test_of_the_stage_the_batches_are_shown(tmp_path: Path) -> None:
    run, _ = make_finished_run(tmp_path / "run", questions=6)
    os.utime(run.round(0).train_metrics_file, (1, 1))
    add_stage(run)
    assert [c.name for c in curves(run, [0])][:2] == ["accuracy", "tokens right"]
    assert "rollout of the on-policy stage q3" in seen(run.path, once=True)


def test_a_folder_without_anything_yet_and_one_that_is_not_there(tmp_path: Path) -> None:
    assert "nothing there yet: waiting for" in seen(tmp_path, once=True)
    with pytest.raises(UsageError, match="no such run folder"):
        watch(tmp_path / "none", 1.0)


def test_damage_is_no_end(tmp_path: Path) -> None:
    run, _ = make_finished_run(tmp_path / "run", questions=3)
    for path in run.round(0).captions.glob("*.parquet"):
        path.write_bytes(b"rubbish")
    (run.round(0).train_metrics_file).write_text("rubbish\n")
    assert newest_texts(run, [0]) and look(run).texts
    run.config_file.write_text("[run")
    assert look(run).notes and not look(run).finished


def unfinished(folder: Path) -> RunFolder:
    """Without captions; the other phases do not matter here."""
    run, _ = make_finished_run(folder, questions=3)
    shutil.move(run.round(0).captions, folder / "later")
    run.round(0).captions.mkdir()
    return run


def test_without_a_terminal_changes_are_lines_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    run = unfinished(tmp_path / "run")
    child = subprocess.Popen([*COMMAND, str(run.path), "--every", "0.2"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    pipe = child.stdout.fileno()
    try:
        first = read_until(pipe, "trajectory q")
        assert "trajectory q" in first and "caption 0 of image" not in first and "\x1b" not in first
        captions = read_shard(next((run.path / "later").glob("*.parquet")), Caption)
        write_shard(run.round(0).captions / "000000-a.parquet", captions, Caption)
        then = read_until(pipe, "of image 2")
        assert "caption 1 of image 2" in then and "trajectory q" not in then, "only what is new"
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    run = unfinished(tmp_path / "run")
    child = subprocess.Popen(
        [*COMMAND, str(run.path), "--every", "0.2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stderr is not None
    try:
        assert child.stdout.readline()
        child.stdout.close()  # as `head -1` does
        captions = read_shard(next((run.path / "later").glob("*.parquet")), Caption)
        write_shard(run.round(0).captions / "000000-a.parquet", captions, Caption)
        assert (child.wait(60), child.stderr.read()) == (0, "")
    finally:
        child.kill()


def test_it_ends_with_the_run_in_lines_and_in_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = make_finished_run(tmp_path / "run", questions=3)
    ended = [PhaseState(phase="report", round=0, total=1, done=1, finished=True)]  # its units have names of the tests
    monkeypatch.setattr("sophia_mcore.launch.watch._states", lambda *_: (ended, []))
    assert "trajectory" in seen(run.path)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 100))
    with open(slave, "w") as terminal:
        watch(run.path, 0.2, out=terminal)
    assert "trajectory" in read_until(master, None)
    os.close(master)


def test_in_a_terminal_ctrl_c_gives_the_screen_back(tmp_path: Path) -> None:
    run = unfinished(tmp_path / "run")
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 100))
    command, environment = [*COMMAND, str(run.path), "--every", "0.2"], os.environ | {"TERM": "xterm"}
    child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    try:
        assert "trajectory" in read_until(master, "trajectory")
        child.send_signal(signal.SIGINT)
        rest = read_until(master, None)
        assert child.wait(30) == 0 and "Traceback" not in rest
        assert "\x1b[?1049l" in rest, "the terminal's own screen is back"
    finally:
        child.kill()
        child.wait()
        os.close(master)


def read_until(master: int, word: str | None) -> str:
    """What the terminal got until ``word``, or until the other side is closed."""
    text, deadline = "", time.monotonic() + 200
    while (word is None or word not in text) and time.monotonic() < deadline:
        if not select.select([master], [], [], 0.2)[0]:
            continue
        try:
            data = os.read(master, 65536)
        except OSError:
            break  # closed
        if not data:
            break
        text += data.decode(errors="replace")
    return text
