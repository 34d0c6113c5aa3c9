"""`sophia rl` and `sophia submit --rl`: what is refused before any work, the chain of jobs, what each node does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.cli import main
from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch import stage, worker
from sophia_mcore.launch.local import claim_folder, make_folder
from sophia_mcore.launch.phases import RL, RL_SELECT, phases_in, wanted_phases
from sophia_mcore.launch.rl import run_rl
from sophia_mcore.launch.slurm import stage as slurm_stage
from sophia_mcore.launch.slurm.engines import engines_command
from sophia_mcore.launch.slurm.jobs import Site, plan_jobs, sbatch_command
from sophia_mcore.launch.slurm.stage import node_of
from sophia_mcore.launch.slurm.status import status_text
from sophia_mcore.launch.slurm.submit import would_refuse
from sophia_mcore.launch.stage_settings import refuse_changed_settings
from sophia_mcore.launch.state import stage_states
from sophia_mcore.phase import PhaseState, SlurmTask
from sophia_mcore.records import Question
from sophia_mcore.rl.start import rl_start
from sophia_mcore.store.layout import Round, RunFolder, step_name
from sophia_mcore.store.shards import read_shard
from tests.support import configs, tiny_models
from tests.support.pictures import smooth
from tests.support.rl_world import make_rl_run
from tests.support.versions import publish

ROOT = Path(__file__).resolve().parents[2]
SITE = Site({"OPTIONS_GPU": "--partition=gpu", "OPTIONS_RL": "--time=9", "OPTIONS_RL_ENGINES": "--partition=spare",
             "TASKS_RL_SELECT": "4"})  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_internvl(tmp_path_factory.mktemp("models") / "one", seed=1)


def config_of(folder: Path, model: Path | str = "policy", **rl: Any) -> Config:
    return configs.make_config(folder / "run", model, "reasoner", rl={"max_tokens": 64, **rl})


@pytest.fixture
def world(model: Path, tmp_path: Path) -> Path:
    """A TOML with three questions, and a model to begin with."""
    (tmp_path / "a.png").write_bytes(smooth(28, 28, 1))
    rows = [{"id": f"q{i}", "question": f"What is {i}?", "answer": str(i), "image": "a.png"} for i in range(3)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"kind": "jsonl", "path": str(tmp_path / "questions.jsonl")}
    config = configs.make_config(
        tmp_path / "run", model, "reasoner",
        data={"questions": (settings,)}, track={"enabled": False},
        rl={"questions_per_batch": 4, "group": 2, "samples_per_update": 8, "max_tokens": 16},
    )  # fmt: skip
    (tmp_path / "run.toml").write_text(dump_toml(config))
    return tmp_path / "run.toml"


def sophia(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sophia_mcore.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "error: rl.questions_per_batch = 4 is more than the 3 questions there are to ask"),
        (("--from", "evaluate"), 1, "error: --from evaluate: loop has not ended (0 of 480 done)"),
        (
            ("--from", "loop", "--set", "rl.select.samples=2", "--set", "rl.select.maximum=1.0"),
            1,
            "error: --from loop: select has not ended (0 of 1 done)",
        ),
        (("--from", "lop"), 2, "error: --from 'lop': did you mean 'loop'?"),
        (("--set", "rl.start='round-0'"), 1, "error: rl.start = 'round-0': "),
        (
            ("--set", "rl.start='nowhere'"),
            2,
            "error: rl.start = 'nowhere': no such folder, and none of 'base', 'round-0'",
        ),
        (("--set", "rl.engine={kind='transformers'}"), 2, "new weights cannot be loaded into it; use 'vllm'"),
        (("--set", "rl.engine={kind='openai', model_name='x'}"), 2, "new weights cannot be loaded into an endpoint"),
    ],
)
def test_what_cannot_work_is_one_line(world: Path, arguments: tuple[str, ...], code: int, told: str) -> None:
    done = sophia("rl", str(world), *arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code and len(lines) == 1, done.stderr
    assert told in lines[0] and "Traceback" not in done.stderr


def test_a_stage_may_have_questions_of_its_own(world: Path) -> None:
    """They are checked like the run's, which stay as they are, and batches are made of them alone."""
    lines = (world.parent / "questions.jsonl").read_text().splitlines()
    own = world.parent / "own.jsonl"
    own.write_text("\n".join(lines[:2]).replace('"id": "q', '"id": "own') + "\n")
    done = sophia("rl", str(world), "--set", f"rl.questions=[{{kind='jsonl', path='{own}'}}]")
    assert done.returncode == 2 and "rl.questions_per_batch = 4 is more than the 2 questions there are" in done.stderr
    run = RunFolder(world.parent / "run")
    asked, others = (read_shard(file, Question) for file in (run.rl.own_questions_file, run.questions_file))
    assert [one.id for one in asked] == ["own0", "own1"]
    assert [one.id for one in others] == ["q0", "q1", "q2"]
    assert not json.loads((run.records(0, "questions") / "questions.json").read_text())["adopted"]
    again = sophia("rl", str(world), "--set", f"rl.questions=[{{kind='jsonl', path='{own}'}}]")
    assert "did not record settings" not in again.stderr
    checked = sophia("check", str(world), "--set", f"rl.questions=[{{kind='jsonl', path='{own}'}}]")
    assert checked.returncode == 0 and "# rl.questions: own (" in checked.stdout, checked.stdout


