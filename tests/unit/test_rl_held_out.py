"""Held-out questions under another name: the stage compares texts and images, not names of files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.launch import work
from sophia_mcore.launch.stage import make_ready
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Question
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import write_shard
from tests.support import configs

TEST = [("How many?", "scan-1"), ("How many?", "scan-2")]
VALIDATION = [("How many?", "scan-3")]
TRAIN = [("How many?", "scan-4"), ("How much?", "scan-1")]  # the text of one, the image of another


def source(name: str) -> dict[str, Any]:
    return {"kind": "jsonl", "path": f"{name}.jsonl"}


def stage(folder: Path, *, train: Iterable[tuple[str, str]], validation: Iterable[tuple[str, str]]) -> Config:
    """The configuration of a stage whose questions are checked already."""
    sets = {"questions": [source("train")], "validation": [source("validation")]}
    config = configs.make_config(
        folder / "run", "policy", "reasoner",
        evaluate={"questions": [source("test")]}, rl={"max_tokens": 64, "questions_per_batch": 1, **sets},
    )  # fmt: skip
    run = RunFolder(folder / "run")
    for file, contents in (
        (run.rl.own_questions_file, train),
        (run.rl.validation_questions_file, validation),
        (run.evaluation_questions_file, TEST),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        questions = [
            Question(id=f"{file.stem}-{i}", question=text, answer="1", images=(image,), source=file.stem)
            for i, (text, image) in enumerate(contents)
        ]
        write_shard(file, questions, Question)
    return config


def test_a_round_warns_of_evaluation_questions_in_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    sets = {}
    for name, numbers in (("train", (1, 2, 3)), ("test", (3, 4))):
        rows = [{"id": f"{name}{n}", "question": f"{n} + 1?", "answer": n + 1, "images": ["a.png"]} for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        sets[name] = {"kind": "jsonl", "path": str(tmp_path / f"{name}.jsonl")}
    config = configs.make_config(
        tmp_path / "run", "policy", "reasoner",
        data={"questions": [sets["train"]]}, evaluate={"questions": [sets["test"]]},
    )  # fmt: skip
    work.questions(Round(config, RunFolder(tmp_path / "run"), 0), NoProgress())
    told = "warning: data.questions: 1 of the 2 questions of evaluate.questions are there too"
    assert told in capsys.readouterr().err


def test_other_questions_are_used_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_ready(stage(tmp_path, train=TRAIN, validation=VALIDATION), RunFolder(tmp_path / "run"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("train", "validation", "told"),
    [
        (
            TRAIN + TEST,
            VALIDATION,
            "rl.questions: 2 of the 2 questions of evaluate.questions .* must not be trained on",
        ),
        (TRAIN + VALIDATION, VALIDATION, "rl.questions: 1 of the 1 questions of rl.validation .* not be trained on"),
        (TRAIN, TEST, "rl.validation: 2 of the 2 questions of evaluate.questions .* must not choose the version"),
    ],
)
def test_a_copy_of_a_held_out_set_is_refused(tmp_path: Path, train: Any, validation: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make_ready(stage(tmp_path, train=train, validation=validation), RunFolder(tmp_path / "run"))


def test_single_shared_questions_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_ready(stage(tmp_path, train=TRAIN + TEST[:1], validation=VALIDATION), RunFolder(tmp_path / "run"))
    said = capsys.readouterr().err
    assert said.startswith("warning: rl.questions: 1 of the 2 questions of evaluate.questions are there too")
    assert "such as questions-0" in said
