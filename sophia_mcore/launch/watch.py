"""`sophia watch`: shows phases, newest texts and metrics of a running run in the terminal. It only reads the run."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text as Plain

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.phases import phases_of, stage_alone
from sophia_mcore.launch.slurm.status import duration
from sophia_mcore.phase import PhaseState
from sophia_mcore.report.newest import Curve, Text, curves, newest_texts, verdict_counts
from sophia_mcore.store.layout import Round, RunFolder

_SHARE_OF_TIME = 0.2  # largest share of the time that is spent on reading; large runs are read less often
_RATE_SECONDS = 600.0  # the time left is estimated from the progress in this period


@dataclass(frozen=True)
class Seen:
    """The state of a run at one time. ``notes``: why parts of it are not known. ``finished``: nothing will change."""

    states: Sequence[PhaseState] = ()
    texts: Sequence[Text] = ()
    curves: Sequence[Curve] = ()
    verdicts: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    finished: bool = False


class Rates:
    """Estimates the time left of phases from the progress that was watched."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], deque[tuple[float, int]]] = {}

    def left(self, state: PhaseState, now: float) -> float | None:
        """Seconds until the phase is finished; None if they are not known. ``now``: monotonic time in seconds."""
        points = self._seen.setdefault((state.phase, state.round), deque())
        points.append((now, state.done))
        while points[0][0] < now - _RATE_SECONDS:
            points.popleft()
        if state.finished:
            return None
        (began, before), done = points[0], state.done - points[0][1]
        if state.seconds_left is not None or not state.total or done <= 0 or now <= began or before < 0:
            return state.seconds_left
        return (state.total - state.done) * (now - began) / done


def watch(path: Path, every: float, *, once: bool = False, out: TextIO | None = None) -> None:
    """Show the run until it has finished, or until Ctrl-C.

    ``every``: seconds between two reads. ``once``: read and show the run only once. ``out``: stdout by default; if it
    is not a terminal, one line is printed for each change. Raises UsageError if ``path`` is neither a folder nor a
    configuration.
    """
    run, out = _run_folder(path), out or sys.stdout
    console = Console(file=out)
    try:
        if once:
            console.print(shown(run, look(run), Rates()))
        elif console.is_terminal and not console.is_dumb_terminal:
            _in_terminal(run, every, console)
        else:
            _in_lines(run, every, out)
    except KeyboardInterrupt:
        return  # Ctrl-C ends only the watching
    except BrokenPipeError:  # such as `sophia watch RUN | head`; the rest of the buffer is dropped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_folder(path: Path) -> RunFolder:
    if not path.exists():
        raise UsageError(f"{path}: no such run folder or configuration file")
    run = RunFolder(path if path.is_dir() else load_config(path).run.folder)
    # Of several stages the one that was begun last, which may be an earlier one that is done again.
    written = (RunFolder(stage).config_file for stage in run.stages.glob("*"))
    begun = max(filter(Path.is_file, written), key=lambda file: (file.stat().st_mtime_ns, file), default=None)
    return run if begun is None else RunFolder(begun.parent)


def look(run: RunFolder) -> Seen:
    """Read the present state of a run. Raises nothing, since files may appear and vanish while a run works."""
    if not run.config_file.is_file():
        return Seen(notes=(f"nothing there yet: waiting for {run.config_file}",))
    try:
        config = load_config(run.config_file)
        rounds = range(_rounds(config, run))
        states, notes = _states(config, run, rounds)
        verdicts = tuple(verdict_counts(run, rounds[-1]).items())
        finished = not notes and all(state.finished for state in states)
        return Seen(states, newest_texts(run, rounds), curves(run, rounds), verdicts, tuple(notes), finished)
    except (SophiaError, OSError) as error:
        return Seen(notes=(str(error),))


def _rounds(config: Config, run: RunFolder) -> int:
    """Number of rounds that have begun, at least 1."""
    return max(1, sum(run.round(index).path.is_dir() for index in range(config.run.rounds)))


def _states(config: Config, run: RunFolder, rounds: Sequence[int]) -> tuple[list[PhaseState], list[str]]:
    """(states of the phases of the run, one line for each phase whose state cannot be read)."""
    phases = [(phase, index) for index in rounds for phase in phases_of(index)]
    if config.rl is not None and (run.rl.rollouts.is_dir() or run.rl.train.is_dir()):
        phases += [(phase, 0) for phase in stage_alone()]
    states, notes = [], []
    for phase, index in phases:
        if not phase.wanted(config):
            continue
        try:
            states.append(phase.state_of(Round(config, run, index)))
        except (SophiaError, OSError) as error:
            notes.append(f"{phase.name} of round {index}: {error}")
    return states, notes


