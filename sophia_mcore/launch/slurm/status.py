"""The output of `sophia submit` and `sophia status`."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.phases import phase_named, stage_alone
from sophia_mcore.launch.slurm import commands as slurm
from sophia_mcore.launch.slurm.attempts import Attempt, read_attempts
from sophia_mcore.launch.slurm.commands import QueuedJob
from sophia_mcore.launch.slurm.health import unhealthy_nodes
from sophia_mcore.launch.slurm.submit import Submission, read_submission
from sophia_mcore.launch.state import stage_states, states
from sophia_mcore.phase import PhaseState
from sophia_mcore.provenance.check import unchecked_line
from sophia_mcore.store.atomic import write_text
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import run_uid

_WIDTH = 110


def submission_table(submission: Submission, *, dry_run: bool) -> str:
    """Table of the submitted jobs. ``dry_run``: of the jobs that would be submitted, with Slurm's answer to each."""
    if not submission.jobs:
        return "nothing is missing: no job submitted"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("phase", "round", "tasks", "after", "Slurm says" if dry_run else "job"):
        table.add_column(name, overflow="fold")
    for job in submission.jobs:
        after = ", ".join(f"{phase} of round {index}" for phase, index in job.after)
        answer = submission.answers.get(job.key, "")
        table.add_row(job.phase, str(job.round), str(job.tasks or 1), after, escape(answer))
    return as_text(table)


def status_text(config: Config, run: RunFolder) -> str:
    """The table of phases, then stale results and problems, one line each."""
    found = _states(config, run)
    try:
        jobs, remarks = slurm.queue(run_uid(run.path)), []
    except SophiaError as error:
        was_submitted = run.slurm.logs.is_dir()  # made before the first job
        jobs, remarks = [], [f"jobs are not known: {error}"] if was_submitted else []
    attempts = read_attempts(run)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("phase", "round", "done", "claimed", "failed", "jobs", "attempts", "loss", "left"):
        table.add_column(name, overflow="fold")
    for state in found:
        mine = [job for job in jobs if job.key == (state.phase, state.round) and job.is_active]
        tried = [attempt for attempt in attempts if (attempt.phase, attempt.round) == (state.phase, state.round)]
        table.add_row(*_row(state, mine, tried))
    return "\n".join([as_text(table), *remarks, *_stale_lines(run, found), *problems(run, found, jobs, attempts)])


def _states(config: Config, run: RunFolder) -> list[PhaseState]:
    """States of the rounds, then of the on-policy stage; of the stage alone where no round has begun."""
    if config.rl is not None and run.is_stage_alone:
        return stage_states(config, run)
    rounds = max(config.run.rounds, int(read_submission(run).get("rounds", 1)))
    found = [state for state in states(config, run, range(rounds)) if phase_named(state.phase).wanted(config)]
    if config.rl is not None:
        alone = {phase.name for phase in stage_alone()}
        found += [state for state in stage_states(config, run) if state.phase in alone]
    return found


def _stale_lines(run: RunFolder, found: Sequence[PhaseState]) -> list[str]:
    """A line for each phase with a note or with stale results, and one for all phases of unknown settings."""
    lines = [f"{state.phase} of round {state.round}: {state.note}" for state in found if state.note]
    lines += [f"{state.phase} of round {state.round} is stale: {state.stale}" for state in found if state.stale]
    unchecked = list(dict.fromkeys(state.phase for state in found if state.unchecked))
    return [*lines, *([unchecked_line(run, unchecked)] if unchecked else [])]


def _row(state: PhaseState, jobs: Sequence[QueuedJob], attempts: Sequence[Attempt]) -> list[str]:
    counted = Counter((job.id.partition("_")[0], job.state.lower()) for job in jobs)
    word = " [red]stale[/]" if state.stale else " [green]ok[/]" if state.finished else ""
    done = f"{state.done}/{state.total or '?'}{word}"
    return [
        state.phase,
        str(state.round),
        done,
        str(state.claimed or ""),
        str(state.failed or ""),
        ", ".join(
            f"{number} {name}" + (f" x{count}" if count > 1 else "") for (number, name), count in counted.items()
        ),
        str(len(attempts) or ""),
        "" if state.loss is None else f"{state.loss:.4f}",
        "" if (left := seconds_left(state, jobs, attempts, time.time())) is None else duration(left),
    ]


