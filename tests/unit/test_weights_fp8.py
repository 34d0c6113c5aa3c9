"""FP8 copies: the check of format and values on copies made by hand, and a real one where modelopt is installed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Caption
from sophia_mcore.store.shards import write_shard
from sophia_mcore.weights.command import run_verify
from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.convert import convert
from sophia_mcore.weights.quantize.fp8 import CALIBRATION_TEXTS, QUANTIZER, calibration_texts, check_fp8
from tests.support.fp8_copies import quantized
from tests.support.tiny_qwen import save_qwen_vl
from tests.support.weights_models import FAMILIES, make, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    sizes = FAMILIES["300m + qwen2"]
    return write(tmp_path / "source", sizes, make(sizes), "hf")


def saved(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    return folder


def test_a_right_copy_passes(source: Path, tmp_path: Path) -> None:
    found = check_fp8(source, saved(tmp_path / "copy", quantized(source)), NoProgress())
    assert len(found.quantized) == 14 and found.untouched == len(load_file(source / "model.safetensors")) - 14
    assert 0.5 < found.worst <= 1.0 + 2.0**-7  # the bound is tight: rounding reaches it


@pytest.mark.parametrize(
    "what", ["tower", "scale missing", "extra", "not fp8", "scale wrong", "one value", "nan", "shape"]
)
def test_every_kind_of_wrong_copy_is_refused(source: Path, tmp_path: Path, what: str) -> None:
    state = quantized(source)
    linear = "language_model.model.layers.1.mlp.up_proj."
    if what == "tower":
        state["multi_modal_projector.linear_1.weight"] = state["multi_modal_projector.linear_1.weight"] * 2
    elif what == "scale missing":
        del state[linear + "input_scale"]
    elif what == "extra":
        state[linear + "lora_A"] = torch.zeros(1)
    elif what == "not fp8":
        state[linear + "weight"] = state[linear + "weight"].to(torch.bfloat16)
    elif what == "scale wrong":
        state[linear + "weight_scale"] = state[linear + "weight_scale"] * 1.2
    elif what == "one value":
        values = state[linear + "weight"].float()
        values[0, 0] = -values[0, 0] if values[0, 0] else 448.0
        state[linear + "weight"] = values.to(torch.float8_e4m3fn)
    elif what == "nan":
        raw = state[linear + "weight"].view(torch.uint8)
        raw[0, 0] = 0x7F
    else:
        state[linear + "weight"] = state[linear + "weight"][:-1].clone()
    name = "linear_1" if what == "tower" else "1.mlp.up_proj"
    with pytest.raises(SophiaError, match=name):
        check_fp8(source, saved(tmp_path / "copy", state), NoProgress())


@pytest.mark.parametrize("deep", [False, True])
def test_qwen_s_towers_stay_as_they_are(tmp_path: Path, deep: bool) -> None:
    """Their MLPs have the names of the language model's; DeepStack's projectors belong to the tower."""
    source = save_qwen_vl(tmp_path / "source", deep=deep, tied=not deep)
    state, prefix = quantized(source), "model.visual." if deep else "visual."
    found = check_fp8(source, saved(tmp_path / "copy", state), NoProgress())
    assert len(found.quantized) == 14 and found.untouched == len(load_file(source / "model.safetensors")) - 14
    block = prefix + ("blocks.0.mlp.linear_fc1.weight" if deep else "blocks.0.mlp.gate_proj.weight")
    last = prefix + ("deepstack_merger_list.1.linear_fc2.weight" if deep else "merger.mlp.2.weight")
    for name in (block, last):
        for wrong in (state[name].to(torch.float8_e4m3fn), state[name] * 2):
            with pytest.raises(SophiaError, match=name.removeprefix("model.").replace(".", r"\.")):
                check_fp8(source, saved(tmp_path / "copy", state | {name: wrong}), NoProgress())


def test_the_check_gives_what_the_proof_file_needs(source: Path, tmp_path: Path) -> None:
    state = quantized(source)
    found = check_fp8(source, saved(tmp_path / "copy", state), NoProgress(), "sha256")
    for side, tensors in (("source", load_file(source / "model.safetensors")), ("target", state)):
        digests = {n: sha256(t.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest() for n, t in tensors.items()}
        assert found.digests is not None and getattr(found.digests, side) == digests
        assert sorted(key for entry in found.tensors for key in entry[side]["keys"]) == sorted(tensors)
    kinds = Counter((entry["target"]["operation"], entry["target"]["dtype"]) for entry in found.tensors)
    assert kinds == {("divide by weight_scale, round to E4M3", "F8_E4M3"): 14, ("copy", "BF16"): found.untouched}


def test_verify_checks_an_fp8_copy(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = quantized(source)
    copy = saved(tmp_path / "copy", state)
    (copy / "config.json").write_text((source / "config.json").read_text())
    for pair in ((copy, source), (source, copy)):
        run_verify(*pair)
        assert "14 tensors quantized, largest error" in capsys.readouterr().out
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    saved(copy, state | {name: (state[name].float() * 2).to(torch.float8_e4m3fn)})
    with pytest.raises(SophiaError, match=f"outside the FP8 bound: {name}"):
        run_verify(copy, source)


def fake_quantizer(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_proof_file_of_an_fp8_copy(source: Path, tmp_path: Path) -> None:
    """A stand-in for modelopt puts a right copy where it is asked to."""
    ready = saved(tmp_path / "ready", quantized(source))
    producer = {"producer": {"name": "modelopt", "version": "9.8.7"}}
    (ready / "hf_quant_config.json").write_text(json.dumps(producer))
    quantizer = fake_quantizer(tmp_path / "quantizer", f'cp "{ready}"/* "$4"')
    (tmp_path / "texts").write_text("one\n")
    summary = convert(Conversion(source, tmp_path / "out", "fp8", calibration=tmp_path / "texts", quantizer=quantizer))
    proof = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert proof["versions"]["nvidia-modelopt"] == "9.8.7"
    assert len(proof["tensors"]) == len(proof["digests"]["source"]) == len(summary.plan) == 14 + proof["untouched"]
    assert len(proof["digests"]["target"]) == 14 * 3 + proof["untouched"]


def test_what_goes_wrong_beside_the_model(source: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.write_text("one\n")
    failing = fake_quantizer(tmp_path / "failing", "echo error: no such thing >&2; exit 3")
    with pytest.raises(SophiaError, match=r"--quantizer .*failing failed with exit code 3: no such thing"):
        convert(Conversion(source, tmp_path / "out", "fp8", calibration=texts, quantizer=failing))
    (tmp_path / "plain").write_text("not a program")
    with pytest.raises(UsageError, match=r"--quantizer .*plain cannot be run"):
        convert(Conversion(source, tmp_path / "out", "fp8", calibration=texts, quantizer=tmp_path / "plain"))
    texts.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UsageError, match="texts is not a text file"):
        convert(Conversion(source, tmp_path / "out", "fp8", calibration=texts, quantizer=failing))
    assert not (tmp_path / "out").exists()


def test_calibration_texts_come_from_a_run_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\n\ntwo\n")
    assert calibration_texts(tmp_path / "texts.txt") == ["one", "two"]
    common = {"token_ids": (), "token_logprobs": (), "logprob_sum": 0.0, "finish_reason": "stop", "temperature": 1.0,
              "top_p": 1.0, "max_tokens": 9, "seed": 0, "model_digest": "m", "prompt_hash": "p",
              "images": ("a",)}  # fmt: skip
    captions = [Caption(id=f"a.k{k}", index=k, text=f"caption {k}", **common) for k in range(600)]  # type: ignore[arg-type]
    folder = tmp_path / "run" / "round-0" / "captions"
    folder.mkdir(parents=True)
    write_shard(folder / "0.parquet", captions, Caption)
    texts = calibration_texts(tmp_path / "run")
    assert len(texts) == CALIBRATION_TEXTS and texts[1] == "caption 2"
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "empty", tmp_path / "nothing"):
        with pytest.raises(UsageError, match="calibrat"):
            calibration_texts(missing)


def test_what_cannot_be_quantized_is_refused_before_anything_runs(source: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n")
    with pytest.raises(UsageError, match="--calibration"):
        convert(Conversion(source, tmp_path / "out", "fp8"))
    with pytest.raises(UsageError, match="no such interpreter"):
        convert(Conversion(source, tmp_path / "out", "fp8", calibration=texts, quantizer=tmp_path / "python"))
    custom = write(tmp_path / "custom", FAMILIES["6b + qwen2"], make(FAMILIES["6b + qwen2"]), "hf-custom")
    with pytest.raises(UsageError, match="convert it --to hf first"):
        convert(Conversion(custom, tmp_path / "out", "fp8", calibration=texts))
    assert not (tmp_path / "out").exists() and not (tmp_path / ".tmp-out").exists()


def save_word_tokenizer(folder: Path, vocabulary: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.skipif(
    not (ROOT / QUANTIZER).exists(), reason="needs .venv-modelopt (docs/weights.md says how to make it)"
)
def test_modelopt_makes_a_right_copy(tmp_path: Path) -> None:
    sizes = replace(FAMILIES["qwen2 text"], hidden=32, mlp=64, head_size=16, heads_per_group=2, vocabulary=48)
    folder = write(tmp_path / "source", sizes, make(sizes), "hf")
    save_word_tokenizer(folder, sizes.vocabulary)
    (tmp_path / "texts.txt").write_text("w1 w2 w3 w4\nw9 w8 w7\n")
    convert(Conversion(folder, tmp_path / "out", "fp8", calibration=tmp_path / "texts.txt", quantizer=ROOT / QUANTIZER))
    proof = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert len(proof["quantized"]) == 14 and proof["calibration"]["texts"] == 2
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["quant_algo"] == "FP8"
