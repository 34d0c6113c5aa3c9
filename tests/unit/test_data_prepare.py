"""Sources of every kind, and the check that names every bad row before a model starts."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from sophia_mcore.config.schema import Columns, Source
from sophia_mcore.data.columns import RowReader
from sophia_mcore.data.prepare import PrepareSummary, prepare_questions
from sophia_mcore.data.sources import read_source
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.records import Question
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.shards import read_shard
from tests.support.pictures import plain


def picture(index: int, form: str = "PNG") -> bytes:
    return plain(30 + index, 20, (index * 20 % 256, 0, 0), form)


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"id": f"t{i}", "question": f"What is {i}?", "answer": str(i), "image": f"{i}.png"} for i in range(count)]


def jsonl(folder: Path, rows: list[Any], pictures: int = 5) -> Source:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i in range(pictures):
        (folder / "images" / f"{i}.png").write_bytes(picture(i))
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "train.jsonl").write_text("".join(line + "\n" for line in lines))
    return Source(kind="jsonl", path=str(folder / "train.jsonl"), images_folder=folder / "images")


def prepare(folder: Path, *sources: Source, **options: Any) -> tuple[PrepareSummary, list[Question], ImageStore]:
    store = ImageStore(folder / "run" / "images")
    file = folder / "run" / "questions.parquet"
    summary = prepare_questions(sources, store, file, **options)
    return summary, read_shard(file, Question), store


def refused(folder: Path, source: Source, **options: Any) -> str:
    with pytest.raises(SophiaError) as caught:
        prepare(folder, source, **options)
    assert not (folder / "run" / "questions.parquet").exists()
    assert (
        not [name for name in os.listdir(folder / "run") if name.startswith(".")] if (folder / "run").exists() else True
    )
    return str(caught.value)


def test_jsonl_beside_a_folder_of_images(tmp_path: Path) -> None:
    seen: list[int] = []
    summary, questions, store = prepare(tmp_path, jsonl(tmp_path, rows_of(5)), progress=seen.append)
    assert summary == PrepareSummary(rows=5, questions=5, images=5, bad_rows=0, reasons={})
    assert [question.id for question in questions] == ["t0", "t1", "t2", "t3", "t4"]
    assert questions[3].question == "What is 3?" and questions[3].answer == "3" and questions[3].source == "train"
    assert store.get(questions[3].images[0]) == picture(3)  # the file's own bytes
    assert seen == [5]


def test_prepared_questions_are_kept_and_other_settings_refused(tmp_path: Path) -> None:
    source = jsonl(tmp_path, rows_of(3))
    first = prepare(tmp_path, source)
    (tmp_path / "train.jsonl").unlink()  # it is not read again
    assert prepare(tmp_path, source)[:2] == first[:2]
    with pytest.raises(SophiaError, match="made from other sources"):
        prepare(tmp_path, source.model_copy(update={"limit": 2}))


def test_a_source_that_changed_since_is_refused(tmp_path: Path) -> None:
    source = jsonl(tmp_path, rows_of(3))
    prepare(tmp_path, source)
    before = (tmp_path / "run" / "questions.parquet").read_bytes()
    jsonl(tmp_path, rows_of(4))
    with pytest.raises(SophiaError, match=r"train\.jsonl has changed since .*questions\.parquet was made"):
        prepare(tmp_path, source)
    assert (tmp_path / "run" / "questions.parquet").read_bytes() == before


def test_several_images_options_types_and_numbers(tmp_path: Path) -> None:
    rows = [
        {"images": ["0.png", "1.png"], "question": "<image>\n<image>\nSame?", "answer": True, "type": "yesno"},
        {"images": ["2.png"], "question": "Which?", "answer": "B", "options": {"A": "one", "B": "two"}},
        {"images": "2.png", "question": "Which? <image>", "answer": ["C"], "options": '["x", "y", "z"]'},
        {"images": ["0.png", "1.png"], "question": "Is <image> like <image>?", "answer": 7.5, "options": None},
    ]
    summary, questions, _ = prepare(tmp_path, jsonl(tmp_path, rows))
    assert summary.questions == 4 and summary.images == 3
    assert [len(question.images) for question in questions] == [2, 1, 1, 2]
    assert [question.question for question in questions] == [
        "Same?",
        "Which?\n(A) one\n(B) two",
        "Which?\n(A) x\n(B) y\n(C) z",
        "Is (image 1) like (image 2)?",
    ]
    assert [question.answer for question in questions] == ["True", "B", "C", "7.5"]
    assert [question.options for question in questions] == [(), ("one", "two"), ("x", "y", "z"), ()]
    assert questions[0].answer_type == "yesno" and questions[0].id == "train-0"


def _bad_rows(folder: Path) -> list[tuple[Any, str]]:
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "empty.png").write_bytes(b"")
    (folder / "images" / "cut.png").write_bytes(picture(1)[:60])
    (folder / "images" / "text.png").write_bytes(b"<html>")
    (folder / "images" / "large.png").write_bytes(picture(100))
    (folder / "images" / "folder.png").mkdir()
    good = {"question": "?", "answer": "1", "image": "0.png"}
    return [
        (good | {"image": "none.png"}, "image missing"),
        (good | {"image": "empty.png"}, "image is empty"),
        (good | {"image": "cut.png"}, "image unreadable"),
        (good | {"image": "text.png"}, "not an image in a known format"),
        (good | {"image": "large.png"}, "image too large: 130 x 20 = 2600 pixels, allowed 1000"),
        (good | {"image": "folder.png"}, "image unreadable: it is a folder"),
        (good | {"image": ["0.png", "none.png"]}, "image missing"),
        (good | {"image": None}, "no image"),
        (good | {"image": ""}, "no image"),
        (good | {"image": []}, "no image"),
        (good | {"image": {"x": 1}}, "neither bytes nor a path"),
        (good | {"image": "../train.jsonl"}, "leads out of"),
        (good | {"image": "/etc/hostname"}, "leads out of"),
        (good | {"image": "a/../../train.jsonl"}, "leads out of"),
        (good | {"image": "https://example.org/a.png"}, "download the images first"),
        (good | {"question": "  "}, "no question"),
        (good | {"question": "<image>"}, "no question"),
        (good | {"question": "a <IMG_CONTEXT> b"}, "<IMG_CONTEXT>, which is reserved"),
        (good | {"question": "a<|im_end|>\n<|im_start|>system"}, "reserved for prompts"),
        (good | {"answer": None}, "no answer"),
        (good | {"answer": ""}, "no answer"),
        (good | {"answer": ["a", "b"]}, "the answer is a list"),
        (good | {"options": "A or B"}, "the options are not a list"),
        (good | {"options": "[1,"}, "not valid JSON"),
        (good | {"question": "<image> or <image>?", "answer": " "}, "no answer"),
        (good | {"id": "good"}, "duplicate id, first in train row 0"),
        (good | {"id": "a\nb"}, "control character"),
        ('{"question": "cut', "line 29 is not valid JSON"),
        ("[1, 2]", "line 30 is not a JSON object"),
    ]


def test_every_bad_row_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    cases = _bad_rows(tmp_path)
    good = {"id": "good", "question": "?", "answer": "1", "image": "0.png"}
    source = jsonl(tmp_path, [good, *(row for row, _ in cases)])
    message = refused(tmp_path, source, max_image_pixels=1000)
    head, *listed = message.splitlines()
    assert (
        head.startswith(f"{len(cases)} of {len(cases) + 1} rows are bad (allowed 0): ")
        and "3 image path" in head
        and "other" not in head
    )
    assert len(listed) == 21 and listed[-1] == f"  and {len(cases) - 20} more"
    for number, (line, (_, problem)) in enumerate(zip(listed[:20], cases, strict=False), start=1):
        assert line.startswith(f"  train row {number} (id ") and problem in line
    everything = [json.loads(line) for line in (tmp_path / "run" / "questions.bad.jsonl").read_text().splitlines()]
    assert [row["row"] for row in everything] == list(range(1, len(cases) + 1))
    for row, (_, problem) in zip(everything, cases, strict=True):
        assert problem in row["problem"], row


def test_allowed_bad_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = rows_of(4)
    rows[2]["answer"] = ""
    rows[3]["image"] = "none.png"
    source = jsonl(tmp_path, rows)
    assert "2 of 4 rows are bad (allowed 1)" in refused(tmp_path, source, max_bad_rows=1)
    summary, questions, _ = prepare(tmp_path, source, max_bad_rows=2)
    assert summary.reasons == {"no answer": 1, "image missing": 1} and summary.bad_rows == 2
    assert [question.id for question in questions] == ["t0", "t1"]


def test_nothing_good_is_an_error_whatever_is_allowed(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [{"question": "?", "answer": "", "image": "0.png"}])
    assert "no row is good" in refused(tmp_path, source, max_bad_rows=10)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "datasets"])
def test_empty_dataset(tmp_path: Path, kind: str) -> None:
    if kind == "jsonl":
        source = jsonl(tmp_path, ["", "  "])
    else:
        empty = {"id": [], "question": [], "answer": [], "image": []}
        source = _parquet(tmp_path, empty) if kind == "parquet" else _saved(tmp_path, empty)
    assert refused(tmp_path, source).startswith("source ") and "is empty" in refused(tmp_path, source)


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    rows = [{"qestion": "?", "answer": "1", "image": "0.png"}]
    with pytest.raises(UsageError, match=r"no column for question .*nearest: 'qestion'; it has answer, image, qestion"):
        prepare(tmp_path, jsonl(tmp_path, rows))
    source = jsonl(tmp_path, rows).model_copy(update={"columns": Columns(question=("qestion",))})
    assert prepare(tmp_path, source)[0].questions == 1


def test_missing_files_splits_and_folders(tmp_path: Path) -> None:
    for kind in ("jsonl", "parquet"):
        with pytest.raises(UsageError, match="no such file or folder"):
            list(read_source(Source(kind=kind, path=str(tmp_path / "none"))))
        with pytest.raises(UsageError, match=rf"no .*\.{kind}.* file in"):
            list(read_source(Source(kind=kind, path=str(tmp_path))))
    with pytest.raises(UsageError, match="no such folder"):
        list(read_source(Source(kind="datasets", path=str(tmp_path / "none"))))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(SophiaError, match="not valid JSON"):
        list(read_source(Source(kind="jsonl", path=str(tmp_path / "a.json"))))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(SophiaError, match=r"cannot read .*a\.parquet: damaged"):
        list(read_source(Source(kind="parquet", path=str(tmp_path / "a.parquet"))))


def test_two_sources_keep_their_ids_apart(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "a", rows_of(2)).model_copy(update={"name": "first"})
    second = jsonl(tmp_path / "b", rows_of(2)).model_copy(update={"name": "second"})
    summary, questions, _ = prepare(tmp_path, first, second)
    assert [question.id for question in questions] == ["first-t0", "first-t1", "second-t0", "second-t1"]
    assert summary.images == 2  # the same pictures
    with pytest.raises(UsageError, match="two question sources are named 'first'"):
        prepare(tmp_path / "c", first, first)


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    source = jsonl(tmp_path, rows_of(5)).model_copy(update={"limit": 2})
    assert [question.id for question in prepare(tmp_path, source)[1]] == ["t0", "t1"]


def test_mathv360k_preset(tmp_path: Path) -> None:
    """LLaVA's conversation form, one JSON list, answers as sentences."""
    talk = [
        {"from": "human", "value": "<image>\nHint: give the letter.\nQuestion: Which is it?\nChoices:\n(A) a\n(B) b"},
        {"from": "gpt", "value": "The answer is B"},
    ]
    source = jsonl(tmp_path, [])
    records = [{"id": "identity", "image": f"{i}.png", "conversations": talk} for i in range(2)]
    (tmp_path / "train.json").write_text(json.dumps(records))
    source = source.model_copy(update={"path": str(tmp_path / "train.json"), "preset": "mathv360k"})
    _, questions, _ = prepare(tmp_path, source)
    assert [(question.id, question.answer) for question in questions] == [("train-0", "B"), ("train-1", "B")]
    assert questions[0].question.startswith("Hint: give the letter.")


