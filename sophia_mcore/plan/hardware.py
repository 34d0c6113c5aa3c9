"""What a GPU can do, as data (`gpus.toml`), and the rates that a plan counts with."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from sophia_mcore.errors import UsageError

GIB = 2**30
DISK = 1e9  # bytes/s between a node and the shared filesystem: assumed
MEMORY = 5e9  # bytes/s into and out of a node's /dev/shm, digests included: assumed
HOST_LINK = 25e9  # bytes/s between a GPU and its host: assumed, half of PCIe 5's data sheet
RESERVED_GIB = 5.0  # CUDA context, NCCL and cuBLAS buffers, fragmentation: assumed, not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Rates of one device as a transformer layer sees them: bytes, floating-point operations and seconds.

    `kernels`: "fused" (Transformer Engine) or "plain" (torch parts, CPU) - they save other tensors for the backward.
    """

    name: str
    memory: float  # bytes that a plan may use
    bf16: float  # FLOP/s that large matrix products reach
    fp8: float  # 0: no FP8
    attention: float  # FLOP/s of fused causal attention, in bf16
    peak: float  # FLOP/s of the data sheet in bf16; MFU is relative to it
    bandwidth: float  # bytes/s of memory-bound kernels
    nvlink: float  # bytes/s, one direction
    network: float
    per_node: int
    kernels: Literal["fused", "plain"] = "fused"
    layer_seconds: float = 20e-6  # fixed cost of a layer's forward (launches that are not hidden)
    message_seconds: float = 15e-6  # latency of one collective
    tensor_overlap: float = 0.0  # share of tensor-parallel traffic that hides behind matrix products
    reduce_scatter: float = 1.0  # its time over an all-gather's; gloo carries it out as a whole all-reduce: 2
    data_exposed: float = 0.1  # share of the gradient exchange that no backward hides; above 1: summed slower than sent
    step_seconds: float = 0.0  # fixed cost of one optimizer step


def known_gpus() -> list[str]:
    """Names in the table."""
    return list(_table())


def load_gpu(name: str) -> Device:
    """The device of that name.

    Raises:
        UsageError: not in the table; names the nearest.
    """
    table = _table()
    row = table.get(name.lower())
    if row is None:
        nearest = difflib.get_close_matches(name.lower(), table, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise UsageError(f"--gpu {name!r}: not in the table ({hint}known: {', '.join(table)})")
    return Device(
        name=name.lower(),
        memory=(row["memory_gib"] - RESERVED_GIB) * GIB,
        bf16=row["bf16_tflops"] * row["bf16_efficiency"] * 1e12,
        fp8=row["fp8_tflops"] * row["fp8_efficiency"] * 1e12,
        attention=row["bf16_tflops"] * row["attention_efficiency"] * 1e12,
        peak=row["bf16_tflops"] * 1e12,
        bandwidth=row["bandwidth_gb_s"] * 0.85e9,  # 4.3 of 4.8 TB/s seen in a copy on an H200
        nvlink=row["nvlink_gb_s"] * 0.8e9,
        network=row["network_gb_s"] * 0.8e9,
        per_node=int(row["per_node"]),
    )


def _table() -> dict[str, dict[str, float]]:
    return tomllib.loads(resources.files(__package__).joinpath("gpus.toml").read_text())
