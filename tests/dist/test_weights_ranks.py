"""Real Megatron models on gloo ranks: loading slices, distributed checkpoints written by megatron-core, and back."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from sophia_mcore.config.schema import Batch, Fp8, Objective, Parallel, Train
from sophia_mcore.errors import SophiaError
from sophia_mcore.model import lvlm
from sophia_mcore.model.names import canonical_parameters
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.convert import convert
from sophia_mcore.weights.export import export_hf
from sophia_mcore.weights.formats.opening import open_checkpoint
from sophia_mcore.weights.load import load_hf
from tests.support import harness

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "internvl"
if not FIXTURES.exists():
    pytest.skip(f"needs the reference models at {FIXTURES}", allow_module_level=True)


def settings(dtype: str) -> Any:
    """The part of a Config that the model reads."""
    batch = Batch(sequence_length_tokens=64)
    return SimpleNamespace(train=Train(dtype=dtype), fp8=Fp8(), batch=batch, objective=Objective())


def build(groups: Any, backend: Any, model_dir: Path, dtype: str, weights: Path | None = None) -> list[Any]:
    spec = ModelSpec.from_model_dir(model_dir)
    if spec.image_token_id is None:
        object.__setattr__(spec, "image_token_id", spec.language.vocab_size - 7)
    chunks = lvlm.build(spec, settings(dtype), groups, backend)
    load_hf(chunks, weights or model_dir, spec, groups)
    return chunks


def save(groups: Any, backend: Any, model_dir: Path, folder: Path, dtype: str) -> None:
    from megatron.core import dist_checkpointing

    from sophia_mcore.train.checkpoint import METADATA, PlainSaveStrategy

    chunks = build(groups, backend, model_dir, dtype)
    if dist.get_rank() == 0:
        os.makedirs(folder, exist_ok=True)
    dist.barrier()
    state = {f"model{i}": chunk.sharded_state_dict(metadata=dict(METADATA)) for i, chunk in enumerate(chunks)}
    dist_checkpointing.save(state, str(folder), PlainSaveStrategy("torch_dist", 1), content_metadata=dict(METADATA))


LAYOUTS = {
    "one rank": Parallel(),
    "tensor 2": Parallel(tensor=2, sequence_parallel=True),
    "tensor 2, pipeline 2": Parallel(tensor=2, pipeline=2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["internvl3-8b-hf", "internvl3-38b-hf", "internvl2_5-8b"])
def test_loading_saving_and_exporting_gives_the_same_bytes(tmp_path: Path, layout: str, family: str) -> None:
    model = FIXTURES / family
    harness.run_layout(save, LAYOUTS[layout], model, tmp_path / "checkpoint", "bfloat16")
    export_hf(tmp_path / "checkpoint", model, tmp_path / "out", shard_size_mib=5000)
    expected, found = load_file(model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype and torch.equal(tensor, found[name]), name


def test_one_flipped_bit_of_a_trained_weight_is_not_exported(tmp_path: Path) -> None:
    model, checkpoint = FIXTURES / "internvl3-8b-hf", tmp_path / "checkpoint"
    harness.run_layout(save, LAYOUTS["tensor 2"], model, checkpoint, "bfloat16")
    key, chunk = open_checkpoint(checkpoint, model).chunks[-1]
    with open(chunk.path, "r+b") as file:
        file.seek(chunk.offset + chunk.stored_bytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    for work in (
        lambda: export_hf(checkpoint, model, tmp_path / "out"),
        lambda: convert(Conversion(checkpoint, tmp_path / "out", "hf", base=model)),
    ):
        with pytest.raises(SophiaError, match=rf"{chunk.path.name} is corrupt at {re.escape(key)}: its bytes are not"):
            work()
        assert not (tmp_path / "out").exists()
    export_hf(checkpoint, model, tmp_path / "out", digest=None)  # as it was asked for


def parameters(chunks: list[Any], spec: ModelSpec) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p, _ in canonical_parameters(chunks, spec)}


def assert_loads_both_ways(groups: Any, backend: Any, model: Path, converted: Path, dtype: str) -> None:
    """A converted checkpoint is read by our slices and by megatron-core's own loader: the same parameters."""
    from megatron.core import dist_checkpointing

    spec = ModelSpec.from_model_dir(model)
    wanted = parameters(build(groups, backend, model, dtype), spec)
    ours = build(groups, backend, model, dtype, weights=converted)
    assert all(torch.equal(wanted[name], value) for name, value in parameters(ours, spec).items())
    for _, parameter, _ in canonical_parameters(ours, spec):
        parameter.data.fill_(0.0)
    state = {f"model{i}": chunk.sharded_state_dict() for i, chunk in enumerate(ours)}
    ignore = dist_checkpointing.validation.StrictHandling.IGNORE_ALL  # modules' empty _extra_state is not converted
    loaded = dist_checkpointing.load(state, str(converted), validate_access_integrity=False, strict=ignore)
    for i, chunk in enumerate(ours):
        chunk.load_state_dict(loaded[f"model{i}"], strict=False)
    found = parameters(ours, spec)
    assert found.keys() == wanted.keys()
    different = [name for name, value in wanted.items() if not torch.equal(found[name], value)]
    assert not different


@pytest.mark.parametrize("ranks", [(1, 1), (2, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_converted_checkpoints_load_at_any_layout(tmp_path: Path, layout: str, ranks: tuple[int, int]) -> None:
    model = FIXTURES / "internvl3-8b-hf"
    convert(Conversion(model, tmp_path / "m", "megatron", tensor=ranks[0], pipeline=ranks[1]))
    harness.run_layout(assert_loads_both_ways, LAYOUTS[layout], model, tmp_path / "m", "float32")


def refuse(groups: Any, backend: Any, model: Path, damaged: Path) -> str:
    try:
        build(groups, backend, model, "bfloat16", weights=damaged)
    except SophiaError as error:
        return str(error)
    return ""


def test_loading_a_model_that_lacks_tensors_names_them_on_every_rank(tmp_path: Path) -> None:
    model = FIXTURES / "internvl3-8b-hf"
    state = load_file(model / "model.safetensors")
    del state["language_model.model.layers.1.mlp.up_proj.weight"]
    tmp_path.joinpath("config.json").write_bytes((model / "config.json").read_bytes())
    save_file(state, tmp_path / "model.safetensors")
    messages = harness.run_layout(refuse, Parallel(tensor=2), model, tmp_path)
    assert all("1 tensors missing: language_model.model.layers.1.mlp.up_proj.weight" in m for m in messages)
