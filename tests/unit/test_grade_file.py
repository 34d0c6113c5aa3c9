"""`sophia grade`: lines in, the same lines with verdicts out; resumable, in order, with a summary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sophia_mcore.cli import app
from sophia_mcore.config.schema import Score
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.score import grade_file, lines
from sophia_mcore.score.grade_file import grade_file as grade_jsonl
from sophia_mcore.verify import grade
from tests.unit.graded_lines import ONE, ROOT, many, plain, read, verdicts, write

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
DECIDED_HERE = [line for line in LINES if line["id"] not in ("d", "h")]  # no other process, which takes long to start


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


@pytest.mark.parametrize("name", ["short-answer", "single-step", "open-ended", "Short Answer"])
def test_a_benchmarks_name_of_a_question_says_nothing_of_the_form(tmp_path, name):
    """MMMU, MV-MATH and OlympiadBench name questions so: the type is inferred, as without a name."""
    rows = [
        {"id": "a", "response": r"\boxed{1, 2}", "answer": "2, 1", "type": name},
        {"id": "b", "response": "It is a prism.", "answer": "prism", "type": name, "benchmark": "MMMU_val"},
        {"id": "c", "response": r"\boxed{7}", "answer": "8", "type": name},
    ]
    grade_jsonl(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", ONE)
    assert [row["verdict"] for row in read(tmp_path / "out.jsonl")] == ["correct", "correct", "wrong"]
    with pytest.raises(UsageError, match="unknown \"type\" 'shrot-answer'"):
        lines.checked(tmp_path / "in.jsonl", 1, json.dumps({**rows[0], "type": "shrot-answer"}).encode())


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


def test_a_dash_for_the_result_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a file named -, which is easy to make and hard to delete."""
    monkeypatch.chdir(tmp_path)
    out = CliRunner().invoke(app, ["grade", "-", "-"], input='{"id": "1", "response": "3", "answer": "3"}\n')
    assert isinstance(out.exception, UsageError) and "OUT.jsonl is a file" in str(out.exception)
    assert list(tmp_path.iterdir()) == []


def test_the_keys_of_a_line_are_documented():
    page = (ROOT / "docs" / "grading.md").read_text(encoding="utf-8")
    for key in ("options", "benchmark", "question", "tolerance", "type"):
        assert f"| `{key}` |" in page


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


def test_old_verdicts_are_kept_when_the_lines_have_shifted(tmp_path):
    source, out = write(tmp_path / "in.jsonl", plain(20)), tmp_path / "out.jsonl"
    grade_jsonl(source, out, ONE)
    old = [row | {"verifier_version": "0"} for row in read(out)]
    old[5]["verdict"] = "timeout"
    write(out, old)
    summary = grade_jsonl(write(source, plain(20)[1:]), out, ONE)
    assert (summary.changes.compared, summary.changes.changed.total()) == (19, 1)
    assert summary.changes.examples[0][:2] == ("5", "timeout")
    assert read(tmp_path / "out.0.jsonl") == old


def test_a_byte_order_mark_stays_out_of_the_output(tmp_path):
    source, out = write(tmp_path / "in.jsonl", plain(3)), tmp_path / "out.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
    grade_jsonl(source, out, ONE)
    assert [row["id"] for row in read(out)] == [0, 1, 2]


def test_another_verifier_version_keeps_the_old_file_and_shows_the_changes(tmp_path, monkeypatch):
    source, out = write(tmp_path / "in.jsonl", DECIDED_HERE), tmp_path / "out.jsonl"
    assert grade_jsonl(source, out, ONE).changes is None
    assert grade_jsonl(source, out, ONE).changes is None  # the same version: nothing to compare
    old = read(out)
    monkeypatch.setattr(grade, "RULES_VERSION", "test")
    original = grade.exact.decide
    monkeypatch.setattr(grade.exact, "decide", lambda gold, p: p == "6" or (p != "5" and original(gold, p)))
    summary = grade_jsonl(source, out, ONE)
    assert summary.changes is not None
    assert summary.changes.changed == {("correct", "wrong"): 1, ("wrong", "correct"): 1}
    assert "2 of 7 verdicts changed" in str(summary)
    (kept,) = [path for path in tmp_path.iterdir() if path.name not in ("in.jsonl", "out.jsonl")]
    assert kept.suffix == ".jsonl"
    assert read(kept) == old


def test_an_output_graded_again_is_not_doubled(tmp_path):
    first = tmp_path / "first.jsonl"
    grade_jsonl(write(tmp_path / "in.jsonl", DECIDED_HERE), first, ONE)
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


PIPED = [{"id": str(i), "response": rf"\boxed{{{i}}}", "answer": str(i % 5)} for i in range(7)]


@pytest.mark.parametrize("way", ["dash", "named pipe", "dev stdin", "dev fd"])
def test_input_that_cannot_be_read_twice_is_graded_all_the_same(tmp_path, way):
    """A pipe is read once: the lines are counted, checked and graded from a copy."""
    data = "".join(json.dumps(line) + "\n" for line in PIPED)
    target = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "sophia_mcore.cli", "grade"]
    given = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    source, more = {"dash": "-", "dev stdin": "/dev/stdin", "dev fd": "/dev/fd/0"}.get(way), None
    if source is None:
        source = str(tmp_path / "pipe")
        os.mkfifo(source)
        more = subprocess.Popen(["sh", "-c", 'cat > "$0"', source], stdin=subprocess.PIPE, text=True)
    with subprocess.Popen(
        [*command, source, str(target)], **given, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as process:
        if more is not None:
            more.communicate(data)
        output, errors = process.communicate("" if more else data)
    assert process.returncode == 0, output + errors
    graded = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["verdict"] for row in graded] == ["correct"] * 5 + ["wrong"] * 2
