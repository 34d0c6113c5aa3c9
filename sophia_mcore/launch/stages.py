"""`sophia run` with [[stages]]: runs the stages one after another, each as a run of its own in RUN/stages.

A stage is finished when its phases are finished and valid and its choice of a model is recorded (`launch.promotion`).
A second call finds that in the files, skips finished stages and goes on with the first that is not. A stage that began
with another model than the one that goes on now is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from sophia_mcore.config import load_config
from sophia_mcore.config.load import dump_given
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError, listed
from sophia_mcore.launch import phases
from sophia_mcore.launch.local import claim_folder, make_folder, run_phases
from sophia_mcore.launch.models import with_local_models
from sophia_mcore.launch.parts import whole_rl
from sophia_mcore.launch.phases import QUESTIONS, REPORT, RL, names_in, phases_in, phases_of, stage_alone
from sophia_mcore.launch.promotion import Promotion, choose, is_recorded, record
from sophia_mcore.launch.rl import run_rl
from sophia_mcore.launch.stage_configs import StageRun, stage_run, stage_runs
from sophia_mcore.launch.state import state_of
from sophia_mcore.phase import Phase, PhaseState
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.provenance.prepare import prepare
from sophia_mcore.rl.versions import newest_version
from sophia_mcore.store.atomic import write_text
from sophia_mcore.store.layout import Round
from sophia_mcore.store.lock import folder_lock

_RL = replace(RL, parts=whole_rl)  # a stage that no longer holds begins anew
_FIRST_MODEL = {"models.policy", "rl.start"}  # what differs where a stage began with another model

Say = Callable[[str], None]


def run_stages(
    config: Config, say: Say, *, new_settings: bool = False, ended: Callable[[StageRun], None] = lambda one: None
) -> Promotion:
    """Run all stages that are not finished, holding the lock of the run's folder; returns the last stage's choice.

    ``ended`` is called after a stage was run, before its choice is recorded: a call that is killed in between is made
    up for. Raises UsageError before any work for a stage that cannot be used, and when finished work of a stage depends
    on settings that have changed (unless ``new_settings``). Raises SophiaError when a stage fails. Errors name the
    stage.
    """
    number = len(stage_runs(config))  # all are checked before any begins
    before: Promotion | None = None
    with _claimed(config) as local:
        for index in range(number):
            one = next_stage(local, index, before)
            before = _advance(one, before, say, new_settings=new_settings, ended=ended)
    assert before is not None, "a list of stages has one at least"
    return before


def next_stage(config: Config, index: int, before: Promotion | None) -> StageRun:
    """Stage ``index``, which begins with the model that the stage before has chosen."""
    return stage_run(config, index, before.chosen.model if before is not None else None)


@contextmanager
def _claimed(config: Config) -> Iterator[Config]:
    """Write the list into the run's folder and hold its lock; yields the configuration, with models on this machine.

    Raises UsageError if the folder holds a run without stages.
    """
    config = with_local_models(config, names_in("round"), download=True)
    folder = make_folder(config)
    with folder_lock(folder.lock_file):
        if folder.config_file.is_file() and load_config(folder.config_file).stages is None:
            raise UsageError(f"{folder.path} holds a run without stages: choose another run.folder")
        write_text(folder.config_file, dump_given(config))
        yield config


def _advance(
    one: StageRun, before: Promotion | None, say: Say, *, new_settings: bool, ended: Callable[[StageRun], None]
) -> Promotion:
    try:
        work = not is_finished(one)
        if work:
            say(f"stage {one.label} ({one.stage.kind}) in {one.run.path}")
            _run(one, accept_settings(one, before, say, new_settings=new_settings))
        made = choose(one)
        if work or not is_recorded(one, made):
            ended(one)
        return settle(one, made, before, say)
    except SophiaError as error:
        raise type(error)(f"stage {one.label}: {str(error).removeprefix(f'stage {one.label}: ')}") from error


def unfinished(config: Config, say: Say, *, keep: bool) -> tuple[StageRun | None, Promotion | None]:
    """(the first stage that is not finished, the choice of the stage before); None: all are finished.

    ``keep``: write the list and the choices of finished stages, else write nothing. Raises like ``run_stages``.
    """
    number = len(stage_runs(config))
    before: Promotion | None = None
    with _claimed(config) if keep else nullcontext(config) as local:
        for index in range(number):
            one = next_stage(local, index, before)
            if not is_finished(one):
                return one, before
            made = choose(one)
            before = settle(one, made, before, say) if keep else made
    return None, before


def accept_settings(one: StageRun, before: Promotion | None, say: Say, *, new_settings: bool) -> bool:
    """Make a stage ready to begin or to go on; returns whether changed settings are accepted.

    Raises UsageError if settings of an on-policy stage have changed and are not accepted.
    """
    accepted = accepts(one, before, say, new_settings=new_settings)
    if not one.stage.on_policy:
        return accepted
    _prepare_on_policy(one, say, new_settings=accepted)
    return True


def accepts(one: StageRun, before: Promotion | None, say: Say, *, new_settings: bool) -> bool:
    """Whether changed settings are accepted: because the user says so, or since the stage began with another model."""
    return new_settings or (before is not None and _began_with_another_model(one, say))


def settle(one: StageRun, made: Promotion, before: Promotion | None, say: Say) -> Promotion:
    """Record the choice of a stage whose phases are finished, unless it is already. Says it in one line."""
    if not is_recorded(one, made):
        record(one, made, before)
    say(str(made))
    return made


def _run(one: StageRun, accepted: bool) -> None:
    if one.stage.on_policy:
        run_rl(one.config, new_settings=True)
    else:
        run_phases(one.config, names_in("round"), range(one.config.run.rounds), new_settings=accepted)


def _prepare_on_policy(one: StageRun, say: Say, *, new_settings: bool) -> None:
    """Move an on-policy stage that no longer holds aside, and record what it is made from now.

    Raises UsageError if finished work depends on settings that have changed (unless ``new_settings``).
    """
    provenance, run = _provenance(one), one.run
    changes = {key: change for found in provenance.changed().values() for key, change in found.items()}
    told = [f"{key} {change}" for key, change in changes.items()]
    if told and not new_settings:
        raise UsageError(
            f"{run.path} was started with other settings ({listed(told)}), and finished work depends on "
            "them: choose another run.folder, or add --new-settings to do again what depends on them"
        )
    make_folder(one.config)
    with folder_lock(run.lock_file):
        for phase in (QUESTIONS, _RL):
            prepare(provenance, phase, 0, say)
        claim_folder(one.config, run, new_settings=True)  # what has changed by now changes no result that is left


def _began_with_another_model(one: StageRun, say: Say) -> bool:
    """Whether nothing but the model that the stage began with has changed: by an earlier stage, not by the user."""
    changed = {key for changes in _provenance(one).changed().values() for key in changes}
    if not changed or not changed <= _FIRST_MODEL:
        return False
    say(f"stage {one.label} began with another model and is done again; its earlier results go to {one.run.aside}")
    return True


def _provenance(one: StageRun) -> Provenance:
    return Provenance(one.config, one.run, _stage_rows() if one.stage.on_policy else phases.PHASES)


def _stage_rows() -> list[Phase]:
    return [_RL if phase is RL else phase for phase in phases_in("stage")]


def _phases(one: StageRun) -> Iterator[tuple[Phase, int]]:
    """(phase, round) of everything that a stage has results of, in flow order."""
    if one.stage.on_policy:
        found = [(phase, 0) for phase in _stage_rows()]
    else:
        found = [(phase, index) for index in range(one.config.run.rounds) for phase in phases_of(index)]
    yield from ((phase, index) for phase, index in found if phase.wanted(one.config) and not phase.again)


def is_finished(one: StageRun) -> bool:
    """Whether nothing of the stage is left to be done but the choice. Raises like ``state_of``."""
    newest = newest_version(one.run.rl.versions) if one.config.rl is not None else None
    if newest is not None and one.config.rl is not None and newest.version > one.config.rl.batches:
        return False  # it has more batches than it is to have
    return all(state.finished for state in states_of(one))


def states_of(one: StageRun) -> list[PhaseState]:
    """States of the stage's phases in flow order, without the report. Raises like ``state_of``."""
    provenance = _provenance(one)
    return [state_of(phase, Round(one.config, one.run, index), provenance) for phase, index in _phases(one)]


def states_to_submit(one: StageRun) -> list[PhaseState] | None:
    """States of an on-policy stage as `sophia submit` finds them once ``accept_settings`` has made the stage ready.

    None for a stage of rounds: nothing of it is moved aside before its jobs begin.
    """
    if not one.stage.on_policy:
        return None
    provenance, alone = _provenance(one), {phase.name for phase in stage_alone()}
    anew = bool(provenance.why_stale(_RL, 0))
    found = [*states_of(one), state_of(REPORT, Round(one.config, one.run, 0), provenance)]
    return [
        replace(state, done=0, finished=False) if state.stale or (anew and state.phase in alone) else state
        for state in found
    ]
