"""`sophia benchmark` on a real Slurm: the questions are shared by an array of tasks, and the same command goes on."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from sophia_mcore.records import Answer
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_folder, shard_files
from tests.slurm.cluster import Cluster
from tests.slurm.slurm_world import ROOT, Endpoint, attempts, finish, logs, sophia
from tests.support.pictures import smooth

QUESTIONS = 12
HEAD = ("index", "question", "image", "answer", "choices", "category", "level")


def table(folder: Path) -> Path:
    """A MathVision table as VLMEvalKit has it; the stub is right about all but those whose answer is -1."""
    rows = ["\t".join(HEAD)]
    for number in range(QUESTIONS):
        picture = base64.b64encode(smooth(24, 24, seed=number)).decode()
        answer = "-1" if number % 4 == 0 else str(number)
        rows.append("\t".join([str(number), f"What is {number}?", picture, answer, "[]", "arithmetic", "1"]))
    file = folder / "MathVision.tsv"
    file.write_text("\n".join(rows) + "\n")
    return file


def test_a_benchmark_is_shared_by_an_array_and_finished_by_the_same_command(
    cluster: Cluster, endpoint: Endpoint, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / "cluster.env").write_text(
        f"OPTIONS_ALL='--cpus-per-task=1 --mem=1G'\nTASKS_EVALUATE=3\nPYTHON_TRAINER={sys.executable}\n"
        f"PYTHON_ROLLOUT={sys.executable}\nOMP_NUM_THREADS=1\n"
    )
    settings = {
        "cluster.env_file": tmp_path / "cluster.env", "cluster.scripts": ROOT / "slurm",
        "evaluate.questions_per_unit": 2, "environments.rollout": sys.executable, "evaluate.engine.max_retries": 0,
    }  # fmt: skip
    command = [
        "benchmark", endpoint.url, out, "--model-name", "stub", "--on", f"mathvision={table(tmp_path)}",
        "--protocol", "paper,vlmevalkit", *(f"--set={key}={value}" for key, value in settings.items()),
    ]  # fmt: skip
    checked = sophia(cluster, *command, "--dry-run").stdout
    assert f"{QUESTIONS} questions; nothing was asked" in checked and not endpoint.prompts
    submitted = sophia(cluster, "submit", out / "config.toml").stdout
    assert "evaluate" in submitted and "captions" not in submitted
    finish(cluster, 300)
    run = RunFolder(out)
    tasks = attempts(run, "evaluate")
    assert len(tasks) == 3 and all(task.code == 0 for task in tasks), logs(run)
    assert sum(endpoint.prompts.values()) == 2 * QUESTIONS  # each question once under each protocol
    for protocol in ("paper", "vlmevalkit"):
        found = list(read_folder(run.evaluation("base", protocol), Answer))
        assert len({answer.question_id for answer in found}) == QUESTIONS
        assert len(shard_files(run.evaluation("base", protocol))) == QUESTIONS // 2
    assert run.report_html.is_file() and "MathVision" in run.report_html.read_text()
    asked = sum(endpoint.prompts.values())
    shown = sophia(cluster, *command).stdout
    assert sum(endpoint.prompts.values()) == asked  # nothing is asked again
    assert "MathVision, paper (paper, rules only): 75.00  [" in shown and "not the whole benchmark" in shown
    assert "MathVision, vlmevalkit (" in shown
    written = sorted((out / "predictions").glob("*/stub/stub_MathVision.tsv"))
    assert len(written) == 2
    scored = tmp_path / "scores.json"
    again = sophia(cluster, "benchmark", "--rescore", written[0], "--protocol", "paper", scored).stdout
    assert "75.00  [" in again and len(json.loads(scored.read_text())["answers"]) == QUESTIONS
