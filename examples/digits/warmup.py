"""Stage C, the policy's warm-up: question-answer pairs, then `sophia train` and `sophia export` on them."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lessons import IMAGE, Lesson, policy_lesson
from PIL import Image
from world import Board, draw, random_board

CONFIG = Path(__file__).parent / "warmup.toml"
STEPS = 300  # as in warmup.toml
BATCH = 16
BOARDS = 800
_TURNS = re.compile(
    r"(?:<\|im_start\|>system\n(?P<system>.*?)<\|im_end\|>\n)?<\|im_start\|>user\n(?P<question>.*?)<\|im_end\|>\n", re.S
)
_STEP = re.compile(r"train: (\d+)/\d+(.*)")


def pair(number: int, lesson: Lesson, image: str | None) -> dict[str, object]:
    """A lesson of the policy as a line of train.data."""
    (prompt, _), (response, _) = lesson.pieces
    turns = _TURNS.match(prompt)
    assert turns, prompt
    row: dict[str, object] = {
        "id": str(number),
        "question": turns["question"].removeprefix(IMAGE),
        "response": response.removesuffix("<|im_end|>"),
    }
    return row | ({"images": [image]} if image else {}) | ({"system": turns["system"]} if turns["system"] else {})


def write_pairs(folder: Path, rng: random.Random, steps: int = STEPS) -> None:
    """FOLDER/pairs.jsonl and FOLDER/boards/: as many pairs as the steps use, each once."""
    (folder / "boards").mkdir(parents=True, exist_ok=True)
    boards = [random_board("base", rng) for _ in range(BOARDS)]
    names: dict[Board, str] = {}
    for index, board in enumerate(boards):
        Image.fromarray(draw(board, rng)).save(folder / "boards" / f"{index}.png")
        names[board] = f"boards/{index}.png"
    lessons = [policy_lesson(rng, rng.choice(boards)) for _ in range(steps * BATCH)]
    rows = (pair(i, lesson, names[lesson.board] if lesson.board else None) for i, lesson in enumerate(lessons))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def warm_up(folder: Path, report: Callable[[int, str], None], steps: int = STEPS) -> Path:
    """Train FOLDER/seeing on FOLDER/pairs.jsonl; returns the Hugging Face directory of the result.

    Raises RuntimeError with the trainer's own line when it fails.
    """
    settings = {
        "run.folder": folder / "warmup",
        "models.policy": folder / "seeing",
        "models.reasoner": folder / "seeing",
        "train.data": folder / "pairs.jsonl",
        "train.steps": steps,
        "batch.long_thinking_prompt_file": CONFIG.parent / "prompts" / "long_thinking.txt",
    }
    for command in ("train", "export"):
        _sophia(command, settings, report)
    return folder / "warmup" / "round-0" / "model"


def _sophia(command: str, settings: dict[str, object], report: Callable[[int, str], None]) -> None:
    chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    arguments = [sys.executable, "-m", "sophia_mcore.cli", command, str(CONFIG), *chosen]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout
    done, line = 0, ""
    for line in child.stdout:
        if step := _STEP.match(line):
            report(int(step[1]) - done, step[2].strip())
            done = int(step[1])
    if child.wait() != 0:
        raise RuntimeError(f"stage C: sophia {command} failed: {line.strip()}")
