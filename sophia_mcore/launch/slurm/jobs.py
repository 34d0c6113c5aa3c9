"""Plans the jobs that a run still needs, from the state of its phases, and builds their sbatch command lines."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.launch import phases
from sophia_mcore.launch.phases import needs_of, phase_named
from sophia_mcore.phase import Phase, PhaseState
from sophia_mcore.store.layout import RunFolder

_READ = re.compile(r"(?:export\s+)?((?:OPTIONS|TASKS)_\w*|GPUS_BY)=(.*)")
_OURS = {"--array": "-a", "--dependency": "-d", "--output": "-o", "--job-name": "-J", "--comment": "--comment"}
_MAX_TASKS = 10_000
Key = tuple[str, int]  # phase, round


@dataclass(frozen=True)
class Site:
    """The variables of the env file that `sophia submit` reads. The jobs read the others."""

    values: Mapping[str, str]

    def options(self, *names: str) -> list[str]:
        """sbatch options of OPTIONS_<name> for each name, in order. sbatch uses the last of several equal options."""
        return [option for name in names for option in shlex.split(self.values.get(f"OPTIONS_{name.upper()}", ""))]

    def tasks(self, name: str) -> int:
        """Number of tasks in the array of a phase."""
        return int(self.values.get(f"TASKS_{name.upper()}", "1"))

    @property
    def gpus_by(self) -> str:
        """The sbatch option that asks for GPUs, without their number. "" on a cluster without such an option."""
        return self.values.get("GPUS_BY", "--gpus-per-node=")


def read_site(path: Path) -> Site:
    """Read the OPTIONS_, TASKS_ and GPUS_BY lines of an env file.

    Raises UsageError when the file is missing, a line is not one shell assignment, a name is unknown, a value is not a
    number, or an option is one that `sophia submit` sets itself.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such env file (cluster.env_file); copy the nearest slurm/env/*.example there and edit it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    values: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _READ.match(line)
        if match is None:
            continue
        try:
            values[match[1]] = _value(match[1], match[2])
        except (ValueError, UsageError) as error:
            raise UsageError(f"{path}:{number}: {error}") from None
    return Site(values)


def variables() -> list[str]:
    """Names of the variables of an env file that `sophia submit` reads."""
    names = ["ALL", "GPU", "CPU", "RL_ENGINES", *(phase.variable for phase in phases.PHASES)]
    arrays = [phase.variable for phase in phases.PHASES if phase.units is not None]
    return ["GPUS_BY", *(f"OPTIONS_{name}" for name in names), *(f"TASKS_{name}" for name in arrays)]


def _value(name: str, text: str) -> str:
    if name not in (known := variables()):
        nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]
        raise UsageError(f"nothing reads {name}; did you mean {nearest}?")
    words = shlex.split(text, comments=True)
    if len(words) > 1:
        raise UsageError(f'put the value into quotes: {name}="{text.strip()}"')
    value = words[0] if words else ""
    if name.startswith("TASKS_") and not (value.isdigit() and 0 < int(value) <= _MAX_TASKS):
        raise UsageError(f"{name} must be a number from 1 to {_MAX_TASKS}")
    if name.startswith("OPTIONS_"):
        for option in shlex.split(value):
            if any(option.partition("=")[0] == long or option.startswith(short) for long, short in _OURS.items()):
                raise UsageError(f"{name}: 'sophia submit' sets {option.partition('=')[0]} itself")
    return value


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job to submit: a phase of a round that is not finished."""

    phase: str
    round: int
    tasks: int | None = None  # tasks of its array; None: no array
    options: tuple[str, ...] = ()
    after: tuple[Key, ...] = ()  # the jobs that it waits for

    @property
    def key(self) -> Key:
        return self.phase, self.round

    @property
    def name(self) -> str:
        return f"{self.phase}-r{self.round}"


def plan_jobs(config: Config, site: Site, states: Sequence[PhaseState]) -> list[Job]:
    """A job for every phase that is not finished, in the order of ``states``.

    A finished report gets a job too if its round has other jobs. Raises UsageError when training cannot be divided over
    nodes.
    """
    open_ = {(state.phase, state.round) for state in states if not state.finished}
    for state in states:  # a report must cover the results of the new jobs
        if phase_named(state.phase).again and any(index == state.round for _, index in open_):
            open_.add((state.phase, state.round))
    return [
        _job(config, site, state, _waits_for(config, (state.phase, state.round), open_))
        for state in states
        if (state.phase, state.round) in open_
    ]


def _waits_for(config: Config, key: Key, open_: Collection[Key]) -> tuple[Key, ...]:
    """The jobs in ``open_`` that the job of ``key`` must wait for, without those that one of them waits for anyway."""
    found = _before(config, key, open_)
    earlier = {other for one in found for other in _ancestors(config, one, open_)}
    return tuple(one for one in found if one not in earlier)


def _before(config: Config, key: Key, open_: Collection[Key]) -> list[Key]:
    """The jobs in ``open_`` that ``key`` needs.

    A phase that is not part of the run is replaced by the phases that it needs. A phase that is done again after any
    other (a report) waits for all earlier jobs: for it, finished phases are replaced in the same way.
    """
    again = phase_named(key[0]).again
    found: list[Key] = []
    behind = [key]
    while behind:
        name, index = behind.pop()
        for needed, when in needs_of(phase_named(name), index):
            if (needed.name, when) in open_:
                found.append((needed.name, when))
            elif again or not needed.wanted(config):
                behind.append((needed.name, when))
    return list(dict.fromkeys(found))


def _ancestors(config: Config, key: Key, open_: Collection[Key]) -> set[Key]:
    found: set[Key] = set()
    for one in _before(config, key, open_):
        found |= {one} | _ancestors(config, one, open_)
    return found


def _job(config: Config, site: Site, state: PhaseState, after: tuple[Key, ...]) -> Job:
    phase = phase_named(state.phase)
    shape = phase.shape_for(config)
    options = site.options("all", "gpu" if shape.gpus else "cpu")
    if shape.nodes is not None:
        options.append(f"--nodes={shape.nodes}")
    if shape.gpus and site.gpus_by:
        options.append(f"{site.gpus_by}{shape.gpus}")
    left = state.total - state.done if state.total else None
    return Job(
        phase=phase.name,
        round=state.round,
        tasks=max(1, min(site.tasks(phase.variable), left or _MAX_TASKS)) if phase.units is not None else None,
        options=(*options, *site.options(phase.variable)),
        after=after,
    )


def log_option(run: RunFolder, *, array: bool) -> str:
    """sbatch's option for the output of job.sh. In the run's own path a % is doubled: it would begin a pattern."""
    escaped = RunFolder(Path(str(run.path.absolute()).replace("%", "%%")))
    return f"--output={escaped.slurm.batch_log('%x-%A_%a' if array else '%x-%j')}"


def sbatch_command(
    job: Job, run: RunFolder, scripts: Path, uid: str, ids: Mapping[Key, str], *, test_only: bool = False
) -> list[str]:
    """The command that submits ``job``. ``ids``: numbers of the jobs submitted before it.

    After an array the job starts in any case (afterany) and checks its inputs itself, since other tasks may have done
    the work of a lost task. After a single job it starts only if that job succeeded (afterok). A report always starts.
    """
    folder = run.path.absolute()
    command = ["sbatch", "--test-only" if test_only else "--parsable", f"--job-name={job.name}"]
    command += [f"--comment={comment(uid, job.key)}", log_option(run, array=bool(job.tasks))]
    if job.tasks:
        command.append(f"--array=0-{job.tasks - 1}")
    if job.after and not test_only:
        ever = phase_named(job.phase).again
        kinds = {key: "afterok" if phase_named(key[0]).units is None and not ever else "afterany" for key in job.after}
        waits = ",".join(f"{kind}:{ids[key]}" for key, kind in kinds.items())
        command += [f"--dependency={waits}", "--kill-on-invalid-dep=yes"]
    phase = phase_named(job.phase)
    script = scripts / phase.script_name
    options = [*job.options, *early_signal(job.options, script.read_text())]
    command += [*options, str(script), str(folder), str(job.round), str(scripts.absolute())]
    return [*command, phase.name, _environment_of(phase)] if phase.script else command


def _environment_of(phase: Phase) -> str:
    """Name of the phase's environment in variables of the env file: ROLLOUT or TRAINER, as in PYTHON_TRAINER."""
    return "ROLLOUT" if phase.environment == "rollout" else "TRAINER"


def early_signal(options: Sequence[str], script: str) -> list[str]:
    """A ``--signal`` option with a third of the job's time, if that is less than the time in ``script``; else [].

    ``--signal`` says how long before its end a job is told to stop. Without this, a short job would be told to stop as
    soon as it starts, again and again. Returns [] if ``options`` have their own ``--signal``.
    """
    words = [word for line in script.splitlines() if line.startswith("#SBATCH") for word in line.split()[1:]]
    lead = re.search(r"--signal=B:USR1@(\d+)", " ".join(words))
    if lead is None or any(word.startswith("--signal") for word in options):
        return []
    times = _times([*words, *options])
    seconds = _seconds(times[-1]) if times else None
    return [f"--signal=B:USR1@{seconds // 3}"] if seconds and seconds < 3 * int(lead[1]) else []


def _times(words: Sequence[str]) -> list[str]:
    """The values of --time and -t, in any spelling, in order."""
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in ("--time", "-t"):
            found.append(following)
        elif word.startswith("--time=") or (word.startswith("-t") and word[2:3].isdigit()):
            found.append(word.removeprefix("--time=").removeprefix("-t"))
    return found


def _seconds(time: str) -> int | None:
    """Seconds of a time in one of Slurm's formats: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. None for other texts."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if match is None:
        return None
    days, *parts = (int(part) if part else 0 for part in match.groups())
    if match[1] is None and match[4] is None:  # M or M:S
        parts = [0, *parts[:2]]
    return ((days * 24 + parts[0]) * 60 + parts[1]) * 60 + parts[2]


def comment(uid: str, key: Key) -> str:
    """The --comment by which a job of this run is found."""
    return f"sophia:{uid}:{key[0]}:{key[1]}"


def parse_comment(text: str, uid: str) -> Key | None:
    """(phase, round) from a job's comment; None if it is not a job of this run."""
    match = re.fullmatch(rf"sophia:{re.escape(uid)}:([\w-]+):(\d+)", text)
    return (match[1], int(match[2])) if match else None


def shell_lines(commands: Iterable[Sequence[str]]) -> str:
    """The commands as shell lines."""
    return "\n".join(shlex.join(command) for command in commands)
