"""The index of goals: made of the stored lines, and of nothing else."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from tests.bench.bench_packing import STAND_IN
from tests.support.tools import ROOT, load_tool

DATED = {
    "date": "2026-11-28",
    "command": "bench_x",
    "machine": "2 cores",
    "seconds_in_all": 3.0,
    "load": 1.0,
}


@pytest.fixture
def bench() -> ModuleType:
    return load_tool("bench")


def test_the_page_is_made_of_the_lines(bench: ModuleType) -> None:
    assert bench.PAGE.read_text() == bench.page(), "run: python tools/bench.py --page"


def test_every_goal_names_a_figure_of_its_line(bench: ModuleType) -> None:
    """Where its benchmark has left one; before that, the benchmark itself has to be there."""
    lines, named = bench.read(bench.LINES), 0
    for goal in tomllib.loads(bench.GOALS.read_text())["goal"]:
        line = lines.get(goal.get("line", ""))
        if line is None:
            assert "where" in goal or (ROOT / "tests" / "bench" / f"bench_{goal['bench']}.py").is_file(), goal["what"]
            continue
        keys = [goal[key] for key in ("key", "ours", "peer") if key in goal]
        assert [key for key in keys if bench.value(line, key) is None] == [], goal["what"]
        named += len(keys)
    assert named


def test_goals_that_are_met_and_missed(bench: ModuleType) -> None:
    goal = {"number": "1", "what": "speed", "line": "x", "key": "all/ratio", "ours": "a", "bench": "x", "at_least": 2}
    met = bench.row(goal, {"x": {"name": "x", "a": 12345, "all": {"ratio": 2.0}, **DATED}})
    assert met == ["1", "speed", "at least 2", "2", "yes", "12,345", "-", "2026-11-28", "`bench_x`"]
    assert bench.row(goal, {"x": {"name": "x", "a": 1, "all": {"ratio": 1.99}, **DATED}})[4] == "**no**"
    assert bench.row(goal, {})[3:5] == ["-", "-"]


def test_the_newest_line_of_a_name_counts(bench: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "lines.jsonl"
    bench.write(file, [{"name": "a", "ratio": 1}, {"name": "b", "ratio": 1}])
    bench.write(file, [{"name": "a", "ratio": 2}])
    assert {name: line["ratio"] for name, line in bench.read(file).items()} == {"a": 2, "b": 1}
    assert len(file.read_text().splitlines()) == 2 and json.loads(file.read_text().splitlines()[0])["name"] == "a"


def test_unknown_benchmarks_are_named() -> None:
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "nothing-of-the-kind"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "nothing-of-the-kind: there is none of this name; one of claims, conversion," in done.stderr


def test_a_stand_in_shows_nothing_of_the_peer(bench: ModuleType) -> None:
    goal = {"number": "5", "what": "x", "line": "x", "key": "ratio", "peer": "peer", "bench": "x", "at_least": 50}
    line = {"name": "x", "ratio": 80, "peer": 2, "peer_code": {"TRL": "trl 1.0", "NeMo-RL": STAND_IN}, **DATED}
    assert bench.row(goal, {"x": line})[4] == "not shown: a stand-in for the peer's code"
    assert bench.row(goal, {"x": line | {"peer_code": {"TRL": "trl 1.0"}}})[4] == "yes"


def test_one_benchmark_prints_its_own_goals(bench: ModuleType) -> None:
    assert len(bench.table({}, ["packing"]).splitlines()) == 4 < len(bench.table({}).splitlines())


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "bench").glob("bench_*.py")), ids=lambda path: path.stem)
def test_every_benchmark_follows_the_code(path: Path) -> None:
    """A name that has moved is found here and not when somebody measures."""
    assert importlib.import_module(f"tests.bench.{path.stem}").__doc__
