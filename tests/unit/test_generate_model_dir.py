"""A directory that is no usable model ends in one clear line, before any engine is imported."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sophia_mcore.config import dump_toml
from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.complete import check_model_dir, stop_token_ids, weight_files
from tests.support.generate_world import make_config, make_run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "eos_token_id": 3}))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"a": np.ones((4, 4), np.float32), "b": np.ones(3, np.float32)}, folder / "model.safetensors")
    return folder


def test_a_whole_model_passes(model: Path) -> None:
    check_model_dir(model)  # raises nothing


def truncate(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def index(model: Path, names: list[str]) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(names))}))


def header(model: Path, value: bytes) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(value)) + value)


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("no config", lambda m: (m / "config.json").unlink(), r"config.json: no such file"),
    ("config no JSON", lambda m: (m / "config.json").write_text("{"), r"config.json: damaged JSON"),
    ("no tokenizer", lambda m: (m / "tokenizer.json").unlink(), r"no tokenizer.json"),
    ("no weights", lambda m: (m / "model.safetensors").unlink(), r"no weights \(\*.safetensors\)"),
    (
        "truncated",
        lambda m: truncate(m / "model.safetensors", -5),
        r"model.safetensors: truncated \([\d,]+ bytes where",
    ),
    ("header cut off", lambda m: truncate(m / "model.safetensors", 40), r"header is cut off"),
    ("empty file", lambda m: truncate(m / "model.safetensors", 0), r"header is cut off"),
    ("header no JSON", lambda m: header(m, b"not json"), r"header is damaged"),
    ("header no offsets", lambda m: header(m, b'{"a": 1}'), r"header is damaged"),
    (
        "shard missing",
        lambda m: index(m, ["model.safetensors", "two.safetensors"]),
        r"1 of 2 weight files missing.*two",
    ),
    ("shard elsewhere", lambda m: index(m, ["../model.safetensors"]), r"not the name of a file"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD, ids=[name for name, _, _ in BAD])
def test_bad_directories(model: Path, name: str, spoil: Callable[[Path], object], message: str) -> None:
    spoil(model)
    with pytest.raises(SophiaError, match=message) as caught:
        check_model_dir(model)
    assert "\n" not in str(caught.value) and str(model) in str(caught.value)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(SophiaError, match="no such model directory"):
        check_model_dir(tmp_path / "nowhere")


def test_other_formats_are_named(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(SophiaError, match=r"found pytorch_model.bin, but only safetensors are read"):
        weight_files(model)


def test_stop_tokens_are_collected(model: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 4]}))
    assert stop_token_ids(model, {"<|im_end|>": 9}) == (3, 4, 5, 9)
    (model / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 1}}))
    assert stop_token_ids(model, {}) == (1, 4, 5)


@pytest.mark.parametrize("phase", ["captions", "evaluate"])
def test_the_worker_says_so_in_one_line(tmp_path: Path, phase: str) -> None:
    """With the engine of the rollout environment configured, but no model there: exit code 1, one line, no vLLM."""
    make_run(tmp_path)
    (tmp_path / "config.toml").write_text(dump_toml(make_config(tmp_path)))
    command = [sys.executable, "-m", "sophia_mcore.launch.worker", phase, str(tmp_path / "config.toml"), "--round", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and errors == [f"error: {tmp_path / 'policy'}: no such model directory"], done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob(".tmp-*"))
