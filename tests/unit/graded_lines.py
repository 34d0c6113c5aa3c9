"""Lines for `sophia grade`, written and read."""

from __future__ import annotations

import json
from pathlib import Path

from sophia_mcore.config.schema import Score

ROOT = Path(__file__).resolve().parents[2]
ONE = Score(workers=1)


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def verdicts(path):
    return [(row["id"], row["verdict"], row["extracted"]) for row in read(path)]


def many(count):
    kinds = [r"\boxed{{{0}}}", r"\boxed{{{0}000 m}}", "I measure {0} km\nand the answer is {0}."]
    return [{"id": n, "response": kinds[n % 3].format(n % 11), "answer": f"{n % 7} km"} for n in range(count)]


def plain(count):
    """Lines that need no algebra and no units: no process is started, which takes more than a second of CPU time."""
    kinds = [r"\boxed{{{0}}}", r"\boxed{{{0}.0}}", "I measure {0} km\nand the answer is {0}."]
    return [{"id": n, "response": kinds[n % 3].format(n % 11), "answer": f"{n % 7}"} for n in range(count)]
