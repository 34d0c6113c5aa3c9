"""The table of phases: a row is all that a new phase needs, wherever phases are run, submitted, shown and reported."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.launch import phases, worker
from sophia_mcore.launch.inputs import _ASKING
from sophia_mcore.launch.local import run_phases
from sophia_mcore.launch.slurm import status
from sophia_mcore.launch.slurm.attempts import read_attempts
from sophia_mcore.launch.slurm.jobs import Site, plan_jobs, sbatch_command
from sophia_mcore.launch.slurm.status import status_text
from sophia_mcore.launch.slurm.submit import dry_run
from sophia_mcore.launch.state import states
from sophia_mcore.phase import Phase, PhaseState
from sophia_mcore.progress import Progress
from sophia_mcore.records import Question
from sophia_mcore.report.build import write_report
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import read_shard, write_shard
from sophia_mcore.track.lineage import lineage_of
from sophia_mcore.track.metrics import MetricsLog
from sophia_mcore.track.runs import children_of
from tests.support.generate_world import make_config, make_run

ROOT = Path(__file__).resolve().parents[2]
NAME = "short-questions"


def keep_short(round: Round, progress: Progress) -> None:
    questions = read_shard(round.run.questions_file, Question)
    write_shard(result(round.run), [question for question in questions if len(question.images) == 1], Question)


def result(run: RunFolder) -> Path:
    return run.round(0).path / "short.parquet"


def state(round: Round, phase: str) -> PhaseState:
    done = result(round.run).is_file()
    return PhaseState(phase=phase, round=round.index, total=1, done=int(done), finished=done)


ROW = Phase(
    name=NAME,
    environment="here",
    work=keep_short,
    needs=("questions",),
    state=state,
    settings=("captions.per_image",),
    outputs=lambda run, index: {"short": result(run)},
    reported="round",
    script="phase",
)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Config, RunFolder]]:
    """A run with its questions, whose table has one row more; and a false Slurm that takes every job."""
    row = phases.PHASES.index(phases.SCORE)
    monkeypatch.setattr(phases, "PHASES", (*phases.PHASES[:row], ROW, *phases.PHASES[row:]))
    run = make_run(tmp_path / "run")
    env = tmp_path / "cluster.env"
    env.write_text("OPTIONS_SHORT_QUESTIONS=--time=7\n")
    config = make_config(run.path, cluster={"env_file": env, "scripts": ROOT / "slurm"})
    run.config_file.write_text(dump_toml(config))
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "sbatch").write_text("#!/bin/sh\necho taken\n")
    (commands / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield config, run
    for number, handler in handlers.items():  # a task of a job sets its own
        signal.signal(number, handler)


def test_a_new_row_runs_locally_and_is_reported(world: tuple[Config, RunFolder]) -> None:
    config, run = world
    with contextlib.closing(MetricsLog(run.metrics_file)) as log:
        log.log(0, "questions", {"seconds": 1.0})
    report = json.loads(write_report(config, run, phases.PHASES).with_name("report.json").read_text())
    assert f"round 0: seconds of {NAME}" in report["missing"]
    run_phases(config, phases.expand([NAME]), [0])
    assert len(read_shard(result(run), Question)) == 4
    assert {found.phase: found.finished for found in states(config, run, [0])}[NAME]
    report = json.loads(write_report(config, run, phases.PHASES).with_name("report.json").read_text())
    assert NAME in report["rounds"][0]["seconds"] and f"round 0: seconds of {NAME}" not in report["missing"]
    child = next(child for child in children_of(run, config, 0, phases.PHASES) if child.phase == NAME)
    assert child.params == {"captions.per_image": "2"}
    assert lineage_of(run, 0, phases.PHASES)["short"]["shards"] == 1


def test_a_new_row_is_submitted_and_shown(world: tuple[Config, RunFolder]) -> None:
    config, run = world
    found = dry_run(config, only=[NAME, "score"])
    (command,) = [command for command in found.commands if f"--job-name={NAME}-r0" in command]
    assert "--time=7" in command and not any("dependency" in word for word in command)
    assert command[-6:] == [
        str(ROOT / "slurm" / "phase.sbatch"), str(run.path), "0", str(ROOT / "slurm"), NAME, "TRAINER"
    ]  # fmt: skip
    assert found.answers[NAME, 0] == "taken"
    assert f"{NAME} " in status_text(config, run)


def test_a_run_that_was_never_submitted_says_nothing_of_slurm(
    world: tuple[Config, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = world

    def no_cluster(uid: str) -> list[Any]:
        raise SophiaError("squeue: no answer")

    monkeypatch.setattr(status.slurm, "queue", no_cluster)
    assert "squeue" not in status_text(config, run)
    run.slurm.logs.mkdir(parents=True)
    assert "jobs are not known: squeue: no answer" in status_text(config, run)


def test_a_new_row_is_a_worker_and_a_task_of_a_job(world: tuple[Config, RunFolder]) -> None:
    run = world[1]
    arguments = [NAME, str(run.config_file), "--round", "0"]
    assert worker.main(arguments) == 0 and result(run).is_file()
    assert read_attempts(run) == []
    assert worker.main([*arguments, "--slurm"]) == 0
    (attempt,) = read_attempts(run)
    assert (attempt.phase, attempt.outcome) == (NAME, "done")
    result(run).unlink()
    run.questions_file.unlink()
    assert worker.main([*arguments, "--slurm"]) == 1  # its inputs are looked at
    assert f"{NAME} of round 0 cannot start: questions of round 0 is not finished" in read_attempts(run)[-1].message


def test_sbatch_files_of_version_0_1_still_start_a_task(
    world: tuple[Config, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world[1]
    monkeypatch.setattr(sys, "argv", ["task", NAME, str(run.config_file), "--round", "0"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("sophia_mcore.launch.task", run_name="__main__")
    assert end.value.code == 0 and result(run).is_file()
    assert [attempt.outcome for attempt in read_attempts(run)] == ["done"]


def test_a_chain_goes_around_a_phase_that_is_no_part_of_the_run(
    world: tuple[Config, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = world
    optional = replace(ROW, name="optional", needs=("train",), wanted=lambda config: config.run.seed == 1)
    table = [replace(phase, needs=("optional",)) if phase.name == "export" else phase for phase in phases.PHASES]
    monkeypatch.setattr(phases, "PHASES", (*table[:6], optional, *table[6:]))
    for seed, before in ((0, "train"), (1, "optional")):
        chosen = Config.model_validate(config.model_dump() | {"run": config.run.model_dump() | {"seed": seed}})
        open_ = [PhaseState(phase=phase.name, round=0) for phase in phases.wanted_phases(chosen)]
        jobs = {job.phase: job for job in plan_jobs(chosen, Site({}), open_)}
        assert jobs["export"].after == ((before, 0),)
        ids = {job.key: job.phase for job in jobs.values()}
        assert f"--dependency=afterok:{before}" in sbatch_command(jobs["export"], run, ROOT / "slurm", "u", ids)


def test_the_table_is_whole() -> None:
    names = [row.name for row in phases.PHASES]
    assert len(set(names)) == len(names)
    assert phases.names_in("round") == [name for name in names if not name.startswith("rl")]
    assert phases.names_in("stage") == ["questions", "rl-select", "rl", "rl-evaluate", "report"]
    config = Config.model_json_schema()
    for position, phase in enumerate(phases.PHASES):
        assert phase.flows, phase.name
        assert (phase.work is None) != (phase.ranks is None), phase.name
        assert phase.units is not None or phase.state is not None, phase.name
        assert set(phase.needs) <= set(names[:position]) and set(phase.needs_before) <= set(names), phase.name
        assert (ROOT / "slurm" / phase.script_name).is_file()
        for key in phase.settings:
            known = config
            for part in key.split("."):
                known = next((one for one in known.get("anyOf", ()) if "$ref" in one), known)  # an optional section
                known = config["$defs"].get(known.get("$ref", "").rpartition("/")[2], known)
                assert part in known["properties"], f"{phase.name}: no setting {key}"
                known = known["properties"][part]


def test_the_inputs_name_the_phases_that_an_engine_answers() -> None:
    """`launch.inputs` does not import the table, which takes long: so it names the phases itself."""
    asking = {key: tuple(row.name for row in phases.PHASES if row.engine == key) for key in _ASKING}
    assert asking == _ASKING


TABLE = {"phases.py", "parts.py", "readers.py", "work.py"}  # the row, and the functions that rows name


def compared(node: ast.AST) -> list[ast.expr]:
    """What a node compares or looks for: `a == b`, `a in (b, c)`, `a.startswith(b)`, `case b:`."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
        sides = node.args
    elif isinstance(node, ast.MatchValue):
        sides = [node.value]
    else:
        return []
    if any(isinstance(side, ast.Attribute) and side.attr == "kind" for side in sides):
        return []  # a stage, an engine or a source is of a kind; a phase has none
    return [
        one for side in sides for one in (side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side])
    ]


def test_no_other_module_asks_which_phase_it_is() -> None:
    """What phases differ in is a field of the row: names are compared with a literal only in the table's files."""
    names = {phase.name for phase in phases.PHASES} | {phase.group for phase in phases.PHASES if phase.group}
    package = ROOT / "sophia_mcore"
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {one.value!r}"
        for path in sorted(package.rglob("*.py"))
        if path.parent != package / "launch" or path.name not in TABLE
        for node in ast.walk(ast.parse(path.read_text()))
        for one in compared(node)
        if isinstance(one, ast.Constant) and one.value in names
    ]
    assert not wrong, "\n".join(wrong)
