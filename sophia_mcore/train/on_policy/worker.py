"""One rank of the on-policy trainer: ``python -m sophia_mcore.train.on_policy.worker RUN/config.toml [--replay]``.

Started by torchrun on every rank, or plainly for one rank; it lives as long as the stage. Started again after it was
killed, it continues from the newest checkpoint and the stored rollouts; after the stage has ended, it returns at once.
"""

from __future__ import annotations

import argparse
import gc
import sys
from functools import partial
from pathlib import Path

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import EXIT_STOPPED, run_command
from sophia_mcore.progress import Progress
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.train.worker import on_rank


def main(arguments: list[str] | None = None) -> int:
    """Train; returns the exit code: 0 done, 1 failed, 2 bad usage, 75 stopped by a signal with its state saved."""
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="sophia_mcore.train.on_policy.worker", description=description)
    parser.add_argument("config", type=Path, help="RUN/config.toml")
    parser.add_argument("--replay", action="store_true", help="train on the stored rollouts alone, without an engine")
    parser.add_argument("--progress-fd", type=int, help="pipe of the parent process for progress events")
    options = parser.parse_args(arguments)
    stopped = False

    def work() -> None:
        nonlocal stopped
        config, run = load_config(options.config), RunFolder(options.config.parent)
        config.rl_view()  # raises without [rl]
        if not run.rl.summary_file.is_file():
            train = partial(train_stage, config, run, replay=options.replay)
            stopped = not on_rank(run.rl.train, options.progress_fd, train)

    code = run_command("rl", work)
    return EXIT_STOPPED if code == 0 and stopped else code


def train_stage(config: Config, run: RunFolder, progress: Progress, *, replay: bool = False) -> bool:
    """The stage on this rank; returns False when a signal stopped it (state saved), True when it is finished."""
    import torch.distributed as dist  # here: importing megatron-core takes seconds

    from sophia_mcore.train.on_policy.job import build_stage
    from sophia_mcore.train.on_policy.loop import run_stage
    from sophia_mcore.train.session import joined, stop_signals

    view = config.rl_view()
    with stop_signals() as asked, joined(view) as (groups, backend):
        backend.check_fp8(view.fp8.recipe, view.fp8.backend)
        job = build_stage(config, run, groups, backend)
        gc.collect()
        gc.freeze()  # the model and the libraries stay: later collections need not visit them
        finished = run_stage(job, progress, asked, replay=replay)
        dist.barrier()
    return finished


if __name__ == "__main__":
    sys.exit(main())
