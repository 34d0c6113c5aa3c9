"""Questions in a CSV: columns by name, empty cells absent, damage named."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sophia_mcore.config.schema import Columns, Source
from sophia_mcore.data.sources import read_source
from sophia_mcore.errors import SophiaError, UsageError


def rows_of(folder: Path, text: bytes, **settings):
    (folder / "questions.csv").write_bytes(text)
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    return list(read_source(Source(kind="csv", path=str(folder / "questions.csv"), **settings)))


def test_quotes_line_breaks_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = '\ufeffid,image,question,answer,options\r\n1,a.png,"What,\nhere?",B,"[""x"", ""y""]"\r\n2,a.png,Next?,5,\r\n'
    first, second = rows_of(tmp_path, text.encode())
    assert "What,\nhere?" in first.question and first.options == ("x", "y") and not first.problems
    assert (second.answer, second.options, second.id) == ("5", (), "2")


def test_other_names_of_columns(tmp_path: Path) -> None:
    columns = Columns(question=("prompt",), answer=("gold",))
    (row,) = rows_of(tmp_path, b"image,prompt,gold\na.png,Why?,7\n", columns=columns)
    assert row.question == "Why?" and row.answer == "7"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"image,question,answer\na.png,Q?,\n", "answer"),
        (b"image,question,answer\na.png,Q?,5,6\n", "more cells"),
    ],
)
def test_bad_rows_say_why(tmp_path: Path, text: bytes, words: str) -> None:
    (row,) = rows_of(tmp_path, text)
    assert any(words in problem for problem in row.problems)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"image,question,answer\n\xff\xfe,Q?,5\n", "UTF-8"),
        (b'image,question,answer\n"a.png,Q?,5\n', "comma-separated"),
        (b"image,question\na.png,Q?\n", "answer"),
        (b"image,question,answer\n", "holds no rows"),
        (b"", "no column"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: bytes, words: str) -> None:
    with pytest.raises((SophiaError, UsageError), match=words):
        rows_of(tmp_path, text)
