"""The shipped configurations of the on-policy stage: they load, say what their papers say, and can be planned."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.launch.phases import phases_in
from sophia_mcore.launch.slurm.jobs import Site, plan_jobs
from sophia_mcore.phase import PhaseState
from sophia_mcore.plan.command import make_plan
from sophia_mcore.plan.stage import StagePlan
from sophia_mcore.plan.workload import Assumptions
from tests.support import plan_models
from tests.support.pictures import smooth
from tests.support.qwen_models import config_of

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(
    str(path.relative_to(ROOT / "examples"))
    for name in ("rl*.toml", "rethinker_*.toml")
    for path in (ROOT / "examples").glob(f"*/{name}")
)
RETHINKERS = [name for name in EXAMPLES if "rethinker" in name]


def example(name: str, *sets: str) -> Config:
    return load_config(ROOT / "examples" / name, sets=sets)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with nothing but the config.json of the examples' policies."""
    found = {}
    for model in ("internvl3-38b", "internvl3-8b"):
        folder = tmp_path_factory.mktemp(model)
        plan_models.write_config(folder, model)
        found[model.replace("-", "_")] = folder / "policy"
    found["qwen2_5_vl_7b"] = tmp_path_factory.mktemp("qwen")
    (found["qwen2_5_vl_7b"] / "config.json").write_text(json.dumps(config_of("Qwen2.5-VL-7B")))
    return found


def test_these_are_there() -> None:
    assert {"digits/rl.toml", "internvl3_38b/rl.toml", "internvl3_8b/rl.toml"} <= set(EXAMPLES)
    assert [name.partition("/")[2] for name in RETHINKERS] == ["rethinker_1.toml", "rethinker_2.toml"] * 2


@pytest.mark.parametrize("name", ["internvl3_38b/rl.toml", "internvl3_8b/rl.toml"])
def test_the_papers_stage(name: str) -> None:
    """SOPHIA, section on GRPO: 64 questions x 8 answers, one update a batch, 480 of them at 5e-7, no KL, 0.4 to 0.6."""
    rl = example(name).on_policy
    assert (rl.start, rl.batches, rl.questions_per_batch, rl.group, rl.updates_per_batch) == ("round-0", 480, 64, 8, 1)
    assert (rl.train.learning_rate, rl.objective.kl, rl.fill, rl.max_tokens) == (5e-7, 0.0, "none", 16_384)
    assert (rl.select.samples, rl.select.minimum, rl.select.maximum) == (16, 0.4, 0.6)


@pytest.mark.parametrize("name", RETHINKERS)
def test_vl_rethinkers_two_stages(name: str) -> None:
    """arXiv 2504.08837: 1,024 questions x 8 answers in updates of 512, SSR; then forced rethinking with weight 0.05."""
    config = example(name)
    rl, second = config.on_policy, name.endswith("2.toml")
    assert (rl.questions_per_batch, rl.group, rl.samples_per_update, rl.updates_per_batch) == (1024, 8, 512, 16)
    assert (rl.fill, rl.ssr.alpha, rl.ssr.episode_questions, rl.train.learning_rate) == ("ssr", 1.0, 1024, 1e-6)
    assert [source.preset for source in config.data.questions] == ["virl39k"]
    assert rl.rethink.share == (0.65 if second else 0.0) and rl.rethink.weight == 0.05
    assert rl.prompt == ("rethink" if second else "boxed")
    if second:  # it begins where the first stage ends
        first = example(name.replace("_2", "_1"))
        assert Path(rl.start) == first.run.folder / "rl" / "model" and config.run.folder != first.run.folder
        assert config.models.policy == first.models.policy


@pytest.mark.parametrize("name", [name for name in EXAMPLES if not name.startswith("digits")])
def test_it_is_planned(name: str, models: dict[str, Path]) -> None:
    folder = models[name.partition("/")[0]]
    config = example(name, f"models.policy={folder}", f"models.reasoner={models['internvl3_8b']}")
    gpus = 64 if "38b" in name else 8
    plan = make_plan(config, "h100", gpus, Assumptions(questions=38_870)).stage
    assert isinstance(plan, StagePlan), plan
    assert plan.own is not None and not plan.refused
    assert plan.own.host < 1.5e12 and 10 < plan.own.turns.seconds < 7200


@pytest.mark.parametrize("name", [name for name in EXAMPLES if not name.startswith("digits")])
def test_it_becomes_jobs(name: str) -> None:
    config = example(name)
    states = [PhaseState(phase=phase.name, round=0) for phase in phases_in("stage")]
    jobs = {job.phase: job for job in plan_jobs(config, Site({"TASKS_RL_SELECT": "4"}), states)}
    nodes = 8 if "38b" in name else 1
    assert list(jobs) == ["questions", "rl-select", "rl", "rl-evaluate", "report"]
    assert f"--nodes={nodes}" in jobs["rl"].options and "--gpus-per-node=8" in jobs["rl"].options


@pytest.mark.parametrize("name", RETHINKERS)
def test_it_is_checked_with_questions_in_virl39ks_form(name: str, tmp_path: Path) -> None:
    """The example as it stands, in a folder where the data lies as its file says."""
    data = tmp_path / "data" / "ViRL39K"
    (data / "images").mkdir(parents=True)
    (data / "images" / "a.png").write_bytes(smooth(28, 28, 1))
    rows = {
        "qid": ["a-1"], "question": ["<image>How many?"], "answer": ["\\boxed{3}"], "image": [["images/a.png"]],
        "category": ["x"], "PassRate_32BTrained": [0.5],
    }  # fmt: skip
    pq.write_table(pa.table(rows), data / "39Krelease.parquet")
    (tmp_path / "data" / "MathVista").mkdir()
    held_out = {"id": ["1"], "question": ["How many?"], "answer": ["3"], "image": [{"bytes": smooth(28, 28, 2)}]}
    pq.write_table(pa.table(held_out), tmp_path / "data" / "MathVista" / "testmini.parquet")
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("base"))
    done = subprocess.run(
        [sys.executable, "-m", "sophia_mcore.cli", "check", f"examples/{name}"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "data.questions: virl39k" in done.stdout and "How many? -> 3" in done.stdout
    assert f"# ok: examples/{name}" in done.stdout
