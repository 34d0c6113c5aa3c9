"""`sophia grade`, killed, damaged and run again: nothing is lost, repeated or taken from other lines."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time

import pytest

from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.score import grade_file
from sophia_mcore.score.grade_file import grade_file as grade_jsonl
from sophia_mcore.store.lock import folder_lock
from tests.unit.graded_lines import ONE, ROOT, many, plain, read, verdicts, write

SLOW = """
import sys, time
from pathlib import Path
from sophia_mcore.config.schema import Score
from sophia_mcore.score import grade_file
original = grade_file._grade_piece
def slowly(*args):
    time.sleep(0.3)
    return original(*args)
grade_file._grade_piece = slowly
grade_file.grade_file(Path(sys.argv[1]), Path(sys.argv[2]), Score(workers=1), bytes_per_unit=2000)
"""


@pytest.mark.parametrize(("parts_done", "lines"), [(0, plain), (2, many), (6, plain)])
def test_killing_it_loses_nothing_and_repeats_nothing(tmp_path, monkeypatch, parts_done, lines):
    source, out = write(tmp_path / "in.jsonl", lines(300)), tmp_path / "out.jsonl"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(source), str(out)], cwd=ROOT)
    parts = tmp_path / "out.jsonl.parts"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and len(list(parts.glob("0*.parquet"))) < parts_done:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    done = {path.name for path in parts.glob("0*.parquet")}
    assert len(done) >= parts_done
    graded = graded_pieces(monkeypatch)
    grade_jsonl(source, out, ONE, bytes_per_unit=2000)
    units = -(-source.stat().st_size // 2000)
    assert units - 2 <= len(graded) + len(done) <= units  # each a line longer than its 2000 bytes
    monkeypatch.undo()
    grade_jsonl(source, tmp_path / "quiet.jsonl", ONE)
    assert verdicts(out) == verdicts(tmp_path / "quiet.jsonl")


def graded_pieces(monkeypatch):
    """What `_grade_piece` is called with from now on."""
    pieces, original = [], grade_file._grade_piece
    monkeypatch.setattr(
        grade_file,
        "_grade_piece",
        lambda g, path, piece, report: pieces.append(piece) or original(g, path, piece, report),
    )
    return pieces


def graded_but_not_joined(source, out, bytes_per_unit):
    """As if killed just before the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grade_file._Joined, "finish", lambda _: None)
        grade_jsonl(source, out, ONE, bytes_per_unit=bytes_per_unit)


@pytest.mark.parametrize("answer", ["98", "99.5"], ids=["same length", "another length"])
def test_parts_of_another_input_are_not_used(tmp_path, answer):
    rows = plain(20)
    rows[3]["answer"] = "99"
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    graded_but_not_joined(source, out, 500)
    rows[3]["answer"] = answer
    grade_jsonl(write(source, rows), out, ONE, bytes_per_unit=500)
    grade_jsonl(source, tmp_path / "quiet.jsonl", ONE)
    assert read(out)[3]["answer"] == answer
    assert verdicts(out) == verdicts(tmp_path / "quiet.jsonl")


def test_whole_parts_of_a_file_that_has_grown_are_used_and_damaged_ones_are_not(tmp_path, monkeypatch):
    source, out = write(tmp_path / "in.jsonl", plain(40)), tmp_path / "out.jsonl"
    graded_but_not_joined(source, out, 300)
    parts = sorted((tmp_path / "out.jsonl.parts").glob("0*.parquet"))
    parts[2].write_bytes(parts[2].read_bytes()[:-40])
    pieces = graded_pieces(monkeypatch)
    grade_jsonl(write(source, plain(50)), out, ONE, bytes_per_unit=300)
    assert len(parts) > 5 and len(read(out)) == 50
    first_lines = [piece.first_line for piece in pieces]
    assert 5 < first_lines[0] < 20 and all(line > 30 for line in first_lines[1:])  # the damaged part, and the end


