"""Questions and demonstrations of the recipe.

    python -m examples.recipes.asking.make [--out runs/asking/data]

Writes train.jsonl: questions about four digits, which stand behind a bar in the text. Writes demonstrations.jsonl: 200
episodes as pairs. They show how one asks and how one answers from what is known. They do not show what to ask for: none
to three facts are drawn at random, and where one is missing the answer is a guess.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from examples.digits.world import Task, final
from examples.recipes.asking.asking import NAMES, prompt
from examples.recipes.data import SYSTEM, write_rows

COUNTS = {"train": 1600, "demonstrations": 200}
CELLS = {"sum2": 2, "larger": 2, "parity": 1}


def task(rng: random.Random) -> Task:
    """A question about one or two of the digits."""
    kind = rng.choice(tuple(CELLS))
    return Task(kind, tuple(rng.sample(range(4), CELLS[kind])))


def questions(count: int, out: Path) -> None:
    """OUT/train.jsonl."""
    rng, rows = random.Random("asking train"), []
    for index in range(count):
        asked, digits = task(rng), [rng.randrange(10) for _ in NAMES]
        text = f"{asked.question()} | {' '.join(map(str, digits))}"
        rows.append({"id": f"train-{index}", "question": text, "answer": asked.answer(digits), "kind": asked.kind})
    write_rows(out / "train.jsonl", rows)


def demonstrations(count: int, out: Path) -> None:
    """OUT/demonstrations.jsonl: every turn of an episode is a pair of prompt and reply."""
    rng, rows = random.Random("asking demonstrations"), []
    for index in range(count):
        asked, digits = task(rng), [rng.randrange(10) for _ in NAMES]
        told: dict[str, str] = {}
        for cell in rng.sample(range(4), rng.randrange(4)):
            rows.append(_pair(f"{index}-{len(told)}", prompt(asked.question(), told), f"ask {NAMES[cell]}"))
            told[NAMES[cell]] = str(digits[cell])
        seen = [digit if name in told else rng.randrange(10) for name, digit in zip(NAMES, digits, strict=True)]
        reply = f"<think>See {asked.working(seen)}.</think>{final(asked.answer(seen))}"
        rows.append(_pair(f"{index}-{len(told)}", prompt(asked.question(), told), reply))
    write_rows(out / "demonstrations.jsonl", rows)


def _pair(name: str, text: str, reply: str) -> dict[str, str]:
    return {"id": name, "question": text, "response": reply, "system": SYSTEM}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/asking/data"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    questions(COUNTS["train"], out)
    demonstrations(COUNTS["demonstrations"], out)
    print(f"{out}: {', '.join(f'{count} {part}' for part, count in COUNTS.items())}")


if __name__ == "__main__":
    main()
