"""One rank of the training of a round: ``python -m sophia_mcore.train.worker RUN/config.toml --round 0``.

Started by torchrun on every rank, or plainly for one rank. Started again after it was killed, it goes on from the
newest checkpoint; after it has finished, it returns at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sophia_mcore.config import load_config
from sophia_mcore.death_signal import dies_with
from sophia_mcore.errors import EXIT_STOPPED, SophiaError, run_command
from sophia_mcore.progress import NoProgress, Progress, worker_progress
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.layout import FAILED, Round, RunFolder
from sophia_mcore.store.lock import folder_lock

# what gloo and NCCL say of a rank that is gone; NCCL's own mistakes ("invalid usage") would happen again
_LOST_PEER = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting",
    "ncclRemoteError", "ncclSystemError", "communicator was aborted", "communicator aborted", "Socket Timeout",
    "Watchdog caught collective operation timeout", "remote process exited",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Train; returns the exit code: 0 done, 1 failed, 2 bad usage, 75 stopped by a signal with its state saved."""
    parser = argparse.ArgumentParser(prog="sophia_mcore.train.worker", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="RUN/config.toml")
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--progress-fd", type=int, help="pipe of the parent process for progress events")
    options = parser.parse_args(arguments)
    stopped = False

    def work() -> None:
        nonlocal stopped
        stopped = not _train(options.config, options.round, options.progress_fd)

    code = run_command("train", work)
    return EXIT_STOPPED if code == 0 and stopped else code


def _train(config_file: Path, round_index: int, progress_fd: int | None) -> bool:
    """Whether the training is finished (False: stopped by a signal)."""
    config = load_config(config_file)
    run = RunFolder(config_file.parent)
    if run.round(round_index).train_summary_file.is_file():
        return True

    def work(progress: Progress) -> bool:
        from sophia_mcore.train.session import train_round  # here: importing megatron-core takes seconds

        return train_round(Round(config, run, round_index), progress)

    return on_rank(run.round(round_index).train, progress_fd, work)


def on_rank(folder: Path, progress_fd: int | None, work: Callable[[Progress], bool]) -> bool:
    """What ``work`` returns on this rank of torchrun; rank 0 holds the lock of ``folder`` and shows the progress.

    A rank that fails by itself leaves store.layout.FAILED in ``folder``; one that has lost another rank does not.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    warnings.filterwarnings("ignore", module=r"torch|megatron")  # about parts of theirs that we do not use
    from sophia_mcore.parallel.backend import check_parts

    check_parts()
    rank = int(os.environ.get("RANK", 0))
    progress = open_progress(progress_fd) if rank == 0 else NoProgress()
    with _lock(folder / "lock", rank):
        try:
            finished = work(progress)
            if rank == 0:
                (folder / FAILED).unlink(missing_ok=True)  # of an earlier attempt
            return finished
        except RuntimeError as error:
            if not lost_peer(error):
                note_failure(folder, rank, error)
                raise
            print(f"rank {rank} stops: another rank is gone", file=sys.stderr, flush=True)  # that one says why
            raise SystemExit(1) from None
        except Exception as error:
            note_failure(folder, rank, error)
            raise


def lost_peer(error: RuntimeError) -> bool:
    """Whether the error says that another rank is gone, over gloo or NCCL: then this one has not failed by itself.

    A DistNetworkError is the store's: the host that keeps it is gone.
    """
    from torch.distributed import DistNetworkError

    return isinstance(error, DistNetworkError) or any(sign in str(error) for sign in _LOST_PEER)


def note_failure(folder: Path, rank: int, error: Exception) -> None:
    """Tell the parent that this rank failed by its own error, which would happen again."""
    node = getattr(error, "node", None)
    if node is None and (folder / FAILED).is_file():
        return  # the first to fail knows best, and whoever can name a node
    with suppress(SophiaError):  # a full disk, which may be what the error is about
        write_json(folder / FAILED, {"rank": rank, "error": str(error), "node": node})


@contextmanager
def _lock(path: Path, rank: int) -> Iterator[None]:
    if rank != 0:
        yield
        return
    with folder_lock(path):
        yield


def open_progress(file_descriptor: int | None) -> Progress:
    """Progress for rank 0. torchrun closes inherited pipes in its ranks: then it is found in torchrun itself."""
    if file_descriptor is not None and "TORCHELASTIC_RUN_ID" in os.environ:  # the number may be another file's here
        try:
            file_descriptor = os.open(f"/proc/{os.getppid()}/fd/{file_descriptor}", os.O_WRONLY)
        except OSError:
            return worker_progress(None)
    return worker_progress(file_descriptor)


def die_with_parent() -> None:
    """A rank whose torchrun was killed must not go on writing (Linux only)."""
    dies_with(os.getppid(), signal.SIGKILL)()


if __name__ == "__main__":
    sys.exit(main())
