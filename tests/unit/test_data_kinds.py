"""Data of others, read as it comes: option texts, gold answers, several images, base64, separators, odd text."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from sophia_mcore.config.schema import Columns, Data, Source
from sophia_mcore.data.columns import Row, RowReader
from sophia_mcore.data.images import check, decode
from sophia_mcore.data.sources import read_source
from sophia_mcore.errors import UsageError
from tests.support.pictures import plain


def png(size: tuple[int, int] = (2, 2), colour: str = "red") -> bytes:
    return plain(*size, colour)


def read(raw: dict[str, Any], **settings: Any) -> Row:
    row = {"question": "Which?", "answer": "3", "image": png(), **raw}
    reader = RowReader(Source(kind="jsonl", path="q.jsonl", **settings), row, Path("data"))
    return reader.row(0, row)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 3 </answer>", "3"),
        ("<think>1 + 2</think><answer>3</answer>", "3"),
        ("Two and one.\nSo we get \\boxed{3}.", "3"),
        ("We get \\boxed{\\frac{1}{2}} in the end", "\\frac{1}{2}"),
        ("She has 1 + 2 = 3 left.\n#### 3", "3"),
        ("\\boxed{x}", "x"),
        ("$\\boxed{12}$", "12"),
        (3, "3"),
        (0.5, "0.5"),
        (["3"], "3"),
        ("<0", "<0"),
        ("x < 3 > y", "x < 3 > y"),
        ("\\begin{pmatrix}1\n2\\end{pmatrix}", "\\begin{pmatrix}1\n2\\end{pmatrix}"),
        ("#3", "#3"),
        ("Answer: 3", "3"),
        ("**Answer:** 3 cm", "3 cm"),
        ("So the correct answer is 3", "3"),
        ("```\n3\n```", "3"),
        ("the answer is not 3", "the answer is not 3"),
        ("answer", "answer"),
        ("['1', '2']", "['1', '2']"),
    ],
)
def test_gold_answers_with_one_reading(text: Any, answer: str) -> None:
    row = read({"answer": text})
    assert (row.answer, row.problems) == (answer, ())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "no answer: the cell is nan"),
        (float("inf"), "no answer: the cell is inf"),
        ("NaN", "no answer"),
        ("  ", "no answer"),
        ("N/A", "no answer: the cell says 'N/A'"),
        ("null", "no answer: the cell says"),
        ("[]", "no answer: the cell says"),
        ("-inf", "no answer: the cell says"),
        ("<answer></answer>", "no answer"),
        ("There are two.\nAnd one more.", "the answer has several lines"),
        ("\\boxed{1} or \\boxed{2}", "the answer names several boxed values"),
        ("<image> How many?", "the answer contains <image>"),
        ("3</answer>", "the answer contains </answer>"),
        (["3", "4"], "the answer is a list"),
        ("['24', 'twenty-four']", "the answer ['24', 'twenty-four'] is a list: write 'A ## B'"),
        ("half \ud83d", "the answer contains half of a surrogate pair"),
    ],
)
def test_gold_answers_that_are_refused(value: Any, words: str) -> None:
    row = read({"answer": value})
    assert row.problems and row.problems[0].startswith(words)
    json.dumps([row.answer, row.problems], ensure_ascii=False).encode()  # it can be written


OPTIONS = ["north", "south", "east"]


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        (OPTIONS, "B", ("north", "south", "east")),
        (OPTIONS, "(b)", ("north", "south", "east")),
        (OPTIONS, "south", ("north", "south", "east")),
        (OPTIONS, "A, C", ("north", "south", "east")),
        ("['north', \"south's end\"]", "B", ("north", "south's end")),
        ('["north", "south"]', "north", ("north", "south")),
        ({"A": "red", "B": None, "C": "blue"}, "C", ("red", "", "blue")),
        ({"B": "red", "A": "blue"}, "A", ("blue", "red")),
        ({"b)": "red", "a)": "blue"}, "A", ("blue", "red")),
        ({"1": "red", "2": "blue"}, "A", ("red", "blue")),
        (["3", "4", None, None], "3", ("3", "4")),
        (["135°", "145°"], "145°", ("135°", "145°")),
        ([1, 2.5], "2.5", ("1", "2.5")),
        ([], "3", ()),
    ],
)
def test_options_keep_their_letters(options: Any, answer: str, expected: tuple[str, ...]) -> None:
    row = read({"options": options, "answer": answer})
    assert (row.options, row.problems) == (expected, ())


@pytest.mark.parametrize(
    ("options", "answer", "words"),
    [
        (OPTIONS, "E", "the answer 'E' is none of the 3 options"),
        (OPTIONS, "up", "the answer 'up' is none of the 3 options"),
        (OPTIONS, "1", "the answer '1' is none of the 3 options; is it an index?"),
        (["red", "<|image_pad|>"], "A", "the options: (B) contains <|image_pad|>, which is reserved for prompts"),
        (["red", "<|VIDEO_PAD|>"], "A", "the options: (B) contains <|video_pad|>: videos are not supported"),
        (OPTIONS, "A, E", "the answer 'A, E' is none of the 3 options"),
        ({"A": "red", "B": None, "C": "blue"}, "B", "the answer 'B' names option (B), which has no text"),
        (["red", float("nan")], "A", "the options: (B) is nan"),
        ("[red, blue]", "A", "the options are not valid JSON, nor a Python list"),
        ("{unclosed", "A", "the options are not valid JSON"),
        (["x"] * 27, "A", "the options are 27, more than there are letters"),
        (["B. y", "A. x"], "A", "the options: (A) is labelled 'B'"),
        (["A:x", "C:y"], "C", "the options: (B) is labelled 'C'"),
        (["red", "blue"], "A blue", "the answer 'A blue' names a letter and the text of another option"),
        (["red", "blue"], "(A) blue", "the answer '(A) blue' names a letter and the text of another option"),
    ],
)
def test_gold_answers_that_no_option_can_meet(options: Any, answer: str, words: str) -> None:
    row = read({"options": options, "answer": answer})
    assert row.problems and row.problems[0].startswith(words)


def test_an_index_names_an_option_where_the_source_says_so() -> None:
    assert [read({"options": OPTIONS, "answer": n}, answer_index=0).answer for n in (0, "1", 2.0)] == ["A", "B", "C"]
    assert read({"options": OPTIONS, "answer": "3"}, answer_index=1).answer == "C"
    assert "not the index of one of 3 options" in read({"options": OPTIONS, "answer": "3"}, answer_index=0).problems[0]
    assert "not the index" in read({"options": OPTIONS, "answer": "B"}, answer_index=0).problems[0]


def test_numbered_columns_hold_the_images_together() -> None:
    first, second = png(), png(colour="blue")
    raw = {"question": "<image 1> or <image 2>?", "answer": "3", "image_1": first, "image_2": second, "image_10": None}
    wanted: tuple[tuple[str, ...] | None, ...] = (None, ("image_1",), ("image_1", "image_2"))
    for images in wanted:
        columns = Columns() if images is None else Columns(images=images)
        reader = RowReader(Source(kind="jsonl", path="q", columns=columns), raw, None)
        row = reader.row(0, raw)
        assert (row.images, row.problems) == ((first, second), ())
        assert set(reader.top_level_columns()) >= {"image_1", "image_2"}
    row = reader.row(0, raw | {"image_2": None})
    assert row.problems == ("the question names <image 2>, but the row has 1 image",)
    assert "2 <image> tags" in read({"question": "<image> and <image>?"}).problems[0]


@pytest.mark.parametrize("form", ["{}", "data:image/png;base64,{}"])
def test_base64_is_read(form: str) -> None:
    data = png((30, 30))
    text = form.format(base64.b64encode(data).decode())
    assert read({"image": text}).images == (data,)
    assert read({"image": json.dumps([text, text])}).images == (data, data)


def test_what_is_neither_path_nor_base64_is_cut_short() -> None:
    row = read({"image": "data:image/png;base64," + "A" * 100_000})
    assert "100,022 characters are neither a path nor base64" in row.problems[0]
    assert len(row.problems[0]) < 250
    assert read({"image": "a" * 80 + ".png"}).images == (Path.cwd() / "data" / ("a" * 80 + ".png"),)


def test_bytes_that_are_text() -> None:
    data = png((30, 30))
    assert read({"image": {"bytes": base64.b64encode(data).decode()}}).images == (data,)
    assert "its bytes are text, and not base64: xx" in read({"image": {"bytes": "xx"}}).problems[0]


def test_conversations_by_speaker() -> None:
    turns = [
        {"from": "system", "value": "You are helpful."},
        {"from": "human", "value": "<image>\nHow many?"},
        {"from": "gpt", "value": "The answer is 4."},
    ]
    for talk in (turns, turns[1:], [{"role": "user", "value": "How many?"}, {"role": "assistant", "value": "4"}]):
        raw = {"image": png(), "conversations": talk}
        row = RowReader(Source(kind="jsonl", path="q", preset="mathv360k"), raw, None).row(0, raw)
        assert (row.question, row.answer, row.problems) == ("How many?", "4", ())


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators(tmp_path: Path, separator: str) -> None:
    (tmp_path / "a.png").write_bytes(png())
    cells = [["id", "image", "question", "answer"], ["a", "a.png", "How many, or none?", "3"]]
    quoted = [[f'"{cell}"' for cell in line] for line in cells]
    (tmp_path / "q.csv").write_text("\n".join(separator.join(line) for line in quoted) + "\n")
    (row,) = read_source(Source(kind="csv", path=str(tmp_path / "q.csv")))
    assert (row.question, row.answer, row.problems) == ("How many, or none?", "3", ())


def test_several_images_in_a_cell(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('image,question,answer\n"[""a.png"", ""b.png""]",Which?,3\n')
    (row,) = read_source(Source(kind="csv", path=str(tmp_path / "q.csv")))
    assert [Path(path).name for path in row.images] == ["a.png", "b.png"]  # type: ignore[arg-type]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("image,question,answer,answer\na.png,Which?,3,4\n")
    with pytest.raises(UsageError, match="has the column 'answer' 2 times"):
        list(read_source(Source(kind="csv", path=str(tmp_path / "q.csv"))))
    (tmp_path / "q.csv").write_text("image,question,answer,note,note\na.png,Which?,3,x,y\n")  # nobody reads it
    assert next(read_source(Source(kind="csv", path=str(tmp_path / "q.csv")))).answer == "3"


def test_mmmu_as_it_is(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["v1"],
            "question": ["<image 1> Compare with <image 2>."],
            "options": ["['$63,020', '$58,410', \"none of Bob's\"]"],
            "answer": ["B"],
            **{f"image_{k}": [{"bytes": png(), "path": None} if k < 3 else None] for k in range(1, 8)},
        }
    )
    pq.write_table(table, tmp_path / "q.parquet")
    (row,) = read_source(Source(kind="parquet", path=str(tmp_path / "q.parquet")))
    assert row.options == ("$63,020", "$58,410", "none of Bob's")
    assert (len(row.images), row.answer, row.problems) == (2, "B", ())


def test_float_pictures_and_large_ones() -> None:
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    for scale, expected in ((1.0, 255), (200.0, 200)):
        buffer = io.BytesIO()
        Image.fromarray(ramp * scale).save(buffer, "TIFF")
        assert np.asarray(decode(buffer.getvalue())).max() == expected
    large = io.BytesIO()
    Image.new("1", (20_000, 9_500)).save(large, "PNG")  # 190 megapixels: above Pillow's own limit
    assert check(large.getvalue(), 200_000_000) == (20_000, 9_500)


@pytest.mark.parametrize(
    "options", [[{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}], [["red", "blue"]]]
)
def test_options_that_are_no_texts_are_refused(options: list[Any]) -> None:
    (problem,) = read({"options": options, "answer": "A"}).problems[:1]
    assert problem.startswith("the options: (A) is a") and problem.endswith("not a text")


def test_questions_of_text_alone() -> None:
    alone = Columns(images=())
    row = read({}, columns=alone)
    assert (row.images, row.problems) == ((), ())  # the column is there and not read
    assert read({"image": None}, columns=Columns()).problems == ("no image",)
    assert read({"question": "<image> Which?"}, columns=alone).problems != ()
    with pytest.raises(ValidationError, match=r"columns.images = \[\]: a round describes images"):
        Data(questions=(Source(kind="jsonl", path="q.jsonl", columns=alone),))


@pytest.mark.parametrize("mark", ["<video>", "<|video_pad|>"])
@pytest.mark.parametrize("spelled", [str.lower, str.upper])
def test_a_question_about_a_video_is_refused(mark: str, spelled: Callable[[str], str]) -> None:
    assert read({"question": f"{spelled(mark)}\nWho falls?"}).problems == (
        f"the question contains {mark}: videos are not supported",
    )


def test_a_row_with_a_video_is_refused_in_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    row = {"id": "q7", "image": "a.png", "question": "Who falls?", "answer": "3", "videos": ["a.mp4"]}
    lines = [row | {"id": "q6", "videos": []}, row]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "q.parquet")
    for kind in ("jsonl", "parquet"):
        good, bad = read_source(Source(kind=kind, path=str(tmp_path / f"q.{kind}")))  # type: ignore[arg-type]
        assert good.problems == ()
        assert (bad.id, bad.problems) == ("q7", ("videos are not supported (column 'videos')",))
    used, raw = Columns(id=("video",)), row | {"image": png(), "video": "v1", "videos": None}
    reader = RowReader(Source(kind="jsonl", path="q", columns=used), raw, None)
    assert reader.row(0, raw).problems == ()  # a name, not a video
    with pytest.raises(UsageError, match=r"no column for images .*; videos are not supported"):
        RowReader(Source(kind="jsonl", path="q"), ["video", "question", "answer"], None)


def test_videos_of_a_dataset_are_refused_and_not_decoded(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "video": datasets.Video(), "question": datasets.Value("string"),
         "answer": datasets.Value("string")}
    )  # fmt: skip
    picture = {"bytes": png(), "path": None}
    film = {"bytes": b"no film", "path": None}
    cells = {"image": [picture, picture], "video": [None, film], "question": ["?", "?"], "answer": ["1", "2"]}
    datasets.Dataset.from_dict(cells, features=features).save_to_disk(str(tmp_path / "saved"))
    good, bad = read_source(Source(kind="datasets", path=str(tmp_path / "saved")))
    assert good.problems == () and len(good.images) == 1
    assert bad.problems == ("videos are not supported (column 'video')",)
