"""`sophia rl`: runs the on-policy stage on this machine, from questions to report. A second call resumes it."""

from __future__ import annotations

import difflib
import time
from dataclasses import replace
from functools import partial

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch import phases, work
from sophia_mcore.launch.environments import run_here
from sophia_mcore.launch.local import claim_folder, make_folder
from sophia_mcore.launch.models import with_local_models
from sophia_mcore.launch.phases import RL, names_in, phases_in, stage_alone
from sophia_mcore.launch.stage_settings import accept_changed_settings, only_weights_changed
from sophia_mcore.launch.state import check_stage_inputs
from sophia_mcore.launch.terminal import TerminalProgress
from sophia_mcore.phase import Phase
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.provenance.prepare import prepare
from sophia_mcore.rl.start import rl_start
from sophia_mcore.rl.versions import newest_version
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.track.metrics import STAGE_STEP, MetricsLog

STEPS = tuple(phase.step for phase in stage_alone())  # values of --from; phases of the rounds as well always run


def run_rl(
    config: Config,
    *,
    batches: int | None = None,
    first: str = STEPS[0],
    replay: bool = False,
    new_settings: bool = False,
) -> RunFolder:
    """Run the stage in the run's folder, holding its lock; returns the folder.

    ``batches`` replaces rl.batches; a stage that has ended with fewer batches goes on. ``first``: the step to begin
    with; those before it must have ended. ``replay``: train on the stored rollouts only. ``new_settings``: go on with
    changed settings; a stage that has ended is weighed anew where nothing but weights of [[rewards]] has changed.
    Raises UsageError for settings that cannot be used, SophiaError when a process fails and is not restarted any more.
    """
    if first not in STEPS:
        nearest = difflib.get_close_matches(first, STEPS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"one of {', '.join(STEPS)}"
        raise UsageError(f"--from {first!r}: {hint}")
    rl = config.on_policy
    if batches is not None:
        config = config.model_copy(update={"rl": rl.model_copy(update={"batches": batches})})
    config = with_local_models(config, names_in("stage"), download=True)
    run = make_folder(config)
    chosen = STEPS[STEPS.index(first) :]
    with folder_lock(run.lock_file), TerminalProgress() as progress:
        if new_settings and (before := only_weights_changed(config, run)) is not None:
            _weigh_anew(before, config, run, progress)
            return run
        accept_changed_settings(config, run, progress.say, new_settings=new_settings)
        claim_folder(config, run, new_settings=new_settings)
        current = Round(config, run, 0)
        preflight(current)
        metrics = MetricsLog(run.metrics_file)
        loop = replace(RL, work=partial(work.rl, replay=replay))
        for phase in phases_in("stage"):
            if phase.step and phase.step not in chosen:
                _require_ended(phase, current, first)
                continue
            began = time.monotonic()
            if phase.wanted(config):
                if phase.renewed:
                    prepare(Provenance(config, run, phases.PHASES), phase, 0, progress.say)
                run_here(loop if phase is RL else phase, current, progress)
            metrics.log(0, f"{STAGE_STEP}{phase.step or phase.name}", {"seconds": round(time.monotonic() - began, 3)})
    return run


def _require_ended(phase: Phase, round: Round, first: str) -> None:
    """Raise SophiaError if a step that --from leaves out has not ended: the steps behind it would use less than all."""
    state = phase.state_of(round) if phase.wanted(round.config) else None
    if state is not None and not state.finished:
        raise SophiaError(
            f"--from {first}: {phase.step} has not ended ({state.done} of {state.total or '?'} done); without --from "
            "it goes on"
        )


def _weigh_anew(before: Config, config: Config, run: RunFolder, progress: TerminalProgress) -> None:
    """Weigh a stage that has ended under the weights of ``config``, and write the report, which has both."""
    from sophia_mcore.train.on_policy.anew import weigh_anew  # here: it loads a tokenizer

    found = weigh_anew(before, run, config.reward_terms, progress)
    trained = found["trained_with"]
    weights = ", ".join(f"{name} {weight:g} (was {trained[name]:g})" for name, weight in found["weights"].items())
    run_here(phases.REPORT, Round(before, run, 0), progress)
    progress.say(
        f"weighed anew with {weights}: {found['batches']} batches, nothing sampled or trained; {run.rl.weighed} has "
        f"rewards and advantages, {run.report_html} both tables; to train with these weights choose another run.folder"
    )


def preflight(round: Round) -> None:
    """Check engine, starting model, layout, number of batches and the user's inputs before any work.

    Raises SophiaError or UsageError.
    """
    from sophia_mcore.parallel.layout import check_run_layout
    from sophia_mcore.pretrained.complete import check_model_dir
    from sophia_mcore.pretrained.families import check_engine_layout
    from sophia_mcore.pretrained.spec import ModelSpec, require_image_token

    config, run = round.config, round.run
    if config.on_policy.engine.kind != "vllm":
        kind = config.on_policy.engine.kind
        raise UsageError(f"rl.engine.kind = {kind!r}: new weights cannot be loaded into it; use 'vllm'")
    start = rl_start(config, run)
    check_model_dir(start)
    spec = ModelSpec.from_model_dir(start)
    require_image_token(start, spec)
    check_engine_layout(start)
    check_run_layout(spec, config)
    newest = newest_version(run.rl.versions)
    if newest is not None and newest.version > config.on_policy.batches:
        raise UsageError(
            f"rl.batches = {config.on_policy.batches}, but {newest.version} batches are trained already in {run.path}"
        )
    check_stage_inputs(config, run)
