"""SOPHIA's round and the on-policy stage with a tiny Qwen2.5-VL on digits, without starting a process for each phase.

The phases are the real ones on the example's configuration. Two things are smaller than in `sophia run` and
`sophia rl`: transformers samples in place of vLLM, and the engine of the stage is that of `tests.support.stage_world`.
tests/parity/test_digits_qwen.py runs the commands, with vLLM.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.digits import world
from sophia_mcore.config import dump_toml, load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.launch import work
from sophia_mcore.launch.phases import PHASES
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Caption, Question, Rollout, Trajectory
from sophia_mcore.rl.versions import read_version
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import read_folder, read_shard
from sophia_mcore.track.metrics import read_metrics
from tests.support import stage_world, train_world
from tests.support.harness import run as on_ranks

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"
PLAIN = '{kind="transformers",dtype="float32"}'
QUESTIONS = 8


def configured(file: str, run: RunFolder, **more: object) -> Config:
    """A configuration of the example in a run folder, with few questions, written there."""
    values = {
        "run.folder": run.path, "models.policy": run.path.parent / "qwen", "track.enabled": "false",
        "captions.engine": PLAIN, "reasoning.engine": PLAIN, "evaluate.engine": PLAIN, "score.workers": 1,
        "data.questions": questions(run, "train", QUESTIONS), "evaluate.questions": questions(run, "test", 4),
        "train.steps": 4, "train.save_every_steps": 2, "reward.use_visual_reward": "false",
        "captions.per_image": 2, "reasoning.per_caption": 2, **more,
    }  # fmt: skip
    config = load_config(DIGITS / file, sets=[f"{key}={value}" for key, value in values.items()])
    run.path.mkdir(exist_ok=True)
    run.config_file.write_text(dump_toml(config))
    return config


def questions(run: RunFolder, part: str, count: int) -> str:
    return f'[{{kind="jsonl",path="{run.path.parent / part}.jsonl",name="{part}",limit={count}}}]'


def share_of_digits_read(run: RunFolder) -> float:
    """Of the cells that captions name, how many are the digits of their boards; chance is a tenth."""
    rng, boards = random.Random("questions of train"), []
    for _ in range(QUESTIONS):  # as world.write_questions draws them
        boards.append(world.random_board("train", rng))
        world.random_task(rng)
        world.draw(boards[-1], rng)
    asked = {question.id: question for question in read_shard(run.questions_file, Question)}
    digits = {asked[f"train-{number}"].images: board.digits for number, board in enumerate(boards)}
    right = []
    for caption in read_folder(run.round(0).captions, Caption):
        named = re.findall(rf"({'|'.join(world.NAMES)}) (\d)", caption.text)
        right += [digits[caption.images][world.NAMES.index(name)] == int(digit) for name, digit in named]
    assert len(right) > QUESTIONS
    return sum(right) / len(right)


@pytest.mark.slow
def test_a_round_and_the_on_policy_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the example's prompts are named from there
    run = RunFolder(tmp_path / "run")
    for part in ("train", "test"):
        world.write_questions(part, QUESTIONS, tmp_path)
    made = [DIGITS / "make_qwen.py", "--out", tmp_path / "qwen", "--steps", 100, "--least", 0.7]
    subprocess.run([sys.executable, *map(str, made)], cwd=ROOT, check=True)

    config = configured("qwen.toml", run)
    round, progress = Round(config, run, 0), NoProgress()
    for phase in (work.questions, work.captions, work.reasoning, work.score):
        phase(round, progress)
    kept = json.loads(round.folder.kept_summary_file.read_text())
    assert kept["captions"] == 2 * QUESTIONS and share_of_digits_read(run) > 0.2, "captions name what the tower saw"
    assert len(list(read_folder(round.folder.trajectories, Trajectory))) == kept["trajectories"] == 4 * QUESTIONS
    assert on_ranks(train_world.train, config.parallel.world_size, config, run) == [True] * 2
    work.export(round, progress, PHASES)
    work.evaluate(round, progress)
    summary = json.loads((round.folder.train / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["logprob_after"] > summary["logprob_before"] + 0.1
    assert summary["rollout_gap"]["max"] < 1e-3, "the trainer's tokens, pictures and positions are the engine's"
    work.report(round, progress, PHASES)
    found = json.loads((run.path / "report.json").read_text())["evaluation"]
    assert found["round-0"]["n"] == found["base"]["n"] == 4

    stage = configured(
        "qwen_rl.toml", run,
        **{"rl.batches": 2, "rl.questions_per_batch": 4, "rl.group": 4, "rl.samples_per_update": 16,
           "rl.questions_per_unit": 4, "rl.validation": "[]", "rl.questions": "[]"},
    )  # fmt: skip
    with stage_world.engine(stage, run, episodes=True):
        assert stage_world.train(stage, run) == [True]
    assert len(list(read_folder(run.rl.batch(1), Rollout))) == 16
    lines = list(read_metrics(run.rl.train / "metrics.jsonl"))
    gaps = [line["rollout_gap_p99"] for line in lines if line["phase"] == "batch"]
    assert len(gaps) == 2 and max(gaps) < 1e-3, "the second batch was sampled with the published weights"
    updated = any(not line["skipped"] for line in lines if line["phase"] == "update")
    versions = [read_version(run.rl.versions, number) for number in (0, 2)]
    digests = {version.digest for version in versions if version is not None}
    assert len(digests) == 1 + updated, "a batch whose groups are all wrong teaches nothing"
    assert any(run.rl.model.glob("*.safetensors"))
