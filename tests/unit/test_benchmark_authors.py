"""The files of the authors' own repositories: JSON, and images beside it. All rows here are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.benchmarks.prompts import place
from sophia_mcore.benchmarks.rows import read_benchmark
from sophia_mcore.config.schema import Source
from sophia_mcore.data.columns import Row
from sophia_mcore.data.prepare import prepare_questions
from sophia_mcore.errors import SophiaError
from sophia_mcore.store.images import ImageStore
from tests.support.pictures import plain


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(item) for item in value] if path.suffix == ".jsonl" else [json.dumps(value)]
    path.write_text("\n".join(lines))
    return path


def images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(plain(40, 30 + number, "red"))


def read(name: str, path: Path) -> list[Row]:
    """The rows; they pass the checks that a run makes, images included."""
    source = Source(benchmark=name, path=str(path))
    rows = list(read_benchmark(source))
    prepared = path.parent / "prepared"
    summary = prepare_questions([source], ImageStore(prepared / "i"), prepared / "q.parquet", read=read_benchmark)
    assert summary.questions == len(rows)
    return rows


def details(row: Row) -> dict[str, Any]:
    return json.loads(row.details)


def named(row: Row, below: Path) -> list[str]:
    return [image.relative_to(below).as_posix() for image in row.images if isinstance(image, Path)]


VISION = {"id": "7", "question": "Which is red?\n<image1>", "options": ["A", "B"], "answer": "B", "solution": None,
          "level": 2, "subject": "counting", "image": "images/7.jpg"}  # fmt: skip


@pytest.mark.parametrize("named_file", ["", "data/test.jsonl"])
def test_mathvision_names_images_from_the_root(tmp_path: Path, named_file: str) -> None:
    top = tmp_path / "MATH-V"
    write(top / "data/test.jsonl", [VISION, VISION | {"id": "8", "options": [], "answer": "2"}])
    write(top / "data/testmini.jsonl", [VISION])
    write(top / "outputs/Model.jsonl", [VISION | {"model_answer": "B"}])
    write(top / "test-copy/notes.parquet", "the folder has the name of the hub's files")
    images(top, "images/7.jpg")
    first, second = read("mathvision", top / named_file)
    assert named(first, top) == named(second, top) == ["images/7.jpg"]
    assert (first.answer, first.answer_type, second.answer, second.answer_type) == ("B", "choice", "2", "")
    assert details(first)["values"]["l2-category"] == "2"


@pytest.mark.parametrize("protocol", ["paper", "vlmevalkit"])
def test_panels_of_one_picture_keep_their_labels(tmp_path: Path, protocol: str) -> None:
    several = VISION | {"question": "Anna has <image1>. Barbara gave Eva <image2>. Which is Eva's?"}
    chosen = VISION | {"id": "8", "options": ["<image2>", "<image3>"], "answer": "<image3>"}
    inside = VISION | {"id": "9", "question": "It is 25+<image1>\nHow much?"}
    alone = VISION | {"id": "10", "question": "Which is red?\n<image1>"}
    merged = VISION | {"id": "11", "question": "<image1>\n<image2>"}
    broken = VISION | {"id": "12", "question": "It stands on the\n<image1>\nnumber line. Where?"}
    top = tmp_path / "MATH-V"
    write(top / "data/test.jsonl", [several, chosen, inside, alone, merged, broken])
    images(top, "images/7.jpg")
    rows = read("mathvision", top)
    placed = [place(details(row)["prompts"][protocol], ("picture",)) for row in rows]
    assert all(shown == ("picture",) and "<image" not in text for text, shown in placed)
    texts = [text for text, _ in placed]
    assert "Anna has image 1. Barbara gave Eva image 2. Which" in texts[0]
    assert "image 1" in texts[1] and "(A) image 2\n(B) image 3" in texts[1] and rows[1].answer == "B"
    assert "25+image 1\nHow much?" in texts[2] and "image 1" not in texts[3] and "image 1\nimage 2" in texts[4]
    assert "on the\nnumber line" in texts[5]


@pytest.mark.parametrize("options", [["", ""], [None, None], [" ", ""], {"A": "", "B": None}, None])
def test_a_letter_without_options_is_bad(tmp_path: Path, options: Any) -> None:
    write(tmp_path / "data/test.jsonl", [VISION | {"options": options}, VISION | {"options": []}])
    images(tmp_path, "images/7.jpg")
    bad, open_question = read_benchmark(Source(benchmark="mathvision", path=str(tmp_path)))
    assert bad.problems == ("the options are missing, though the answer is the letter B",)
    assert open_question.problems == ()  # two of the authors' open questions are answered by a letter
    query = {"choices": options, "question": "Which?", "image": "7.jpg", "answer": "B", "answer_type": "text",
             "question_type": "multi_choice", "pid": "1", "metadata": {}, "query": "Which?"}  # fmt: skip
    write(tmp_path / "testmini.json", {"1": query})
    images(tmp_path, "7.jpg")
    (bad,) = read_benchmark(Source(benchmark="mathvista", path=str(tmp_path / "testmini.json")))
    assert bad.problems == ("the options are missing, though the question is multiple choice",)


EATEN = {
    "\x0crac{36}{13}": r"\frac{36}{13}", "3\times 4": r"3\times 4", "\theta": r"\theta", "\text{ cm}": r"\text{ cm}",
    "$\tan 30$": r"$\tan 30$", "\tan\\alpha": r"\tan\alpha", "\triangle ABC": r"\triangle ABC", "\beta": r"\beta",
    "\begin{matrix}1\\end{matrix}": r"\begin{matrix}1\end{matrix}", "\bar{x}": r"\bar{x}",
    "\binom{5}{2}": r"\binom{5}{2}", "\boxed{5}": r"\boxed{5}", "(x\right)": r"(x\right)",
    "\rho_1": r"\rho_1", "\vec{a}": r"\vec{a}", "\alpha": r"\alpha", "\angle B": r"\angle B",
}  # fmt: skip
REAL = [
    " \t \tWhat is it?",
    "a\tan apple",
    "x\tis",
    "o\to\tx",
    "x\r\nright?",
    "Look.\rangle ABC is right.",
    "1\n2\n\x0cBox",
]


def test_latex_that_was_read_as_control_characters_is_put_back(tmp_path: Path) -> None:
    asked = [VISION | {"id": str(n), "question": f"Is it {text}, yes?\n<image1>", "options": [text, "none"],
                       "answer": text} for n, text in enumerate(EATEN)]  # fmt: skip
    listed = [VISION | {"options": json.dumps([right]).replace("\\\\", "\\")} for right in (r"\frac{1}{2}", r"\theta")]
    write(tmp_path / "data/test.jsonl", [*asked, *listed])
    images(tmp_path, "images/7.jpg")
    rows = list(read_benchmark(Source(benchmark="mathvision", path=str(tmp_path))))
    for row, right in zip(rows, EATEN.values(), strict=False):
        assert row.options == (right, "none") and row.answer == "A" and details(row)["golds"] == [right]
        if "$" not in right and right != r"\tan\alpha":
            assert f"Is it {right}, yes?" == row.question
        assert right in details(row)["prompts"]["paper"]
    assert [row.options for row in rows[len(EATEN) :]] == [(r"\frac{1}{2}",), (r"\theta",)]
    write(tmp_path / "data/test.jsonl", [VISION | {"question": f"So: {text} ok"} for text in REAL])
    kept = read_benchmark(Source(benchmark="mathvision", path=str(tmp_path)))
    assert [row.question for row in kept] == [f"So: {text} ok" for text in REAL]


def test_images_above_the_named_folder_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "data/test.jsonl", [VISION])
    images(tmp_path, "images/7.jpg")
    with pytest.raises(SophiaError, match=r"image missing \[.*data/images/7.jpg"):
        read("mathvision", tmp_path / "data")
    write(tmp_path / "data/test.jsonl", [VISION | {"image": "../images/7.jpg"}])
    with pytest.raises(SophiaError, match="leads out of"):
        read("mathvision", tmp_path / "data/test.jsonl")


@pytest.mark.parametrize("folder", ["images", "data/images"])
def test_a_missing_image_is_named_where_the_others_are(tmp_path: Path, folder: str) -> None:
    """Images may be at the root or beside the file; what is missing of them is missing there."""
    top = tmp_path / "MATH-V"
    write(top / "data/test.jsonl", [VISION])
    images(top, f"{folder}/5.jpg")
    with pytest.raises(SophiaError, match=rf"image missing \[.*MATH-V/{folder}/7.jpg"):
        read("mathvision", top)


def test_links_inside_the_named_folder_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "MATH-V/data/test.jsonl", [VISION])
    images(tmp_path, "elsewhere/7.jpg")
    (tmp_path / "MATH-V/images").symlink_to(tmp_path / "elsewhere")
    (one,) = read("mathvision", tmp_path / "MATH-V")
    assert named(one, tmp_path) == ["MATH-V/images/7.jpg"]


def trial(answer: str, image: str) -> dict[str, Any]:
    return {"question": "How long?", "answer": answer, "image": f"image/{image}", "answer_type": "float",
            "subject": "algebra", "level": "high school"}  # fmt: skip


def test_trials_of_dynamath_are_its_variants(tmp_path: Path) -> None:
    top = tmp_path / "DynaMath"
    write(top / "dataset/dataset.json", {"1": trial("9.5", "image1.png")})
    for number in range(1, 11):
        folder = top / f"samples and result/10trials/trial{number}"
        write(folder / "dataset.json", {"1": trial(f"{number}.5", "image1.png"), "12": trial("0", "image12.png")})
        images(folder, "image/image1.png", "image/image12.png")
    rows = read("dynamath", top)
    assert [row.id for row in rows] == [f"{seed}_{number}" for number in range(1, 11) for seed in (1, 12)]
    assert [row.answer for row in rows[::2]] == [f"{number}.5" for number in range(1, 11)]
    assert [named(row, top)[0].split("/")[2:] for row in rows[-2:]] == [
        ["trial10", "image", "image1.png"], ["trial10", "image", "image12.png"]
    ]  # fmt: skip
    values = details(rows[-1])["values"]
    assert (values["index"], values["varid"], values["knowledge_level"]) == ("9012", "10", "high school")
    (alone,) = list(read_benchmark(Source(benchmark="dynamath", path=str(top / "dataset/dataset.json"))))
    assert (alone.id, alone.answer) == ("1_1", "9.5")


def test_mathvista_has_its_prompts_in_another_file(tmp_path: Path) -> None:
    top = tmp_path / "MathVista"
    row = {"question": "Which?", "image": "images/5.jpg", "choices": ["six", "two"], "unit": None, "precision": None,
           "answer": "two", "question_type": "multi_choice", "answer_type": "text", "pid": "5",
           "metadata": {"split": "testmini", "task": "figures", "skills": ["arithmetic", "logic"]}}  # fmt: skip
    query = "Hint: Say a letter.\nQuestion: Which?\nChoices:\n(A) six\n(B) two"
    write(top / "data/testmini.json", {"5": row})
    write(top / "data/query.json", {"4": "another", "5": query})
    write(top / "results/model/output_model.json", {"5": row | {"response": "two"}})
    images(top, "data/images/5.jpg")
    (one,) = read("mathvista", top)
    assert (one.id, one.answer, one.options, one.question) == ("5", "B", ("six", "two"), "Which?")
    assert set(details(one)["prompts"].values()) == {query}
    assert details(one)["values"]["skills"] == ["arithmetic", "logic"]
    write(top / "data/query.json", {"4": "another"})
    with pytest.raises(SophiaError, match=r"query.json has no text '5', which .*testmini.json needs"):
        list(read_benchmark(Source(benchmark="mathvista", path=str(top))))
    (top / "data/query.json").unlink()
    with pytest.raises(SophiaError, match=r"query\.json is not beside it"):
        list(read_benchmark(Source(benchmark="mathvista", path=str(top))))
    (top / "data/testmini.json").write_text('{"5": {}, "5": {}}')
    with pytest.raises(SophiaError, match="'5' stands twice"):
        list(read_benchmark(Source(benchmark="mathvista", path=str(top))))


def test_mathverse_gets_the_question_that_the_judge_needs(tmp_path: Path) -> None:
    top = tmp_path / "MathVerse"
    text = "As shown, how long?\nChoices:\nA:3\nB:6 cm"
    only = {"sample_index": "5", "problem_index": "1", "problem_version": "Vision Only", "question": "",
            "image": "images_version_6/image_1.png", "answer": "B", "question_type": "multi-choice",
            "metadata": {"subject": "Plane Geometry", "subfield": "Length"}, "query_wo": "Answer directly.",
            "query_cot": "Reason first."}  # fmt: skip
    dominant = only | {"sample_index": "1", "problem_version": "Text Dominant", "question": text}
    write(top / "data/testmini.json", [dominant, only])
    images(top, "data/images/images_version_6/image_1.png")
    (one,) = read("mathverse", top)
    assert one.id == "5" and one.options == ("3", "6 cm") and details(one)["values"]["judge_question"] == text
    assert named(one, top) == ["data/images/images_version_6/image_1.png"]
    write(top / "data/testmini.json", [dominant, only | {"question_for_eval": "Its own\nChoices:\nA:1\nB:2"}])
    (one,) = read_benchmark(Source(benchmark="mathverse", path=str(top)))
    assert one.options == ("1", "2")


def step(number: int) -> dict[str, Any]:
    return {"problem_id": number, "question": "Is <image_1> like <image_2>?", "input_image": ["a.jpg", "b.jpg"],
            "answer": "B", "answer_type": "choice", "subject": "Logic"}  # fmt: skip


def test_mvmath_is_read_once(tmp_path: Path) -> None:
    """The folder that holds the files has the set's name, too; the parts are not read beside the whole."""
    top = tmp_path / "MV-MATH"
    write(top / "data/MV-MATH.json", [step(1), step(2)])
    write(top / "data/MV-MATH-choice.json", [step(1)])
    write(top / "data/MV-MATH-freeform.json", [step(2)])
    (top / "data/merge-example.json").write_text("[,]")
    images(top, "images/a.jpg", "images/b.jpg")
    rows = read("mvmath", top)
    assert [row.id for row in rows] == ["1", "2"] and named(rows[0], top) == ["images/a.jpg", "images/b.jpg"]
    (top / "data/MV-MATH.json").unlink()
    assert [row.id for row in read_benchmark(Source(benchmark="mvmath", path=str(top)))] == ["1", "2"]