def _parquet(folder: Path, columns: dict[str, list[Any]], **options: Any) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), folder / "data.parquet")
    return Source(kind="parquet", path=str(folder / "data.parquet"), **options)


def test_virl39k_preset(tmp_path: Path) -> None:
    r"""Parquet with lists of paths, <image> tags in the question, answers in \boxed{}."""
    jsonl(tmp_path, [])
    columns = {
        "qid": ["a-1", "b-2"],
        "question": ["<image>How many?", "Compare <image> and <image>"],
        "answer": ["\\boxed{\\frac{1}{2}}", "\\boxed{A}"],
        "image": [["images/0.png"], ["images/1.png", "images/2.png"]],
        "category": ["x", "y"],
        "PassRate_32BTrained": [0.5, 1.0],
    }
    _, questions, _ = prepare(tmp_path, _parquet(tmp_path, columns, preset="virl39k"))
    assert [(question.id, question.answer) for question in questions] == [("a-1", "\\frac{1}{2}"), ("b-2", "A")]
    assert [len(question.images) for question in questions] == [1, 2]
    assert questions[1].question == "Compare (image 1) and (image 2)"


@pytest.mark.parametrize("where", ["file", "folder", "pattern"])
def test_parquet_with_embedded_images(tmp_path: Path, where: str) -> None:
    columns = {
        "id": [1, 2],
        "question": ["a", "b"],
        "answer": [3, 4],
        "image": [{"bytes": picture(1, "JPEG"), "path": None}, {"bytes": picture(2), "path": "x.png"}],
    }
    source = _parquet(tmp_path, columns)
    path = {"file": source.path, "folder": str(tmp_path), "pattern": str(tmp_path / "*.parquet")}[where]
    _, questions, store = prepare(tmp_path, source.model_copy(update={"path": path}))
    assert [(question.id, question.answer) for question in questions] == [("1", "3"), ("2", "4")]
    assert store.get(questions[0].images[0]) == picture(1, "JPEG")


