"""What a phase of a round is. The table of all phases is ``launch.phases.PHASES``.

`sophia run`, submit, status, doctor, track and report know no phase by its name: they read the columns of this type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sophia_mcore.progress import Progress
from sophia_mcore.store.failures import read_failures
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.units import UnitQueue

if TYPE_CHECKING:
    from sophia_mcore.config.engines import Engine
    from sophia_mcore.config.schema import Config

Environment = Literal["here", "trainer", "rollout"]


@dataclass(frozen=True, kw_only=True)
class PhaseState:
    """Work units of one phase of one round; for training, steps. ``total`` 0: not known yet."""

    phase: str
    round: int
    total: int = 0
    done: int = 0
    claimed: int = 0
    failed: int = 0
    finished: bool = False
    loss: float | None = None
    seconds_left: float | None = None
    stale: str = ""  # why its results do not hold any more, which makes it unfinished
    unchecked: bool = False  # its results are of a version that kept no records
    note: str = ""  # a remark for `sophia status`


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one job asks for. ``gpus`` on each node; ``nodes`` None: as many as the .sbatch file says."""

    gpus: int = 0
    nodes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Work that torchrun starts on every rank of [parallel].

    ``module`` takes ``RUN/config.toml --round R``. In ``folder`` of the round it leaves store.layout.SUMMARY when it
    has ended, STOPPED when a signal stopped it, FAILED when a rank failed by itself.
    """

    module: str
    folder: Callable[[Round], Path]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Results of a phase of a round that hold or fall together.

    They hold as long as nothing has changed of the ``settings`` (keys or sections of the configuration), of the
    ``values`` (further ones, by a name for the user) and of the results that it ``reads``.
    """

    name: str
    results: Mapping[str, Path]  # by a name that is unique among all phases: what other parts read
    beside: tuple[Path, ...] = ()  # goes with the results when they are set aside
    settings: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[tuple[str, int], ...] = ()  # names of results of other phases, each with its round


def always(config: Config) -> bool:
    """``Phase.wanted`` of a phase that is part of every round."""
    return True


def whole_rounds(config: Config) -> bool:
    """``Phase.wanted`` of a phase that a run which only evaluates a model does not have."""
    return not config.evaluate.only


def nothing_stored(run: RunFolder, index: int) -> dict[str, Path]:
    """``Phase.outputs`` of a phase whose results are no link of the lineage."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One row of the table.

    Exactly one of ``work`` and ``ranks`` is given, and at least one of ``units`` and ``state``.
    """

    name: str
    environment: Environment  # "here": in the calling process, which under Slurm is one of the trainer's environment
    work: Callable[[Round, Progress], object] | None = None  # does the phase, from wherever it stands
    ranks: Ranks | None = None  # or a module on every rank does it

    needs: tuple[str, ...] = ()  # phases of the same round (of the first round, if they are ``once``) that must be done
    needs_before: tuple[str, ...] = ()  # phases of the round before that must be done as well
    inputs: Callable[[Round], None] | None = None  # instead of looking at ``needs``: raises SophiaError
    models: Callable[[Round], list[Path]] | None = None  # model folders that must be whole before it starts
    preflight: bool = False  # before its first start the run's models and layout are checked

    wanted: Callable[[Config], bool] = always  # False: the phase is no part of this run and counts as finished
    once: bool = False  # the same in every round: done in the first only
    again: bool = False  # done again after any other phase of its round
    uploads: bool = False  # the run is copied to MLflow when it has ended
    group: str = ""  # a name that stands for several phases on the command line

    units: Callable[[Round], list[UnitQueue]] | None = None  # work units that any number of tasks share
    state: Callable[[Round, str], PhaseState] | None = None  # how far it is; None: as its units say

    engine: Callable[[Config], Engine] | None = None  # what answers its prompts; the GPUs of a task follow from it
    shape: Callable[[Config], Shape] | None = None  # nodes and GPUs of a job without an engine; None: no GPU

    script: str = ""  # its .sbatch file in cluster.scripts; "": NAME.sbatch. "phase" is the one for any phase

    settings: tuple[str, ...] = ()  # keys, or sections, of the configuration that its result depends on
    parts: Callable[[Round], list[Part]] | None = None  # None: all that it leaves is one part, which reads all it needs
    outputs: Callable[[RunFolder, int], dict[str, Path]] = nothing_stored  # links of the lineage: name -> where
    reported: str = ""  # key of a round in report.json that shows that there are results

    @property
    def script_name(self) -> str:
        """File name of its .sbatch file."""
        return f"{self.script or self.name}.sbatch"

    @property
    def variable(self) -> str:
        """Its name in those of variables of the env file: OPTIONS_TRAIN, TASKS_CAPTIONS."""
        return self.name.upper().replace("-", "_")

    def shape_for(self, config: Config) -> Shape:
        """Nodes and GPUs of one job. Raises UsageError for a training that cannot be spread over nodes."""
        if self.shape is not None:
            return self.shape(config)
        engine = self.engine(config) if self.engine is not None else None
        if engine is None or engine.kind == "openai":
            return Shape()
        return Shape(gpus=engine.tensor_parallel if engine.kind == "vllm" else 1)

    def state_of(self, round: Round) -> PhaseState:
        """How far it is. Raises SophiaError when its folder holds work of other settings."""
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
    """The state that the work units of ``queues`` show; without any queue nothing is known yet."""
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
