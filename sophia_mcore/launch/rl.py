"""`sophia rl`: runs the on-policy stage on this machine, from questions to report. A second call resumes it."""

from __future__ import annotations

import difflib
import time
from dataclasses import replace
from functools import partial
from typing import Any

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError, listed
from sophia_mcore.launch import phases, work
from sophia_mcore.launch.environments import run_here
from sophia_mcore.launch.local import claim_folder, make_folder
from sophia_mcore.launch.models import with_local_models
from sophia_mcore.launch.parts import whole_rl
from sophia_mcore.launch.phases import RL, names_in, phases_in, stage_alone
from sophia_mcore.launch.readers import stage_has_ended
from sophia_mcore.launch.state import check_stage_inputs
from sophia_mcore.launch.terminal import TerminalProgress
from sophia_mcore.phase import Phase
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.provenance.prepare import prepare
from sophia_mcore.provenance.settings import CHANGE_NO_RESULT, TABLES, covers, flat
from sophia_mcore.rl.start import rl_start
from sophia_mcore.rl.versions import newest_version
from sophia_mcore.store.layout import Round, RunFolder, checkpoint_steps
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.store.user_files import user_functions
from sophia_mcore.track.metrics import STAGE_STEP, MetricsLog

STEPS = tuple(phase.step for phase in stage_alone())  # values of --from; phases of the rounds as well always run

# Settings that a stage of [[stages]] depends on and a stage of its own does not: limits of grading, and a model that
# is not asked.
_CHANGEABLE = ("models.reasoner", "score.timeout_seconds", "score.memory_limit_mib")


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
    with; those before it must have ended. ``replay``: train on the stored rollouts only. Raises UsageError for settings
    that cannot be used, SophiaError when a process fails and is not restarted any more.
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
        refuse_changed_settings(config, run, new_settings=new_settings)
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


def refuse_changed_settings(config: Config, run: RunFolder, *, new_settings: bool = False) -> None:
    """Raise UsageError if the stage has begun with other settings and its result depends on them.

    ``new_settings``: only if the stage has ended, since then nothing would be done with the new ones, or if weights are
    announced that no checkpoint has: answers have been sampled by them, and the new settings would not make them again.
    """
    newest = newest_version(run.rl.versions)
    if newest is None and not run.rl.select.is_dir():
        return
    before = load_config(run.config_file) if run.config_file.is_file() else None
    if before is None or before.rl is None:  # config.toml was written by a round that was run since
        return
    old, new = (_compared(one, run) for one in (before, config))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    changed += changed_files(config, run)
    if changed and not (new_settings and not stage_has_ended(config, run)):
        if new_settings:
            raise UsageError(
                f"the on-policy stage of {run.path} has ended with other settings ({listed(changed)}): choose another "
                "run.folder, or a larger rl.batches to go on with the new ones"
            )
        raise UsageError(
            f"the on-policy stage of {run.path} was started with other settings ({listed(changed)}): choose "
            "another run.folder, or add --new-settings to go on with the new ones"
        )
    saved = max(checkpoint_steps(run.rl.checkpoints), default=0)
    if changed and newest is not None and newest.step > saved:
        raise UsageError(
            f"the on-policy stage of {run.path} was killed at step {newest.step}, and its last checkpoint is of step "
            f"{saved}: the new settings ({listed(changed)}) would not train the same weights again that its "
            "answers come from; go on with the old settings and stop it with Ctrl-C, which saves a checkpoint, or "
            "choose another run.folder"
        )


def _compared(config: Config, run: RunFolder) -> dict[str, Any]:
    """The settings that answers and weights of the stage depend on, by key. No file is read."""
    (part,) = whole_rl(Round(config, run, 0))
    keys, free = part.settings, (*CHANGE_NO_RESULT, *_CHANGEABLE)
    found = {key: value for key, value in flat(config).items() if covers(keys, key) and not covers(free, key)}
    return found | {key: value for key, value in part.values.items() if not key.startswith(("file ", TABLES))}


def changed_files(config: Config, run: RunFolder) -> list[str]:
    """The user's functions of the stage whose file is not the one that the run has copied."""
    return [
        f"the content of {function.file}"
        for function in user_functions(config)
        if function.key.startswith(("rewards.", "rl."))
        and function.copy_in(run).is_file()
        and function.file.is_file()
        and function.file.read_bytes() != function.copy_in(run).read_bytes()
    ]


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