def test_a_configuration_without_a_stage(world: Path) -> None:
    text = world.read_text()
    world.write_text(text[: text.index("[rl]")] + "".join(f"[{part}" for part in _others(text)))
    done = sophia("rl", str(world))
    assert done.returncode == 2 and "no [rl] section" in done.stderr


def _others(text: str) -> list[str]:
    """The sections behind [rl] that are not its own."""
    parts = text[text.index("[rl]") :].split("\n[")[1:]
    return [part + "\n" for part in parts if not part.startswith("rl")]


def test_fewer_batches_than_are_trained(model: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, model, batches=5)
    run = RunFolder(config.run.folder)
    run.rl.versions.mkdir(parents=True)
    publish(model, run.rl.versions, 3)
    with pytest.raises(UsageError, match=r"rl.batches = 2, but 3 batches are trained already"):
        run_rl(config, batches=2)


def test_the_status_of_a_stage_without_a_round(model: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, model)
    run = RunFolder(config.run.folder)
    run.rl.path.mkdir(parents=True)
    shown = status_text(config, run)
    assert "rl " in shown and "captions" not in shown and "export" not in shown
    run.round(0).path.mkdir()
    shown = status_text(config, run)
    assert "rl " in shown and "captions" in shown and "export" in shown


def test_a_stage_may_follow_a_round_but_not_change_under_way(model: Path, tmp_path: Path) -> None:
    round_ = configs.make_config(tmp_path / "run", "policy", "reasoner")
    with_stage = config_of(tmp_path)
    run = RunFolder(with_stage.run.folder)
    run.path.mkdir()
    for config in (round_, with_stage, config_of(tmp_path, group=4)):  # nothing of the stage is done yet
        refuse_changed_settings(config, run)
        claim_folder(config, run)
    claim_folder(with_stage, run)
    run.rl.versions.mkdir(parents=True)
    publish(model, run.rl.versions, 0)
    where_and_how_long = config_of(tmp_path, batches=9, engines=2, stall_seconds=5.0, versions="memory")
    refuse_changed_settings(where_and_how_long, run)
    with pytest.raises(UsageError, match=r"started with other settings \(rl\.group\)"):
        refuse_changed_settings(config_of(tmp_path, group=4), run)
    assert "started with other settings (rl.group)" in would_refuse(config_of(tmp_path, group=4), stage=True)
    refuse_changed_settings(config_of(tmp_path, group=4), run, new_settings=True)
    publish(model, run.rl.versions, 3)
    with pytest.raises(
        UsageError, match=r"is at step 3, and its last checkpoint is of step 0: .*rl\.group.*learned nothing yet"
    ):
        refuse_changed_settings(config_of(tmp_path, group=4), run, new_settings=True)
    refuse_changed_settings(with_stage, run, new_settings=True)
    (run.rl.checkpoints / step_name(3)).mkdir(parents=True)
    refuse_changed_settings(config_of(tmp_path, group=4), run, new_settings=True)
    run.rl.summary_file.write_text(json.dumps({"batches": with_stage.on_policy.batches}))
    with pytest.raises(UsageError, match=r"has ended with other settings \(rl\.group\): .* a larger rl\.batches"):
        refuse_changed_settings(config_of(tmp_path, group=4), run, new_settings=True)
    more = with_stage.on_policy.batches + 1
    refuse_changed_settings(config_of(tmp_path, group=4, batches=more), run, new_settings=True)


@pytest.mark.parametrize("key", ["run.seed", "train.dtype", "data.max_image_pixels", "data.questions"])
def test_settings_outside_of_the_section_change_the_stage_too(model: Path, tmp_path: Path, key: str) -> None:
    config = config_of(tmp_path)
    run = make_folder(config)
    claim_folder(config, run)
    run.rl.versions.mkdir(parents=True)
    publish(model, run.rl.versions, 0)
    section, name = key.split(".")
    others = {"seed": 7, "dtype": "float32", "max_image_pixels": 1000, "questions": [{"kind": "jsonl", "path": "x"}]}
    tree = config.model_dump()
    assert tree[section][name] != others[name]
    tree[section][name] = others[name]
    with pytest.raises(UsageError, match=rf"started with other settings \({key}\)"):
        refuse_changed_settings(Config.model_validate(tree), run)


