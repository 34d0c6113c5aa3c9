"""Is this node fit for the work? Looked at before every task, within seconds, and with the culprit's name.

The GPUs that Slurm promised are there and have no uncorrected memory errors; the shared filesystem shows what was
submitted and takes and returns a file in time. How the nodes reach each other is measured in `parallel.network`.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sophia_mcore.errors import EXIT_LOST, EXIT_UNHEALTHY, SophiaError
from sophia_mcore.launch.slurm.attempts import SlurmTask
from sophia_mcore.store import atomic
from sophia_mcore.store.layout import RunFolder

_QUERY = ("nvidia-smi", "--query-gpu=index,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader,nounits")
_QUERY_SECONDS = 60


class Unhealthy(SophiaError):
    """``node`` ("" for this one) should be left out, and the work done elsewhere."""

    exit_code = EXIT_UNHEALTHY

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node


class LostProcess(SophiaError):
    """A process was killed or its node is gone: the same job may succeed, and is requeued."""

    exit_code = EXIT_LOST


def query_gpus() -> str | None:
    """What nvidia-smi says, one line per GPU; None on a machine without it. Raises Unhealthy when it fails or hangs."""
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
    """Raises Unhealthy when fewer GPUs than ``expected`` are there or one has uncorrected ECC errors.

    ``report`` None (no nvidia-smi): nothing to look at; a phase that needs a GPU will say so itself.
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
    """A file written to ``path`` comes back the same within ``seconds``. Raises Unhealthy."""
    content = secrets.token_hex(512)

    def bounce() -> None:
        atomic.write_text(path, content)
        if path.read_text() != content:
            raise SophiaError(f"{path}: what was written is not what is read")

    try:
        within(seconds, bounce)
    except TimeoutError:
        raise Unhealthy(
            f"{path.parent}: the shared filesystem took more than {seconds:g} s for one small file"
        ) from None
    except (OSError, SophiaError) as error:
        raise SophiaError(str(error)) from None  # a full disk or a quota is not this node's fault
    finally:
        threading.Thread(target=lambda: path.unlink(missing_ok=True), daemon=True).start()


def within(seconds: float, work: Callable[[], None]) -> None:
    """Run ``work`` in a thread; raises its exception, or TimeoutError (a thread on a hung mount cannot be ended)."""
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
    """All checks of one node. Raises Unhealthy naming it."""
    try:
        check_gpus(query_gpus() if gpus else None, gpus)
        check_filesystem(run.slurm.canary(f"{task.name}-{task.node_index}"), canary_seconds)
    except Unhealthy as error:
        raise Unhealthy(f"node {task.node}: {error}") from None


def exclude(run: RunFolder, task: SlurmTask, nodes: Sequence[str], limit: int) -> None:
    """Note that the job should go on without ``nodes``: job.sh reads these files and requeues it.

    Raises SophiaError when that would be more nodes than ``limit``: then it is hardly the nodes' fault.
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
    """Nodes that jobs of this run have left behind -> those jobs."""
    found: dict[str, list[str]] = {}
    for path in sorted(run.slurm.unhealthy.glob("*-*")):
        job, _, node = path.name.partition("-")
        found.setdefault(node, []).append(job)
    return found
