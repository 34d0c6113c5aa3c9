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
from sophia_mcore.data.sources import read_source
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


def test_pictures_that_are_nowhere_are_noted(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("image,question,answer\na.png,Which?,3\n")
    shown = init(tmp_path / "q.csv", tmp_path / "run.toml")
    assert "note: no image of column 'image' was found" in shown
    again = CliRunner().invoke(app, ["init", str(tmp_path / "q.csv"), "--out", str(tmp_path / "run.toml")])
    assert "is there already" in str(again.exception)