def _saved(folder: Path, columns: dict[str, list[Any]], split: str | None = None) -> Source:
    dataset: Any = datasets.Dataset.from_dict(columns)
    if split:
        dataset = datasets.DatasetDict({split: dataset})
    dataset.save_to_disk(str(folder / "saved"))
    return Source(kind="datasets", path=str(folder / "saved"))


def _image_columns(datasets: Any) -> dict[str, list[Any]]:
    pictures = [Image.open(io.BytesIO(picture(i))) for i in range(3)]
    return {"problem": ["a", "b"], "solution": ["1", "2"], "images": [pictures[:1], pictures[1:]]}


def _as_saved(datasets: Any, folder: Path) -> Source:
    return _saved(folder, _image_columns(datasets))


def _as_saved_splits(datasets: Any, folder: Path) -> Source:
    return _saved(folder, _image_columns(datasets), split="train")


def _as_parquet_folder(datasets: Any, folder: Path) -> Source:
    (folder / "hub" / "data").mkdir(parents=True)
    dataset = datasets.Dataset.from_dict(_image_columns(datasets))
    dataset.to_parquet(str(folder / "hub" / "data" / "train-00000-of-00001.parquet"))
    return Source(kind="datasets", path=str(folder / "hub"))


@pytest.mark.parametrize("make", [_as_saved, _as_saved_splits, _as_parquet_folder])
def test_datasets_folders(tmp_path: Path, make: Callable[[Any, Path], Source]) -> None:
    source = make(datasets, tmp_path)
    summary, questions, store = prepare(tmp_path, source)
    assert [(q.question, q.answer, len(q.images)) for q in questions] == [("a", "1", 1), ("b", "2", 2)]
    assert summary.images == 3
    assert Image.open(io.BytesIO(store.get(questions[1].images[1]))).size == (32, 20)
    if make is not _as_saved:
        with pytest.raises(SophiaError, match="test"):
            prepare(tmp_path / "other", source.model_copy(update={"split": "test"}))


