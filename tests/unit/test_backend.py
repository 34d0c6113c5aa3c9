"""The backend's parts: present, absent, or installed by halves, which ends in one line that says what to do."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from sophia_mcore.doctor.environments import transformer_engine
from sophia_mcore.errors import UsageError
from sophia_mcore.parallel import backend as backends
from sophia_mcore.train import checkpoint
from sophia_mcore.train.worker import lost_peer, on_rank
from tests.support import pretended_cuda

TE, APEX = "transformer_engine/pytorch/__init__.py", "fused_weight_gradient_mlp_cuda.py"
PLAIN_APEX = "apex/__init__.py"
SIZES = [
    f"get_{name}_world_size"
    for name in (
        "tensor_model_parallel", "pipeline_model_parallel", "virtual_pipeline_model_parallel", "context_parallel",
        "data_parallel",
    )
]  # fmt: skip


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Modules with these contents, importable for one test."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        if "/" in name:
            (folder / name.partition("/")[0] / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    for name in [
        n for n in sys.modules if n.partition(".")[0] in ("transformer_engine", "apex", "amp_C", Path(APEX).stem)
    ]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()


def selected() -> backends.Backend:
    with pretended_cuda.pretended():
        return backends.select()


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, (False, False)),
        ({TE: ""}, (True, False)),
        ({TE: "", APEX: ""}, (True, True)),
        ({APEX: ""}, (False, True)),
        ({PLAIN_APEX: "", "amp_C.py": ""}, (False, False)),
        ({TE: "", PLAIN_APEX: ""}, (True, False)),
    ],
    ids=["neither", "Transformer Engine", "both", "gradients' kernel", "apex", "apex without kernels is not used"],
)
def test_what_is_there_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], found: tuple[bool, bool]
) -> None:
    install(tmp_path, monkeypatch, files)
    chosen = selected()
    assert (chosen.kind, chosen.distributed) == ("cuda", "nccl")
    assert (chosen.transformer_engine, chosen.fused_weight_gradient) == found


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {TE: "import onnxscript_that_is_missing"},
            r"transformer_engine is installed, but .*\(No module named 'onnxscr",
        ),
        ({TE: "raise OSError('libnccl.so.2: cannot open')"}, r"\(libnccl.so.2: cannot open\): install what it needs"),
        ({TE: "raise ImportError('\\n\\nno cuDNN\\nmore')"}, r"\(no cuDNN\): install what it needs"),
        ({"transformer_engine/jax.py": ""}, r"No module named 'transformer_engine.pytorch'.* docs/gpu.md"),
        ({APEX: "raise ImportError('undefined symbol: _ZN3c10')"}, r"undefined symbol: _ZN3c10\): build apex for"),
        ({PLAIN_APEX: ""}, r"apex is installed, .*No module named 'amp_C'\): build apex"),
        ({PLAIN_APEX: "raise OSError('libcudart.so.12')"}, r"apex is installed, .*\(.*\): build apex"),
    ],
    ids=[
        "onnxscript",
        "nccl",
        "empty first line",
        "without torch",
        "apex of another torch",
        "apex without kernels",
        "apex, other CUDA",
    ],
)
def test_half_an_installation_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], message: str
) -> None:
    install(tmp_path, monkeypatch, files)
    with pytest.raises(UsageError, match=message) as raised:
        selected()
    assert len(str(raised.value).splitlines()) == 1
    if APEX not in files and files != {
        PLAIN_APEX: ""
    }:  # before megatron-core is imported, whose traceback the user would see
        with pytest.raises(UsageError, match=message):
            backends.check_parts()


def test_a_rank_ends_with_that_line_before_its_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, {TE: "import onnxscript_that_is_missing"})
    with pytest.raises(UsageError, match=r"\(No module named 'onnxscr"):
        on_rank(tmp_path / "train", None, lambda _: pytest.fail("the rank's work begins"))


def test_the_doctor_names_what_half_an_installation_lacks() -> None:
    whole = {"transformer-engine": "2.20.2", "einops": "0.8.2", "onnx": "1.23.2", "onnxscript": "0.7.2"}
    assert (transformer_engine(whole).state, transformer_engine({}).state) == ("ok", "missing")
    del whole["onnxscript"]
    half = transformer_engine(whole)
    assert half.state == "warning" and half.found == "transformer-engine 2.20.2, without onnxscript"
    assert "constraints/transformer-engine.txt" in half.remedy


def test_attention_that_transformer_engine_does_not_have() -> None:
    engine = pretended_cuda.backend()
    with pytest.raises(UsageError, match=r"'float32' with parallel.context = 2.* set train.dtype = 'bfloat16'"):
        engine.check_attention("float32", 2)
    engine.check_attention("bfloat16", 2)
    engine.check_attention("float32", 1)
    pretended_cuda.backend(transformer_engine=False).check_attention("float32", 2)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:41234", True),
        ("NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited or there was a network error", True),
        ("NCCL communicator was aborted on rank 3.", True),
        ("NCCL error in: NCCLUtils.hpp:268, ncclRemoteError: A call failed possibly due to a network error", True),
        ("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)", True),
        (
            "NCCL error in: NCCLUtils.hpp:268, invalid usage, ncclInvalidUsage: This usually reflects invalid usage",
            False,
        ),
        ("CUDA out of memory. Tried to allocate 20.00 MiB", False),
        ("the model's config needs calculate_per_token_loss=True", False),
    ],
)
def test_a_lost_rank_is_not_this_rank_s_failure(text: str, lost: bool) -> None:
    """So that Slurm starts the job again instead of giving up."""
    assert lost_peer(torch.distributed.DistBackendError(text)) is lost


def test_a_lost_store_is_a_lost_rank() -> None:
    for text in ("Failed to recv, got 0 bytes. Connection was likely closed.", "The client socket has timed out"):
        assert lost_peer(torch.distributed.DistNetworkError(text))


@pytest.mark.parametrize(("distributed", "cuda"), [("nccl", 1), ("gloo", 0)])
def test_a_checkpoint_s_layout_tells_gpus_from_cpus(
    monkeypatch: pytest.MonkeyPatch, distributed: str, cuda: int
) -> None:
    """Random states of one kind of device must not be loaded into the other: they are loaded at equal layouts only."""
    monkeypatch.setattr(checkpoint, "parallel_state", mock.Mock(**dict.fromkeys(SIZES, lambda: 2)))
    monkeypatch.setattr(checkpoint.dist, "get_backend", lambda: distributed)
    sizes = dict.fromkeys(("tensor", "pipeline", "virtual_pipeline", "context", "data"), 2)
    assert checkpoint.current_layout() == sizes | {"cuda": cuda}


def test_training_on_a_cpu_starts_without_the_compiler() -> None:
    """torch's optimizers import it at their first call; it takes every rank a CPU-second."""
    code = """
import sys
import torch
from sophia_mcore.parallel.backend import check_parts, select
check_parts()
with select(kind="cpu").adapt():
    optimizer = torch.optim.SGD([torch.ones(1)], lr=0.1)
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
assert hasattr(torch.optim.Optimizer.add_param_group, "__wrapped__"), "the change outlives the context"
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
