"""`sophia rl`: the on-policy stage on this machine, from its questions to its report; run again, it goes on."""

from __future__ import annotations

import difflib
import time

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.launch import stage
from sophia_mcore.launch.environments import run_here
from sophia_mcore.launch.local import claim_folder, made_folder
from sophia_mcore.launch.phases import QUESTIONS, REPORT, RL_EVALUATE, RL_SELECT
from sophia_mcore.launch.readers import rl_start, stage_has_ended
from sophia_mcore.launch.terminal import TerminalProgress
from sophia_mcore.records import Question
from sophia_mcore.rl.versions import newest_version
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.store.shards import read_shard
from sophia_mcore.track.metrics import MetricsLog

STEPS = ("select", "loop", "evaluate")  # what --from names; the questions come before, the report behind


def run_rl(
    config: Config,
    *,
    batches: int | None = None,
    first: str = STEPS[0],
    replay: bool = False,
    new_settings: bool = False,
) -> RunFolder:
    """The stage in the run's folder, holding its lock.

    ``batches`` replaces rl.batches, also of a stage that has ended with fewer. ``replay``: train on the stored rollouts
    alone. Raises UsageError for settings that cannot be used, SophiaError when a process fails for good.
    """
    if first not in STEPS:
        nearest = difflib.get_close_matches(first, STEPS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"one of {', '.join(STEPS)}"
        raise UsageError(f"--from {first!r}: {hint}")
    rl = config.on_policy
    if batches is not None:
        config = config.model_copy(update={"rl": rl.model_copy(update={"batches": batches})})
    run = made_folder(config)
    chosen = STEPS[STEPS.index(first) :]
    with folder_lock(run.lock_file), TerminalProgress() as progress:
        claim_folder(config, run, new_settings=new_settings)
        current = Round(config, run, 0)
        preflight(current)
        metrics = MetricsLog(run.metrics_file)
        for step in ("questions", *chosen, "report"):
            began = time.monotonic()
            _step(step, current, progress, replay=replay)
            metrics.log(0, f"rl-{step}", {"seconds": round(time.monotonic() - began, 3)})
    return run


def preflight(round: Round) -> None:
    """What can be refused before any work. Raises SophiaError or UsageError."""
    from sophia_mcore.parallel.layout import check_layout
    from sophia_mcore.pretrained.complete import check_model_dir
    from sophia_mcore.pretrained.spec import ModelSpec

    config, run = round.config, round.run
    start = rl_start(config, run)
    check_model_dir(start)
    check_layout(ModelSpec.from_model_dir(start), config.parallel, config.batch.sequence_length_tokens)
    newest = newest_version(run.rl.versions)
    if newest is not None and newest.version > config.on_policy.batches:
        raise UsageError(
            f"rl.batches = {config.on_policy.batches}, but {newest.version} batches are trained already in {run.path}"
        )


def _step(step: str, round: Round, progress: TerminalProgress, *, replay: bool) -> None:
    config, run = round.config, round.run
    if step == "questions":
        run_here(QUESTIONS, round, progress)
    elif step == "select" and RL_SELECT.wanted(config):
        run_here(RL_SELECT, round, progress)
    elif step == "select":
        for path in (run.rl.select_file, run.rl.questions_file):  # of a choice that other settings made
            path.unlink(missing_ok=True)
    elif step == "loop":
        check_questions(config, run)
        stage.remove_summary_of_fewer_batches(config, run)
        if not stage_has_ended(config, run):
            node = stage.this_machine(config, replay=replay)
            stage.supervise(config, run, node, replay=replay, follow=progress.follow)
    elif step == "evaluate" and RL_EVALUATE.wanted(config):
        run_here(RL_EVALUATE, round, progress)
    elif step == "report":
        run_here(REPORT, round, progress)


def check_questions(config: Config, run: RunFolder) -> None:
    """Raises UsageError when a batch asks more questions than there are."""
    chosen = RL_SELECT.wanted(config) and run.rl.questions_file.is_file()
    number = len(read_shard(run.rl.questions_file if chosen else run.questions_file, Question))
    size = config.on_policy.questions_per_batch
    if size > number:
        raise UsageError(f"rl.questions_per_batch = {size} is more than the {number} questions there are to ask")