def shown(run: RunFolder, seen: Seen, rates: Rates) -> RenderableType:
    """The state of a run as output for the terminal."""
    parts: list[RenderableType] = [Plain(f"{run.path}  {time.strftime('%H:%M:%S')}", style="bold")]
    parts += [Plain(note, style="yellow", no_wrap=True, overflow="ellipsis") for note in seen.notes]
    parts += [Plain(line, style="green") for line in _done(seen.states)]
    if left := [state for state in seen.states if not state.finished]:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("phase", "round", "done", "", "left"):
            table.add_column(name)
        for state in left:
            remaining = rates.left(state, time.monotonic())
            counted = f"{state.done}/{state.total or '?'}"
            say = "" if remaining is None else duration(remaining)
            table.add_row(state.phase, str(state.round), counted, _bar(state), say)
        parts.append(table)
    parts += [_panel(text) for text in seen.texts[:1]]  # the newest above what a small terminal cuts off
    if seen.verdicts:
        parts.append(Plain("verdicts: " + ", ".join(f"{n.replace('_', ' ')} {c:,}" for n, c in seen.verdicts)))
    for curve in seen.curves:
        line = Plain(f"{curve.name:<18} {_number(curve.values[-1]):>10}  ")
        line.append(curve.drawn(), style="blue")
        parts.append(line.append(f"  step {curve.step}", style="dim"))
    return Group(*parts, *(_panel(text) for text in seen.texts[1:]))


def _done(states: Sequence[PhaseState]) -> list[str]:
    """The finished phases, one line for each round; the round is named where there are several."""
    rounds = sorted({state.round for state in states})
    found = {index: [state.phase for state in states if state.finished and state.round == index] for index in rounds}
    of = "" if len(rounds) == 1 else " of round {}"
    return [f"done{of.format(index)}: {', '.join(names)}" for index, names in found.items() if names]


def _panel(text: Text) -> Panel:
    title = f"{text.kind} {text.about}, {_ago(text.written)}"
    return Panel(Plain(text.text), title=Plain(title), title_align="left", border_style="dim")


def _bar(state: PhaseState) -> Plain:
    share = state.done / state.total if state.total else 0.0
    filled = int(20 * share)
    claimed = f" {state.claimed} at work" if state.claimed else ""
    failed = f" {state.failed} failed" if state.failed else ""
    return Plain("█" * filled + "░" * (20 - filled) + claimed + failed)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def _ago(written: float) -> str:
    seconds = max(0.0, time.time() - written)
    return f"{seconds:.0f} s ago" if seconds < 100 else f"{duration(seconds)} ago"


def _in_terminal(run: RunFolder, every: float, console: Console) -> None:
    rates = Rates()
    with Live(console=console, auto_refresh=False, vertical_overflow="crop", screen=True) as live:
        while True:
            began = time.monotonic()
            seen = look(run)
            live.update(shown(run, seen, rates), refresh=True)
            if seen.finished:
                break
            time.sleep(max(every, (time.monotonic() - began) / _SHARE_OF_TIME))
    console.print(shown(run, seen, rates))  # the last state stays on the terminal


def _in_lines(run: RunFolder, every: float, out: TextIO) -> None:
    """Print one line for each phase, text or metric that has changed since the last read."""
    before: set[str] = set()
    while True:
        began = time.monotonic()
        seen = look(run)
        lines = _lines(seen)
        for line in lines:
            if line not in before:
                print(f"{time.strftime('%H:%M:%S')} {line}", file=out, flush=True)
        before = set(lines)
        if seen.finished:
            return
        time.sleep(max(every, (time.monotonic() - began) / _SHARE_OF_TIME))


def _lines(seen: Seen) -> list[str]:
    found = list(seen.notes)
    for state in seen.states:
        if state.done or state.claimed or state.finished:
            word = " ok" if state.finished else ""
            found.append(f"{state.phase} of round {state.round}: {state.done}/{state.total or '?'}{word}")
    if seen.verdicts:
        found.append("verdicts: " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in seen.verdicts))
    found += [f"step {curve.step}: {curve.name} {_number(curve.values[-1])}" for curve in seen.curves]
    found += [f"{text.kind} {text.about}: {' '.join(text.text.split())[-300:]}" for text in seen.texts]
    return found
