"""The command as a user meets it: exit codes, one clear line, nothing half-written, light commands stay light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sophia_mcore.errors import SophiaError, run_command
from sophia_mcore.launch.environments import interpreter
from tests.support.configs import MINIMAL_TOML

ROOT = Path(__file__).resolve().parents[2]


def sophia(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sophia_mcore.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def write_run(folder: Path, rows: list[dict], extra: str = "") -> Path:
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (32, 32), "white").save(folder / "good.png")
    (folder / "broken.png").write_bytes((folder / "good.png").read_bytes()[:40])
    path = folder / "run.toml"
    path.write_text(MINIMAL_TOML + extra)
    return path


GOOD = {"id": "a", "question": "What is it?", "answer": "5", "image": "good.png"}


def assert_failed(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    line = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    for word in words:
        assert word in result.stderr, (word, line)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**GOOD, "image": "absent.png"}, ["absent.png"]),
        ({**GOOD, "image": "broken.png"}, ["row 1"]),
        ({**GOOD, "answer": ""}, ["no answer"]),
        ({**GOOD, "question": ""}, ["no question"]),
        ({**GOOD, "image": "../../../etc/hostname"}, ["leads out of"]),
    ],
)
def test_bad_rows_stop_the_run_before_any_model(tmp_path: Path, row: dict, words: list[str]) -> None:
    config = write_run(tmp_path, [GOOD, {**row, "id": "b"}])
    assert_failed(sophia("run", str(config), folder=tmp_path), 1, *words)
    assert not (tmp_path / "run" / "questions.parquet").exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_empty_dataset(tmp_path: Path) -> None:
    assert_failed(sophia("run", str(write_run(tmp_path, [])), folder=tmp_path), 1, "questions.jsonl")


def test_configuration_mistakes_are_usage_errors(tmp_path: Path) -> None:
    config = write_run(tmp_path, [GOOD], "[train]\nlearning_rat = 1.0\n")
    assert_failed(sophia("run", str(config), folder=tmp_path), 2, "train.learning_rat", "did you mean 'learning_rate'")
    assert_failed(sophia("check", str(tmp_path / "no.toml"), folder=tmp_path), 2, "no such configuration file")
    config = write_run(tmp_path, [GOOD])
    assert_failed(sophia("run", str(config), "--only", "trian", folder=tmp_path), 2, "did you mean 'train'")
    assert_failed(sophia("run", str(config), "--set", "train.steps=x", folder=tmp_path), 2, "train.steps")
    assert not (tmp_path / "run").exists()


def test_interpreter_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SophiaError, match="make env"):
        interpreter(tmp_path / "bin" / "python")


def test_a_bug_says_where_its_traceback_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for log, where in (
        (None, "the traceback is above"),
        (tmp_path / "log", f"details: {tmp_path / 'log'}"),
        (tmp_path, "the traceback is above"),  # a folder: it cannot be written
    ):
        assert run_command("x", lambda: {}["gone"], log) == 1
        *before, last = capsys.readouterr().err.splitlines()
        assert last == f"error: x: KeyError: 'gone' ({where})"
        told = (tmp_path / "log").read_text() if where.startswith("details") else "\n".join(before)
        assert told.startswith("Traceback")


def test_models_are_looked_at_before_any_starts(tmp_path: Path) -> None:
    config = write_run(tmp_path, [GOOD])
    assert_failed(sophia("generate", str(config), folder=tmp_path), 1, "policy: no such model directory")
    assert not (tmp_path / "run" / "round-0").exists()


def test_a_run_is_found_by_its_folder_wherever_it_is(tmp_path: Path) -> None:
    config = write_run(tmp_path, [GOOD])
    assert sophia("run", str(config), "--only", "questions", folder=tmp_path).returncode == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    result = sophia("report", "moved", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "moved" / "report.json").is_file()
    assert not (tmp_path / "run").exists()
    assert_failed(sophia("report", "nowhere", folder=tmp_path), 2, "no such run folder")


def test_later_phases_check_their_inputs_themselves(tmp_path: Path) -> None:
    config = write_run(tmp_path, [GOOD])
    for phase in ("score", "train", "export"):
        result = sophia(phase, str(config), folder=tmp_path)
        assert_failed(result, 1)
    assert not list((tmp_path / "run" / "round-0").rglob("*.parquet"))


def test_report_of_a_run_that_has_hardly_begun_says_what_is_missing(tmp_path: Path) -> None:
    config = write_run(tmp_path, [GOOD])
    assert sophia("run", str(config), "--only", "questions", folder=tmp_path).returncode == 0
    result = sophia("report", str(config), folder=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "round 0: training" in report["missing"]
    assert "not there (yet): round 0: training\n" in result.stdout and result.stdout.endswith("report.html\n")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "round 0: training" in page


def test_light_commands_import_no_heavy_module(tmp_path: Path) -> None:
    config = write_run(tmp_path, [GOOD])
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shipped = "examples/digits/run.toml"  # its policy is here, its questions are not
    heavy = ["torch", "numpy", "pyarrow", "megatron", "transformers", "datasets", "mlflow", "vllm"]
    rest = [*heavy, "jinja2", "PIL", "sophia_mcore.verify", "sophia_mcore.records"]
    model, made = "no such model directory", "no such file; what makes it: make demo"
    cases = ((["--help"], rest, []), (["check", str(config)], heavy, [model] * 2), (["check", shipped], rest, [made]))
    for arguments, unwanted, wanted in cases:
        script = (
            "import sys\nfrom sophia_mcore.cli import app\n"
            f"try:\n    app({arguments!r})\nexcept SystemExit:\n    pass\n"
            f"print(sorted(set({unwanted!r}) & sys.modules.keys()), file=sys.stderr)\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        *warnings, last = result.stderr.splitlines()
        assert last == "[]" and len(warnings) == len(wanted), result.stderr
        assert all(said in warning for warning, said in zip(warnings, wanted, strict=True))
