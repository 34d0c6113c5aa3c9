"""Conversions between all layouts: exact round trips and the proof file."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from xxhash import xxh3_128

from sophia_mcore.errors import UsageError
from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.convert import convert
from sophia_mcore.weights.verify import verify
from tests.support.weights_models import FAMILIES, Model, Sizes, layouts, make, write

ROOT = Path(__file__).parents[2]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face folder, read by the safetensors library."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def in_layout(model: Model, layout: str) -> dict[str, torch.Tensor]:
    return model.native if layout == "hf" else model.custom


@pytest.mark.parametrize("name", FAMILIES)
def test_every_edge_and_back(tmp_path: Path, name: str) -> None:
    sizes = FAMILIES[name]
    model = make(sizes)
    for layout in layouts(sizes):
        source = write(tmp_path / layout, sizes, model, layout)
        tensor = 2 if sizes.groups % 2 == 0 else 1
        convert(Conversion(source, tmp_path / f"{layout}-m", "megatron", tensor=tensor, pipeline=2, verify=True))
        for other in layouts(sizes):
            convert(Conversion(tmp_path / f"{layout}-m", tmp_path / f"{layout}-m-{other}", other, verify=True))
            assert_same(stored(tmp_path / f"{layout}-m-{other}"), in_layout(model, other))
            convert(Conversion(source, tmp_path / f"{layout}-{other}", other, shard_size_mib=1))
            assert_same(stored(tmp_path / f"{layout}-{other}"), in_layout(model, other))
            assert verify(source, tmp_path / f"{layout}-{other}").is_equal


models = st.builds(
    Sizes,
    tower=st.sampled_from(["300m", "6b", ""]),
    family=st.sampled_from(["qwen2", "qwen3", "internlm2"]),
    vit_heads=st.integers(1, 5),
    vit_layers=st.integers(1, 2),
    vit_mlp=st.integers(1, 9),
    layers=st.integers(1, 4),
    groups=st.integers(1, 4),
    heads_per_group=st.integers(1, 3),
    head_size=st.sampled_from([1, 2, 6]),
    hidden=st.integers(1, 9),
    mlp=st.integers(1, 9),
    vocabulary=st.integers(8, 41),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float16]),
    tied=st.booleans(),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), sizes=models, tensor=st.integers(1, 4), pipeline=st.integers(1, 3))
def test_random_models_through_random_layouts(
    tmp_path: Path, data: st.DataObject, sizes: Sizes, tensor: int, pipeline: int
) -> None:
    """Any model, any ranks: exact there and back, or refused by name because the ranks do not divide it."""
    if not sizes.tower and sizes.family == "internlm2":
        sizes = replace(sizes, family="qwen2")
    root = tmp_path / "example"
    shutil.rmtree(root, ignore_errors=True)
    model, layout = make(sizes), data.draw(st.sampled_from(layouts(sizes)))
    folder = write(root / "0", sizes, model, layout)
    width, rows = sizes.heads * sizes.head_size, sizes.groups * (sizes.heads_per_group + 2) * sizes.head_size
    lengths = [rows, width, sizes.mlp]
    if any(length % tensor for length in lengths) or sizes.layers % pipeline:
        with pytest.raises(UsageError, match="does not divide"):
            convert(Conversion(folder, root / "m", "megatron", tensor=tensor, pipeline=pipeline))
        assert sorted(p.name for p in root.iterdir()) == ["0"]
        return
    convert(Conversion(folder, root / "m", "megatron", tensor=tensor, pipeline=pipeline, verify=True))
    last = data.draw(st.sampled_from(layouts(sizes)))
    convert(Conversion(root / "m", root / "last", last, verify=True))
    assert_same(stored(root / "last"), in_layout(model, last))


def test_proof_names_every_tensor_and_its_digest(tmp_path: Path) -> None:
    sizes = FAMILIES["300m + qwen2"]
    model = make(sizes)
    source = write(tmp_path / "a", sizes, model, "hf-custom")
    convert(Conversion(source, tmp_path / "b", "hf", verify=True, digest="sha256"))
    proof = json.loads((tmp_path / "b" / "conversion.json").read_text())
    for side, state in (("source", model.custom), ("target", model.native)):
        expected = {n: hashlib.sha256(t.view(torch.uint8).numpy().tobytes()).hexdigest() for n, t in state.items()}
        assert proof["digests"]["algorithm"] == "sha256" and proof["digests"][side] == expected
        assert sorted(k for t in proof["tensors"] for k in t[side]["keys"]) == sorted(expected)
    entry = next(t for t in proof["tensors"] if t["name"] == "vision.layers.1.attention.qkv.weight")
    assert entry["target"]["operation"] == "concat 12+12+12" and entry["source"]["operation"] == "copy"
    grouped = next(t for t in proof["tensors"] if t["name"].endswith("0.self_attention.linear_qkv.weight"))
    assert grouped["target"]["operation"] == "interleave 2 x 12+4+4"
    assert proof["verified"] is True and proof["versions"]["sophia_mcore"]


def test_the_usual_digests_are_of_our_tensors_and_the_same_in_every_layout(tmp_path: Path) -> None:
    sizes = FAMILIES["300m + qwen2"]
    model = make(sizes)
    source = write(tmp_path / "a", sizes, model, "hf-custom")
    data = {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in model.ours.items()}
    expected = {name: xxh3_128(values).hexdigest() for name, values in data.items()}
    for name, before, to in (("b", "a", "hf"), ("c", "b", "megatron"), ("d", "c", "hf-custom")):
        tensor = 2 if to == "megatron" else 1
        convert(Conversion(tmp_path / before, tmp_path / name, to, tensor=tensor))  # type: ignore[arg-type]
        digests = json.loads((tmp_path / name / "conversion.json").read_text())["digests"]
        assert digests == {"algorithm": "xxh3-128", "source": expected, "target": expected}
    other = "F32" if sizes.dtype == torch.bfloat16 else "BF16"
    convert(Conversion(source, tmp_path / "cast", "hf", dtype=other))
    cast = json.loads((tmp_path / "cast" / "conversion.json").read_text())["digests"]
    assert cast["source"] == expected and not cast["target"].items() & expected.items()
    convert(Conversion(tmp_path / "cast", tmp_path / "again", "hf-custom", verify=True))


def test_cast_while_converting(tmp_path: Path) -> None:
    sizes = replace(FAMILIES["300m + qwen2"], dtype=torch.float32)
    model = make(sizes)
    source = write(tmp_path / "a", sizes, model, "hf")
    convert(Conversion(source, tmp_path / "b", "hf-custom", dtype="BF16"))
    assert_same(stored(tmp_path / "b"), {n: t.to(torch.bfloat16) for n, t in model.custom.items()})
    with pytest.raises(UsageError, match="bit by bit"):
        convert(Conversion(source, tmp_path / "c", "hf", dtype="BF16", verify=True))


def test_shards_and_index(tmp_path: Path) -> None:
    sizes = replace(FAMILIES["300m + qwen2"], vocabulary=40_000, hidden=16)
    model = make(sizes)
    source = write(tmp_path / "a", sizes, model, "hf")
    convert(Conversion(source, tmp_path / "b", "hf", shard_size_mib=1))
    names = sorted(p.name for p in (tmp_path / "b").glob("*.safetensors"))
    assert names == [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.native.values())
    assert {n: load_file(tmp_path / "b" / f).keys() >= {n} for n, f in index["weight_map"].items()}.values()
    assert_same(stored(tmp_path / "b"), model.native)
    assert verify(source, tmp_path / "b").is_equal


def test_names_in_transformers_memory_are_understood(tmp_path: Path) -> None:
    sizes = FAMILIES["300m + qwen2"]
    model = make(sizes)
    renamed = {}
    for name, tensor in model.native.items():
        new = name.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        )
        renamed[new if new != name else f"model.{name}"] = tensor.clone()
    source = write(tmp_path / "a", sizes, model, "hf")
    save_file(renamed, source / "model.safetensors")
    convert(Conversion(source, tmp_path / "b", "hf-custom"))
    assert_same(stored(tmp_path / "b"), model.custom)


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    sizes = FAMILIES["6b + qwen2"]
    model = make(sizes)
    source = write(tmp_path / "a", sizes, model, "hf")
    summary = convert(Conversion(source, tmp_path / "b", "megatron", tensor=2, dry_run=True))
    assert len(summary.plan) == len(model.ours) and "__1_0.distcp" in summary.files
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# What is wrong -> what the error must say -------------------------------------------------------------------------
