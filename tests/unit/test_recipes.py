"""The recipes' configurations hold, and their functions work on a stand-in's answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sophia_mcore.config import load_config
from sophia_mcore.launch.trial import try_functions
from sophia_mcore.store.user_files import check_user_files

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*/*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_functions_of_a_recipe(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    answers = enumerate(("7", "crop third"))
    rows = [
        {"id": f"q{i}", "question": "What is it? | 1 2 3 4", "answer": answer, "image": "a.png"}
        for i, answer in answers
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = load_config(path)
    own = f"runs/{path.parent.name}/data/"
    if own in path.read_text() and (path.parent / "make.py").is_file():
        assert config.data.made_by == f"make demo, then python -m examples.recipes.{path.parent.name}.make"
    check_user_files(config)
    source = config.data.questions[0].model_copy(update={"path": str(tmp_path / "q.jsonl"), "limit": None})
    data = config.data.model_copy(update={"questions": (source,)})
    functions = config.functions.model_copy(update={"timeout_seconds": 30.0})
    rl = config.rl and config.rl.model_copy(update={"questions": ()})
    lines = list(try_functions(config.model_copy(update={"data": data, "functions": functions, "rl": rl}), 2))
    assert lines[0].startswith("tried 2 questions x 4 episodes twice")
    assert (path.parent / "README.md").is_file()


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 11
