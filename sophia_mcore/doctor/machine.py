"""Checks the machine: Python, processors, GPUs and their connections, network, Slurm and munge."""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path

import psutil

from sophia_mcore.doctor.rows import Row, ask

_SLURM = "apt install slurm-wlm munge on a test machine; on a cluster load its module or log in to a login node"


def checks() -> list[Row]:
    """All rows about the machine. A run on one CPU needs nothing of what they report as missing."""
    return [python(), processors(), *gpus(), infiniband(), slurm(), munge()]


def python() -> Row:
    """A row about the Python that runs this command."""
    version = platform.python_version()
    if version.startswith("3.11."):
        return Row(name="Python", state="ok", found=version)
    return Row(
        name="Python",
        state="warning",
        found=version,
        cost="the lock files in constraints/ are for 3.11; newer ones are not tested",
        remedy="make env PYTHON=/path/to/python3.11",
    )


def processors() -> Row:
    """A row with the cores that this process may use, and the memory."""
    cores = len(os.sched_getaffinity(0))
    gib = psutil.virtual_memory().total / 2**30
    return Row(name="cores and memory", state="ok", found=f"{cores} cores, {gib:.0f} GiB")


def gpu_names() -> list[str]:
    """Name, memory and driver version of each GPU, such as "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54"."""
    text = ask("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return [line for line in (text or "").splitlines() if line.strip()]


def gpus() -> list[Row]:
    """Rows about the GPUs and the links between them."""
    names = gpu_names()
    if not names:
        return [
            Row(
                name="GPUs",
                state="missing",
                found="none (nvidia-smi is not there or shows none)",
                cost="training runs on gloo in plain torch, rollouts on vLLM for CPU: fine for examples/digits only",
                remedy="a node with NVIDIA GPUs and their driver",
            )
        ]
    row = Row(
        name="GPUs", state="ok", found=f"{len(names)} x {names[0]}" + (" and others" if len(set(names)) > 1 else "")
    )
    links = set(re.findall(r"\bNV\d+\b", ask("nvidia-smi", "topo", "-m") or ""))
    if len(names) > 1 and not links:
        slow = Row(
            name="NVLink",
            state="warning",
            found="none between the GPUs",
            cost="tensor parallelism goes over PCIe",
            remedy="keep parallel.tensor small, or use nodes with NVLink",
        )
        return [row, slow]
    return [row] if len(names) == 1 else [row, Row(name="NVLink", state="ok", found=", ".join(sorted(links)))]


def infiniband(folder: Path = Path("/sys/class/infiniband")) -> Row:
    """A row about InfiniBand adapters, which connect several nodes."""
    try:
        devices = sorted(path.name for path in folder.iterdir())
    except OSError:
        devices = []
    if devices:
        return Row(name="InfiniBand / RoCE", state="ok", found=", ".join(devices))
    return Row(
        name="InfiniBand / RoCE",
        state="missing",
        found="no adapter",
        cost="NCCL between nodes falls back to TCP; nothing on one node",
        remedy="nodes with InfiniBand, its driver loaded",
    )


def slurm() -> Row:
    """A row about Slurm's client commands."""
    version = ask("sinfo", "--version")
    if version:
        return Row(name="Slurm", state="ok", found=version)
    found, remedy = "no sinfo", _SLURM
    if shutil.which("sinfo"):
        found, remedy = "sinfo is here, but fails", "run sinfo to see why: no slurm.conf, or no controller that answers"
    return Row(name="Slurm", state="missing", found=found, cost="no `sophia submit`; `sophia run` works", remedy=remedy)


def munge() -> Row:
    """A row about munge, Slurm's authentication, which is tried once."""
    if ask("munge", "-n") is not None:
        return Row(name="munge", state="ok", found="makes credentials")
    return Row(
        name="munge",
        state="missing",
        found="no credential can be made",
        cost="Slurm commands are refused",
        remedy="start munged" if shutil.which("munge") else _SLURM,
    )