def test_another_validation_protocol_is_another_stage(model: Path, tmp_path: Path) -> None:
    """Versions are chosen by the first protocol, as in a stage of [[stages]]; without validation nothing is."""
    source = ({"kind": "jsonl", "path": "held-out"},)
    for validation, refused in (((), False), (source, True)):
        run = RunFolder(tmp_path / str(refused))
        old, new = (
            configs.make_config(
                run.path, "policy", "reasoner", rl={"max_tokens": 64, "validation": validation},
                evaluate={"protocols": ({"name": "one", "sampling": {"temperature": temperature}},)},
            )
            for temperature in (0.0, 0.5)
        )  # fmt: skip
        claim_folder(old, make_folder(old))
        run.rl.versions.mkdir(parents=True)
        publish(model, run.rl.versions, 0)
        refuse_changed_settings(old, run)
        if refused:
            with pytest.raises(UsageError, match=r"other settings \(evaluate\.protocols \(one\)\)"):
                refuse_changed_settings(new, run)
        else:
            refuse_changed_settings(new, run)


def test_where_a_stage_begins(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert rl_start(config_of(tmp_path), run) == Path("policy")
    assert rl_start(config_of(tmp_path, start=str(tmp_path)), run) == tmp_path
    with pytest.raises(SophiaError, match="run `sophia run` to its export first"):
        rl_start(config_of(tmp_path, start="round-0"), run)
    run.round(0).model.mkdir(parents=True)
    assert rl_start(config_of(tmp_path, start="round-0"), run) == run.round(0).model


def stage_config(folder: Path, **rl: Any) -> Config:
    settings = {"lag": 1, "placement": "separate", "rollout_nodes": 3, "engines": 2, "select": {"samples": 16}}
    settings |= {"objective": {"correction": "tis"}, "engine": {"kind": "vllm", "tensor_parallel": 4}}
    return configs.make_config(
        folder, "policy", "reasoner",
        rl={**settings, "max_tokens": 64, **rl},
        parallel={"tensor": 8, "processes": 16, "processes_per_node": 8},
        evaluate={"questions": ({"kind": "jsonl", "path": "held-out"},)},
    )  # fmt: skip


def test_the_chain_of_jobs(tmp_path: Path) -> None:
    config = stage_config(tmp_path)
    states = [PhaseState(phase=phase.name, round=0) for phase in phases_in("stage")]
    jobs = {job.phase: job for job in plan_jobs(config, SITE, states)}
    assert {name: job.after for name, job in jobs.items()} == {
        "questions": (),
        "rl-select": (("questions", 0),),
        "rl": (("rl-select", 0),),
        "rl-evaluate": (("rl", 0),),
        "report": (("rl-evaluate", 0),),
    }
    assert jobs["rl"].tasks is None and "--nodes=5" in jobs["rl"].options  # 2 that train, 3 that sample
    assert "--gpus-per-node=8" in jobs["rl"].options and jobs["rl"].options[-1] == "--time=9"
    assert jobs["rl-select"].tasks == 4 and "--gpus-per-node=4" in jobs["rl-select"].options
    ids = {job.key: str(number) for number, job in enumerate(jobs.values(), 10)}
    commands = {
        name: sbatch_command(job, RunFolder(tmp_path), ROOT / "slurm", "uid", ids) for name, job in jobs.items()
    }
    assert str(ROOT / "slurm" / "rl_select.sbatch") in commands["rl-select"]
    assert str(ROOT / "slurm" / "rl.sbatch") in commands["rl"] and "--dependency=afterany:11" in commands["rl"]
    assert commands["rl-evaluate"][-2:] == ["rl-evaluate", "ROLLOUT"]
    assert "--dependency=afterok:12" in commands["rl-evaluate"]


def test_without_selection_the_stage_waits_for_its_questions(tmp_path: Path) -> None:
    config = stage_config(tmp_path, select={"samples": 0})
    states = [PhaseState(phase=p.name, round=0) for p in wanted_phases(config, "stage")]
    jobs = {job.phase: job for job in plan_jobs(config, SITE, states)}
    assert "rl-select" not in jobs and jobs["rl"].after == (("questions", 0),)


def test_what_each_node_does(tmp_path: Path) -> None:
    config = stage_config(tmp_path)
    nodes = [
        node_of(config, SlurmTask(job_id="7", node_count=5, node_index=i, head="a"), "vllm/python -s") for i in range(5)
    ]
    assert [bool(node.torchrun) for node in nodes] == [True, True, False, False, False]
    assert [node.engines for node in nodes] == [0, 0, 2, 2, 2]
    assert all(node.engine_python == ("vllm/python", "-s") and not node.restarts_trainer for node in nodes)
    assert "--nnodes=2" in (nodes[0].torchrun or ()) and "--rdzv-id=7-0" in (nodes[1].torchrun or ())
    both = stage_config(tmp_path, placement="colocated", lag=0, rollout_nodes=0)
    node = node_of(both, SlurmTask(node_count=2, node_index=1), "python")
    assert node.torchrun and node.engines == 2


def test_engines_that_join_a_running_stage(tmp_path: Path) -> None:
    config, run = stage_config(tmp_path), RunFolder(tmp_path)
    with pytest.raises(UsageError, match=r"rl_engines\.sbatch"):
        engines_command(config, run, SITE, "uid", 3)
    run.slurm.path.mkdir()
    (run.slurm.path / "code-1").symlink_to(ROOT / "slurm")
    run.slurm.submission_file.write_text(json.dumps({"code": "code-1"}))
    command = engines_command(config, run, SITE, "uid", 3)
    assert "--array=0-2" in command and "--comment=sophia:uid:rl-engines:0" in command
    assert "--gpus-per-node=4" in command and command.index("--partition=spare") > command.index("--partition=gpu")
    assert command[-4].endswith("rl_engines.sbatch") and command[-3:-1] == [str(tmp_path), "0"]


def test_engines_are_shown_before_they_are_submitted(world: Path) -> None:
    slurm = ROOT / "slurm"
    site = ("--set", f"cluster.scripts={slurm}", "--set", f"cluster.env_file={slurm / 'env' / 'venv.env.example'}")
    done = sophia("submit", str(world), "--rl", "--engines", "3", "--dry-run", *site)
    assert done.returncode == 0, done.stderr
    assert "--array=0-2" in done.stdout and "rl_engines.sbatch" in done.stdout
    assert "submit itself would end with: no on-policy stage" in " ".join(done.stderr.split())
    assert not (world.parent / "run" / "slurm").exists()


def test_how_far_a_stage_is(model: Path, tmp_path: Path) -> None:
    config, run = make_rl_run(tmp_path, model)
    states = {state.phase: state for state in stage_states(config, run)}
    assert list(states) == ["questions", "rl", "report"]
    assert (states["rl"].done, states["rl"].total, states["rl"].finished) == (0, 3, False)
    run.rl.versions.mkdir(parents=True)
    publish(model, run.rl.versions, 2)
    assert RL.state_of(Round(config, run, 0)).done == 2
    run.rl.train.mkdir()
    run.rl.summary_file.write_text('{"batches": 3}')
    assert RL.state_of(Round(config, run, 0)).finished
    assert RL_SELECT.state_of(Round(config, run, 0)).finished  # no part of this run
    with pytest.raises(UsageError, match=r"no \[rl\] section"):
        stage_states(configs.make_config(tmp_path), run)


def test_one_entry_serves_this_machine_and_a_node_of_a_job(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command starts the supervisor: of the only node, which may restart its trainer, or of a job's node."""
    _, run = make_rl_run(tmp_path, model)
    begun: list[stage.Node] = []

    def supervise(config: Config, run: RunFolder, node: stage.Node, **options: Any) -> None:
        begun.append(node)

    monkeypatch.setattr(stage, "supervise", supervise)
    monkeypatch.setattr(slurm_stage, "supervise", supervise)
    run.rl.questions_file.parent.mkdir(parents=True)
    run.rl.select_file.write_text("{}")  # of a selection that the settings no longer ask for
    arguments = ["rl", str(run.config_file), "--round", "0"]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    try:
        assert worker.main(arguments) == 0 and worker.main([*arguments, "--slurm"]) == 0
    finally:
        for number, handler in handlers.items():  # a task of a job sets its own
            signal.signal(number, handler)
    here, node = begun
    assert here.restarts_trainer and here.engines == 1 and "--standalone" in (here.torchrun or ())
    assert not node.restarts_trainer and node.engines == 1 and "--nnodes=1" in (node.torchrun or ())
    assert not run.rl.select_file.exists()


@pytest.mark.parametrize("arguments", [["run", "--only"], ["run", "--from"], ["submit", "--only"]])
@pytest.mark.parametrize("phase", ["rl-select", "rl", "rl-evaluate"])
def test_a_phase_of_the_stage_is_named_and_its_command_too(
    world: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], phase: str
) -> None:
    command, option = arguments
    with pytest.raises(SystemExit) as end, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sophia", command, str(world), option, phase])
        main()
    told = f"error: '{phase}' is a phase of the on-policy stage: 'sophia rl' runs it, 'sophia submit --rl' submits it\n"
    assert end.value.code == 2 and capsys.readouterr().err == told
