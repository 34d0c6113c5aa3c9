"""A run of several stages: what goes on, what is done again, and what a kill leaves. The stages' work is a stand-in."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from sophia_mcore.cli import main
from sophia_mcore.cli.stages import submit_next
from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.launch.slurm.commands import QueuedJob
from sophia_mcore.launch.slurm.submit import Submission
from sophia_mcore.store.layout import RunFolder
from tests.support import stages_world
from tests.support.stages_world import TOML, write_model, write_world

ROOT = Path(__file__).resolve().parents[2]
RISING = {"warm-up": 0.5, "rl": 0.7, "again": 0.8}
FIRST = ["00-warm-up questions", "00-warm-up train", "00-warm-up export", "00-warm-up evaluate", "00-warm-up choice"]
SECOND = ["01-rl batch 0", "01-rl batch 1", "01-rl batch 2", "01-rl evaluate", "01-rl choice"]
THIRD = ["02-again questions", "02-again train", "02-again export", "02-again evaluate", "02-again choice"]


class Done(NamedTuple):
    """What a command that has ended has printed."""

    stdout: str
    stderr: str


def run(folder: Path, *arguments: str, code: int = 0) -> Done:
    """Run the stages, in this process; code 0, or that of one clear error."""
    return _call(folder, lambda: stages_world.main(["run.toml", *arguments]), code)


def sophia(folder: Path, *arguments: str, code: int = 0) -> Done:
    with patch.object(sys, "argv", ["sophia", *arguments]):
        return _call(folder, main, code)


def _call(folder: Path, work: Callable[[], int | None], code: int) -> Done:
    out, err, ended = StringIO(), StringIO(), None
    with chdir(folder), redirect_stdout(out), redirect_stderr(err), patch.dict(os.environ, {"COLUMNS": "200"}):
        try:
            ended = work()
        except SystemExit as end:
            ended = end.code
    done = Done(out.getvalue(), err.getvalue())
    assert (ended or 0) == code, done.stderr
    assert not code or (done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr)
    return done


def killed(folder: Path, point: str, *arguments: str) -> None:
    """Run the stages in a process that is killed at ``point``."""
    command = [sys.executable, "-m", "tests.support.stages_world", "run.toml", "--kill-at", point, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == -signal.SIGKILL, done.stderr


def done_since(folder: Path, before: list[str] | None = None) -> list[str]:
    lines = (folder / "log").read_text().splitlines()
    return lines[len(before or ()) :]


def promoted(folder: Path, label: str) -> dict[str, Any]:
    return dict(json.loads((folder / "run" / "stages" / label / "promoted.json").read_text()))


def files(folder: Path) -> dict[str, bytes]:
    """Everything that a run says: not when, and not which process."""
    left_out = ("lock", "promoted.json")
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in left_out]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if "records" not in path.parts}


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "run.toml").read_text()
    assert old in text
    (folder / "run.toml").write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three stages, each better than the one before. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    write_world(folder, RISING)
    run(folder)
    return folder


@pytest.fixture
def world(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "world")
    return tmp_path / "world"


def test_each_stage_begins_with_what_the_one_before_promoted(whole: Path) -> None:
    assert done_since(whole) == [*FIRST, *SECOND, *THIRD]
    first, second, third = (promoted(whole, label) for label in ("00-warm-up", "01-rl", "02-again"))
    assert [one["chosen"] for one in (first, second, third)] == ["round-0", "rl", "round-0"]
    scores = [[candidate["score"] for candidate in one["candidates"]] for one in (first, second, third)]
    assert scores == [[0.2, 0.5], [0.5, 0.7], [0.7, 0.8]]
    assert first["origin"] == {"models.policy": "policy"}
    assert second["origin"] == {"stage": "00-warm-up", "chosen": "round-0", "digest": first["digest"]}
    assert third["origin"] == {"stage": "01-rl", "chosen": "rl", "digest": second["digest"]}
    assert second["candidates"][0]["digest"] == first["digest"]  # it began with that model
    own = load_config(whole / "run" / "stages" / "01-rl" / "config.toml")
    assert own.stages is None and str(own.models.policy) == "run/stages/00-warm-up/round-0/model"
    assert own.on_policy.start == "run/stages/00-warm-up/round-0/model"


def test_a_second_call_does_nothing_and_says_what_goes_on(world: Path) -> None:
    before, kept = done_since(world), files(world / "run")
    said = run(world).stdout.splitlines()
    assert done_since(world, before) == [] and files(world / "run") == kept
    assert said == [
        "stage 00-warm-up: round-0 50.0% goes on by evaluate.pass_at_1 (base 20.0%)",
        "stage 01-rl: rl 70.0% goes on by evaluate.held-out (rl-start 50.0%)",
        "stage 02-again: round-0 80.0% goes on by evaluate.greedy (base 70.0%)",
    ]


def test_other_commands_see_a_stage_as_a_run(world: Path) -> None:
    stage = "run/stages/00-warm-up"
    table = [line.split() for line in sophia(world, "status", stage).stdout.splitlines()]
    assert ["export", "0", "1/1", "ok"] in table and "captions" not in {line[0] for line in table}
    page = sophia(world, "report", stage).stdout.splitlines()[-1]
    assert (world / page).is_file() and json.loads((world / stage / "report.json").read_text())["evaluation"]["base"]
    assert "run/stages/02-again" in sophia(world, "watch", "run", "--once").stdout  # the newest
    (world / stage / "config.toml").touch()  # as it is when the stage is done again
    assert stage in sophia(world, "watch", "run", "--once").stdout
    for command in (("report", "run"), ("track", "run"), ("fork", "run", "new")):
        refused = sophia(world, *command, code=2).stderr
        assert "run is a run of several stages; name one of run/stages: 00-warm-up, 01-rl, 02-again" in refused


def test_status_of_all_stages(world: Path) -> None:
    table = sophia(world, "status", "run.toml").stdout.splitlines()
    assert [line.split() for line in table[:4]] == [
        ["stage", "kind", "state", "goes", "on", "score"],
        ["00-warm-up", "supervised", "finished", "round-0", "50.0%"],
        ["01-rl", "rl", "finished", "rl", "70.0%"],
        ["02-again", "supervised", "finished", "round-0", "80.0%"],
    ]
    (world / "run").rename(world / "moved")
    assert sophia(world, "status", "moved").stdout.splitlines()[:4] == table[:4]


def test_nothing_better_goes_on_with_the_model_that_the_stage_began_with(tmp_path: Path) -> None:
    write_world(tmp_path, {"warm-up": 0.5, "rl": 0.4, "again": 0.5})  # worse, then equal
    said = run(tmp_path).stdout
    told = "no model is better by evaluate.held-out than the one that it began with, which goes on"
    assert f"stage 01-rl: {told} (rl-start 50.0%; rl 40.0%)" in said
    assert [promoted(tmp_path, label)["chosen"] for label in ("01-rl", "02-again")] == ["rl-start", "base"]
    own = load_config(tmp_path / "run" / "stages" / "02-again" / "config.toml")
    assert str(own.models.policy) == "run/stages/00-warm-up/round-0/model"
    assert promoted(tmp_path, "02-again")["model"] == "run/stages/00-warm-up/round-0/model"


def test_last_asks_for_no_score(tmp_path: Path) -> None:
    text = TOML[: TOML.index("[[evaluate.questions]]")] + TOML[TOML.index("[track]") :]
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("promote"))
    write_world(tmp_path, {"warm-up": 0.1, "rl": 0.05, "again": 0.01}, text)
    said = run(tmp_path).stdout.splitlines()
    assert "stage 01-rl: rl goes on by last (rl-start)" in said
    assert [promoted(tmp_path, label)["chosen"] for label in ("00-warm-up", "01-rl", "02-again")] == [
        "round-0", "rl", "round-0",
    ]  # fmt: skip


@pytest.mark.parametrize(("quality", "chosen"), [(0.7, "rl"), (0.5, "rl-start")])
def test_validated_versions_choose(tmp_path: Path, quality: float, chosen: str) -> None:
    write_world(tmp_path, {**RISING, "rl": quality})
    change(tmp_path, "max_tokens = 64", 'max_tokens = 64\nkeep = "best"\nvalidation = [{ kind="jsonl", path="v" }]')
    change(tmp_path, 'promote = "evaluate.held-out"', 'promote = "validation"')
    (tmp_path / "v").write_text('{"id": "q", "question": "What?", "answer": "1"}\n')
    run(tmp_path)
    made = promoted(tmp_path, "01-rl")
    assert made["chosen"] == chosen and [one["score"] for one in made["candidates"]] == [0.5, quality]
    before = done_since(tmp_path)
    change(tmp_path, "sampling = {}", "sampling = { top_p = 0.9 }")  # versions are chosen by answers under it
    run(tmp_path, "--new-settings")
    assert done_since(tmp_path, before) == [FIRST[3], *SECOND[:-1], THIRD[3]]


def test_a_round_of_sophia_begins_a_list(tmp_path: Path) -> None:
    text = TOML.replace(
        'kind = "supervised"\nset = { "train.data" = "pairs.jsonl", train.steps = 4 }', 'kind = "sophia"'
    )
    write_world(tmp_path, RISING, text.replace('promote = "evaluate.pass_at_1"', ""))
    run(tmp_path)
    assert done_since(tmp_path) == [FIRST[0], FIRST[-1], *SECOND, *THIRD]
    assert promoted(tmp_path, "00-warm-up")["chosen"] == "round-0"


@pytest.mark.parametrize("point", [FIRST[1], FIRST[-1], SECOND[0], SECOND[2], SECOND[3], SECOND[-1], THIRD[2]])
def test_killed_anywhere_the_same_command_goes_on(whole: Path, tmp_path: Path, point: str) -> None:
    write_world(tmp_path, RISING)
    killed(tmp_path, point)
    before = done_since(tmp_path)
    assert before == [*FIRST, *SECOND, *THIRD][: [*FIRST, *SECOND, *THIRD].index(point)]
    state = sophia(tmp_path, "status", "run.toml").stdout
    assert state.splitlines()[-1].startswith("details of") and state.count("after 0") == 2 - int(point[:2])
    ended = [line for line in run(tmp_path).stdout.splitlines() if line.startswith("ended ")]
    assert ended == [f"ended {label}" for label in ("00-warm-up", "01-rl", "02-again")[int(point[:2]) :]]
    assert done_since(tmp_path, before) == [*FIRST, *SECOND, *THIRD][len(before) :]  # nothing twice
    assert files(tmp_path / "run" / "stages").keys() == files(whole / "run" / "stages").keys()
    for label in ("00-warm-up", "01-rl", "02-again"):
        assert promoted(tmp_path, label)["candidates"] == promoted(whole, label)["candidates"]


@pytest.mark.parametrize(
    ("old", "new", "told", "again"),
    [
        ("train.steps = 4", "train.steps = 5", "stage 00-warm-up: .*train.steps 4 -> 5.*train depends",
         [*FIRST[1:], *SECOND, *THIRD[1:]]),
        ("max_tokens = 64", "max_tokens = 65", "stage 01-rl: .*rl.max_tokens 64 -> 65.*finished work depends",
         [*SECOND, *THIRD[1:]]),
        ('name = "rl"\n', 'name = "rl"\nset = { train.dtype = "float32" }\n',
         "stage 01-rl: .*train.dtype bfloat16 -> float32", [*SECOND, *THIRD[1:]]),
        ('name = "rl"\n', 'name = "rl"\nset = { data.max_image_pixels = 9000 }\n',
         "stage 01-rl: .*data.max_image_pixels .* -> 9000", [*SECOND, *THIRD[1:]]),
        ("temperature = 0.0", "temperature = 0.1", "stage 00-warm-up: .*evaluate depends",
         [FIRST[3], SECOND[3], THIRD[3]]),
    ],
    ids=["training", "stage", "overlay", "images", "evaluation"],
)  # fmt: skip
def test_a_changed_setting_is_refused_and_then_done_again(
    world: Path, old: str, new: str, told: str, again: list[str]
) -> None:
    """What depends on it is done again in its stage; later stages too, where another model goes on."""
    before, kept = done_since(world), files(world / "run" / "stages")
    for label, quality in (("warm-up", 0.55), ("rl", 0.75)):  # training again gives another model
        values = json.loads((world / "quality.json").read_text())
        (world / "quality.json").write_text(json.dumps(values | {label: quality}))
    change(world, old, new)
    assert re.search(told, run(world, code=2).stderr)
    assert done_since(world, before) == [] and files(world / "run" / "stages") == kept
    status = sophia(world, "status", "run.toml").stdout
    assert "stale" in status and "after 0" in status
    run(world, "--new-settings")
    assert done_since(world, before) == again
    if "train" in told or "max" in told:
        assert list((world / "run/stages/02-again/aside").glob("*/round-0/train"))  # nothing is deleted
    run(world)
    assert done_since(world, before) == again


def test_another_file_under_the_same_name(world: Path) -> None:
    before = done_since(world)
    (world / "pairs.jsonl").write_text('{"id": "p", "question": "What?", "response": "2"}\n')
    assert "the content of pairs.jsonl has changed" in run(world, code=2).stderr
    (world / "pairs.jsonl").write_text('{"id": "p", "question": "What?", "response": "1"}\n')
    run(world)
    (world / "questions.jsonl").write_text('{"id": "q", "question": "Which?", "answer": "1"}\n')
    assert "questions.jsonl" in run(world, code=2).stderr
    assert done_since(world, before) == []


def test_another_file_of_the_on_policy_stage_alone(tmp_path: Path) -> None:
    own = '{ "rl.questions" = [{ kind = "jsonl", path = "own.jsonl" }] }'
    write_world(tmp_path, RISING, TOML.replace('kind = "rl"', f'kind = "rl"\nset = {own}'))
    (tmp_path / "own.jsonl").write_text('{"id": "o", "question": "What?", "answer": "1"}\n')
    run(tmp_path)
    before = done_since(tmp_path)
    (tmp_path / "own.jsonl").write_text('{"id": "o", "question": "Which?", "answer": "1"}\n')
    refused = run(tmp_path, code=2).stderr
    assert "stage 01-rl: " in refused and "the content of own.jsonl has changed" in refused
    run(tmp_path, "--new-settings")
    assert done_since(tmp_path, before)[:3] == SECOND[:3] and len(list((tmp_path / "run/stages/01-rl/aside").iterdir()))


def test_another_model_to_begin_with(world: Path) -> None:
    write_model(world / "policy", 0.3)
    assert "models.policy the content of policy has changed" in run(world, code=2).stderr


def test_a_redone_stage_that_was_killed_makes_later_ones_stale_all_the_same(world: Path) -> None:
    before = done_since(world)
    (world / "quality.json").write_text(json.dumps(RISING | {"warm-up": 0.55}))
    change(world, "train.steps = 4", "train.steps = 5")
    killed(world, "01-rl batch 1", "--new-settings")
    run(world)  # without --new-settings: what is left follows from the other model
    assert done_since(world, before) == [*FIRST[1:], *SECOND, *THIRD[1:]]
    assert promoted(world, "01-rl")["candidates"][0]["score"] == 0.6


def test_a_stage_that_is_to_have_more_batches_goes_on(world: Path) -> None:
    before = done_since(world)
    change(world, "batches = 2", "batches = 3")
    run(world)
    assert done_since(world, before) == ["01-rl batch 3", "01-rl evaluate", "01-rl choice", *THIRD[1:]]


def test_another_rule_chooses_anew_without_work(world: Path) -> None:
    before = done_since(world)
    change(world, 'promote = "evaluate.held-out"', 'promote = "last"')
    assert "finished; the choice is not recorded" in sophia(world, "status", "run.toml").stdout
    run(world)
    assert done_since(world, before) == ["01-rl choice"] and promoted(world, "01-rl")["promote"] == "last"


def test_a_folder_holds_stages_or_a_run(world: Path, tmp_path: Path) -> None:
    text = (world / "run.toml").read_text()
    (world / "run.toml").write_text(text[: text.index("[[stages]]")])
    refused = sophia(world, "run", "run.toml", "--only", "report", code=2).stderr
    assert "run holds a run of several stages: choose another run.folder" in refused
    (world / "run.toml").write_text(text.replace('folder = "run"', 'folder = "run/stages/00-warm-up"'))
    assert "holds a run without stages: choose another run.folder" in run(world, code=2).stderr
    assert RunFolder(world / "run/stages/00-warm-up").config_file.is_file()


def test_submit_goes_from_stage_to_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slurm is a stand-in that notes what it is given; the work of the jobs is done by the next call of the stages."""
    given: list[tuple[str, bool, bool]] = []

    def submit(config: Config, *, new_settings: bool, stage: bool) -> Submission:
        given.append((config.run.folder.name, stage, new_settings))
        return Submission([], {}, [])

    monkeypatch.setattr("sophia_mcore.launch.slurm.submit.submit", submit)
    monkeypatch.setattr("sophia_mcore.launch.slurm.commands.queue", lambda uid: [])
    write_world(tmp_path, RISING)
    monkeypatch.chdir(tmp_path)
    config = load_config(tmp_path / "run.toml")
    for point in (SECOND[0], THIRD[0], ""):
        submit_next(config, new_settings=False, dry_run=False)
        killed(tmp_path, point) if point else run(tmp_path)
    assert given == [("00-warm-up", False, False), ("01-rl", True, True), ("02-again", False, False)]
    capsys.readouterr()
    submit_next(config, new_settings=False, dry_run=False)
    assert capsys.readouterr().out.splitlines()[-1] == "all stages are finished: no job submitted" and len(given) == 3
    change(tmp_path, "max_tokens = 64", "max_tokens = 65")
    with pytest.raises(UsageError, match=r"rl\.max_tokens 64 -> 65"):
        submit_next(load_config(tmp_path / "run.toml"), new_settings=False, dry_run=False)


