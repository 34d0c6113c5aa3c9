"""Right answers to the test questions behind each stage of the recipe and of its controls, all, medium and hard ones.

    python -m examples.recipes.openvlthinker.figures

Markdown rows: percent, and the paired difference with its 95% interval, by resampling the questions. What has not been
evaluated yet is left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from examples.digits.experiments.climb import interval
from examples.digits.experiments.stages import right_answers
from sophia_mcore.errors import UsageError, run_command
from sophia_mcore.store.layout import RunFolder

TEST = Path("runs/digits/data/test.jsonl")
KINDS = {"medium": ("sum2", "larger", "parity"), "hard": ("sum3", "product")}
ROOT = Path("runs/openvlthinker")
MEDIUM, HARD = ROOT / "run" / "stages" / "01-medium", ROOT / "run" / "stages" / "03-hard"
ALONE = ROOT / "rl_alone" / "stages"
MODELS = {  # name -> run folder of an on-policy stage, label of its first or last model
    "base": (ALONE / "00-medium", "rl-start"),
    "imitated": (MEDIUM, "rl-start"),
    "then medium": (MEDIUM, "rl"),
    "imitated again": (HARD, "rl-start"),
    "then hard": (HARD, "rl"),
    "hard without the second imitation": (ROOT / "imitate_once" / "stages" / "00-hard", "rl"),
    "base, medium": (ALONE / "00-medium", "rl"),
    "base, medium, hard": (ALONE / "01-hard", "rl"),
}
PAIRS = (
    ("base", "imitated"),
    ("imitated", "then medium"),
    ("then medium", "imitated again"),
    ("imitated again", "then hard"),
    ("then medium", "then hard"),
    ("then medium", "hard without the second imitation"),
    ("hard without the second imitation", "then hard"),
    ("base", "base, medium, hard"),
    ("base, medium, hard", "then hard"),
)


def show() -> None:
    """Print both tables. Raises UsageError while there is nothing to show."""
    if not TEST.is_file():
        raise UsageError(f"{TEST}: no such file (python -m examples.recipes.openvlthinker.make writes it)")
    kind = {str(row["id"]): row["kind"] for row in map(json.loads, TEST.read_text(encoding="utf-8").splitlines())}
    found = {}
    for name, (folder, label) in MODELS.items():
        answers = RunFolder(folder).evaluation(label, "paper")
        if answers.is_dir():
            found[name] = right_answers(answers)
    if not found:
        raise UsageError(f"{ROOT}: none of the runs has been evaluated yet (README.md has the commands)")
    names = sorted(set.intersection(*(set(right) for right in found.values())))
    parts = {"all": np.ones(len(names), bool)}
    parts |= {part: np.array([kind[name] in kinds for name in names]) for part, kinds in KINDS.items()}
    rows = {name: np.array([right[one] for one in names], float) for name, right in found.items()}
    heads = [f"{part} ({mask.sum()})" for part, mask in parts.items()]
    print(f"| model | {' | '.join(heads)} |\n|---|{'---|' * len(parts)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{100 * row[mask].mean():.1f}' for mask in parts.values())} |")
    print(f"\n| from, to | {' | '.join(heads)} |\n|---|{'---|' * len(parts)}")
    for before, after in PAIRS:
        if before in rows and after in rows:
            shown = [_difference(rows[after][mask] - rows[before][mask]) for mask in parts.values()]
            print(f"| {before}, {after} | {' | '.join(shown)} |")


def _difference(values: np.ndarray) -> str:
    low, high = interval(values)
    return f"{100 * values.mean():+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    sys.exit(run_command("figures", show))
