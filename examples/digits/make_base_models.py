"""The recipe of the base models: a policy that sees but cannot calculate, a reasoner that calculates but is blind.

    python examples/digits/make_base_models.py [--out runs/digits/base] [--seed 0]

stage A  one language model learns to look cells up and to calculate (`lessons.drill`); both models start from it
stage V  the policy's tower and projector learn to turn a cell into the sum of two of the language model's own word
         embeddings, its name and its digit; the language model is frozen
stage B  the reasoner learns to think aloud from a description                             } side by side,
stage C  the policy's language model learns to caption and to answer at once: `sophia train` } one thread each
         on question-answer pairs (warmup.toml), tower and projector frozen

Each stage is checked and, if it fails, repeated from another seed. The result is two Hugging Face directories,
OUT/policy (InternVL, native format) and OUT/reasoner (Qwen2), and OUT/base.json with the figures of the checks. Run
again, nothing is done when OUT/base.json was made by the same recipe and seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.queues import Queue
from pathlib import Path
from threading import Thread

import torch
from checks import caption_figures, reasoner_figures
from lessons import drill, read_prompt, reasoner_lesson
from models import language_config, policy_config, save_model
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from teach import Schedule, Words, accuracy, answer_logits, cross_entropy, imagined, teach, tower_eyes
from torch import Tensor
from torch.nn import functional as F
from transformers import InternVLForConditionalGeneration, Qwen2ForCausalLM
from vocabulary import build_tokenizer
from warmup import STEPS as WARMUP_STEPS
from warmup import warm_up, write_pairs
from world import random_board

HERE = Path(__file__).parent
STAGE_A = Schedule(steps=400, rows=32, muon=0.01, adamw=4e-3)
STAGE_V = Schedule(steps=200, rows=64, muon=0.01, adamw=3e-3)
STAGE_B = Schedule(steps=600, rows=16, muon=0.005, adamw=1.5e-3)
ATTEMPTS = 3
RECIPE = (
    "checks.py", "lessons.py", "make_base_models.py", "models.py", "teach.py", "vocabulary.py", "warmup.py",
    "warmup.toml", "world.py",
)  # fmt: skip
Report = Callable[[int, str], None]


class CheckFailed(Exception):
    """A stage did not reach what the next one needs."""


def require(stage: str, figures: dict[str, float], least: dict[str, float]) -> dict[str, float]:
    """Raise CheckFailed when a figure is below what is needed; else return the figures."""
    low = [f"{name} {figures[name]:.3f} < {bound}" for name, bound in least.items() if figures[name] < bound]
    if low:
        raise CheckFailed(f"stage {stage}: {', '.join(low)}")
    return figures


def words() -> Words:
    """The tokenizer; building it takes a second and always gives the same."""
    return Words(build_tokenizer(tuple(read_prompt(name) for name in ("describe", "long_thinking", "simulate_seeing"))))


def stage_a(seed: int, report: Report) -> tuple[Qwen2ForCausalLM, dict[str, float]]:
    """The language model that both start from."""
    torch.manual_seed(seed)
    rng, vocabulary = random.Random(f"A{seed}"), words()
    model = Qwen2ForCausalLM(language_config(vocabulary.tokenizer))
    eyes = imagined(vocabulary, model.get_input_embeddings())

    def logits(count: int, lookup_share: float) -> tuple[Tensor, Tensor]:
        lessons = [drill(rng, lookup_share) for _ in range(count)]
        return answer_logits(model.model, model.lm_head, vocabulary, lessons, eyes)

    teach(model, STAGE_A, lambda done: cross_entropy(logits(STAGE_A.rows, 0.9 if done < 0.3 else 0.25)), report)
    figures = {"lookup": accuracy([logits(128, 1.0)]), "arithmetic": accuracy([logits(128, 0.0)])}
    return model, require("A", figures, {"lookup": 0.85, "arithmetic": 0.95})


def stage_b(start: dict[str, Tensor], seed: int, report: Report) -> tuple[Qwen2ForCausalLM, dict[str, float]]:
    """The reasoner."""
    torch.manual_seed(seed)
    rng, vocabulary = random.Random(f"B{seed}"), words()
    model = Qwen2ForCausalLM(language_config(vocabulary.tokenizer))
    model.load_state_dict(start)

    def loss(_: float) -> Tensor:
        lessons = [reasoner_lesson(rng) for _ in range(STAGE_B.rows)]
        return cross_entropy(answer_logits(model.model, model.lm_head, vocabulary, lessons, imagined_nothing))

    teach(model, STAGE_B, loss, report)
    figures = reasoner_figures(model, vocabulary)
    return model, require("B", figures, {"reasoning_greedy": 0.85})


def imagined_nothing(_: object) -> Tensor:
    """The reasoner has no eyes."""
    raise AssertionError("a reasoner's lesson has no image")


def stage_v(policy: InternVLForConditionalGeneration, vocabulary: Words, seed: int, report: Report) -> None:
    """Align the tower: the token of a cell should lie at the sum of the embeddings of its name and its digit."""
    rng = random.Random(f"V{seed}")
    embedding = policy.model.language_model.get_input_embeddings().weight.detach()
    targets = embedding[vocabulary.digits] + embedding[vocabulary.names][:, None]  # [4, 10, hidden]
    eyes = tower_eyes(policy, rng)

    def loss(_: float) -> Tensor:
        boards = [random_board("base", rng) for _ in range(STAGE_V.rows)]
        digits = torch.tensor([board.digits for board in boards])
        squares = (eyes(boards)[:, :, None] - targets).square().sum(-1)  # [rows, 4, 10]
        classes = F.cross_entropy(-squares.flatten(0, 1), digits.flatten())
        return classes + squares.gather(-1, digits[..., None]).mean()

    policy.requires_grad_(False)
    policy.model.vision_tower.requires_grad_(True)
    policy.model.multi_modal_projector.requires_grad_(True)
    teach(policy, STAGE_V, loss, report)


def stages_v_and_c(
    start: dict[str, Tensor], folder: Path, seed: int, report: Report
) -> tuple[InternVLForConditionalGeneration, dict[str, float]]:
    """The policy."""
    torch.manual_seed(seed)
    vocabulary = words()
    policy = InternVLForConditionalGeneration(policy_config(vocabulary.tokenizer))
    body = {name.removeprefix("model."): value for name, value in start.items() if name != "lm_head.weight"}
    policy.model.language_model.load_state_dict(body)
    policy.lm_head.load_state_dict({"weight": start["lm_head.weight"]})
    stage_v(policy, vocabulary, seed, report)
    shutil.rmtree(folder, ignore_errors=True)
    save_model(policy, vocabulary.tokenizer, folder / "seeing")
    write_pairs(folder, random.Random(f"C{seed}"))
    policy = InternVLForConditionalGeneration.from_pretrained(warm_up(folder, report), dtype=torch.float32)
    figures = caption_figures(policy, vocabulary)
    return policy, require("C", figures, {"captions_greedy": 0.75})


def attempt(stage: Callable, seed: int, report: Report, *inputs: object) -> tuple:
    """Run a stage from one seed after the other until its check is met."""
    for number in range(ATTEMPTS):
        try:
            return stage(*inputs, seed + 1000 * number, report)
        except CheckFailed as failure:
            report(0, f"{failure}; again from another seed")
            if number == ATTEMPTS - 1:
                raise
    raise AssertionError


def in_child(name: str, start: dict[str, Tensor], seed: int, folder: Path, events: Queue) -> dict[str, float]:
    """Make one of the two models with one thread and save it."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    say = lambda count, note: events.put((name, count, note))  # noqa: E731
    if name == "policy":
        model, figures = attempt(stages_v_and_c, seed, say, start, folder / "stage-c")
    else:
        model, figures = attempt(stage_b, seed, say, start)
    save_model(model, words().tokenizer, folder / name)
    return figures


