"""Checks a node before every task, within seconds. Errors name the node.

The node must have the GPUs that Slurm promised, without uncorrected memory errors, and the shared filesystem must write
and read a small file in time. `parallel.network` measures the connections between nodes.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sophia_mcore.errors import EXIT_LOST, EXIT_UNHEALTHY, SophiaError
from sophia_mcore.phase import SlurmTask
from sophia_mcore.store import atomic
from sophia_mcore.store.layout import RunFolder

_QUERY = ("nvidia-smi", "--query-gpu=index,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader,nounits")
_QUERY_SECONDS = 60


class Unhealthy(SophiaError):
    """A node is unhealthy and should be excluded from the job. ``node``: its name, "" for this node."""

    exit_code = EXIT_UNHEALTHY

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node


class LostProcess(SophiaError):
    """A process was killed or its node is gone. The job is requeued, since it may succeed."""

    exit_code = EXIT_LOST


def query_gpus() -> str | None:
    """nvidia-smi's output, one line per GPU; None on a machine without it. Raises Unhealthy when it fails or hangs."""
    if shutil.which(_QUERY[0]) is None:
        return None
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_QUERY_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unhealthy(f"nvidia-smi gave no answer within {_QUERY_SECONDS} s") from None
    if done.returncode:
        raise Unhealthy(f"nvidia-smi failed: {(done.stdout + done.stderr).strip().splitlines()[:1]}")
    return done.stdout


def check_gpus(report: str | None, expected: int) -> None:
    """Raise Unhealthy if there are fewer GPUs than ``expected`` or one has uncorrected ECC errors.

    ``report``: output of ``query_gpus``. None: nothing is checked; a phase that needs a GPU raises its own error.
    """
    if report is None:
        return
    rows = [[cell.strip() for cell in line.split(",")] for line in report.splitlines() if line.strip()]
    if len(rows) < expected:
        raise Unhealthy(f"{len(rows)} GPUs instead of {expected}")
    broken = [index for index, errors, *_ in rows if errors.isdigit() and int(errors) > 0]
    if broken:
        raise Unhealthy(f"uncorrected memory (ECC) errors on GPU {', '.join(broken)}")


def check_filesystem(path: Path, seconds: float) -> None:
    """Write ``path`` and read it back. Raises Unhealthy if that takes longer than ``seconds``, SophiaError if it fails.

    A failure is a full disk or a quota, for example, which is not the node's fault.
    """
    content = secrets.token_hex(512)

    def write_and_read() -> None:
        atomic.write_text(path, content)
        if path.read_text() != content:
            raise SophiaError(f"{path}: the content read back is not the content written")

    try:
        within(seconds, write_and_read)
    except TimeoutError:
        raise Unhealthy(
            f"{path.parent}: the shared filesystem took more than {seconds:g} s for one small file"
        ) from None
    except (OSError, SophiaError) as error:
        raise SophiaError(str(error)) from None  # not this node's fault
    finally:
        threading.Thread(target=lambda: path.unlink(missing_ok=True), daemon=True).start()


def within(seconds: float, work: Callable[[], None]) -> None:
    """Run ``work`` in a thread and raise its exception, or TimeoutError after ``seconds``.

    After a timeout the thread keeps running, because a thread that waits for a hung mount cannot be ended.
    """
    failure: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if failure:
        raise failure[0]


def check_node(run: RunFolder, task: SlurmTask, *, gpus: int, canary_seconds: float) -> None:
    """Run all checks of this node. Raises Unhealthy with the node's name."""
    try:
        check_gpus(query_gpus() if gpus else None, gpus)
        check_filesystem(run.slurm.canary(f"{task.name}-{task.node_index}"), canary_seconds)
    except Unhealthy as error:
        raise Unhealthy(f"node {task.node}: {error}") from None


def exclude(run: RunFolder, task: SlurmTask, nodes: Sequence[str], limit: int) -> None:
    """Exclude ``nodes`` from the job: writes a file for each, and job.sh requeues the job without them.

    Raises SophiaError if more than ``limit`` nodes would be excluded: then the nodes are probably not at fault.
    """
    folder = run.slurm.unhealthy
    bad = {path.read_text().strip() for path in folder.glob(f"{task.job_id}-*")} | set(nodes)
    if len(bad) > limit:
        raise SophiaError(
            f"{len(bad)} nodes of job {task.name} are unhealthy ({', '.join(sorted(bad))}), more than "
            f"cluster.max_excluded_nodes = {limit}: not requeued"
        )
    for node in nodes:
        atomic.write_text(folder / f"{task.job_id}-{node}", node + "\n")


def unhealthy_nodes(run: RunFolder) -> dict[str, list[str]]:
    """Excluded nodes of this run: node -> numbers of the jobs that excluded it."""
    found: dict[str, list[str]] = {}
    for path in sorted(run.slurm.unhealthy.glob("*-*")):
        job, _, node = path.name.partition("-")
        found.setdefault(node, []).append(job)
    return found
