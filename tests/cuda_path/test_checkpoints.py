"""A checkpoint of the plain parts loads into Transformer Engine's modules and back, at one rank, whatever the norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sophia_mcore.config.schema import Fp8, Fp8Check, Parallel
from sophia_mcore.model import lvlm
from sophia_mcore.model.names import canonical_parameters
from sophia_mcore.parallel import backend as backends
from sophia_mcore.parallel import groups as groups_module
from sophia_mcore.train.checkpoint import Checkpoints
from sophia_mcore.train.optim import build_optimizer, wrap_ddp
from tests.cuda_path.shim import shimmed
from tests.support import layouts, pretended_cuda
from tests.support.harness import run


def side(path: str, family: str, folder: Path, loads: bool) -> dict[str, torch.Tensor]:
    """Save a filled model with an optimizer that has made a step, or load into an empty one; its parameters."""
    cuda = path != "plain"
    spec, config = layouts.tiny_spec(family), layouts.tiny_config(Parallel(), dtype="bfloat16")
    if path == "tensorwise":
        config = config.model_copy(update={"fp8": Fp8(recipe="tensorwise", check=Fp8Check(skip=True))})
    chosen = pretended_cuda.backend() if cuda else backends.select(kind="cpu")
    with shimmed() if cuda else chosen.adapt():
        groups = groups_module.initialize(Parallel(), chosen, gloo_copies=False)
        chunks = lvlm.build(spec, config, groups, chosen)
        layouts.fill(chunks, spec)
        wrapped = wrap_ddp(chunks, config.train)
        optimizer = build_optimizer(wrapped, config.train)
        torch.cuda.is_available = lambda: False  # torch's writer of files would look for CUDA streams
        values: dict[str, Any] = {}
        if loads:
            with torch.no_grad():
                for parameter in chunks[0].parameters():
                    parameter.zero_()
            assert Checkpoints(folder, 2).load_newest(wrapped, optimizer) == 3
        else:
            for buffer in wrapped[0].buffers:
                buffer.grad_data.fill_(1.0)
            optimizer.step()
            Checkpoints(folder, 2).save(3, wrapped, optimizer)
        for name, parameter, _ in canonical_parameters(chunks, spec):
            values[name] = parameter.detach().clone()
        return values


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("writer", "reader"),
    [("plain", "engine"), ("engine", "plain"), ("engine", "engine"), ("plain", "tensorwise"), ("tensorwise", "plain")],
)
def test_either_path_loads_what_the_other_wrote(tmp_path: Path, family: str, writer: str, reader: str) -> None:
    (written,) = run(side, 1, writer, family, tmp_path, False)
    (read,) = run(side, 1, reader, family, tmp_path, True)
    assert written.keys() == read.keys()
    assert [name for name, value in written.items() if not torch.equal(value, read[name])] == []
