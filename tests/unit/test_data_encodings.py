"""Files of others in every reader alike: encodings, keys that stand twice, gold answers that are none, bars."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sophia_mcore.batch.samples import read_json_lines
from sophia_mcore.benchmarks.layouts import read_table
from sophia_mcore.config.schema import Source
from sophia_mcore.data.columns import Row
from sophia_mcore.data.sources import read_source
from sophia_mcore.errors import SophiaError
from sophia_mcore.score.lines import check_head, readable_twice

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
LINES = [{"id": "ä", "question": "Wie \u2028viel? 数", "answer": "3 €", "image": "a.png"}] * 3


def picture(folder: Path) -> None:
    Image.new("RGB", (2, 2)).save(folder / "a.png")


def rows(file: Path, kind: str) -> list[Row]:
    return list(read_source(Source(kind=kind, path=str(file))))  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_unicode_files_are_read_in_every_reader(tmp_path: Path, encoding: str) -> None:
    picture(tmp_path)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES)
    table = "".join("\t".join(row) + "\n" for row in [list(LINES[0]), *(list(line.values()) for line in LINES)])
    comma = table.replace("\t", ",")
    whole = json.dumps(LINES, ensure_ascii=False)
    for name, text in {"q.jsonl": lines, "q.json": whole, "q.csv": comma, "q.tsv": table}.items():
        file = tmp_path / name
        file.write_bytes(text.encode(encoding))
        found = rows(file, "jsonl" if "json" in name else "csv")
        assert [(row.question, row.answer, row.problems) for row in found] == [("Wie \u2028viel? 数", "3 €", ())] * 3
    assert [item for _, item in read_json_lines(tmp_path / "q.jsonl")] == LINES
    assert read_table(tmp_path / "q.tsv") == LINES
    answers = tmp_path / "answers.jsonl"
    answers.write_bytes((json.dumps({"id": "a", "response": "3", "answer": "3"}) + "\n").encode(encoding))
    with readable_twice(answers) as copy:
        check_head(copy)
        assert json.loads(copy.read_bytes())["answer"] == "3"


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "shift-jis"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    picture(tmp_path)
    text = {"gbk": "多少", "latin-1": "fünf", "shift-jis": "いくつ"}[encoding]
    (tmp_path / "q.csv").write_bytes(f"id,image,question,answer\n1,a.png,{text},3\n".encode(encoding))
    line = json.dumps({"image": "a.png", "question": text, "answer": "3"}, ensure_ascii=False)
    (tmp_path / "q.jsonl").write_bytes((line.replace(text, "ok") + "\n" + line + "\n").encode(encoding))
    (tmp_path / "q.json").write_bytes(f"[{line}]".encode(encoding))
    for name in ("q.csv", "q.json"):
        with pytest.raises(SophiaError, match="perhaps GBK or Latin-1: save it as UTF-8"):
            rows(tmp_path / name, "csv" if name == "q.csv" else "jsonl")
    good, bad = rows(tmp_path / "q.jsonl", "jsonl")
    assert good.problems == () and "save it as UTF-8" in bad.problems[0]


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    picture(tmp_path)
    line = '{"image": "a.png", "question": "How many?", "answer": "3"%s}'
    odd = [
        line % "",
        line % ', "answer": "4"',
        line % ', "more": {"a": 1, "a": 2}',
        line % ', "more": [[{"a": 1, "a": 2}]]',
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(odd))
    (tmp_path / "q.json").write_text(f"[{','.join(odd)}]")
    for name in ("q.jsonl", "q.json"):
        found = rows(tmp_path / name, "jsonl")
        assert [bool(row.problems) for row in found] == [False, True, True, True]
        assert "the key 'answer' stands twice" in found[1].problems[0] and "'a'" in found[3].problems[0]


NONE = [
    "unknown", "TBD", "N/A", "n/a", "-", "—", "see solution", "See the solution below.", "(see figure)", "?", "...",
    "To be determined", "NA", "Answers may vary.", "refer to the answer key", "见解析", "略", "#N/A", "[deleted]",
]  # fmt: skip
SOME = [
    "-5", "Na", "none", "no solution", "undefined", "seesaw", "see", "empty", "0", "无解", "No", "x", "|x|", "P(A|B)",
    "cannot be determined", "unknown quantity x", "{x | x > 0}", "3 - 5", "not enough information",
]  # fmt: skip


@pytest.mark.parametrize("answer", NONE)
def test_gold_answers_that_say_there_is_none(tmp_path: Path, answer: str) -> None:
    for row in every_reader(tmp_path, {"question": "How many?", "answer": answer}):
        assert len(row.problems) == 1 and row.problems[0].startswith("no answer"), row
    options = ["yes", answer, "no"]
    (row,) = rows(written(tmp_path, [{"question": "Which?", "answer": answer, "options": options}]), "jsonl")
    assert row.problems == () and row.answer == answer  # an option may say so


@pytest.mark.parametrize("answer", SOME)
def test_gold_answers_that_look_like_none(tmp_path: Path, answer: str) -> None:
    assert {(row.answer, row.problems) for row in every_reader(tmp_path, {"question": "?", "answer": answer})} == {
        (answer, ())
    }


@pytest.mark.parametrize(
    ("cells", "answer", "options", "problem"),
    [
        ({"answer": "red|crimson"}, "", (), "several between bars"),
        ({"answer": "5 | five"}, "", (), "several between bars"),
        ({"answer": "A|C", "options": "red|green|blue"}, "A, C", ("red", "green", "blue"), ""),
        ({"answer": "green", "options": "red | green | blue"}, "green", ("red", "green", "blue"), ""),
        ({"answer": "B", "options": "|x||y|"}, "", (), "the options are not a list"),
        ({"answer": "&lt; 5&deg;"}, "< 5°", (), ""),
        ({"answer": "\u200b5\ufeff"}, "5", (), ""),
        ({"answer": "10<sup>3</sup>"}, "", (), "the answer contains <sup>"),
        ({"answer": "<p>5</p>"}, "", (), "the answer contains <p>"),
        ({"answer": "a<b"}, "a<b", (), ""),
    ],
)
def test_bars_entities_and_tags(
    tmp_path: Path, cells: dict[str, str], answer: str, options: tuple, problem: str
) -> None:
    for row in every_reader(tmp_path, {"question": "Which?", **cells}):
        if problem:
            assert problem in "; ".join(row.problems)
        else:
            assert (row.answer, row.options, row.problems) == (answer, options, ())


def test_bytes_in_a_text_column_of_parquet(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    table = pa.table({"image": [buffer.getvalue()] * 2, "question": [b"How many?"] * 2, "answer": [b"5", b"\xff"]})
    pq.write_table(table, tmp_path / "q.parquet")
    good, bad = rows(tmp_path / "q.parquet", "parquet")
    assert (good.question, good.answer, good.problems) == ("How many?", "5", ())
    assert "half of a surrogate pair" in bad.problems[0]


def written(folder: Path, items: list[dict[str, object]]) -> Path:
    picture(folder)
    file = folder / "q.jsonl"
    file.write_text("".join(json.dumps({"image": "a.png", **item}) + "\n" for item in items))
    return file


def every_reader(folder: Path, cells: dict[str, str]) -> list[Row]:
    """The one row of cells, as JSON lines, a JSON list, CSV, TSV and Parquet give it."""
    picture(folder)
    cells = {"image": "a.png", **cells}
    (folder / "q.jsonl").write_text(json.dumps(cells) + "\n")
    (folder / "q.json").write_text(json.dumps([cells]))
    pq.write_table(pa.table({name: [value] for name, value in cells.items()}), folder / "q.parquet")
    quoted = ['"' + value.replace('"', '""') + '"' for value in cells.values()]
    (folder / "q.csv").write_text(",".join(cells) + "\n" + ",".join(quoted) + "\n", encoding="utf-8")
    (folder / "q.tsv").write_text("\t".join(cells) + "\n" + "\t".join(quoted) + "\n", encoding="utf-8")
    kinds = {"q.jsonl": "jsonl", "q.json": "jsonl", "q.csv": "csv", "q.tsv": "csv", "q.parquet": "parquet"}
    return [row for name, kind in kinds.items() for row in rows(folder / name, kind)]
