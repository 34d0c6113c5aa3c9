"""The digits example: its questions are right, its parts are disjoint, its files are what the loaders expect."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import lessons
import numpy as np
import pytest
import world

from examples.digits.experiments import tables
from sophia_mcore.config.schema import Source
from sophia_mcore.data.sources import read_source

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
DIGITS = (3, 9, 4, 5)


def solve(question: str, digits: tuple[int, ...]) -> str:
    """The answer by reading the question, independently of `world.Task`."""
    cells = [digits[world.NAMES.index(name)] for name in re.findall("|".join(world.NAMES), question)]
    if "larger" in question:
        return "yes" if cells[0] > cells[1] else "no"
    if "even or odd" in question:
        return ("even", "odd")[cells[0] % 2]
    result = cells[0] * cells[1] if "times" in question else cells[0] + cells[1]
    return str(result + sum(cells[2:]))


def test_answers_are_right() -> None:
    rng = random.Random(1)
    for _ in range(500):
        digits, task = lessons.random_digits(rng), world.random_task(rng)
        assert task.answer(digits) == solve(task.question(), digits)


def test_chains_state_what_they_use_and_end_in_the_boxed_answer() -> None:
    rng = random.Random(2)
    lengths = set()
    for _ in range(300):
        task = world.random_task(rng)
        chain = task.chain(DIGITS, rng)
        thought, answer = re.fullmatch(r"<think>(.*)</think>The answer is \\boxed\{(\w+)\}\.", chain).groups()
        assert answer == task.answer(DIGITS)
        for cell in task.cells:
            assert f"{world.NAMES[cell]} {DIGITS[cell]}" in thought
        lengths.add((task.kind, len(chain)))
    assert all(sum(kind == one for kind, _ in lengths) >= 3 for one in world.KINDS), "three lengths of thinking each"


def test_an_invented_digit_is_used_consistently() -> None:
    rng = random.Random(3)
    for _ in range(200):
        lesson = lessons.reasoner_lesson(rng)
        question = re.search(r"Question: (.*?)<", lesson.prompt)[1]
        thought = lesson.pieces[-1][0]
        believed = {name: int(digit) for name, digit in re.findall(r"(\w+) (\d)", thought) if name in world.NAMES}
        digits = tuple(believed.get(name, -1) for name in world.NAMES)
        assert f"boxed{{{solve(question, digits)}}}" in thought
        for name, digit in re.findall(r"(\w+) (\d)", lesson.prompt.split("Question")[0]):
            assert believed.get(name, int(digit)) == int(digit), "a digit that is described is not invented"


def test_captions_name_only_what_is_there() -> None:
    rng, sizes = random.Random(4), []
    for _ in range(500):
        named = dict(re.findall(r"(\w+) (\d)", world.caption(DIGITS, rng)))
        assert all(DIGITS[world.NAMES.index(name)] == int(digit) for name, digit in named.items())
        sizes.append(len(named))
    assert set(sizes) == {2, 3, 4}
    assert 0.25 < sum(size < 4 for size in sizes) / 500 < 0.45


def test_no_scan_belongs_to_two_parts() -> None:
    parts = world.split_scans()
    scans = [scan for part in parts.values() for scan in part]
    assert len(scans) == len(set(scans)) == len(world.scans()[1])
    assert {name: len(part) for name, part in parts.items()} == world.SPLIT_SIZES
    rng = random.Random(5)
    assert set(world.random_board("test", rng).scans) <= set(parts["test"])


def test_a_picture_shows_each_scan_in_its_own_cell() -> None:
    board = world.random_board("train", random.Random(6))
    picture = world.draw(board, random.Random(7))
    assert picture.shape == (32, 32, 3)
    assert picture.dtype == np.uint8
    for cell in range(4):
        only = world.Board(board.digits, tuple(s if i == cell else -1 for i, s in enumerate(board.scans)))
        row, column = divmod(cell, 2)
        part = picture[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16, 0]
        drawn = world.scans()[0][only.scans[cell]]
        assert 0.5 < part.astype(float).sum() / (drawn.astype(float).sum() * 4) <= 1.05, "ink is kept but for the edges"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Twenty validation questions."""
    world.write_questions("validation", 20, tmp_path)
    return tmp_path


def test_questions_are_the_same_every_time(small: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    again = tmp_path_factory.mktemp("again")
    world.write_questions("validation", 20, again)
    files = sorted(path.relative_to(small) for path in small.rglob("*") if path.is_file())
    assert len(files) == 21
    assert all((small / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_the_project_reads_the_questions(small: Path) -> None:
    rows = list(read_source(Source(kind="jsonl", path=str(small / "validation.jsonl"))))
    written = [json.loads(line) for line in (small / "validation.jsonl").read_text().splitlines()]
    assert [row.question for row in rows] == [row["question"] for row in written]
    assert [row.answer for row in rows] == [row["answer"] for row in written]
    assert all(len(row.images) == 1 for row in rows)


def test_experiments_know_the_boards(tmp_path: Path) -> None:
    """What is drawn for a question is found again without its picture."""
    world.write_questions("train", 20, tmp_path)
    known = tables.boards(20)
    for row in map(json.loads, (tmp_path / "train.jsonl").read_text().splitlines()):
        digits, cells = known[row["id"]]
        assert row["answer"] == solve(row["question"], digits)
        assert [world.NAMES.index(name) for name in re.findall("|".join(world.NAMES), row["question"])] == list(cells)