def test_what_others_have_left_is_not_removed(tmp_path):
    source, out = write(tmp_path / "in.jsonl", plain(20)), tmp_path / "out.jsonl"
    parts = tmp_path / "out.jsonl.parts"
    parts.mkdir()
    (parts / "mine.txt").write_text("mine")
    grade_jsonl(source, out, ONE)
    assert len(read(out)) == 20 and [path.name for path in parts.iterdir()] == ["mine.txt"]
    out.write_text("my notes")
    with pytest.raises(UsageError, match="is not an output of `sophia grade`"):
        grade_jsonl(source, out, ONE)
    assert out.read_text() == "my notes"


def test_what_a_killed_helper_was_writing_does_not_keep_the_folder(tmp_path, monkeypatch):
    source, out = write(tmp_path / "in.jsonl", plain(20)), tmp_path / "out.jsonl"
    parts = tmp_path / "out.jsonl.parts"
    original = grade_file._grade_piece

    def leave(*arguments):
        (parts / ".tmp-1-ab-000000.parquet").write_bytes(b"x")
        return original(*arguments)

    monkeypatch.setattr(grade_file, "_grade_piece", leave)
    grade_jsonl(source, out, ONE)
    assert not parts.exists()


def test_a_folder_in_a_parts_place_and_a_removed_folder_are_named(tmp_path, monkeypatch):
    source, out = write(tmp_path / "in.jsonl", plain(20)), tmp_path / "out.jsonl"
    folder = tmp_path / "out.jsonl.parts" / "000000-0.parquet"
    folder.mkdir(parents=True)
    with pytest.raises(SophiaError, match=r"000000-0.parquet: no part of this output, and it cannot be removed"):
        grade_jsonl(source, out, ONE)
    folder.rmdir()
    original = grade_file._Joined.finish

    def removed(joined):
        shutil.rmtree(tmp_path / "out.jsonl.parts")
        return original(joined)

    monkeypatch.setattr(grade_file._Joined, "finish", removed)
    with pytest.raises(SophiaError, match=r"out.jsonl.parts\S*: somebody has removed it; run again"):
        grade_jsonl(source, out, ONE)
    monkeypatch.undo()
    grade_jsonl(source, out, ONE)
    assert len(read(out)) == 20


def test_one_command_at_a_time_and_what_a_killed_one_wrote_is_removed(tmp_path):
    source, out = write(tmp_path / "in.jsonl", plain(20)), tmp_path / "out.jsonl"
    parts = tmp_path / "out.jsonl.parts"
    with folder_lock(parts / "lock"), pytest.raises(SophiaError, match=r"out.jsonl.parts is in use by process \d+"):
        grade_jsonl(source, out, ONE)
    for stale in ("joined.tmp", ".tmp-1-ab-000000.parquet"):
        (parts / stale).write_bytes(b"x" * 1000)
    found = []
    original = grade_file._grade_piece

    def look(*arguments):
        found.extend(path.stat().st_size for path in parts.iterdir() if path.name.endswith(("joined.tmp", ".parquet")))
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grade_file, "_grade_piece", look)
        grade_jsonl(source, out, ONE)
    assert found == [0] and not parts.exists()
    assert len(read(out)) == 20


INTERRUPTED = """
import sys, time
from sophia_mcore import cli
from sophia_mcore.score import grade_file
def slowly(*args):
    print("begun", flush=True)
    time.sleep(60)
grade_file._grade_piece = slowly
sys.argv = ["sophia", "grade", *sys.argv[1:]]
cli.main()
"""


def test_ctrl_c_says_how_to_go_on(tmp_path):
    source, out = write(tmp_path / "in.jsonl", plain(10)), tmp_path / "out.jsonl"
    command = [sys.executable, "-c", INTERRUPTED, str(source), str(out)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors.splitlines()[-1] == "sophia: interrupted; run the same command again to go on"
    assert not out.exists()