def open_question(number: int, question: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "subfield": "Algebra", "context": None, "question": question, "solution": ["made up"],
            "final_answer": ["$2$"], "is_multiple_answer": False, "unit": None, "answer_type": "Numerical",
            "error": None, **more}  # fmt: skip


def test_olympiadbench_names_images_in_the_text(tmp_path: Path) -> None:
    top = tmp_path / "OlympiadBench"
    physics = open_question(4, "See <img_9>, then <img_12>.", context="A ball as in <img_12>.")
    write(top / "data/OE_MM_physics_en_COMP.json", [physics])
    write(top / "data/OE_TO_maths_zh_CEE.json", [open_question(5, "Find x.")])
    write(top / "data/TP_TO_maths_en_COMP.json", [open_question(6, "Prove it.")])
    images(top, "images/img_9.jpeg", "images/img_12.jpg")
    ball, other = read("olympiadbench", top)
    assert named(ball, top) == ["images/img_12.jpg", "images/img_9.jpeg"]
    text, shown = place(details(ball)["prompts"]["paper"], ("twelve", "nine"))
    assert shown == ("twelve", "nine", "twelve") and "<img_" not in text and "<image" not in text
    values = details(ball)["values"]
    assert (values["source"], values["subject"], ball.answer) == ("OE_MM_physics_en_COMP", "physics", "$2$")
    assert details(other)["values"]["language"] == "zh" and other.images == ()
