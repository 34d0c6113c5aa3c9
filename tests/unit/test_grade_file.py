"""`sophia grade`: lines in, the same lines with verdicts out; resumable, in order, with a summary."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sophia_mcore.cli import app
from sophia_mcore.config.schema import Score
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.score import grade, grade_file, lines
from sophia_mcore.score.grade_file import grade_file as grade_jsonl
from sophia_mcore.store.lock import folder_lock

ROOT = Path(__file__).resolve().parents[2]
ONE = Score(workers=1)
LINES = [
    {"id": "a", "response": r"so \boxed{5}.", "answer": "5"},
    {"id": "b", "response": r"so \boxed{6}.", "answer": "5", "type": "integer", "extra": {"kept": ["as", "it", "is"]}},
    {"id": 3, "response": "<think>never ends", "answer": "5", "type": "integer"},
    {"id": "d", "response": r"\boxed{500 \text{ cm}}", "answer": "5 m"},
    {"id": "e", "response": "The answer is (B).", "answer": "B", "options": ["a cat", "a dog"]},
    {"id": "f", "response": r"$\boxed{3.14159}$", "answer": "3.14", "type": "float", "benchmark": "mathvista"},
    {"id": "g", "response": r"\boxed{9.81}", "answer": "9.8", "tolerance": 0.05},
    {"id": "ü", "response": "答案是 12。", "answer": "12"},
    {"id": "h", "response": r"\boxed{\sqrt[1000003]{2^{1000003}+1}+3}", "answer": "5"},
]
WANTED = ["correct", "wrong", "no_answer", "correct", "correct", "correct", "correct", "correct", "timeout"]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def verdicts(path):
    return [(row["id"], row["verdict"], row["extracted"]) for row in read(path)]


def test_the_contract(tmp_path):
    out = tmp_path / "out.jsonl"
    summary = grade_jsonl(write(tmp_path / "in.jsonl", LINES), out, ONE)
    rows = read(out)
    assert [row["verdict"] for row in rows] == WANTED
    for before, after in zip(LINES, rows, strict=True):
        assert {key: after[key] for key in before} == before
        assert set(after) - set(before) >= {"verdict", "extracted", "seconds"}
    assert rows[2]["extracted"] == ""
    assert rows[7]["extracted"] == "12"
    assert summary.verdicts == {"correct": 6, "wrong": 1, "no_answer": 1, "timeout": 1}
    table = str(summary).splitlines()
    assert table[0].split() == ["type", "correct", "wrong", "no_answer", "timeout", "error", "all"]
    assert table[-1].split() == ["all", "6", "1", "1", "1", "0", "9"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_empty_lines_and_an_empty_file(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("\n" + json.dumps(LINES[0]) + "\n\n  \n" + json.dumps(LINES[1]))
    grade_jsonl(source, tmp_path / "out.jsonl", ONE)
    assert [row["verdict"] for row in read(tmp_path / "out.jsonl")] == ["correct", "wrong"]
    source.write_text("")
    assert grade_jsonl(source, tmp_path / "out.jsonl", ONE).verdicts == {}
    assert (tmp_path / "out.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "is not JSON"),
        ("[1, 2]", "is not a JSON object"),
        ('{"id": 1, "response": "5"}', 'has no "answer"'),
        ('{"id": 1, "answer": "5"}', 'has no "response"'),
        ('{"response": "5", "answer": "5"}', 'has no "id"'),
        ('{"id": 1, "response": 5, "answer": "5"}', '"response" is a int, not a str'),
        ('{"id": 1, "response": "5", "answer": "5", "options": "AB"}', '"options" is a str, not a list'),
        ('{"id": 1, "response": "5", "answer": "5", "options": [1]}', '"options" holds something that is not a string'),
        ('{"id": 1, "response": "5", "answer": "5", "tolerance": "small"}', '"tolerance" is a str'),
        ("[" * 100_000, "is not JSON"),
        ('{"id": 1, "response": "5", "answer": " "}', '"answer" is empty'),
        ('{"id": 1, "response": "5", "answer": "5", "tolerance": -1}', '"tolerance" is -1'),
        ('{"id": 1, "response": "5", "answer": "5", "tolerance": true}', '"tolerance" is True'),
        ('{"id": 1, "response": "5", "answer": "5", "tolerance": NaN}', '"tolerance" is nan'),
        ('{"id": 1, "response": "5", "answer": "5", "benchmark": "mathvist"}', "did you mean 'mathvista'?"),
        ('{"id": 1, "response": "5", "answer": "5", "benchmark": "zzz"}', "one of mmmu, "),
        ('{"id": 1, "response": "5", "answer": "5", "type": "intger"}', "did you mean 'integer'?"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_bad_line_is_named(tmp_path, monkeypatch, line, reason, late):
    source = write(tmp_path / "in.jsonl", LINES[:2])
    with open(source, "a") as file:
        file.write(line + "\n")
    if late:  # met while working, not by the first look
        monkeypatch.setattr(lines, "CHECKED_LINES", 2)
    with pytest.raises(UsageError) as caught:
        grade_jsonl(source, tmp_path / "out.jsonl", ONE)
    assert str(caught.value).startswith(f"{source}, line 3")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*missing.jsonl"):
        grade_jsonl(tmp_path / "missing.jsonl", tmp_path / "out.jsonl", ONE)
    (tmp_path / "bytes.jsonl").write_bytes(b'{"id": "\xff\xfe"}\n')
    with pytest.raises(UsageError, match="line 1"):
        grade_jsonl(tmp_path / "bytes.jsonl", tmp_path / "out.jsonl", ONE)
    source = write(tmp_path / "in.jsonl", LINES[:2])
    with pytest.raises(SophiaError):
        grade_jsonl(source, Path("/proc/out.jsonl"), ONE)


def test_an_output_that_is_no_regular_file_is_left_alone(tmp_path):
    source = write(tmp_path / "in.jsonl", LINES[:2])
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "elsewhere.jsonl")
    for out in (pipe, link):
        with pytest.raises(UsageError, match="not a regular file"):
            grade_jsonl(source, out, ONE)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf"])
def test_a_timeout_that_is_none_is_one_line(tmp_path, timeout):
    out = CliRunner().invoke(app, ["grade", str(tmp_path / "in"), str(tmp_path / "out"), "--timeout", timeout])
    assert isinstance(out.exception, UsageError)
    assert f"--timeout {timeout}: a finite number" in str(out.exception)


def test_the_keys_of_a_line_are_documented():
    page = (ROOT / "docs" / "grading.md").read_text(encoding="utf-8")
    for key in ("options", "benchmark", "question", "tolerance", "type"):
        assert f"| `{key}` |" in page


def many(count):
    kinds = [r"\boxed{{{0}}}", r"\boxed{{{0}000 m}}", "I measure {0} km\nand the answer is {0}."]
    return [{"id": n, "response": kinds[n % 3].format(n % 11), "answer": f"{n % 7} km"} for n in range(count)]


def test_several_processes_give_the_same_file(tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", many(300))
    grade_jsonl(source, tmp_path / "one.jsonl", ONE, bytes_per_unit=2000)
    monkeypatch.setattr(grade_file, "PARALLEL_FROM_BYTES", 1)
    grade_jsonl(source, tmp_path / "two.jsonl", Score(workers=2), bytes_per_unit=2000)
    assert verdicts(tmp_path / "one.jsonl") == verdicts(tmp_path / "two.jsonl")
    assert [row["id"] for row in read(tmp_path / "two.jsonl")] == list(range(300))


def test_a_helper_ends_by_itself_while_its_parent_lives(tmp_path):
    """Its thread that waits for the parent must not make Python abort at exit."""
    source = write(tmp_path / "in.jsonl", many(10))
    job = {"kind": "file", "config": ONE.model_dump_json(), "in": str(source), "out": str(tmp_path / "out.jsonl")}
    parts = tmp_path / "out.jsonl.parts"
    parts.mkdir()
    (parts / "plan.json").write_text(json.dumps({"000000-0": (0, source.stat().st_size, 1, 11)}))
    command = [sys.executable, "-m", "sophia_mcore.score.helper"]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.flush()
    assert (child.wait(60), child.stderr.read()) == (0, "")
    child.stdin.close()
    assert (parts / "000000-0.parquet").is_file()


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


@pytest.mark.parametrize("parts_done", [0, 2, 6])
def test_killing_it_loses_nothing_and_repeats_nothing(tmp_path, monkeypatch, parts_done):
    source, out = write(tmp_path / "in.jsonl", many(300)), tmp_path / "out.jsonl"
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
    rows = many(20)
    rows[3]["answer"] = "99"
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    graded_but_not_joined(source, out, 500)
    rows[3]["answer"] = answer
    grade_jsonl(write(source, rows), out, ONE, bytes_per_unit=500)
    grade_jsonl(source, tmp_path / "quiet.jsonl", ONE)
    assert read(out)[3]["answer"] == answer
    assert verdicts(out) == verdicts(tmp_path / "quiet.jsonl")


def test_whole_parts_of_a_file_that_has_grown_are_used_and_damaged_ones_are_not(tmp_path, monkeypatch):
    source, out = write(tmp_path / "in.jsonl", many(40)), tmp_path / "out.jsonl"
    graded_but_not_joined(source, out, 300)
    parts = sorted((tmp_path / "out.jsonl.parts").glob("0*.parquet"))
    parts[2].write_bytes(parts[2].read_bytes()[:-40])
    pieces = graded_pieces(monkeypatch)
    grade_jsonl(write(source, many(50)), out, ONE, bytes_per_unit=300)
    assert len(parts) > 5 and len(read(out)) == 50
    first_lines = [piece.first_line for piece in pieces]
    assert 5 < first_lines[0] < 20 and all(line > 30 for line in first_lines[1:])  # the damaged part, and the end


def test_what_others_have_left_is_not_removed(tmp_path):
    source, out = write(tmp_path / "in.jsonl", many(20)), tmp_path / "out.jsonl"
    parts = tmp_path / "out.jsonl.parts"
    parts.mkdir()
    (parts / "mine.txt").write_text("mine")
    grade_jsonl(source, out, ONE)
    assert len(read(out)) == 20 and [path.name for path in parts.iterdir()] == ["mine.txt"]
    out.write_text("my notes")
    with pytest.raises(UsageError, match="is no output of `sophia grade`"):
        grade_jsonl(source, out, ONE)
    assert out.read_text() == "my notes"


def test_a_folder_in_a_parts_place_and_a_removed_folder_are_named(tmp_path, monkeypatch):
    source, out = write(tmp_path / "in.jsonl", many(20)), tmp_path / "out.jsonl"
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
    source, out = write(tmp_path / "in.jsonl", many(20)), tmp_path / "out.jsonl"
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


def test_old_verdicts_are_kept_when_the_lines_have_shifted(tmp_path):
    source, out = write(tmp_path / "in.jsonl", many(20)), tmp_path / "out.jsonl"
    grade_jsonl(source, out, ONE)
    old = [row | {"verifier_version": "0"} for row in read(out)]
    old[5]["verdict"] = "timeout"
    write(out, old)
    summary = grade_jsonl(write(source, many(20)[1:]), out, ONE)
    assert (summary.changes.compared, summary.changes.changed.total()) == (19, 1)
    assert summary.changes.examples[0][:2] == ("5", "timeout")
    assert read(tmp_path / "out.0.jsonl") == old


def test_a_byte_order_mark_stays_out_of_the_output(tmp_path):
    source, out = write(tmp_path / "in.jsonl", many(3)), tmp_path / "out.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
    grade_jsonl(source, out, ONE)
    assert [row["id"] for row in read(out)] == [0, 1, 2]


def test_another_verifier_version_keeps_the_old_file_and_shows_the_changes(tmp_path, monkeypatch):
    source, out = write(tmp_path / "in.jsonl", LINES[:8]), tmp_path / "out.jsonl"
    assert grade_jsonl(source, out, ONE).changes is None
    assert grade_jsonl(source, out, ONE).changes is None  # the same version: nothing to compare
    old = read(out)
    monkeypatch.setattr(grade, "RULES_VERSION", "test")
    original = grade.exact.decide
    monkeypatch.setattr(grade.exact, "decide", lambda gold, p: p == "6" or (p != "5" and original(gold, p)))
    summary = grade_jsonl(source, out, ONE)
    assert summary.changes is not None
    assert summary.changes.changed == {("correct", "wrong"): 1, ("wrong", "correct"): 1}
    assert "2 of 8 verdicts changed" in str(summary)
    (kept,) = [path for path in tmp_path.iterdir() if path.name not in ("in.jsonl", "out.jsonl")]
    assert kept.suffix == ".jsonl"
    assert read(kept) == old


def test_an_output_graded_again_is_not_doubled(tmp_path):
    first = tmp_path / "first.jsonl"
    grade_jsonl(write(tmp_path / "in.jsonl", LINES[:8]), first, ONE)
    grade_jsonl(first, tmp_path / "second.jsonl", ONE)
    for line in (tmp_path / "second.jsonl").read_text().splitlines():
        assert line.count('"verdict"') == 1
    assert verdicts(first) == verdicts(tmp_path / "second.jsonl")


SOPHIA = [sys.executable, "-c", "from sophia_mcore.cli import main; main()"]


def test_the_command(tmp_path):
    source = write(tmp_path / "in.jsonl", LINES[:3])
    run = subprocess.run(
        [*SOPHIA, "grade", str(source), str(tmp_path / "o.jsonl")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert [row["verdict"] for row in read(tmp_path / "o.jsonl")] == WANTED[:3]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("nonsense\n")
    run = subprocess.run(
        [*SOPHIA, "grade", str(bad), str(tmp_path / "o.jsonl")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert "line 1" in run.stderr
    assert "Traceback" not in run.stderr


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
    source, out = write(tmp_path / "in.jsonl", many(10)), tmp_path / "out.jsonl"
    command = [sys.executable, "-c", INTERRUPTED, str(source), str(out)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors.splitlines()[-1] == "sophia: interrupted; run the same command again to go on"
    assert not out.exists()