def test_datasets_folder_whose_images_are_paths(tmp_path: Path) -> None:
    """Paths of a dataset's string columns start in images_folder."""
    jsonl(tmp_path, [])
    (tmp_path / "hub").mkdir()
    columns = {"qid": ["a"], "question": ["<image>?"], "answer": ["\\boxed{3}"], "image": [["0.png", "1.png"]]}
    _parquet(tmp_path / "hub", columns)
    options = {"preset": "virl39k", "images_folder": tmp_path / "images"}
    _, questions, store = prepare(tmp_path, Source(kind="datasets", path=str(tmp_path / "hub"), **options))
    assert [store.get(digest) for digest in questions[0].images] == [picture(0), picture(1)]


def test_images_in_any_form() -> None:
    reader = RowReader(Source(kind="jsonl", path="x.jsonl"), ["image", "question", "answer"], Path("/pictures"))
    data = picture(0)
    opened = Image.open(io.BytesIO(data))
    forms = [data, bytearray(data), {"bytes": data, "path": "x"}, opened, "a/0.png", {"path": "0.png"}]
    row = reader.row(0, {"image": forms, "question": "?", "answer": "1"})
    assert row.problems == () and row.images[:3] == (data,) * 3
    assert row.images[4:] == (Path("/pictures/a/0.png"), Path("/pictures/0.png"))
    assert isinstance(row.images[3], bytes)
    assert Image.open(io.BytesIO(row.images[3])).tobytes() == Image.open(io.BytesIO(data)).tobytes()


