"""Model folders that say one thing in two places: end tokens, the tie flag, rotary settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config.schema import Sampling
from sophia_mcore.config.schema import TransformersEngine as TransformersConfig
from sophia_mcore.errors import UsageError
from sophia_mcore.generate.engine import Request
from sophia_mcore.generate.opening import open_engine
from sophia_mcore.generate.rendering import Renderer
from sophia_mcore.pretrained.chat import Message
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.pretrained.spec import ModelSpec
from tests.support import tiny_models


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_qwen2(tmp_path_factory.mktemp("models") / "qwen2", seed=3)


def edit(path: Path, **values: Any) -> None:
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (settings | values).items() if value != "gone"}))


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


NAMED = {
    "the template alone": ("<|eot_id|>", None, 0, 0),
    "tokenizer_config alone": ("<|im_end|>", "<|eot_id|>", 0, 0),
    "generation_config alone": ("", None, 0, 2),
    "config alone": ("", None, 2, 0),
    "lists": ("", None, [0, 2], [0]),
    "an object of tokenizer_config": ("", {"content": "<|eot_id|>", "special": True}, 0, 0),
}


@pytest.mark.parametrize("case", NAMED)
def test_every_file_that_names_an_end_token_counts(qwen2: Path, tmp_path: Path, case: str) -> None:
    """Token 2 is <|eot_id|> here, and nothing but the one place says that it ends a turn."""
    template, tokenizer, config, generation = NAMED[case]
    folder = copy(qwen2, tmp_path / "model")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|im_end|>", "<|eot_id|>"))
    chat = folder / "chat_template.jinja"
    chat.write_text(chat.read_text().replace("<|im_end|>", template))
    edit(folder / "tokenizer_config.json", eos_token=tokenizer or "gone")
    edit(folder / "config.json", eos_token_id=config)
    edit(folder / "generation_config.json", eos_token_id=generation)
    stop = Renderer.from_model_dir(folder, ImageLimits(max_tiles=1)).stop_ids
    assert 2 in stop and 0 in stop


def test_answers_end_at_the_templates_token(qwen2: Path, tmp_path: Path) -> None:
    """As the base model's end token in config.json beside a chat template of an instruction-tuned one."""
    folder = copy(qwen2, tmp_path / "model")
    for name in ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text().replace("<|im_end|>", "<|eot_id|>"))
    for name in ("config.json", "generation_config.json"):
        edit(folder / name, eos_token_id=0)
    engine = open_engine(TransformersConfig(kind="transformers", dtype="float32"), folder)
    sampling = Sampling(temperature=1.5, max_tokens=300)
    asked = [Request(messages=(Message("user", "is"),), sampling=sampling, seed=seed) for seed in range(32)]
    ended = [one for one in engine.generate(asked) if one.finish_reason == "stop" and one.token_ids[-1] == 2]
    assert ended and not any("<|eot_id|>" in one.text or 2 in one.token_ids[:-1] for one in ended)


# ---- config.json


@pytest.fixture(scope="module")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tiny_models.save_internvl(tmp_path_factory.mktemp("models") / "internvl")
    return json.loads((folder / "config.json").read_text())


def spec(config: dict[str, Any], top: dict[str, Any], text: dict[str, Any]) -> ModelSpec:
    section = {key: value for key, value in (config["text_config"] | text).items() if value != "gone"}
    changed = {key: value for key, value in (config | {"text_config": section} | top).items() if value != "gone"}
    return ModelSpec.from_config(changed)


@pytest.mark.parametrize(
    ("top", "text", "tied"),
    [
        (True, "gone", True), ("gone", True, True), (True, True, True), (False, "gone", False),
        ("gone", False, False), (False, False, False), ("gone", "gone", False), (True, None, True), (None, True, True),
    ],
)  # fmt: skip
def test_the_tie_flag_counts_wherever_it_stands(internvl, top, text, tied) -> None:
    found = spec(internvl, {"tie_word_embeddings": top}, {"tie_word_embeddings": text})
    assert found.language.tied_embeddings is tied


@pytest.mark.parametrize("top", [True, False])
def test_two_tie_flags_that_differ_are_named(internvl, top: bool) -> None:
    with pytest.raises(UsageError, match=f"tie_word_embeddings is {top} at the top and {not top} in text_config"):
        spec(internvl, {"tie_word_embeddings": top}, {"tie_word_embeddings": not top})


@pytest.mark.parametrize(
    "text",
    [
        {"rope_theta": 500.0, "rope_parameters": "gone"},
        {"rope_theta": "gone", "rope_parameters": {"rope_theta": 500.0}},
        {"rope_theta": "gone", "rope_parameters": {"rope_theta": 500.0}, "rope_scaling": {"rope_type": "default"}},
        {"rope_theta": "gone", "rope_parameters": {"rope_theta": 500.0}, "rope_scaling": {"type": "default"}},
        {"rope_theta": "gone", "rope_parameters": {"rope_theta": 500.0}, "rope_scaling": None},
        {"rope_theta": 500, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        {"rope_theta": 500.0, "rope_parameters": "gone", "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_theta": "gone", "rope_parameters": {}, "rope_scaling": {"rope_theta": 500.0}},
    ],
)
def test_both_spellings_of_rotary_settings_are_read(internvl, text: dict[str, Any]) -> None:
    assert spec(internvl, {}, text).language.rope_theta == 500.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            {"rope_theta": 10.0, "rope_parameters": {"rope_theta": 500.0}},
            "rope_theta is 500.0 in rope_parameters and 10.0",
        ),
        (
            {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}, "rope_scaling": {"type": "dynamic"}},
            "rope_type is 'default' in rope_parameters and 'dynamic' in rope_scaling",
        ),
        (
            {"rope_theta": 5.0, "rope_parameters": "gone", "rope_scaling": {"rope_type": "yarn"}},
            "'yarn' is not supported",
        ),
        ({"rope_theta": "gone", "rope_parameters": "gone", "rope_scaling": "gone"}, "rope_theta is missing"),
    ],
)
def test_rotary_settings_that_differ_are_named(internvl, text: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        spec(internvl, {}, {"rope_theta": "gone"} | text)
