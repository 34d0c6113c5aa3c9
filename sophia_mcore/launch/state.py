"""The state of each phase of a run, and whether it may start. `sophia status` and `sophia submit` use it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch import phases
from sophia_mcore.launch.inputs import inputs_of
from sophia_mcore.launch.phases import phases_of, starting_at, wanted_needs, wanted_phases
from sophia_mcore.phase import Phase, PhaseState
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.store.layout import Round, RunFolder


def states(config: Config, run: RunFolder, rounds: Iterable[int]) -> list[PhaseState]:
    """States of all phases of the given rounds in flow order. Raises like ``state_of``."""
    provenance = Provenance(config, run, phases.PHASES)
    return [state_of(phase, Round(config, run, index), provenance) for index in rounds for phase in phases_of(index)]


def state_of(phase: Phase, round: Round, provenance: Provenance | None = None) -> PhaseState:
    """The state of a phase. A phase whose results are no longer valid is not finished.

    Raises SophiaError when its folder holds work units of other settings and there is no record of these settings.
    """
    provenance = provenance or Provenance(round.config, round.run, phases.PHASES)
    verdicts = provenance.check_phase(phase, round.index)
    why = provenance.why_stale(phase, round.index)
    try:
        found = phase.state_of(round)
    except SophiaError:
        if not why:
            raise
        found = PhaseState(phase=phase.name, round=round.index)
    if why:
        return replace(found, finished=False, stale=why)
    return replace(found, unchecked=any(verdict.unchecked for verdict in verdicts))


def require_valid_inputs(phase: Phase, round: Round) -> None:
    """Raise SophiaError, naming phase and setting, if results that the phase needs are no longer valid."""
    if phase.again:
        return
    provenance = Provenance(round.config, round.run, phases.PHASES)
    for needed, index in wanted_needs(round.config, phase, round.index):
        why = provenance.why_stale(needed, index)
        if why:
            raise SophiaError(
                f"{phase.name} of round {round.index} cannot start: {needed.name} of round {index} has to be done "
                f"again first ({why})"
            )


def check_unfinished(config: Config, run: RunFolder, names: Collection[str], rounds: Sequence[int]) -> None:
    """Check the user's inputs (``launch.inputs``) of the phases ``names``.

    If one of these phases samples, inputs of all phases after it are checked too: rollouts take days. Inputs of
    finished phases are not checked. Raises the SophiaError of the first input that cannot be used.
    """
    wanted = set(names)
    sampling = next((phase.name for phase in phases.phases_in("round") if phase.name in wanted and phase.engine), None)
    if sampling is not None:
        wanted |= set(starting_at(sampling))
    _look(config, {state.phase for state in states(config, run, rounds) if not state.finished} & wanted)


def check_stage_inputs(config: Config, run: RunFolder) -> None:
    """As `check_unfinished`, for the phases of the on-policy stage."""
    _look(config, {state.phase for state in stage_states(config, run) if not state.finished})


def _look(config: Config, names: Collection[str]) -> None:
    """Check the inputs of these phases."""
    for found in inputs_of(config):
        if not set(found.phases).isdisjoint(names):
            found.look()


def stage_states(config: Config, run: RunFolder) -> list[PhaseState]:
    """States of the questions phase, the phases of the on-policy stage and the report, in flow order.

    Raises UsageError when the configuration has no on-policy stage.
    """
    if config.rl is None:
        raise UsageError("the configuration has no [rl] section: docs/on_policy.md shows one")
    provenance = Provenance(config, run, phases.PHASES)
    return [state_of(phase, Round(config, run, 0), provenance) for phase in wanted_phases(config, "stage")]


def check_inputs(phase: Phase, round: Round) -> None:
    """Check that a phase has everything that it needs. A Slurm task calls this itself: dependencies are not enough.

    Raises SophiaError that names what is missing or no longer valid.
    """
    require_valid_inputs(phase, round)
    if phase.inputs is not None:
        phase.inputs(round)
    else:
        for needed, index in wanted_needs(round.config, phase, round.index):
            _require_finished(phase, round, needed, index)
    if phase.models is not None:
        from sophia_mcore.pretrained.complete import check_model_dir
        from sophia_mcore.pretrained.families import check_images

        for folder in phase.models(round):
            check_model_dir(folder)
            check_images(folder, round.config.batch)


def _require_finished(phase: Phase, round: Round, needed: Phase, index: int) -> None:
    state = needed.state_of(Round(round.config, round.run, index))
    if not state.finished:
        some = f" ({state.done} of {state.total} done)" if state.total else ""
        raise SophiaError(
            f"{phase.name} of round {round.index} cannot start: {needed.name} of round {index} is not finished{some}"
        )
