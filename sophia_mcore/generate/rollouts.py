"""An engine of the on-policy stage: ``python -m sophia_mcore.generate.rollouts RUN/config.toml``.

It knows the run folder and nothing else, and lives as long as the stage: it looks for open batches, takes the newest
version of the policy, claims units, samples, grades on the spot, and writes one shard of ``records.Rollout`` per unit.
Any number of these may work on one stage, come and go at any time, and be killed.

Exit codes: 0 the stage has ended, 1 failed, 2 bad usage, 69 a helper is down, 75 a signal asked for it or the trainer
is gone for good, 77 the engine hung.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import (
    EXIT_HELPER_DOWN,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    HelperDownError,
    UsageError,
    run_command,
)
from sophia_mcore.generate.engine import LivingEngine
from sophia_mcore.generate.episodes import open_episodes
from sophia_mcore.generate.phase import read_questions
from sophia_mcore.generate.rollout_loop import Rollouts
from sophia_mcore.generate.rollout_unit import Examiner
from sophia_mcore.generate.vllm_cpu import prepare_process
from sophia_mcore.generate.watchdog import Watchdog
from sophia_mcore.pretrained.families import image_limits
from sophia_mcore.rl.batches import LEASE_SECONDS
from sophia_mcore.rl.copies import node_copies
from sophia_mcore.rl.prompts import system_prompt
from sophia_mcore.rl.questions import asked_questions, stage_engine
from sophia_mcore.rl.versions import Version
from sophia_mcore.score.grading import open_grader
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder

OpenEngine = Callable[[Config, RunFolder, Version], LivingEngine]


def main(arguments: list[str] | None = None) -> int:
    """Work until the stage has ended; returns the exit code."""
    parser = argparse.ArgumentParser(prog="sophia_mcore.generate.rollouts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="RUN/config.toml")
    options = parser.parse_args(arguments)
    return serve(options.config, open_policy)


def serve(
    config_file: Path, open_engine: OpenEngine, lease_seconds: float = LEASE_SECONDS, copies: Path | None = None
) -> int:
    """As ``main``, with the engine that ``open_engine`` opens on the first version it is given.

    ``copies``: where this node's copies of versions lie, if the stage has some; None: in its /dev/shm.
    """
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not asked:
            asked.append(number)
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, stop)
    try:
        code = run_command("rollouts", lambda: _work(config_file, open_engine, lease_seconds, copies))
    except KeyboardInterrupt:  # the signal came while the work was being put down
        code = EXIT_INTERRUPTED
    except SystemExit as end:
        code = int(end.code or 0)
    return EXIT_STOPPED if code == EXIT_INTERRUPTED else code


def _work(config_file: Path, open_engine: OpenEngine, lease_seconds: float, copies: Path | None = None) -> None:
    config, run = load_config(config_file), RunFolder(config_file.parent)
    rl = config.on_policy
    if rl.engine.kind == "vllm":
        prepare_process(rl.engine.threads)
    alive = run.rl.engine_alive_file(socket.gethostname(), os.getpid())
    found = read_questions(asked_questions(config, run), with_images=False)  # some are text alone
    questions = {question.id: question for question in found}
    with (
        ExitStack() as opened,
        open_grader(config.score) as grader,
        Watchdog(alive, rl.stall_seconds, lease_seconds) as watchdog,
    ):
        episodes = open_episodes(config, run, questions, grader, opened)
        examiner = Examiner(config, questions, system_prompt(config), ImageStore(run.images), grader, episodes)
        loop = Rollouts(
            config,
            run,
            examiner,
            grader,
            watchdog,
            lambda version: open_engine(config, run, version),
            name=alive.stem,
            lease_seconds=lease_seconds,
            copies=node_copies(config, run, copies),
        )
        try:
            ended = loop.run()
        except HelperDownError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(EXIT_HELPER_DOWN) from error
        finally:
            for claim in watchdog.held:
                watchdog.drop(claim)
                claim.release()
            loop.close()
    if not ended:
        print(f"no sign of life from the trainer for {rl.patience_seconds:g} s: this engine ends", file=sys.stderr)
        raise SystemExit(EXIT_STOPPED)


def open_policy(config: Config, run: RunFolder, version: Version) -> LivingEngine:
    """vLLM on a published version. Raises SophiaError when the version is damaged or vLLM refuses it."""
    from sophia_mcore.config.engines import VllmEngine
    from sophia_mcore.generate.vllm_engine import open_vllm

    engine = stage_engine(config, run)
    if not isinstance(engine, VllmEngine):
        raise UsageError(f"rl.engine.kind = {engine.kind!r}: new weights cannot be loaded into it; use 'vllm'")
    return open_vllm(
        engine,
        version.path(run.rl.versions),
        image_limits(config.batch),
        digest=version.digest,
        sleeps=config.on_policy.placement == "colocated",
    )


if __name__ == "__main__":
    sys.exit(main())
