"""The phases as they run: worker processes of the rollout environment on a run folder, killed and started again."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.data.prompts import fill, load_prompt
from sophia_mcore.evaluate.results import results
from sophia_mcore.pretrained.chat import Chat, Message
from sophia_mcore.records import Answer, Caption, Question, Trajectory
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import model_digest
from sophia_mcore.store.shards import read_folder, shard_files, write_shard
from tests.parity.conftest import ROOT, rollout_environment
from tests.support.configs import make_config
from tests.support.pictures import smooth

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
VLLM = {"kind": "vllm", "dtype": "float32", "threads": 1, "kv_cache_mib": 64, "max_sequences": 16}


def make_run(folder: Path, policy: Path, reasoner: Path) -> tuple[Config, RunFolder]:
    run = RunFolder(folder)
    digests = ImageStore(run.images).add_many([smooth(28 + 20 * i, 28, i) for i in range(6)])
    questions = [
        Question(id=f"q{i}", question=f"What is {i}?", answer=str(i), images=(digest,))
        for i, digest in enumerate(digests)
    ]
    write_shard(run.questions_file, questions, Question)
    write_shard(run.evaluation_questions_file, questions[:3], Question)
    sampling = {"temperature": 1.0, "max_tokens": 24}
    greedy = {**sampling, "temperature": 0.0}
    prompt = folder / "seeing.txt"
    prompt.write_text("I see {caption}. {question}")  # the shipped one is longer than the tiny model's 512 positions
    describe = folder / "describe.txt"
    describe.write_text("What is it?")
    thinking = folder / "thinking.txt"
    thinking.write_text("Think.")
    config = make_config(
        folder, policy, reasoner,
        captions={"per_image": 2, "images_per_unit": 1, "sampling": sampling, "engine": VLLM, "prompt_file": describe},
        reasoning={
            "per_caption": 2, "questions_per_unit": 4, "sampling": greedy, "prompt_file": prompt,
            "engine": {**VLLM, "max_model_length_tokens": 512},
        },
        score={"workers": 1},
        batch={"long_thinking_prompt_file": thinking},
        evaluate={
            "engine": VLLM,
            "questions": ({"kind": "jsonl", "path": "unused"},),
            "protocols": ({"name": "greedy", "sampling": greedy},),
        },
    )  # fmt: skip
    run.config_file.write_text(dump_toml(config))
    return config, run


def worker(python: Path, phase: str, run: RunFolder) -> subprocess.Popen[str]:
    command = [str(python), "-m", "sophia_mcore.launch.worker", phase, str(run.config_file), "--round", "0"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=rollout_environment(), cwd=ROOT
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]
    return output


def test_a_round_of_workers(
    rollout_python: Path, tiny_internvl: Path, other_internvl: Path, tiny_qwen2: Path, tmp_path: Path
) -> None:
    config, run = make_run(tmp_path / "run", tiny_internvl, tiny_qwen2)
    run.round(0).path.mkdir(exist_ok=True)
    run.round(0).model.symlink_to(other_internvl)  # the evaluation asks both models in one engine
    started = [worker(rollout_python, phase, run) for phase in ("captions", "evaluate")]
    for process in started:
        finish(process)
    finish(worker(rollout_python, "reasoning", run))

    captions = {caption.id: caption for caption in read_folder(run.round(0).captions, Caption)}
    trajectories = list(read_folder(run.round(0).trajectories, Trajectory))
    assert len(captions) == 12 and len(trajectories) == 24
    assert all(len(sampled.token_logprobs) == len(sampled.token_ids) for sampled in [*captions.values(), *trajectories])
    assert len({caption.model_digest for caption in captions.values()}) == 1
    assert {t.model_digest for t in trajectories} != {c.model_digest for c in captions.values()}
    assert results(run, config, pytest.fail)["base"]["n"] == 3
    answers = {label: list(read_folder(run.evaluation(label, "greedy"), Answer)) for label in ("base", "round-0")}
    assert len(answers["base"]) == 3
    digests = {label: {answer.model_digest for answer in rows} for label, rows in answers.items()}
    assert digests == {"base": {model_digest(tiny_internvl)}, "round-0": {model_digest(other_internvl)}}
    assert [a.token_ids for a in answers["base"]] != [a.token_ids for a in answers["round-0"]]
    check_greedy_reasoner(tiny_qwen2, trajectories, captions, tmp_path / "run" / "seeing.txt")


@torch.inference_mode()
def check_greedy_reasoner(
    model_dir: Path, trajectories: list[Trajectory], captions: dict[str, Caption], prompt_file: Path
) -> None:
    """Trajectories equal transformers' greedy tokens on the prompt as tokenizer.json spells it.

    AutoTokenizer forces Qwen2's class on this directory and gets other ids, which the engine must not fall for.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    chat, tokenizer = Chat.from_model_dir(model_dir), Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    for trajectory in trajectories[:6]:
        caption = captions[trajectory.caption_id].text
        number = trajectory.question_id.removeprefix("q")
        text = fill(load_prompt("simulate_seeing", prompt_file), caption=caption, question=f"What is {number}?")
        ids = tokenizer.encode(chat.render([Message("user", text)], add_generation_prompt=True)).ids
        output = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=24, eos_token_id=2, pad_token_id=0)
        assert list(trajectory.token_ids) == output[0, len(ids) :].tolist()


def shards(run: RunFolder) -> list[Path]:
    """Finished caption shards; what a killed writer left has a hidden name."""
    folder = run.round(0).captions
    return shard_files(folder) if folder.is_dir() else []


def test_killed_captions_go_on_and_end_the_same(
    rollout_python: Path, tiny_internvl: Path, tiny_qwen2: Path, tmp_path: Path
) -> None:
    _, whole = make_run(tmp_path / "whole", tiny_internvl, tiny_qwen2)
    undisturbed = worker(rollout_python, "captions", whole)
    _, killed = make_run(tmp_path / "killed", tiny_internvl, tiny_qwen2)
    victim = worker(rollout_python, "captions", killed)
    while victim.poll() is None and not shards(killed):
        time.sleep(0.01)
    victim.kill()
    victim.communicate()
    done = {path: path.stat().st_mtime_ns for path in shards(killed)}
    assert done
    finish(undisturbed)
    finish(worker(rollout_python, "captions", killed))
    names = [path.name for path in shards(whole)]
    for name in names:  # byte for byte
        assert (killed.round(0).captions / name).read_bytes() == (whole.round(0).captions / name).read_bytes()
    assert [path.name for path in shards(killed)] == names
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())  # nothing was done twice