def make(out: Path, seed: int, show: Progress) -> dict[str, float]:
    """All stages; the two directories appear in `out` when both are finished."""
    bars = {
        "language model": show.add_task("language model (stage A)", total=STAGE_A.steps, note=""),
        "policy": show.add_task("policy (stages V, C)", total=STAGE_V.steps + WARMUP_STEPS, note="", start=False),
        "reasoner": show.add_task("reasoner (stage B)", total=STAGE_B.steps, note="", start=False),
    }

    def report(name: str, count: int, note: str) -> None:
        show.start_task(bars[name])
        show.update(bars[name], advance=count, **({"note": note} if note else {}))
        task = show.tasks[bars[name]]
        if count and not show.console.is_terminal and task.completed % max(1, task.total // 4) == 0:
            print(f"{task.description}: {task.completed}/{task.total} {note}", flush=True)

    model, figures = attempt(stage_a, seed, lambda count, note: report("language model", count, note))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    unfinished = out / ".partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(2, mp_context=context) as pool:
        events = manager.Queue()
        listener = Thread(target=lambda: [report(*event) for event in iter(events.get, None)], daemon=True)
        listener.start()
        futures = [pool.submit(in_child, name, start, seed, unfinished, events) for name in ("policy", "reasoner")]
        for future in futures:
            figures |= future.result()
        events.put(None)
        listener.join()
    for name in ("policy", "reasoner"):
        shutil.rmtree(out / name, ignore_errors=True)
        (unfinished / name).replace(out / name)
    shutil.rmtree(unfinished)
    return figures


def fingerprint(seed: int) -> str:
    """Changes whenever the recipe does."""
    files = sorted([*(HERE / name for name in RECIPE), *(HERE / "prompts").glob("*.txt")])
    return hashlib.sha256(b"\0".join([str(seed).encode(), *(file.read_bytes() for file in files)])).hexdigest()[:16]


def main() -> None:
    """Make the models unless they are there."""
    parser = argparse.ArgumentParser(description="Make the policy and the reasoner of the digits example.")
    parser.add_argument("--out", type=Path, default=Path("runs/digits/base"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    record = arguments.out / "base.json"
    if record.exists() and json.loads(record.read_text())["recipe"] == fingerprint(arguments.seed):
        print(f"{arguments.out}: the base models are there already")
        return
    began = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    columns = (TextColumn("{task.description:28}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}")) as show:
        figures = make(arguments.out, arguments.seed, show)
    rounded = {name: round(value, 3) for name, value in figures.items()}
    record.write_text(json.dumps({"recipe": fingerprint(arguments.seed), "figures": rounded}, indent=2) + "\n")
    print(f"{arguments.out}: made in {time.monotonic() - began:.0f} s; {rounded}")


if __name__ == "__main__":
    main()
