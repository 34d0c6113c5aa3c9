"""`sophia init`: from data as people have it to a TOML that reads it, without an edit."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from sophia_mcore.cli import app
from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Source
from sophia_mcore.data.sources import read_source
from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Question
from sophia_mcore.store.shards import read_shard
from tests.support.pictures import noise


def pictures(folder: Path, count: int = 9) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"chart{number}.png").write_bytes(noise(8, 8, number))


def init(data: Path, out: Path) -> str:
    result = CliRunner().invoke(app, ["init", str(data), "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


TABLES = {
    "questions.csv": "filename,question,answer\n{rows}",
    "semi.csv": "picture;prompt;gold\n{rows}",
    "tabs.tsv": "img\ttext\ttarget\n{rows}",
    "odd.csv": "bild,frage,antwort\n{rows}",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("folder", [".", "pics", "pics/png"])
def test_tables_of_all_kinds(tmp_path: Path, name: str, folder: str) -> None:
    pictures(tmp_path / folder)
    separator = {"semi.csv": ";", "tabs.tsv": "\t"}.get(name, ",")
    cells = [[f"chart{n}.png", f"How many {n}?", str(n)] for n in range(9)]
    rows = "".join(separator.join(line) + "\n" for line in cells)
    (tmp_path / name).write_text(TABLES[name].format(rows=rows))
    out = tmp_path / "run.toml"
    shown = init(tmp_path / name, out)
    assert "9 rows" in shown and "are bad" not in shown
    config = load_config(out)
    found = list(read_source(config.data.questions[0]))
    assert [row.answer for row in found] == [str(n) for n in range(9)]
    assert not any(row.problems for row in found)
    assert config.reasoning.questions_per_unit == 1  # a kill costs one question
    assert "[models]" in out.read_text() and len(out.read_text().splitlines()) < 40


def test_a_folder_and_the_questions_phase(tmp_path: Path) -> None:
    pictures(tmp_path / "data" / "images")
    lines = [{"image": f"chart{n}.png", "problem": "Which?", "choices": ["a", "b"], "label": "B"} for n in range(9)]
    (tmp_path / "data" / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "run.toml"
    init(tmp_path / "data", out)
    result = CliRunner().invoke(app, ["run", str(out), "--only", "questions"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    questions = read_shard(load_config(out).run.folder / "questions.parquet", Question)
    assert len(questions) == 9 and questions[0].options == ("a", "b")
    assert "9 stored with 9 images: 9/9" in result.output


def test_parquet_with_pictures_inside(tmp_path: Path) -> None:
    table = pa.table({"picture": [{"bytes": noise(8, 8, 0), "path": None}], "query": ["How many?"], "solution": ["3"]})
    pq.write_table(table, tmp_path / "q.parquet")
    out = tmp_path / "run.toml"
    init(tmp_path / "q.parquet", out)
    (row,) = read_source(load_config(out).data.questions[0])
    assert (row.answer, row.problems) == ("3", ())


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no .csv, .tsv"),
        ({"a.csv": "x", "b.csv": "x"}, "2 files may hold the questions (a.csv, b.csv)"),
        ({"a.csv": "image,question,answer\n"}, "no rows in it"),
        ({"a.csv": "one,two\n1,2\n"}, "no column looks like images or question"),
        ({"a.txt": "x"}, "no .csv, .tsv"),
    ],
)
def test_what_cannot_be_outlined_is_said(tmp_path: Path, files: dict[str, str], words: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    result = CliRunner().invoke(app, ["init", str(folder), "--out", str(tmp_path / "run.toml")])
    assert result.exit_code != 0
    assert words in str(result.exception)
    assert not (tmp_path / "run.toml").exists()


def test_a_text_too_long_for_a_path_is_no_image(tmp_path: Path) -> None:
    row = {"image": "a/" * 3000 + "a.png", "question": "How many?", "answer": "3"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    shown = init(tmp_path / "data.jsonl", tmp_path / "run.toml")
    assert "no image of column 'image' was found" in shown


def test_pictures_that_are_nowhere_are_noted(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("image,question,answer\na.png,Which?,3\n")
    shown = init(tmp_path / "q.csv", tmp_path / "run.toml")
    assert "note: no image of column 'image' was found" in shown
    again = CliRunner().invoke(app, ["init", str(tmp_path / "q.csv"), "--out", str(tmp_path / "run.toml")])
    assert "is there already" in str(again.exception)


def refused(data: Path, *more: str) -> str:
    """The one line with which the command ends."""
    result = CliRunner().invoke(app, ["init", str(data), "--out", str(data.parent / "run.toml"), *more])
    assert isinstance(result.exception, SophiaError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("bild;frage;lösung\n".encode("cp1252"), "perhaps GBK or Latin-1: save it as UTF-8"),
        ("图片,问题,答案\n".encode("gbk"), "perhaps GBK or Latin-1: save it as UTF-8"),
        (b'image,question,answer\na.png,"Say,3\n', "not a table of comma-separated text"),
        (bytes(range(128, 256)) * 9, "cannot read"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "q.csv").write_bytes(content)
    assert said in refused(tmp_path / "q.csv")


def test_a_column_that_cannot_be_guessed_is_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "q.csv").write_text("图片,问题,答案,备注\n" + "".join(f"chart{n}.png,多少？,{n},x\n" for n in range(9)))
    told = refused(tmp_path)
    assert "no column looks like question or answer" in told and "--column question=NAME --column answer=NAME" in told
    assert "no-such" in refused(tmp_path, "--column", "answer=no-such")
    assert "ROLE=NAME" in refused(tmp_path, "--column", "answer")
    out = tmp_path / "run.toml"
    named = ["--column", "question=问题", "--column", "answer=答案"]
    result = CliRunner().invoke(app, ["init", str(tmp_path), "--out", str(out), *named], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = list(read_source(load_config(out).data.questions[0]))
    assert [(row.answer, row.problems) for row in rows] == [(str(n), ()) for n in range(9)]


def test_a_table_as_windows_writes_it(tmp_path: Path) -> None:
    pictures(tmp_path / "pics")
    rows = "".join(f"pics\\chart{n}.png;How many?;{n}\n" for n in range(9))
    (tmp_path / "q.csv").write_text("sep=;\nimage;question;answer\n" + rows, encoding="utf-8-sig", newline="\r\n")
    shown = init(tmp_path, tmp_path / "run.toml")
    assert "9 rows" in shown and "note:" not in shown
    rows_read = list(read_source(load_config(tmp_path / "run.toml").data.questions[0]))
    assert [row.images for row in rows_read] == [(tmp_path / f"pics/chart{n}.png",) for n in range(9)]
    (tmp_path / "out.csv").write_text("image,question,answer\n..\\..\\secret.png,x?,3\n")
    (row,) = read_source(Source(kind="csv", path=str(tmp_path / "out.csv")))
    assert "leads out of" in row.problems[0]


def test_what_is_missing_or_not_read_is_told(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 2)
    lines = ["chart0.png,x?,B,red,green", "chart1.png,x?,A,red,green", "gone.png,x?,A,red,green"]
    (tmp_path / "q.csv").write_text("\n".join(["image,question,answer,A,B", *lines]))
    shown = init(tmp_path, tmp_path / "run.toml")
    assert f"images: {tmp_path / 'pics'}" in shown
    assert "note: images of the first rows are missing: gone.png" in shown
    assert "note: options in the columns A, B are not read" in shown
