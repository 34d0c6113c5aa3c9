"""doctor and plan at 80 columns, and the file's own layout among the planner's."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from sophia_mcore.config import load_config
from sophia_mcore.doctor import command
from sophia_mcore.doctor.rows import Row
from sophia_mcore.plan.command import make_plan
from sophia_mcore.plan.show import show
from sophia_mcore.plan.workload import Assumptions
from tests.support import plan_models

ROWS = [
    Row(name="GPUs", state="missing", found="none", cost="training on a CPU only", remedy="a node with GPUs"),
    Row(name="rollout environment", state="ok", found="/a/long/path/.venv-vllm/bin/python, 163 packages"),
]


def shown(width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(command, "examine", lambda config: ROWS)
    output = io.StringIO()
    command.doctor(None, Console(file=output, width=width))
    return output.getvalue()


def test_the_doctor_breaks_no_word_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(80, monkeypatch)
    assert max(map(len, text.splitlines())) <= 80
    assert "ok      rollout environment: /a/long/path/.venv-vllm/bin/python, 163 packages" in text
    assert "to get it: a node with GPUs" in text and text.index("rollout") < text.index("GPUs")
    assert "what it costs when missing" in shown(120, monkeypatch)


@pytest.mark.parametrize(("parallel", "words"), [
    ({"tensor": 8, "pipeline": 2, "processes": 64, "processes_per_node": 8}, "the file's: TP8"),
    ({"tensor": 1, "processes": 64, "processes_per_node": 8}, "the file's own layout does not work here: DP64"),
    ({"tensor": 8, "pipeline": 3, "processes": 24, "processes_per_node": 8}, "64 GPUs are not a multiple of its 24"),
])  # fmt: skip
def test_the_plan_has_the_files_own_layout(tmp_path: Path, parallel: dict[str, int], words: str) -> None:
    file = plan_models.write_config(tmp_path / "38b", "internvl3-38b")
    sets = ["train.recompute=full", *(f"parallel.{key}={value}" for key, value in parallel.items())]
    made = make_plan(load_config(file, sets=sets), "h100", 64, Assumptions())
    output = io.StringIO()
    show(made, Console(file=output, width=80), 3)
    text = output.getvalue()
    assert words in " ".join(text.split())
    tables = [line for line in text.splitlines() if not line.startswith(("does not fit", "the file's own"))]
    assert max(map(len, tables)) <= 80
