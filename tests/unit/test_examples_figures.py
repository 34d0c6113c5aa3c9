"""The examples' tables of figures: a run that is missing or has not ended is one clear line."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from examples.digits.experiments import climb
from examples.recipes import figures
from examples.recipes.openvlthinker import figures as stages_figures
from sophia_mcore.errors import run_command
from sophia_mcore.store.layout import RunFolder
from tests.support.report_stage import add_stage
from tests.support.report_world import make_finished_run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with a stage that has ended and was evaluated by the protocol "paper"."""
    run, _ = make_finished_run(tmp_path / "run", questions=6)
    for before, after in (("base", "rl-start"), ("round-0", "rl")):
        (run.path / "evaluation" / before).rename(run.path / "evaluation" / after)
    add_stage(run)
    return run


def line_of(work: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command has ended with."""
    capsys.readouterr()
    assert work() == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_climb_asks_by_the_runs_own_protocols(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert climb.main([f"a={run.path}", f"b={run.path}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5 and '"protocol": "paper"' in printed[0]


@pytest.mark.parametrize(
    ("damage", "arguments", "told"),
    [
        (None, ("--protocols", "greedy"), "no answers under protocol 'greedy' (answered are paper)"),
        ("config.toml", (), "not a run folder (it has no config.toml)"),
        (
            "evaluation/rl",
            (),
            "evaluation/rl/paper: no answers under protocol 'paper' (the stage has not been evaluated",
        ),
        ("rl/validation", ("--picture", "x.svg"), "--picture: a has no validated version"),
    ],
)
def test_climb_says_what_is_missing(
    run: RunFolder, capsys: pytest.CaptureFixture[str], damage: str | None, arguments: Sequence[str], told: str
) -> None:
    if damage is not None:
        path = run.path / damage
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert told in line_of(lambda: climb.main([f"a={run.path}", *arguments]), capsys)


def test_climb_without_a_run(tmp_path: Path, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere: not a run folder" in line_of(lambda: climb.main([f"a={tmp_path / 'nowhere'}"]), capsys)
    both = [f"a={run.path},{tmp_path / 'nowhere'}"]
    assert "nowhere: no such run folder" in line_of(lambda: climb.main(both), capsys)


def test_the_recipes_figures_say_what_is_missing(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--first", "2", "--last", "4"]
    assert figures.main([f"a={run.path}", *few]) == 0
    assert "has 6 batches with answers, so --first 2 and --last 8 would have some in common" in line_of(
        lambda: figures.main([f"a={run.path}"]), capsys
    )
    assert "no answers of an on-policy stage" in line_of(lambda: figures.main([f"a={tmp_path / 'nowhere'}"]), capsys)
    missing = line_of(lambda: figures.main([f"a={run.path}", *few, "--questions", "nowhere.jsonl"]), capsys)
    assert "--questions nowhere.jsonl: no such file" in missing


def test_figures_of_a_list_of_stages_that_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told = line_of(lambda: run_command("figures", stages_figures.show), capsys)
    assert "runs/digits/data/test.jsonl: no such file" in told
    stages_figures.TEST.parent.mkdir(parents=True)
    stages_figures.TEST.write_text("")
    told = line_of(lambda: run_command("figures", stages_figures.show), capsys)
    assert "none of the runs has been evaluated yet" in told
