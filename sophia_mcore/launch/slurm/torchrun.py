"""Runs a phase on the ranks of one node of a Slurm job with torchrun, passes signals on, and reports how it ended."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.process import stop_child
from sophia_mcore.launch.resources import processes_per_node
from sophia_mcore.launch.slurm.health import LostProcess, Unhealthy
from sophia_mcore.phase import Phase, SlurmTask
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import FAILED, STOPPED, SUMMARY, SYSTEM_METRICS, Round
from sophia_mcore.track.metrics import MetricsLog, read_metrics

_LOOK_SECONDS = 0.5
_SYSTEM_SECONDS = 15.0
_GPU_QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")
_SIGNAL_EVERY = 4  # polls between two signals; one is not enough, since ranks ignore it while they import modules


def torchrun_command(module: str, round: Round, task: SlurmTask) -> list[str]:
    """The torchrun command of one node. Job number and restart count decide the rendezvous' id and port."""
    config, run = round.config, round.run
    join = f"is_host={int(task.node_index == 0)},join_timeout={config.cluster.join_seconds:.0f}"
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *(f"--nnodes={task.node_count}", f"--nproc-per-node={processes_per_node(config)}", "--max-restarts=0"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={task.head}:{task.port}", f"--rdzv-conf={join}"),
        f"--rdzv-id={task.job_id}-{task.restart}",
        *("-m", module, str(run.config_file), "--round", str(round.index)),
    ]


def run_on_node(phase: Phase, round: Round, task: SlurmTask, stop_asked: Callable[[], bool]) -> bool:
    """Run torchrun on this node until it ends. Once ``stop_asked()`` is true, send USR1 to its ranks, which then save.

    Returns True when the phase is finished, False when it was stopped and its state is saved. Raises SophiaError when a
    rank failed, Unhealthy when a rank names a bad node, LostProcess when torchrun ended and no rank reported an error.
    """
    assert phase.ranks is not None, f"phase {phase.name} runs on no ranks"
    folder = phase.ranks.folder(round)
    if task.node_index == 0:
        for name in (STOPPED, FAILED):  # left by an earlier attempt
            (folder / name).unlink(missing_ok=True)
    child = subprocess.Popen(
        torchrun_command(phase.ranks.module, round, task),
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),  # USR1 would end torchrun itself
    )
    looks, system = 0, SystemLog(folder / SYSTEM_METRICS if task.node_index == 0 else None)
    try:
        while True:
            try:
                code = child.wait(_LOOK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                system.sample()
                if stop_asked():
                    if looks % _SIGNAL_EVERY == 0:
                        _signal_ranks(child.pid)
                    looks += 1
    except BaseException:
        stop_child(child)
        raise
    if (folder / SUMMARY).is_file():
        return True
    if (folder / STOPPED).is_file():
        return False
    failure = json_or_empty(folder / FAILED)
    if failure.get("node"):
        raise Unhealthy(f"node {failure['node']}: {failure['error']}", str(failure["node"]))
    if failure:
        raise SophiaError(f"{phase.name}: rank {failure['rank']}: {failure['error']}")
    raise LostProcess(f"{phase.name}: a rank or its node is gone (torchrun on {task.node} ended with code {code})")


class SystemLog:
    """Logs load and memory of the first node at regular intervals. ``path`` None: logs nothing."""

    def __init__(self, path: Path | None) -> None:
        self._log = None if path is None else MetricsLog(path)
        lines = [] if path is None else read_metrics(path)
        self._step = lines[-1]["step"] + 1 if lines else 0
        self._next = 0.0

    def sample(self) -> None:
        """Append a line if the interval since the last one has passed."""
        if self._log is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _SYSTEM_SECONDS
        memory = psutil.virtual_memory()
        values = {"cpu_percent": psutil.cpu_percent(), "memory_percent": memory.percent, **_gpus(query_system())}
        with suppress(SophiaError):  # training itself reports a full disk
            self._log.log(self._step, "system", values)
        self._step += 1


def query_system() -> str:
    """nvidia-smi's output: use (percent) and memory (MiB) of each GPU. "" if there is no nvidia-smi or no answer."""
    if shutil.which(_GPU_QUERY[0]) is None:
        return ""
    try:
        return subprocess.run(_GPU_QUERY, capture_output=True, text=True, timeout=10).stdout
    except subprocess.TimeoutExpired:
        return ""


def _gpus(report: str) -> dict[str, float]:
    """Parse the output of ``query_system`` into gpuI_percent and gpuI_memory_mib. Skips values that are no numbers."""
    values: dict[str, float] = {}
    for index, line in enumerate(report.splitlines()):
        for name, cell in zip(("percent", "memory_mib"), line.split(","), strict=False):
            with suppress(ValueError):
                values[f"gpu{index}_{name}"] = float(cell)
    return values


def _signal_ranks(torchrun: int) -> None:
    try:
        for rank in psutil.Process(torchrun).children():
            rank.send_signal(signal.SIGUSR1)
    except psutil.Error:
        pass  # the process has just ended
