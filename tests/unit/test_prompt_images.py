"""vLLM keeps memory for as many images as the largest prompt has; a smaller number of the user's is refused early."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sophia_mcore.cli import app
from sophia_mcore.config.engines import UNCOUNTED_IMAGES, TransformersEngine, VllmEngine, too_many_images, with_images
from sophia_mcore.config.schema import Config
from sophia_mcore.doctor.engine_settings import gpu_engines
from sophia_mcore.errors import UsageError
from sophia_mcore.generate import opening
from sophia_mcore.launch import work
from sophia_mcore.launch.inputs import inputs_of
from sophia_mcore.launch.rl import preflight as stage_preflight
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Question
from sophia_mcore.rl.questions import exam_engine, stage_engine
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import write_shard
from tests.support import configs, tiny_models
from tests.support.pictures import noise

RL = {
    "questions_per_batch": 2, "samples_per_update": 2, "group": 2, "max_tokens": 16,
    "validation": [{"kind": "jsonl", "path": "held_out.jsonl"}],
}  # fmt: skip


def source(file: Path, *counts: int) -> dict[str, Any]:
    """A JSONL file whose rows have so many images, as the settings name it."""
    for index in range(max(counts)):
        (file.parent / f"{index}.png").write_bytes(noise(28, 28, index))
    rows = [{"question": "Add.", "answer": "3", "images": [f"{index}.png" for index in range(n)]} for n in counts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "jsonl", "path": str(file)}


def checked(file: Path, *counts: int) -> None:
    """A file of checked questions with so many images."""
    rows = [
        Question(id=f"q{place}", question="Add.", answer="3", images=tuple(f"{i:064x}" for i in range(count)))
        for place, count in enumerate(counts)
    ]
    write_shard(file, rows, Question)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Config, RunFolder]:
    """2 images in a question at most, 3 in one for evaluation, 4 in one for validation."""
    policy = tiny_models.save_internvl(tmp_path / "policy")
    config = configs.make_config(
        tmp_path / "run", policy, policy, rl=RL,
        data={"questions": [source(tmp_path / "train.jsonl", 1, 2, 1)]},
        evaluate={"questions": [source(tmp_path / "test.jsonl", 3, 1)]},
    )  # fmt: skip
    folder = RunFolder(config.run.folder)
    checked(folder.questions_file, 1, 2, 1)
    checked(folder.evaluation_questions_file, 3, 1)
    checked(folder.rl.validation_questions_file, 4)
    return config, folder


class Opened(Exception):
    """Ends a phase when it opens its engine."""


@pytest.mark.parametrize(
    ("phase", "most"),
    [(work.captions, 2), (work.reasoning, 1), (work.evaluate, 3), (work.rl_select, 4), (work.rl_evaluate, 3)],
    ids=["captions", "reasoning", "evaluate", "rl_select", "rl_evaluate"],
)
def test_each_phase_opens_its_engine_for_its_own_prompts(
    run: tuple[Config, RunFolder], monkeypatch: pytest.MonkeyPatch, phase: Callable[..., None], most: int
) -> None:
    seen = []

    def opened(config: Config, engine: VllmEngine, *_: Any) -> None:
        seen.append(engine.max_images_per_prompt)
        raise Opened

    monkeypatch.setattr(opening, "lazy_engine", opened)
    monkeypatch.setattr(work, "evaluated_models", lambda _: [("base", Path("policy"))])
    monkeypatch.setattr(work, "rl_evaluated_models", lambda _: [("base", Path("policy"))])
    with pytest.raises(Opened):
        phase(Round(*run, 0), NoProgress())
    assert seen == [most]


def test_an_environment_s_prompts_are_not_counted(run: tuple[Config, RunFolder], tmp_path: Path) -> None:
    config, folder = run
    (tmp_path / "mine.py").write_text("def play(question):\n    yield 'Look.'\n")
    played = config.on_policy.model_copy(
        update={"environment": config.on_policy.environment.model_copy(update={"function": f"{tmp_path}/mine.py:play"})}
    )
    playing = config.model_copy(update={"rl": played})
    shown = {row.name: row.found for row in gpu_engines(playing)}
    for name in ("rl.engine", "evaluate.engine"):
        assert "limit_mm_per_prompt={'image': 8, 'video': 0}" in shown[f"{name} on a GPU"], name
    for engine in (stage_engine(playing, folder), exam_engine(playing, folder)):
        assert isinstance(engine, VllmEngine) and engine.max_images_per_prompt == UNCOUNTED_IMAGES == 8
    assert too_many_images(VllmEngine(), 8) == "" and too_many_images(TransformersEngine(kind="transformers"), 99) == ""
    assert too_many_images(VllmEngine(), 9) == "a prompt of 9 images, where max_images_per_prompt = 8"


def test_the_user_s_number_goes_before_the_data_s() -> None:
    assert with_images(VllmEngine(max_images_per_prompt=5), 2) == VllmEngine(max_images_per_prompt=5)
    other = TransformersEngine(kind="transformers")
    assert with_images(other, 2) is other


def test_the_doctor_counts_checked_questions_or_the_first_rows(run: tuple[Config, RunFolder]) -> None:
    config, folder = run

    def shown() -> dict[str, str]:
        return {row.name.partition(".")[0]: row.found for row in gpu_engines(config) if ".engine on" in row.name}

    assert "limit_mm_per_prompt={'image': 2, 'video': 0}" in shown()["captions"]
    assert "limit_mm_per_prompt={'image': 4, 'video': 0}" in shown()["rl"]
    assert "rows so far" not in "".join(shown().values())
    for file in (folder.questions_file, folder.evaluation_questions_file, folder.rl.validation_questions_file):
        file.unlink()
    found = shown()
    assert "limit_mm_per_prompt={'image': 2, 'video': 0}" in found["captions"]
    assert "limit_mm_per_prompt={'image': 3, 'video': 0}" in found["evaluate"]
    assert found["evaluate"].endswith("images of a prompt: of the first 20 rows so far")
    assert "limit_mm" not in found["rl"] and "images of a prompt: not known before the questions" in found["rl"]


@pytest.mark.parametrize("section", ["captions", "evaluate"])
def test_check_refuses_a_prompt_with_more_images_in_one_line(tmp_path: Path, section: str) -> None:
    """The row is behind those that check shows."""
    key = f"{section}.engine.max_images_per_prompt"
    part = {"captions": "data.questions", "evaluate": "evaluate.questions"}[section]
    name = {"captions": "train", "evaluate": "test"}[section]
    for file in ("train", "test"):
        source(tmp_path / f"{file}.jsonl", *[1] * 30, 3)
    toml = tmp_path / "run.toml"
    toml.write_text(
        f'[run]\nname = "x"\nfolder = "{tmp_path}/run"\n[models]\npolicy = "{tmp_path}/p"\nreasoner = "{tmp_path}/r"\n'
        f'[{section}.engine]\nkind = "vllm"\n[[data.questions]]\nkind = "jsonl"\npath = "{tmp_path}/train.jsonl"\n'
        f'[[evaluate.questions]]\nkind = "jsonl"\npath = "{tmp_path}/test.jsonl"\n'
    )

    def check(number: int) -> Any:
        return CliRunner().invoke(
            app, ["check", str(toml), "--set", f"{section}.engine.max_images_per_prompt={number}"]
        )

    assert check(3).exit_code == 0
    refused = check(2)
    assert isinstance(refused.exception, UsageError)
    assert str(refused.exception) == (
        f"{part}: {name} row 30 ({name}-30) has 3 images, more than {key} = 2: set it to 3, or leave it out"
    )


def test_checked_questions_are_counted_instead_of_their_sources(run: tuple[Config, RunFolder]) -> None:
    config = run[0]
    engine = VllmEngine(max_images_per_prompt=1)
    config = config.model_copy(update={"captions": config.captions.model_copy(update={"engine": engine})})
    (found,) = (one for one in inputs_of(config) if one.key == "captions.engine.max_images_per_prompt")
    assert found.phases == ("captions",)
    with pytest.raises(UsageError, match=r"a question in .*questions.parquet has 2 images, .* = 1: set it to 2"):
        found.look()


def test_what_is_on_the_hub_is_not_said_to_have_been_counted(run: tuple[Config, RunFolder]) -> None:
    config, folder = run
    for key, value in (("path", "someone/questions"), ("kind", "datasets")):
        sources = [one.model_copy(update={key: value}) for one in config.data.questions]
        config = config.model_copy(update={"data": config.data.model_copy(update={"questions": tuple(sources)})})
    engine = VllmEngine(max_images_per_prompt=2)
    config = config.model_copy(update={"captions": config.captions.model_copy(update={"engine": engine})})
    (found,) = (one for one in inputs_of(config) if one.key == "captions.engine.max_images_per_prompt")
    assert "not counted" not in found.look()
    folder.questions_file.unlink()
    assert found.look().endswith("(what is on the hub is not counted before it is here)")


@pytest.mark.parametrize("section", ["rl", "evaluate"])
def test_the_stage_refuses_a_smaller_number_before_it_begins(run: tuple[Config, RunFolder], section: str) -> None:
    config, folder = run
    stage_preflight(Round(config, folder, 0))
    engine = VllmEngine(max_images_per_prompt=1)
    part = getattr(config, section).model_copy(update={"engine": engine})
    with pytest.raises(UsageError, match=rf"more than {section}\.engine\.max_images_per_prompt = 1"):
        stage_preflight(Round(config.model_copy(update={section: part}), folder, 0))
