"""The type of a phase. The table of all phases is ``launch.phases.PHASES``.

`sophia run`, submit, status, doctor, track and report use no phase names: they read the fields of ``Phase``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sophia_mcore.progress import Progress
from sophia_mcore.store.failures import read_failures
from sophia_mcore.store.layout import Round, RoundFolder, RunFolder
from sophia_mcore.store.units import UnitQueue

if TYPE_CHECKING:
    from sophia_mcore.config.engines import Engine
    from sophia_mcore.config.schema import Config

Environment = Literal["here", "trainer", "rollout"]
Flow = Literal["round", "stage"]  # the rounds of a run (`sophia run`), or its on-policy stage (`sophia rl`)


@dataclass(frozen=True, kw_only=True)
class PhaseState:
    """Progress of one phase of one round, in work units (training: in steps). ``total`` 0: not known yet."""

    phase: str
    round: int
    total: int = 0
    done: int = 0
    claimed: int = 0
    failed: int = 0
    finished: bool = False
    loss: float | None = None
    seconds_left: float | None = None
    stale: str = ""  # why its results are no longer valid; such a phase is not finished
    unchecked: bool = False  # its results have no record of their settings and inputs
    note: str = ""  # a remark for `sophia status`


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one Slurm job asks for. ``gpus``: on each node. ``nodes`` None: as many as the .sbatch file says."""

    gpus: int = 0
    nodes: int | None = None


@dataclass(frozen=True, kw_only=True)
class SlurmTask:
    """Job, node and restart of this process, from Slurm's variables."""

    job_id: str = "0"
    array_job: str = ""
    array_task: str = ""
    restart: int = 0
    nodes: str = ""
    node: str = ""
    node_count: int = 1
    node_index: int = 0
    head: str = "127.0.0.1"

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> SlurmTask:
        """Read the variables of a Slurm task. Outside of Slurm: a job of one task on this host."""
        get = environment.get
        return SlurmTask(
            job_id=get("SLURM_JOB_ID", "0"),
            array_job=get("SLURM_ARRAY_JOB_ID", ""),
            array_task=get("SLURM_ARRAY_TASK_ID", ""),
            restart=int(get("SLURM_RESTART_COUNT", 0)),
            nodes=get("SLURM_JOB_NODELIST", socket.gethostname()),
            node=get("SLURMD_NODENAME", socket.gethostname()),
            node_count=int(get("SLURM_STEP_NUM_NODES", get("SLURM_NNODES", 1))),
            node_index=int(get("SLURM_NODEID", 0)),
            head=get("SOPHIA_HEAD", "127.0.0.1"),
        )

    @property
    def name(self) -> str:
        """Number of the job, or of the element of an array, as squeue shows it."""
        return f"{self.array_job}_{self.array_task}" if self.array_job else self.job_id

    @property
    def port(self) -> int:
        """Rendezvous port, from job and restart, so that a restart does not meet processes of the attempt before."""
        return 20_000 + (int(self.job_id) * 31 + self.restart) % 20_000


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Work that torchrun starts on every rank of [parallel].

    ``module`` takes the arguments ``RUN/config.toml --round R``. It writes one of the files of ``store.layout`` into
    ``folder``: SUMMARY when it has ended, STOPPED when a signal stopped it, FAILED when a rank failed by its own error.
    """

    module: str
    folder: Callable[[Round], Path]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Files with the numbers of a phase, for tracking.

    ``summary`` is written when the phase has ended. ``steps`` and ``system`` (load and memory of the machine) are
    metrics that grow while it works, in the folder that is moved aside when the phase is done again.
    """

    summary: Path
    steps: Path | None = None
    system: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """Results of a phase of a round that are valid, or invalid, together.

    They are valid as long as nothing changes of the ``settings`` (keys or sections of the configuration), of the
    ``values`` (further values, by a name to show to the user), of the results that it ``reads``, and of further inputs:
    ``replaced`` looks at those and tells what has changed, by a name to show to the user.
    """

    name: str
    results: Mapping[str, Path]  # name -> path; other parts read it by this name, which is unique among all phases
    beside: tuple[Path, ...] = ()  # further files that are moved together with the results
    settings: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[tuple[str, int], ...] = ()  # names of results of other phases, each with its round
    replaced: Callable[[], Mapping[str, str]] | None = None


def always(config: Config) -> bool:
    """A value of ``Phase.wanted``: the phase is part of every round."""
    return True


def whole_rounds(config: Config) -> bool:
    """A value of ``Phase.wanted``: the phase is part of every run, except runs that only evaluate a model."""
    return not config.evaluate.only


def sampled_rounds(config: Config) -> bool:
    """A value of ``Phase.wanted``: the phase is part of rounds that train on trajectories, not on given pairs."""
    return whole_rounds(config) and config.train.data is None


