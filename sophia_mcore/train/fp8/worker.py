"""One rank of the FP8 check: ``python -m sophia_mcore.train.fp8.worker RUN/fp8_check.toml --round 0``, under torchrun.

Rank 0 writes fp8_check.json beside the configuration file, and in the folder fp8_check a summary when the check has
passed, or why it has not.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import warnings
from pathlib import Path

from sophia_mcore import __version__
from sophia_mcore.config import load_config
from sophia_mcore.errors import run_command
from sophia_mcore.progress import NoProgress
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.layout import FAILED, SUMMARY, Round, RunFolder


def main(arguments: list[str] | None = None) -> int:
    """Check; returns the exit code (errors.run_command). A check that is not passed is not an error here."""
    parser = argparse.ArgumentParser(prog="sophia_mcore.train.fp8.worker", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--progress-fd", type=int)
    options = parser.parse_args(arguments)

    def work() -> None:
        try:
            _check(options.config, options.round, options.progress_fd)
        except Exception as error:
            from sophia_mcore.train.worker import note_failure

            note_failure(RunFolder(options.config.parent).fp8_check, int(os.environ.get("RANK", 0)), error)
            raise

    return run_command("FP8 check", work)


def _check(config_file: Path, round_index: int, progress_fd: int | None) -> None:
    config, run = load_config(config_file), RunFolder(config_file.parent)
    warnings.filterwarnings("ignore", module=r"torch|megatron")  # about parts of theirs that we do not use
    import torch
    import torch.distributed as dist

    from sophia_mcore.parallel.backend import check_parts

    check_parts()
    from sophia_mcore.train.fp8.check import check_fp8
    from sophia_mcore.train.fp8.gate import check_digest, fp8_settings, has_passed, verdict
    from sophia_mcore.train.session import joined
    from sophia_mcore.train.worker import die_with_parent, open_progress

    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    progress = open_progress(progress_fd) if int(os.environ.get("RANK", 0)) == 0 else NoProgress()
    if has_passed(config, run) and (run.fp8_check / SUMMARY).is_file():
        return
    began = time.time()
    with joined(config) as (groups, backend):
        first = dist.get_rank() == 0
        found = check_fp8(Round(config, run, round_index), groups, backend, progress)
        if first:
            where = {
                "device": torch.cuda.get_device_name() if backend.kind == "cuda" else platform.machine() + " CPU",
                "ranks": dist.get_world_size(),
                "torch": torch.__version__,
                "sophia_mcore": __version__,
                "date": time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(began)),
                "seconds": round(time.time() - began, 1),
            }
            head = {"digest": check_digest(config), "round": round_index, "train_steps": config.train.steps}
            found = head | {"settings": fp8_settings(config), "where": where} | found
            write_json(run.fp8_check_file, found)
            failure = verdict(found)
            if failure:
                write_json(run.fp8_check / FAILED, {"rank": 0, "error": failure, "node": None})
            else:
                write_json(run.fp8_check / SUMMARY, {"passed": True} | head)
                (run.fp8_check / FAILED).unlink(missing_ok=True)
        dist.barrier()


if __name__ == "__main__":
    sys.exit(main())
