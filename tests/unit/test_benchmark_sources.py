"""Every layout of the eight benchmarks is read exactly, and hostile rows are named."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sophia_mcore.benchmarks.prompts import place
from sophia_mcore.benchmarks.rows import options_in, read_benchmark
from sophia_mcore.benchmarks.table import benchmark_named, benchmarks
from sophia_mcore.config.schema import Source
from sophia_mcore.data.columns import Row
from sophia_mcore.data.prepare import prepare_questions
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.evaluate.benchmark_results import Outcome, benchmark_results
from sophia_mcore.pretrained.family import IMAGE_PLACE
from sophia_mcore.records import Question
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.shards import read_shard
from sophia_mcore.verify import GradeItem, Grader
from tests.support.benchmark_files import HUB, NEEDED, TABLES, folder, hub, table
from tests.support.pictures import plain


def prompts(row: Row) -> dict[str, str]:
    return json.loads(row.details)["prompts"]


def values(row: Row) -> dict[str, object]:
    return json.loads(row.details)["values"]


def picture(colour: str = "red") -> bytes:
    return plain(40, 30, colour)


def write_tsv(path: Path, rows: list[dict[str, str]]) -> Source:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return Source(benchmark="mmmu", path=str(path))


@NEEDED
@pytest.mark.parametrize("name", TABLES)
def test_both_layouts_give_equal_questions(name: str) -> None:
    from_hub = {row.id: row for row in read_benchmark(hub(name))}
    from_table = {row.id: row for row in read_benchmark(table(name))}
    assert from_hub.keys() == from_table.keys() and from_hub
    for key, row in from_hub.items():
        other = from_table[key]
        assert not row.problems and not other.problems
        for field in ("question", "answer", "answer_type", "options", "images"):
            assert getattr(row, field) == getattr(other, field), f"{key}: {field}"
        assert prompts(row) == prompts(other)
        groups = benchmark_named(name).groups
        assert [values(row)[group] for group in groups] == [values(other)[group] for group in groups]


@NEEDED
@pytest.mark.parametrize("name", HUB)
def test_every_hub_layout_becomes_questions(name: str, tmp_path: Path) -> None:
    target = tmp_path / "questions.parquet"
    summary = prepare_questions([hub(name)], ImageStore(tmp_path / "images"), target, read=read_benchmark)
    questions = read_shard(target, Question)
    assert summary.bad_rows == 0 and len(questions) == summary.rows
    assert all(question.benchmark == name for question in questions)
    with_images = [question for question in questions if question.images]
    assert len(with_images) == len(questions) - (5 if name == "olympiadbench" else 0)
    for question in questions:
        for prompt in json.loads(question.details)["prompts"].values():
            text, shown = place(prompt, question.images)
            assert text.count(IMAGE_PLACE) == len(shown) and set(shown) <= set(question.images)


@NEEDED
def test_images_stand_where_the_question_names_them() -> None:
    row = next(row for row in read_benchmark(hub("mmmu")) if row.id == "validation_Math_3")
    text, shown = place(prompts(row)["paper"], ("first", "second"))
    assert text.startswith(f"How do {IMAGE_PLACE} and {IMAGE_PLACE} differ?\n(A) {IMAGE_PLACE} is larger")
    assert shown == ("first", "second", "first", "second")
    cube = next(iter(read_benchmark(hub("mvmath"))))
    text, shown = place(prompts(cube)["paper"], (1, 2, 3, 4))
    assert text.endswith(f"D.\n\n{IMAGE_PLACE}") and shown == (1, 2, 3, 4)


@NEEDED
def test_gold_answers_options_and_variants() -> None:
    vista = list(read_benchmark(hub("mathvista")))
    assert [row.answer for row in vista[:3]] == ["C", "B", "C"]  # the hub has the option's text
    mmmu = {row.id: row for row in read_benchmark(hub("mmmu"))}
    assert json.loads(mmmu["validation_Physics_3"].details)["golds"] == ["3/4", "0.75"]
    dyna = list(read_benchmark(hub("dynamath")))
    assert [values(row)["varid"] for row in dyna[::3]] == [str(i) for i in range(1, 11)]
    assert [values(row)["index"] for row in dyna[:4]] == ["1", "2", "3", "1001"]
    olympiad = {row.id: row for row in read_benchmark(table("olympiadbench"))}
    assert olympiad["1"].answer == r"$\frac{1}{2}$"
    assert "A ball falls.\nFind the speed." in prompts(olympiad["4"])["paper"]
    assert r"\boxed{answer}(unit)" in prompts(olympiad["4"])["paper"]
    both = prompts(olympiad["1"])
    assert r"\boxed{answer}." in both["paper"] and both["paper"].endswith("Find the ratio.\n<image 1>")
    assert r"\boxed{answer}(unit)." in both["vlmevalkit"]  # an empty cell is NaN there, which counts as a unit
    assert both["vlmevalkit"].endswith("Find the ratio.\n<image_1>\n<image 1>")  # the images follow the text
    assert "题目有多个答案" not in prompts(olympiad["2"])["paper"]
    assert r"\boxed{multiple answers connected with commas}" in prompts(olympiad["6"])["paper"]


def test_a_short_image_cell_names_the_row_of_the_image(tmp_path: Path) -> None:
    image = base64.b64encode(picture()).decode()
    row = {"index": "7", "id": "validation_Art_1", "question": "Which?", "A": "red", "B": "blue", "answer": "A",
           "image": image, "category": "Art", "l2-category": "Art & Design", "split": "validation"}  # fmt: skip
    second = row | {"index": "8", "id": "validation_Art_2", "image": "7"}
    several = row | {
        "index": "9",
        "id": "validation_Art_3",
        "image": str([image, base64.b64encode(picture("blue")).decode()]),
    }
    read = list(read_benchmark(write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", [row, second, several])))
    assert read[0].images == read[1].images == (picture(),)
    assert read[2].images == (picture(), picture("blue"))


def test_a_table_may_name_image_files(tmp_path: Path) -> None:
    """VLMEvalKit writes such a table ("_local") for a large one."""
    for name, colour in (("1.png", "red"), ("2.png", "blue")):
        (tmp_path / name).write_bytes(picture(colour))
    row = {"index": "7", "id": "validation_Art_1", "question": "Which?", "A": "red", "B": "blue", "answer": "A",
           "image_path": "1.png", "category": "Art", "l2-category": "Art & Design", "split": "validation"}  # fmt: skip
    several = row | {"index": "8", "id": "validation_Art_2", "image_path": "['1.png', '2.png']"}
    other = row | {"index": "9", "id": "validation_Art_3", "image_path": "7"}
    missing = row | {"index": "10", "id": "validation_Art_4", "image_path": "3.png"}
    read = list(read_benchmark(write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", [row, several, other, missing])))
    images = [[Path(str(image)).name for image in one.images] for one in read]
    assert images[:3] == [["1.png"], ["1.png", "2.png"], ["1.png"]]
    assert prepare_questions([Source(benchmark="mmmu", path=str(tmp_path / "MMMU_DEV_VAL.tsv"))],
                             ImageStore(tmp_path / "i"), tmp_path / "q.parquet", read=read_benchmark,
                             max_bad_rows=1)  # fmt: skip
    assert len(read_shard(tmp_path / "q.parquet", Question)) == 3


def test_hostile_rows_are_named(tmp_path: Path) -> None:
    image = base64.b64encode(picture()).decode()
    good = {"index": "1", "id": "validation_Art_1", "question": "Which?", "A": "red", "B": "blue", "answer": "A",
            "image": image, "category": "Art", "l2-category": "Art & Design", "split": "validation"}  # fmt: skip
    rows = [
        good | {"image": ""},
        good | {"image": "99"},
        good | {"answer": "nan"},
        good | {"answer": "D"},
        good | {"question": ""},
        good | {"question": "a" * 32_767},
        good | {"question": "Is it <IMG_CONTEXT>?"},
        good | {"question": "NaN"},
        good | {"question": "<image1>"},  # as MathVision's row 528: the image asks
        good | {"question": "<image1>", "image": ""},
    ]
    rows = [row | {"id": f"validation_Art_{i}", "index": str(i)} for i, row in enumerate(rows)]
    source = write_tsv(tmp_path / "x.tsv", rows)
    problems = [row.problems for row in read_benchmark(source)]
    assert problems[0] == ("no image",)
    assert problems[2] == ("no answer",)
    assert "none of the 2 options" in problems[3][0]
    assert problems[4] == ("no question",)
    assert problems[5] == ()
    assert "reserved" in problems[6][0]
    assert problems[7] == ("no question",)
    assert problems[8] == ()
    assert problems[9] == ("no image", "no question")
    with pytest.raises(SophiaError, match=r"8 of 10 rows are bad .*image missing"):
        prepare_questions([source], ImageStore(tmp_path / "i"), tmp_path / "q.parquet", read=read_benchmark)


def test_marks_of_a_table_are_labels_or_places(tmp_path: Path) -> None:
    one, two = (base64.b64encode(picture(colour)).decode() for colour in ("red", "blue"))
    row = {"index": "1", "id": "1", "question": "Is <image1> in <image2>?\nChoices:\n(A) <image1>\n(B) no",
           "choices": "['<image1>', 'no']", "answer": "B", "image": one, "category": "c",
           "l2-category": "1"}  # fmt: skip
    rows = [row, row | {"index": "2", "id": "2", "image": str([one, two])}]
    write_tsv(tmp_path / "MathVision.tsv", rows)
    labelled, both = read_benchmark(Source(benchmark="mathvision", path=str(tmp_path / "MathVision.tsv")))
    assert labelled.question == "Is image 1 in image 2?" and labelled.options == ("image 1", "no")
    for protocol in ("paper", "vlmevalkit"):
        text, shown = place(prompts(labelled)[protocol], (1,))
        assert shown == (1,) and "Is image 1 in image 2?\n" in text and "(A) image 1" in text and "<image" not in text
        text, shown = place(prompts(both)[protocol], (1, 2))
        assert shown == (1, 2, 1) and text.startswith(f"Is {IMAGE_PLACE} in {IMAGE_PLACE}?")


def test_rows_of_a_table_that_is_ambiguous_are_bad(tmp_path: Path) -> None:
    image, other = (base64.b64encode(picture(colour)).decode() for colour in ("red", "blue"))
    row = {"index": "1", "id": "validation_Art_1", "question": "Which?", "A": "red", "B": "blue", "answer": "B",
           "image": image, "category": "Art", "l2-category": "Art & Design", "split": "validation"}  # fmt: skip
    rows = [
        row,
        row | {"id": "validation_Art_2", "image": other},
        row | {"index": "2", "id": "validation_Art_3", "image": "1"},
        row | {"index": "3", "id": "validation_Art_4", "A": "", "B": ""},
        row | {"index": "4", "id": "validation_Art_5", "A": "", "B": "", "answer": "b2"},  # an open question
    ]
    read = list(read_benchmark(write_tsv(tmp_path / "x.tsv", rows)))
    assert [one.problems for one in read] == [
        (),
        ("duplicate index 1, first in row 0",),
        (),
        ("the options are missing, though the answer is the letter B",),
        (),
    ]
    assert read[2].images == (picture("red"),)  # that of the first row with this index
    with pytest.raises(SophiaError, match=r"2 of 5 rows are bad .*1 duplicate index, 1 the options"):
        prepare_questions(
            [Source(benchmark="mmmu", path=str(tmp_path / "x.tsv"))], ImageStore(tmp_path / "i"),
            tmp_path / "q.parquet", read=read_benchmark,
        )  # fmt: skip


def test_a_hub_row_without_options_or_with_nan_is_bad(tmp_path: Path) -> None:
    row = {"id": "validation_Math_1", "question": "Which?", "options": "[]", "question_type": "multiple-choice",
           "image_1": {"bytes": picture(), "path": "1.png"}, "answer": "A"}  # fmt: skip
    vista = {"pid": "1", "question": "How many?", "query": "Hint: x\nQuestion: How many?", "decoded_image": picture(),
             "choices": None, "precision": float("nan"), "answer": None, "question_type": "free_form",
             "answer_type": "integer", "metadata": {"skills": ["a"], "task": "b"}}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "validation-0.parquet")
    pq.write_table(pa.Table.from_pylist([vista]), tmp_path / "testmini-0.parquet")
    (bad,) = read_benchmark(Source(benchmark="mmmu", path=str(tmp_path / "validation-0.parquet")))
    assert "options are missing" in bad.problems[0]
    (bad,) = read_benchmark(Source(benchmark="mathvista", path=str(tmp_path / "testmini-0.parquet")))
    assert bad.problems == ("no answer",)
    assert values(bad)["precision"] == ""
    alone = vista | {"answer": "3", "metadata": None}
    pq.write_table(pa.Table.from_pylist([alone]), tmp_path / "testmini-0.parquet")
    (good,) = read_benchmark(Source(benchmark="mathvista", path=str(tmp_path / "testmini-0.parquet")))
    assert good.problems == () and values(good)["skills"] == []
    table = benchmark_results("mathvista", [Outcome(good.id, values(good), "wrong", "rules", 0.0)])
    assert [line["Task&Skill"] for line in table["vlmevalkit"]] == ["Overall"] and table["groups"]["skills"]["(none)"]


def test_names_paths_and_damage(tmp_path: Path) -> None:
    assert {benchmark_named(one).name for one in ("MMMU_DEV_VAL", "mmmu", ["MMMU", "MMMU"][-1])} == {"mmmu"}
    with pytest.raises(UsageError, match="did you mean 'mathvista'"):
        benchmark_named("mathvisto")
    with pytest.raises(UsageError, match="no such file or folder"):
        list(read_benchmark(Source(benchmark="mmmu", path="./nowhere")))
    with pytest.raises(UsageError, match="name the file itself"):
        list(read_benchmark(Source(benchmark="mmmu", path=str(tmp_path))))
    tables = folder() / "data/vlmevalkit"  # of all benchmarks, as VLMEvalKit keeps them
    assert len(list(read_benchmark(Source(benchmark="mathvista", path=str(tables))))) == 8
    with pytest.raises(UsageError, match="name the file itself"):
        list(read_benchmark(Source(benchmark="mvmath", path=str(tables))))
    (tmp_path / "t.tsv").write_text('index\tquestion\n"1"\n')
    with pytest.raises(SophiaError, match="another number of cells"):
        list(read_benchmark(Source(benchmark="mmmu", path=str(tmp_path / "t.tsv"))))
    assert list(benchmarks()) == [
        "mmmu", "mmmupro", "mathvista", "mathverse", "dynamath", "mathvision", "mvmath", "olympiadbench"
    ]  # fmt: skip


def test_a_list_of_options_within_a_list(tmp_path: Path) -> None:
    """One row of MMMU-Pro spells its options so; the letters of its options are texts, too."""
    row = {"id": "validation_Accounting_1", "image": {"bytes": picture(), "path": "1.png"}, "answer": "B",
           "options": "[['A', 'B', 'not enough information']]", "subject": "Accounting"}  # fmt: skip
    (tmp_path / "vision").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "vision/test-0.parquet")
    (one,) = read_benchmark(Source(benchmark="mmmupro", path=str(tmp_path)))
    assert one.problems == () and one.options == ("A", "B", "not enough information") and one.answer == "B"
    pq.write_table(pa.Table.from_pylist([row | {"options": "[['A'], ['B']]"}]), tmp_path / "vision/test-0.parquet")
    (two,) = read_benchmark(Source(benchmark="mmmupro", path=str(tmp_path)))
    assert "is a list, not a text" in two.problems[0]


def test_options_that_stand_in_the_text_alone_are_graded_without_a_judge() -> None:
    assert options_in("How long?\nChoices:\nA:3\nB:6 cm") == ("3", "6 cm")
    assert options_in("How long?\nChoices:\nB:3\nA:6") == () == options_in("A:3\nB:6") == options_in("Choices:\nA:3")
    for source in (hub("mathverse"), table("mathverse")):
        rows = [row for row in read_benchmark(source) if row.answer_type == "choice"]
        assert rows and all(row.problems == () for row in rows)
        assert rows[0].options == ("35°", "55°", "125°", "145°") and rows[0].answer == "C"
        said = {
            "C": True,
            "125°": True,
            r"\boxed{125^\circ}": True,
            "C:125°": True,
            "B": False,
            "55": False,
            "B:125°": False,
        }
        items = [GradeItem(text, text, "C", "choice", rows[0].options, "mathverse") for text in said]
        with Grader(workers=1, timeout_seconds=10.0) as grader:
            assert {grade.id: grade.verdict == "correct" for grade in grader.grade_many(items)} == said
