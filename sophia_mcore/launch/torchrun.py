"""Training on one node of an allocation: torchrun, the signals its ranks must get, and how it ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

import psutil

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.attempts import SlurmTask
from sophia_mcore.launch.process import stop_child
from sophia_mcore.store.layout import RunFolder

_LOOK_SECONDS = 0.5
_SIGNAL_EVERY = 4  # looks; ranks that are still importing do not listen yet


def torchrun_command(config: Config, run: RunFolder, round_index: int, task: SlurmTask, processes: int) -> list[str]:
    """The command of one node. Id and port of the rendezvous hold the job and its restart count."""
    join = f"is_host={int(task.node_index == 0)},join_timeout={round(config.cluster.join_seconds)}"
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *(f"--nnodes={task.node_count}", f"--nproc-per-node={processes}", "--max-restarts=0"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={task.head}:{task.port}", f"--rdzv-conf={join}"),
        f"--rdzv-id={task.job_id}-{task.restart}",
        *("-m", "sophia_mcore.train.worker", str(run.config_file), "--round", str(round_index)),
    ]


def train_on_node(
    config: Config, run: RunFolder, round_index: int, task: SlurmTask, processes: int, stop_asked: Callable[[], bool]
) -> bool:
    """Run torchrun here until it ends; once ``stop_asked``, its ranks are sent USR1 and save.

    Returns True when the training is finished, False when it was stopped and its state saved. Raises SophiaError when
    it failed; the ranks' own error lines stand above in the log.
    """
    folder = run.round(round_index).train
    if task.node_index == 0:
        (folder / "stopped.json").unlink(missing_ok=True)  # of an earlier attempt
    child = subprocess.Popen(
        torchrun_command(config, run, round_index, task, processes),
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),  # torchrun itself would die of it
    )
    looks = 0
    try:
        while True:
            try:
                code = child.wait(_LOOK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if stop_asked():
                    if looks % _SIGNAL_EVERY == 0:
                        _signal_ranks(child.pid)
                    looks += 1
    except BaseException:
        stop_child(child)
        raise
    if (folder / "summary.json").is_file():
        return True
    if (folder / "stopped.json").is_file():
        return False
    raise SophiaError(f"training: torchrun ended with code {code} on {task.node}; its ranks say above why")


def _signal_ranks(torchrun: int) -> None:
    try:
        for rank in psutil.Process(torchrun).children():
            rank.send_signal(signal.SIGUSR1)
    except psutil.Error:
        pass  # it has just ended
