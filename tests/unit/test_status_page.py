"""docs/status.md is what its sources say, and a record that says otherwise changes it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.tools import ROOT, load_tool


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("write_status")


def test_the_page_is_current(tool: ModuleType) -> None:
    assert (ROOT / "docs" / "status.md").read_text() == tool.page(), "run: python tools/write_status.py"


def test_the_readme_s_table_is_current_and_has_the_three_lanes(tool: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    assert text == tool.readme(text), "run: python tools/write_status.py"
    table = text.partition(tool.MARKS[0])[2].partition(tool.MARKS[1])[0].splitlines()
    assert table[0] == "| | CPU | CUDA path on a CPU | GPU |" and len(table) > 6
    assert "speed" in text.partition(tool.MARKS[1])[2].split("\n\n")[0], "what the lane cannot say"


def test_a_failure_is_in_the_readme(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "status").mkdir()
    rows = '[[readme]]\nfeature = "x"\ncpu = { tests = ["a.py"] }\ngpu = { said = "-" }\n'
    (tmp_path / "status.toml").write_text(rows)
    result = {"passed": 1, "skipped": 0, "failed": 1, "date": "2026-01-01"}
    (tmp_path / "status" / "cpu.json").write_text(json.dumps({"a.py": result}))
    text = tool.readme(f"before\n{''.join(tool.MARKS)}after\n", tmp_path)
    assert "| x | **1 of 2 tests failed** | not yet | - |\n" in text
    assert text.startswith("before\n") and text.endswith("after\n")
    with pytest.raises(SystemExit, match=r"the marks .* are missing"):
        tool.readme("no table", tmp_path)


def test_every_piece_of_evidence_is_there() -> None:
    rows = tomllib.loads((ROOT / "docs" / "status.toml").read_text())
    all_rows = [*rows["readme"], *(row for section in rows["section"] for row in section["row"])]
    named = [t for r in all_rows for c in ("cpu", "cuda_path", "gpu") for t in _tests(r, c)]
    assert named and [test for test in named if not (ROOT / test).exists()] == []


def _tests(row: dict[str, Any], lane: str) -> list[str]:
    return row.get(lane, {}).get("tests", [])


@pytest.mark.parametrize(
    ("claim", "record", "shown"),
    [
        (None, {}, "not yet"),
        ({"said": "-"}, {}, "-"),
        ({"tests": ["a.py"]}, {}, "tested, no record"),
        ({"tests": ["a.py"]}, {"a.py": (3, 0, 0)}, "tested"),
        ({"tests": ["a.py"], "said": "<= 1e-4"}, {"a.py": (3, 0, 0)}, "tested, <= 1e-4"),
        ({"tests": ["a.py"]}, {"a.py": (3, 1, 0)}, "tested (1 of 4 skipped)"),
        ({"tests": ["a.py"]}, {"a.py": (0, 2, 0)}, "skipped in the last run"),
        ({"tests": ["a.py", "b.py"]}, {"a.py": (3, 0, 0)}, "tested, no record"),
        ({"tests": ["a.py", "b.py"]}, {"a.py": (3, 0, 0), "b.py": (1, 0, 2)}, "**2 of 6 tests failed**"),
        ({"tests": ["tests/slurm"]}, {"tests/slurm/x.py": (1, 0, 0), "tests/slurmy.py": (0, 0, 1)}, "tested"),
    ],
)
def test_a_cell_says_what_the_record_says(tool: ModuleType, claim: Any, record: Any, shown: str) -> None:
    results = {name: dict(zip(("passed", "skipped", "failed"), counts, strict=True)) for name, counts in record.items()}
    assert tool.cell(claim, results) == shown


def test_the_recorder_counts_the_worst_part_of_each_test(tmp_path: Path, tool: ModuleType) -> None:
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "@pytest.mark.skip(reason='no')\ndef test_skipped(): pass\n"
        "@pytest.fixture\ndef breaks():\n    yield\n    raise ValueError\n"
        "def test_end_fails(breaks): pass\n"
    )
    (tmp_path / "test_whole.py").write_text("import pytest\npytest.importorskip('absent_package')\n")
    (tmp_path / "test_unreadable.py").write_text("raise ValueError\n")
    target = tmp_path / "build" / "cpu.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.record", "--record", str(target)]
    command += ["-c", "/dev/null", f"--rootdir={tmp_path}", "-p", "no:cacheprovider", str(tmp_path)]
    command += ["--continue-on-collection-errors"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    found = json.loads(target.read_text())
    counts = {name: [result[kind] for kind in ("passed", "skipped", "failed")] for name, result in found.items()}
    assert counts == {"test_x.py": [1, 1, 2], "test_whole.py": [0, 1, 0], "test_unreadable.py": [0, 0, 1]}


def test_taking_a_record_drops_what_is_gone(tool: ModuleType, tmp_path: Path) -> None:
    docs, build = tmp_path / "docs", tmp_path / "build"
    (docs / "status").mkdir(parents=True)
    build.mkdir()
    (tmp_path / "here.py").touch()
    result = {"passed": 1, "skipped": 0, "failed": 0, "date": "2026-01-01", "python": "3.11"}
    (docs / "status" / "cpu.json").write_text(json.dumps({"here.py": result | {"passed": 5}, "gone.py": result}))
    (build / "cpu.json").write_text(json.dumps({"here.py": result}))
    tool.take(build, docs)
    assert json.loads((docs / "status" / "cpu.json").read_text()) == {"here.py": result}


@pytest.mark.parametrize("failing", ["cuda_path", "cuda_path_next"])
def test_a_failure_in_either_environment_of_the_cuda_path_stays(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Both environments run as tools/cuda_path.py runs them; the test fails in one of them."""
    lane = load_tool("cuda_path")
    docs, test = tmp_path / "docs", "tests/cuda_path/test_x.py"
    (tmp_path / "tests" / "cuda_path").mkdir(parents=True)
    (tmp_path / test).write_text(f"def test_x(pytestconfig): assert pytestconfig.option.record.stem != {failing!r}\n")
    for name, value in {"ROOT": tmp_path, "SITE": tmp_path / "none", "STATUS": tmp_path / "build" / "status"}.items():
        monkeypatch.setattr(lane, name, value)
    monkeypatch.setattr(lane, "NEXT", Path(sys.executable))
    monkeypatch.setattr(lane, "fetch", lambda: "")
    monkeypatch.setattr(sys, "argv", ["cuda_path.py", "-q", "-c", "/dev/null", f"--rootdir={tmp_path}"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert lane.main() == 1
    docs.mkdir()
    (docs / "status.toml").write_text(
        f'[[section]]\ntitle = "T"\n[[section.row]]\nfeature = "x"\ncuda_path = {{ tests = ["{test}"] }}\n'
    )
    tool.take(tmp_path / "build" / "status", docs)
    assert "**1 of 2 tests failed**" in tool.page(docs)
