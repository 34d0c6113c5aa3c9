"""The output of `sophia status` for a run of several stages."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.promotion import Promotion, choose, is_recorded
from sophia_mcore.launch.slurm.status import as_text
from sophia_mcore.launch.stage_configs import StageRun, stage_runs
from sophia_mcore.launch.stages import is_finished, next_stage, states_of
from sophia_mcore.phase import PhaseState
from sophia_mcore.store.layout import RunFolder


def stages_text(config: Config, run: RunFolder) -> str:
    """The table of the stages, then what is stale or cannot be read, one line each. Raises like ``stage_runs``."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "kind", "state", "goes on", "score"):
        table.add_column(name, overflow="fold")
    config = config.model_copy(update={"run": config.run.model_copy(update={"folder": run.path})})  # it may have moved
    lines: list[str] = []
    before: Promotion | None = None
    current = ""  # the first stage that is not finished
    for index, planned in enumerate(stage_runs(config)):
        if current:
            table.add_row(planned.label, planned.stage.kind, f"after {current}", "", "")
            continue
        one = next_stage(config, index, before)
        state, made, told = _state(one)
        lines += told
        label, score = (made.chosen.label, made.chosen.score) if made is not None else ("", None)
        share = "" if score is None else f"{100 * score:.1f}%"
        table.add_row(one.label, one.stage.kind, escape(state), label, share)
        before, current = made, "" if made is not None else one.label
        if made is None and one.run.config_file.is_file():
            lines.append(f"details of {one.label}: sophia status {one.run.path}")
    return "\n".join([as_text(table), *lines])


def _state(one: StageRun) -> tuple[str, Promotion | None, list[str]]:
    """(a word on the stage, its recorded choice, lines about what is wrong)."""
    if not one.run.config_file.is_file():
        return "not begun", None, []
    try:
        if is_finished(one):
            made = choose(one)
            if is_recorded(one, made):
                return "finished", made, [str(made)]
            return "finished; the choice is not recorded", None, []
        found = states_of(one)
        return _progress(found), None, _stale(one, found)
    except SophiaError as error:
        return "not known", None, [f"stage {one.label}: {str(error).removeprefix(f'stage {one.label}: ')}"]


def _progress(states: Sequence[PhaseState]) -> str:
    left = next((state for state in states if not state.finished), states[-1])
    done = f" {left.done}/{left.total}" if left.total else ""
    return f"{'stale' if left.stale else 'at'} {left.phase} of round {left.round}{'' if left.stale else done}"


def _stale(one: StageRun, states: Sequence[PhaseState]) -> list[str]:
    return [
        f"stage {one.label}: {state.phase} of round {state.round} is stale: {state.stale}"
        for state in states
        if state.stale
    ]
