"""Sources, bases, destinations and options that must not be converted silently: one line, nothing written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sophia_mcore.cli import app
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.weights.command import run_convert
from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.convert import convert
from sophia_mcore.weights.formats.opening import open_checkpoint
from tests.support.weights_models import FAMILIES, make, write

SIZES = FAMILIES["300m + qwen2"]
NORM = "language_model.model.norm.weight"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good", SIZES, make(SIZES), "hf")


def retype(folder: Path, dtype: torch.dtype, only: str = "") -> None:
    """Store tensors in another type, by their bytes' meaning or not: only the type matters here."""
    state = load_file(folder / "model.safetensors")
    save_file({n: t.to(dtype) if only in n else t for n, t in state.items()}, folder / "model.safetensors")


def flip(folder: Path) -> None:
    """Turn one bit of one value."""
    tile = open_checkpoint(folder).tensors["language.decoder.final_layernorm.weight"].tiles[0]
    data = bytearray(tile.path.read_bytes())
    data[tile.offset] ^= 1
    tile.path.write_bytes(data)


def assert_refused(match: str, source: Path, destination: Path, to: str = "hf", **options: object) -> str:
    """The conversion must fail in one line and leave the folders as they are."""
    before = sorted(p for p in source.parent.rglob("*"))
    with pytest.raises(SophiaError, match=match) as caught:
        convert(Conversion(source, destination, to, **options))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and sorted(p for p in source.parent.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.int8, "I8"), (torch.bool, "BOOL"), (torch.float64, "F64"), (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
    ],
)  # fmt: skip
def test_no_type_but_the_weights_types_is_taken(good: Path, tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    retype(good, dtype, only=NORM)
    listed = rf"1 tensors of a type that weights do not have \(only BF16, F16, F32\): {NORM} \({name}\)$"
    assert_refused(listed, good, tmp_path / "out")
    assert_refused(listed, good, tmp_path / "out", "megatron", dtype="BF16")
    retype(good, dtype)
    message = assert_refused("of a type that weights do not have", good, tmp_path / "out")
    assert f"language_model.model.layers.{{0-1}}.mlp.up_proj.weight ({name})" in message  # layers are folded


def test_a_distributed_checkpoint_of_another_type(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sophia_mcore.weights.formats.tiles.WEIGHT_DTYPES", ("F64",))
        retype(good, torch.float64)
        convert(Conversion(good, tmp_path / "m", "megatron"))
    assert_refused(r"of a type .*language.decoder.final_layernorm.weight \(F64\)", tmp_path / "m", tmp_path / "out")


def test_an_fp8_copy_is_no_source(good: Path, tmp_path: Path) -> None:
    state = load_file(good / "model.safetensors")
    linear = "language_model.model.layers.0.mlp.up_proj."
    state[linear + "weight"] = state[linear + "weight"].to(torch.float8_e4m3fn)
    state |= {linear + name: torch.ones(()) for name in ("weight_scale", "input_scale")}
    save_file(state, good / "model.safetensors")
    assert_refused("is an FP8 copy of a model, .*; name the model that it was made from", good, tmp_path / "out")


def test_a_type_beside_the_configurations_is_warned_of(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((good / "config.json").read_text())
    config["text_config"]["torch_dtype"] = "bfloat16"
    (good / "config.json").write_text(json.dumps(config))
    run_convert(Conversion(good, tmp_path / "same", "hf"))
    assert "warning" not in capsys.readouterr().err
    retype(good, torch.float32)
    run_convert(Conversion(good, tmp_path / "other", "megatron"))
    error = capsys.readouterr().err
    assert "tensors are F32, but config.json says bfloat16" in error and error.count("warning: ") == 1
    run_convert(Conversion(good, tmp_path / "cast", "hf", dtype="BF16"))
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("to", ["hf", "hf-custom", "megatron"])
def test_base_is_only_for_a_checkpoint_without_a_configuration(good: Path, tmp_path: Path, to: str) -> None:
    other = write(tmp_path / "other", SIZES, make(SIZES), "hf-custom")
    assert_refused("--base .*other: .*good has a configuration of its own", good, tmp_path / "out", to, base=other)
    convert(Conversion(good, tmp_path / "m", "megatron"))
    assert_refused("has a configuration of its own", tmp_path / "m", tmp_path / "out", base=other)
    (tmp_path / "m" / "config.json").unlink()
    assert_refused(
        "--base .*nowhere: no such model folder", tmp_path / "m", tmp_path / "out", base=tmp_path / "nowhere"
    )
    convert(Conversion(tmp_path / "m", tmp_path / "out", "hf", base=good, verify=True))


def test_a_source_is_held_to_its_own_digests(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, to in (("m", "megatron"), ("h", "hf"), ("c", "hf-custom")):
        made = tmp_path / name
        convert(Conversion(good, made, to, tensor=2 if to == "megatron" else 1))  # type: ignore[arg-type]
        run_convert(Conversion(made, tmp_path / f"{name}-whole", "hf", verify=True, digest=None))
        assert "the source has the digests of its own conversion.json" in capsys.readouterr().out
        assert json.loads((tmp_path / f"{name}-whole" / "conversion.json").read_text())["digests"] is None
        flip(made)
        assert_refused(
            "is not as its own conversion.json describes it: 1 tensors changed", made, tmp_path / "out", verify=True
        )
        (made / "conversion.json").write_text("[]")
        assert_refused("conversion.json is not what a conversion writes", made, tmp_path / "out", verify=True)
    run_convert(Conversion(good, tmp_path / "out", "hf", verify=True))
    assert "digests" not in capsys.readouterr().out


def test_proofs_of_earlier_versions_and_of_the_other_digest(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source may have sha256 digests while the new proof gets xxh3-128 ones, and the other way round."""
    for name, digest, old in (("old", "sha256", True), ("sha256", "sha256", False), ("xxh3", "xxh3-128", False)):
        made, other = tmp_path / name, "xxh3-128" if digest == "sha256" else "sha256"
        convert(Conversion(good, made, "megatron", tensor=2, digest=digest))  # type: ignore[arg-type]
        if old:  # as format 1 had it
            proof = json.loads((made / "conversion.json").read_text())
            digests = proof.pop("digests")
            proof |= {"format": 1, "sha256": {side: digests[side] for side in ("source", "target")}}
            (made / "conversion.json").write_text(json.dumps(proof))
        run_convert(Conversion(made, tmp_path / f"{name}-again", "hf", verify=True, digest=other))  # type: ignore[arg-type]
        assert "the source has the digests of its own conversion.json" in capsys.readouterr().out
        written = json.loads((tmp_path / f"{name}-again" / "conversion.json").read_text())["digests"]
        assert written["algorithm"] == other and written["target"]
        flip(made)
        assert_refused(
            "1 tensors changed since: language.decoder.final_layernorm.weight", made, tmp_path / "out", verify=True
        )


def test_digests_that_are_not_known(good: Path, tmp_path: Path) -> None:
    assert_refused("unknown digest 'md5'; known: xxh3-128, sha256", good, tmp_path / "out", digest="md5")
    arguments = ["convert", str(good), str(tmp_path / "out"), "--to", "hf", "--digest", "sha256"]
    done = CliRunner().invoke(app, [*arguments, "--no-checksums"])
    assert done.exit_code == 2 or isinstance(done.exception, UsageError)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["digests"]["algorithm"] == "sha256"


def test_values_too_large_for_half_precision(tmp_path: Path) -> None:
    sizes = replace(SIZES, dtype=torch.float32)
    good = write(tmp_path / "good", sizes, make(sizes), "hf")
    state = load_file(good / "model.safetensors")
    state[NORM][:3] = torch.tensor([70_000.0, -1e9, float("inf")])
    save_file(state, good / "model.safetensors")
    message = r"too large for the dtype .*: language.decoder.final_layernorm.weight \(2 values\)$"
    assert_refused(message, good, tmp_path / "out", dtype="F16")
    convert(Conversion(good, tmp_path / "out", "hf", dtype="BF16"))


def test_destinations_that_are_taken_or_inside_the_source(good: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(good)
    for inside in (good / "out", good / "deep" / "out", tmp_path / "link" / "out"):
        assert_refused("lies inside .*good", good, inside)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert_refused("dangling is a dangling link", good, tmp_path / "dangling")
    assert_refused("dangling is a dangling link", good, tmp_path / "dangling", dry_run=True)
    assert_refused("good exists already", good, good)


def test_options_of_another_layout(good: Path, tmp_path: Path) -> None:
    assert_refused("--calibration and --quantizer are for --to fp8", good, tmp_path / "out", calibration=good)
    texts = tmp_path / "texts"
    texts.write_text("one\n")
    for options in ({"dtype": "BF16"}, {"base": tmp_path}):
        with pytest.raises(UsageError):
            convert(Conversion(good, tmp_path / "out", "fp8", calibration=texts, **options))  # type: ignore[arg-type]


def test_the_command_casts(good: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(good), str(tmp_path / "out"), "--to", "hf", "--dtype", "F32"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("value", ["7", 0, None])
def test_a_configuration_of_a_wrong_kind(good: Path, tmp_path: Path, value: object) -> None:
    config = json.loads((good / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = value
    (good / "config.json").write_text(json.dumps(config))
    assert_refused("num_attention_heads", good, tmp_path / "out")
    (good / "config.json").write_text(json.dumps([config]))
    assert_refused("config.json: a JSON object is expected, not list", good, tmp_path / "out")


def test_any_number_of_workers_writes_the_same(good: Path, tmp_path: Path) -> None:
    assert_refused("--workers 0: at least 1", good, tmp_path / "out", workers=0)
    for workers in (1, 3):
        convert(Conversion(good, tmp_path / str(workers), "hf-custom", workers=workers))
    one, three = ({p.name: p.read_bytes() for p in (tmp_path / n).glob("*.safetensors")} for n in "13")
    assert one == three and one
