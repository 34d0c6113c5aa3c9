"""`sophia check CONFIG --against BENCHMARK` finds shared text and images, and drops them."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from sophia_mcore.benchmarks.contamination import Index, difference_hash
from sophia_mcore.cli import app
from sophia_mcore.config.schema import Source
from sophia_mcore.data.columns import Row
from sophia_mcore.data.sources import read_source
from sophia_mcore.errors import UsageError


def drawing(seed: int, size: int = 160, kind: str = "PNG") -> bytes:
    chance = random.Random(seed)
    image = Image.new("RGB", (160, 120), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = chance.randrange(150), chance.randrange(110)
        pen.rectangle((x, y, x + chance.randrange(5, 60), y + chance.randrange(5, 50)), fill=chance.randrange(1 << 24))
    buffer = io.BytesIO()
    image.resize((size, size * 3 // 4)).save(buffer, kind)
    return buffer.getvalue()


def make(tmp_path: Path) -> tuple[Path, str]:
    text = "A train leaves the station at noon and travels north at sixty miles per hour. When does it arrive?"
    benchmark = [("validation_Math_1", text, 1), ("validation_Math_2", "How many red bars does the chart show?", 2)]
    heading = "index\tid\tquestion\tA\tB\tanswer\timage\tsplit\tcategory\tl2-category\n"
    rows = "".join(
        f"{i}\t{name}\t{question}\tone\ttwo\tA\t{base64.b64encode(drawing(seed)).decode()}\tvalidation\tMath\tScience\n"
        for i, (name, question, seed) in enumerate(benchmark)
    )
    (tmp_path / "MMMU_DEV_VAL.tsv").write_text(heading + rows)
    training: list[tuple[str, bytes]] = [
        (text.upper().replace("?", " ?") + "\n(A) one\n(B) two", drawing(11)),  # the same question, written otherwise
        ("Solve this. " + text, drawing(12)),  # its n-grams
        ("Something else entirely, about apples and pears.", drawing(1)),  # the same file
        ("Yet another question, about cats and dogs and birds.", drawing(2, size=400, kind="JPEG")),  # the same picture
        ("How many red bars does the other diagram have in it?", drawing(13)),  # alike, but neither
        ("What is x?", drawing(14)),
    ]
    lines = [
        json.dumps({"id": f"t{i}", "question": q, "answer": "1", "images": [base64.b64encode(data).decode()]})
        for i, (q, data) in enumerate(training)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    config = tmp_path / "run.toml"
    config.write_text(
        f'[run]\nname = "x"\nfolder = "{tmp_path}/run"\n[models]\npolicy = "p"\nreasoner = "r"\n'
        f'[[data.questions]]\nkind = "jsonl"\npath = "{tmp_path}/train.jsonl"\n'
    )
    return config, f"mmmu={tmp_path}/MMMU_DEV_VAL.tsv"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["check", *arguments])


def test_shared_text_and_images_are_found_and_dropped(tmp_path: Path) -> None:
    config, against = make(tmp_path)
    target = tmp_path / "clean.jsonl"
    result = run(str(config), "--against", against, "--drop", str(target))
    assert result.exit_code == 0, (result.output, result.exception)
    assert "4 of 6 training questions share text or image with mmmu" in result.output
    for id_, reason, other in (
        ("t0", "same text", "validation_Math_1"),
        ("t1", "shared text", "validation_Math_1"),
        ("t2", "same image", "validation_Math_1"),
        ("t3", "similar image", "validation_Math_2"),
    ):
        assert f"(id {id_!r}): {reason} as mmmu {other!r}" in result.output
    kept = list(read_source(Source(kind="jsonl", path=str(target))))
    assert [row.id for row in kept] == ["t4", "t5"] and not any(row.problems for row in kept)
    assert kept[0].images == (drawing(13),)
    assert len((tmp_path / "clean.dropped.jsonl").read_text().splitlines()) == 4


def test_mistakes(tmp_path: Path) -> None:
    config, against = make(tmp_path)
    assert "did you mean 'mmmu'" in str(run(str(config), "--against", "mmmuu").exception)
    assert ".jsonl" in str(run(str(config), "--against", against, "--drop", "x.csv").exception)
    assert "--against" in str(run(str(config), "--drop", "x.jsonl").exception)


def test_no_file_of_somebody_else_is_lost(tmp_path: Path) -> None:
    config, against = make(tmp_path)
    train, other = tmp_path / "train.jsonl", tmp_path / "other.jsonl"
    other.write_text('{"mine": 1}\n')
    before = train.read_bytes()
    for target, why in ((train, "are read from this file"), (other, "exists already")):
        done = run(str(config), "--against", against, "--drop", str(target))
        assert isinstance(done.exception, UsageError) and why in str(done.exception)
    assert train.read_bytes() == before and other.read_text() == '{"mine": 1}\n'
    listed = tmp_path / "x.jsonl"
    config.write_text(config.read_text().replace("train.jsonl", "x.dropped.jsonl"))
    train.rename(tmp_path / "x.dropped.jsonl")
    done = run(str(config), "--against", against, "--drop", str(listed))
    assert "x.dropped.jsonl: the training questions are read from this file" in str(done.exception)
    config.write_text(config.read_text().replace("x.dropped.jsonl", "train.jsonl"))
    (tmp_path / "x.dropped.jsonl").rename(train)
    assert [run(str(config), "--against", against, "--drop", str(listed)).exit_code for _ in range(2)] == [0, 0]


def row(question: str, *options: str) -> Row:
    return Row(
        source="s", number=0, id="t", question=question, answer="A", answer_type="", options=options, images=(),
        problems=(), benchmark="mathvista",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("question", "options", "reason"),
    [
        ("Is red the largest bar?", (), "same text"),  # made an open question
        ("Is red the largest bar? (A) yes (B) no", (), "same text"),
        ("Is red the largest bar?(A)yes(B)no", (), "same text"),
        ("Is red the largest bar?\nOptions: A. yes; B. no", (), "same text"),
        ("Is red the largest bar?", ("yes", "no"), "same text"),
        ("Is red the largest bar?", ("left", "right"), ""),  # a question that many pictures have
        ("Is blue the largest bar?", (), ""),
        ("在圆O中,弦AB的长为8,圆心到弦的距离为3,求圆的半径是多少?", (), "shared text"),
        ("在圆O中，弦CD的中点是M，求三角形的面积。", (), ""),
    ],
)
def test_options_and_chinese(question: str, options: tuple[str, ...], reason: str) -> None:
    index = Index()
    index.add(row("Is red the largest bar?", "yes", "no"))
    index.add(row("在圆O中，弦AB的长为8，圆心到弦的距离为3，求圆的半径。"))
    assert [match.reason for match in index.matches(row(question, *options))] == [reason] * bool(reason)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("Please look at the image and tell me: {} Answer with one word or a short phrase, please.", "shared text"),
        ("{} Think step by step, write down all that you see, and put your final answer within a box.", "shared text"),
        (
            "{} (A) forty-two (B) seventeen (C) none of these (D) more than one can count by hand",
            "shared text",
        ),
        ("Please look at the image and tell me. Answer with one word or a short phrase, please.", ""),
    ],
)
def test_instructions_around_a_question_do_not_hide_it(question: str, reason: str) -> None:
    index = Index()
    index.add(row("How many red bars stand beside the blue one?"))
    found = index.matches(row(question.format("How many red bars stand beside the blue one?")))
    assert [match.reason for match in found] == [reason] * bool(reason)


def test_a_plain_page_tells_nothing() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (50, 50), "white").save(buffer, "PNG")
    assert difference_hash(buffer.getvalue()) is None and difference_hash(b"no image") is None
    assert difference_hash(drawing(1)) is not None