def nothing_stored(run: RunFolder, index: int) -> dict[str, Path]:
    """A value of ``Phase.outputs``: the lineage does not show the phase's results."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One row of the table of phases.

    Exactly one of ``work`` and ``ranks`` is given, and at least one of ``units`` and ``state``.
    """

    name: str
    environment: Environment  # "here": in the calling process (under Slurm: a process of the trainer's environment)
    work: Callable[[Round, Progress], object] | None = None  # does the phase, or what is left of it
    ranks: Ranks | None = None  # or: the module that does it on every rank
    on_node: Callable[[Round, SlurmTask], object] | None = None  # in a Slurm job in place of ``work``: a node's part

    flows: tuple[Flow, ...] = ("round",)  # where it is done; the phases of a stage belong to round 0
    renewed: bool = False  # `sophia rl` moves its results aside when they no longer hold; with others it goes on
    step: str = ""  # its name in `sophia rl --from` and in the times that this command notes; "": its own
    needs: tuple[str, ...] = ()  # phases of the same round (if they are ``once``: of round 0) that must be done before
    needs_before: tuple[str, ...] = ()  # phases of the round before that must be done as well
    inputs: Callable[[Round], None] | None = None  # replaces the check of ``needs``; raises SophiaError
    models: Callable[[Round], list[Path]] | None = None  # model folders that must be complete before it starts
    preflight: bool = False  # True: the run's models and layout are checked before its first start

    wanted: Callable[[Config], bool] = always  # False: the phase is no part of this run and counts as finished
    once: bool = False  # done in round 0 only, for all rounds
    again: bool = False  # done again after any other phase of its round
    uploads: bool = False  # the run is copied to MLflow when the phase has ended
    group: str = ""  # a name for several phases on the command line

    units: Callable[[Round], list[UnitQueue]] | None = None  # work units that any number of tasks share
    state: Callable[[Round, str], PhaseState] | None = None  # its progress; None: the progress of its units

    engine: str = ""  # the setting of the engine that answers its prompts; decides the GPUs of a task
    asks: Literal["policy", "reasoner"] = "policy"  # whom that engine runs; the reasoner is shown no image
    shape: Callable[[Config], Shape] | None = None  # nodes and GPUs of a job without an engine; None: no GPU

    script: str = ""  # name of its .sbatch file without suffix; "": the phase's name. "phase" serves any phase

    settings: tuple[str, ...] = ()  # keys, or sections, of the configuration that its result depends on
    parts: Callable[[Round], list[Part]] | None = None  # None: one part with all its outputs, which reads all it needs
    outputs: Callable[[RunFolder, int], dict[str, Path]] = nothing_stored  # results in the lineage: name -> path
    measured: Callable[[RoundFolder], Measured] | None = None  # its numbers; None: those of RUN/metrics.jsonl alone
    reported: str = ""  # key of a round in report.json; if it is there, the phase has results

    @property
    def script_name(self) -> str:
        """Name of its .sbatch file."""
        return f"{self.script or self.name}.sbatch"

    @property
    def variable(self) -> str:
        """Its name as a part of variables of the env file, such as TRAIN in OPTIONS_TRAIN."""
        return self.name.upper().replace("-", "_")

    def shape_for(self, config: Config) -> Shape:
        """Nodes and GPUs of one job. Raises UsageError for a training that cannot be spread over nodes."""
        if self.shape is not None:
            return self.shape(config)
        engine = self.engine_of(config)
        return Shape(gpus=engine.gpus if engine is not None else 0)

    def engine_of(self, config: Config) -> Engine | None:
        """The engine that answers its prompts; None: it has none."""
        if not self.engine:
            return None
        found: Any = config
        for name in self.engine.split("."):
            found = getattr(found, name)
        engine: Engine = found
        return engine

    def state_of(self, round: Round) -> PhaseState:
        """Its progress. Raises SophiaError when its folder holds work units of other settings."""
        if not self.wanted(round.config):
            return PhaseState(phase=self.name, round=round.index, finished=True)
        if self.state is not None:
            return self.state(round, self.name)
        assert self.units is not None, f"phase {self.name}: neither units nor state"
        return state_of_units(self.name, round.index, self.units(round))

    def depends_on(self, key: str) -> bool:
        """Whether its result depends on a setting such as "captions.per_image"."""
        return any(key == prefix or key.startswith(f"{prefix}.") for prefix in self.settings)


def state_of_units(phase: str, round_index: int, queues: Sequence[UnitQueue]) -> PhaseState:
    """Progress over the work units of ``queues``. Without a queue the phase is not finished and its total unknown."""
    total = sum(len(queue.units) for queue in queues)
    done = sum(len(queue.done_units()) for queue in queues)
    return PhaseState(
        phase=phase,
        round=round_index,
        total=total,
        done=done,
        claimed=sum(queue.claimed() for queue in queues) if done < total else 0,
        failed=sum(len(read_failures(queue.folder).keys() - queue.done_units()) for queue in queues),
        finished=bool(queues) and done == total,
    )