def test_image_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    lines = []
    for i in range(3):
        (folder / f"{i}.png").write_bytes(picture(i))
        lines.append(json.dumps({"file_name": f"{i}.png", "question": f"q{i}", "answer": str(i)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    _, questions, store = prepare(tmp_path, Source(kind="datasets", path=str(tmp_path / "set")))
    assert sorted((q.question, q.answer) for q in questions) == [("q0", "0"), ("q1", "1"), ("q2", "2")]
    assert {store.get(q.images[0]) for q in questions} == {picture(i) for i in range(3)}


def test_a_hub_name_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    said = "cannot read dataset nobody/nothing: Couldn't reach 'nobody/nothing' on the Hub"
    assert refused(tmp_path, Source(kind="datasets", path="nobody/nothing")) == f"source 'nothing': {said}"


def test_killed_preparation_is_simply_run_again(tmp_path: Path) -> None:
    """SIGKILL after the images were stored, before the questions are: no questions file, and a second run succeeds."""
    source = jsonl(tmp_path, rows_of(5))
    code = f"""
import os, signal
from sophia_mcore.config.schema import Source
from sophia_mcore.data import prepare
from sophia_mcore.store import shards
from sophia_mcore.store.images import ImageStore
shards.write_shard = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
source = Source.model_validate_json({source.model_dump_json()!r})
prepare.prepare_questions([source], ImageStore({str(tmp_path / "run" / "images")!r}), {str(tmp_path / "run" / "q")!r})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert len(ImageStore(tmp_path / "run" / "images")) == 5
    assert prepare(tmp_path, source)[0].questions == 5
    assert len(os.listdir(tmp_path / "run" / "images")) == 1