def seconds_left(state: PhaseState, jobs: Sequence[QueuedJob], attempts: Sequence[Attempt], now: float) -> float | None:
    """Seconds until the running tasks have finished the phase, at the average time of a unit so far. None: not known.

    ``jobs`` and ``attempts`` are those of the phase; ``now`` is in seconds since 1970. For training, ``state`` has the
    value already, from the time of its steps.
    """
    running = {job.id for job in jobs if job.state == "RUNNING"}
    if state.seconds_left is not None or not running or not state.done:
        return state.seconds_left
    spent = sum((a.ended or now) - a.began for a in attempts if a.ended is not None or a.job in running)
    return (state.total - state.done) * spent / state.done / len(running)


def problems(
    run: RunFolder, found: Sequence[PhaseState], jobs: Sequence[QueuedJob], attempts: Sequence[Attempt]
) -> list[str]:
    """One line for each problem that keeps an unfinished phase from going on."""
    lines = []
    for state in found:
        if state.finished:
            continue
        key = (state.phase, state.round)
        mine = [attempt for attempt in attempts if (attempt.phase, attempt.round) == key]
        bad = [attempt for attempt in mine if attempt.outcome in ("failed", "unhealthy node", "lost process")]
        messages = dict.fromkeys(
            f"{a.outcome} on {a.nodes} (job {a.job}, restart {a.restart}): {a.message}" for a in bad
        )
        lines += [f"{state.phase} of round {state.round}: {message}" for message in list(messages)[-3:]]
        waiting = [job.id for job in jobs if job.key == key and job.state in slurm.LIVE and not job.is_active]
        if waiting:
            listed = ", ".join(waiting)
            lines.append(
                f"{state.phase} of round {state.round}: job {listed} waits for a job that can no longer succeed"
            )
        ended = [job for job in jobs if job.key == key and job.state not in slurm.LIVE]
        last = {attempt.job: attempt for attempt in mine}  # attempts are sorted by start
        for job in ended:
            if job.id not in last:
                lines.append(f"{state.phase} of round {state.round}: {_without_attempt(run, job)}")
            elif last[job.id].ended is None:
                where = f"job {job.id} {job.state.lower()} on {last[job.id].nodes}"
                lines.append(
                    f"{state.phase} of round {state.round}: {where}: killed, or its message could not be written"
                )
    lines += _full_disk(run) if lines else []
    lines += [f"node {node} is left out by job {', '.join(by)}" for node, by in unhealthy_nodes(run).items()]
    return lines


def _without_attempt(run: RunFolder, job: QueuedJob) -> str:
    """Why a job ended before its task wrote a record: the last error in its logs, or a guess if there are none."""
    logs = run.slurm.logs
    name = f"{job.key[0]}-r{job.key[1]}-{job.id}"
    try:
        lines = run.slurm.batch_log(name).read_text(errors="replace").splitlines()
        for path in sorted(logs.glob(f"{name}-*.log")):  # logs of tasks whose program could not be started or imported
            lines += path.read_text(errors="replace").splitlines()
        errors = [line.strip() for line in lines if "error:" in line.lower()]
        causes = [line for line in errors if "Exited with exit code" not in line]
        hint = (causes or errors or ["no error line in its log"])[-1]
    except OSError:
        hint = f"it left no log; does {job.nodes or 'its node'} see {run.path.absolute()}?"
        if job.state == "CANCELLED" and not job.nodes:
            never = slurm.NEVER in job.reason
            hint = "it never ran: the job that it waited for did not succeed" if never else "it never ran"
    return f"job {job.id} {job.state.lower()}: {hint}"


def _full_disk(run: RunFolder) -> list[str]:
    """The error of a test write if the disk is full, else []: tasks cannot record errors on a full disk."""
    path = run.slurm.canary("status")
    try:
        write_text(path, " " * 4096)
    except SophiaError as error:
        full = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
        return [str(error)] if full else []  # a user who may only read the folder may ask for the status
    path.unlink(missing_ok=True)
    return []


def duration(seconds: float) -> str:
    """Seconds as a text of hours and minutes.

    >>> duration(5000)
    '1 h 23 min'
    """
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "< 1 min"


def as_text(table: Table) -> str:
    """The lines of a table as they are printed, without colours."""
    console = Console(file=StringIO(), width=_WIDTH, force_terminal=False)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines)