def test_a_dry_run_shows_the_jobs_of_a_stage_that_begins_anew(world: Path) -> None:
    """As `sophia submit` would find it with its results moved aside; nothing is moved."""
    cluster = f'[cluster]\nenv_file = "{ROOT}/slurm/env/venv.env.example"\nscripts = "{ROOT}/slurm"\n'
    (world / "run.toml").write_text((world / "run.toml").read_text() + cluster)
    change(world, "max_tokens = 64", "max_tokens = 65")
    kept = files(world / "run" / "stages")
    shown = sophia(world, "submit", "run.toml", "--dry-run", "--new-settings").stdout
    assert re.findall(r"--job-name=(\S+)", shown) == ["rl-r0", "rl-evaluate-r0", "report-r0"], shown
    assert "--dependency=afterok:<rl-r0>" in shown.replace("'", "") and files(world / "run" / "stages") == kept


def test_a_stage_whose_jobs_are_alive_keeps_its_results(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(world, "max_tokens = 64", "max_tokens = 65")
    stage = RunFolder(world / "run" / "stages" / "01-rl")
    job = QueuedJob("7", "RUNNING", "", "n1", ("rl", 0))
    monkeypatch.setattr("sophia_mcore.launch.slurm.commands.queue", lambda uid: [job])
    with chdir(world), pytest.raises(UsageError, match=r"running as 1 Slurm jobs: 7 \(rl, running\)"):
        submit_next(load_config(world / "run.toml"), new_settings=True, dry_run=False)
    assert stage.rl.summary_file.is_file() and not stage.aside.exists()
