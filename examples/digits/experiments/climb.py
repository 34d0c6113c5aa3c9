"""What the on-policy stage brings on digits: test questions before and after, and the curve of validation questions.

    python -m examples.digits.experiments.climb sophia=runs/a0,runs/a1 base=runs/b0,runs/b1 [--picture FILE.svg]

Each group is a name and the run folders of its seeds, which have ended (`sophia rl examples/digits/rl.toml --set
run.seed=1 --set run.folder=runs/a1 --set rl.start=...`). One JSON line per group and protocol: pass@1 on the test
questions before and after, by seed, and the paired difference with its 95% interval, by resampling the questions of the
mean over the seeds. Then the difference of the first two groups' differences, and the validation accuracy of each
version, the mean over the seeds. The picture shows the latter with the range of the seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from examples.digits.experiments.stages import right_answers
from sophia_mcore.config import load_config
from sophia_mcore.errors import UsageError, run_command
from sophia_mcore.records import Answer
from sophia_mcore.store.atomic import write_text
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_folder

DRAWS = 2000
WIDTH, HEIGHT, LEFT = 640, 360, 56
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
Curve = dict[int, list[float]]  # version -> validation accuracy in %, one value per seed


def gains(runs: Sequence[RunFolder], protocol: str) -> dict[str, np.ndarray]:
    """Rows of right answers [seed, question], before and after, questions in the order of their ids.

    Raises UsageError for a run without answers under the protocol, and for runs whose questions differ.
    """
    rows: dict[str, list[np.ndarray]] = {"rl-start": [], "rl": []}
    asked: list[str] = []
    for run in runs:
        if not run.path.is_dir():
            raise UsageError(f"{run.path}: no such run folder")
        for label, found in rows.items():
            folder = run.evaluation(label, protocol)
            right = right_answers(folder)
            if not right:
                there = sorted(path.name for path in folder.parent.glob("*") if path.is_dir())
                hint = f"answered are {', '.join(there)}" if there else "the stage has not been evaluated to its end"
                raise UsageError(f"{folder}: no answers under protocol {protocol!r} ({hint})")
            asked = asked or sorted(right)
            if asked != sorted(right):
                raise UsageError(
                    f"{folder}: answers {len(right)} questions, and not the {len(asked)} of the other folders"
                )
            found.append(np.array([right[name] for name in asked], float))
    return {label: np.stack(found) for label, found in rows.items()}


def interval(difference: np.ndarray) -> list[float]:
    """95% of the mean, in %, by resampling the questions."""
    draws = np.random.default_rng(0).integers(0, len(difference), (DRAWS, len(difference)))
    return [round(float(v), 1) for v in np.percentile(100 * difference[draws].mean(1), [2.5, 97.5])]


def table(groups: dict[str, list[RunFolder]], protocols: Sequence[str]) -> Iterator[dict[str, object]]:
    """The rows of the table. Raises UsageError like ``gains``, and for two groups that answer different questions."""
    for protocol in protocols:
        differences: list[np.ndarray] = []
        for name, runs in groups.items():
            found = gains(runs, protocol)
            difference = (found["rl"] - found["rl-start"]).mean(0)
            if differences and len(differences[0]) != len(difference):
                raise UsageError(f"{name}: answers {len(difference)} questions, the group before {len(differences[0])}")
            differences.append(difference)
            yield {
                "group": name, "protocol": protocol, "questions": len(difference),
                "before": [round(100 * float(row.mean()), 1) for row in found["rl-start"]],
                "after": [round(100 * float(row.mean()), 1) for row in found["rl"]],
                "difference": round(100 * float(difference.mean()), 1), "ci95": interval(difference),
            }  # fmt: skip
        if len(differences) > 1:
            both = differences[0] - differences[1]
            yield {
                "group": " - ".join(list(groups)[:2]), "protocol": protocol,
                "difference": round(100 * float(both.mean()), 1), "ci95": interval(both),
            }  # fmt: skip


def curve(runs: Sequence[RunFolder], protocol: str) -> Curve:
    """Validation accuracy of every version that was validated in all runs."""
    found: Curve = {}
    for run in runs:
        for folder in sorted((run.rl.path / "validation").glob("*")):
            verdicts = [one.verdict == "correct" for one in read_folder(folder / protocol, Answer)]
            if verdicts:
                found.setdefault(int(folder.name), []).append(100 * sum(verdicts) / len(verdicts))
    return {version: values for version, values in sorted(found.items()) if len(values) == len(runs)}


def picture(curves: dict[str, Curve], protocol: str) -> str:
    """The curves as SVG: a line for the mean over the seeds, a band from the lowest to the highest."""
    last = max(max(one, default=1) for one in curves.values()) or 1
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for percent in range(0, 101, 20):
        y, right = _y(percent), _x(last, last)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent}%</text>')
    for version in sorted({version for one in curves.values() for version in one}):
        parts.append(f'<text x="{_x(version, last):.1f}" y="{_y(0) + 18:.1f}" text-anchor="middle">{version}</text>')
    for colour, (name, one) in zip(COLOURS, curves.items(), strict=False):
        parts += _drawn(name, one, colour, last)
    words = f"batches trained; right answers to the validation questions, {protocol}"
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{words}</text></svg>')
    return "\n".join(parts) + "\n"


def _x(version: int, last: int) -> float:
    return LEFT + version / last * (WIDTH - LEFT - 120)


def _y(percent: float) -> float:
    return 24 + (100 - percent) / 100 * (HEIGHT - 72)


def _drawn(name: str, one: Curve, colour: str, last: int) -> list[str]:
    above = [f"{_x(version, last):.1f},{_y(max(values)):.1f}" for version, values in one.items()]
    below = [f"{_x(version, last):.1f},{_y(min(values)):.1f}" for version, values in reversed(one.items())]
    means = [(_x(version, last), _y(sum(values) / len(values))) for version, values in one.items()]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in means)
    x, y = means[-1]
    return [
        f'<polygon points="{" ".join(above + below)}" fill="{colour}" opacity="0.2"/>',
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>',
        f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{name}</text>',
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows and write the picture; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("groups", nargs="+", metavar="NAME=RUN,RUN", help="a name and the run folders of its seeds")
    parser.add_argument("--protocols", nargs="+", help="default: those that the first run was evaluated by")
    parser.add_argument("--picture", type=Path, help="write the validation curves as SVG")
    options = parser.parse_args(arguments)
    groups: dict[str, list[RunFolder]] = {}
    for text in options.groups:
        name, equals, folders = text.partition("=")
        if not equals:
            parser.error(f"{text}: expected NAME=RUN,RUN")
        groups[name] = [RunFolder(Path(folder)) for folder in folders.split(",")]
    return run_command("climb", lambda: show(groups, options.protocols or protocols(groups), options.picture))


def protocols(groups: dict[str, list[RunFolder]]) -> list[str]:
    """The protocols that the first run was evaluated by, in the order of its configuration."""
    run = next(iter(groups.values()))[0]
    if not run.config_file.is_file():
        raise UsageError(f"{run.path}: not a run folder (it has no config.toml)")
    return [protocol.name for protocol in load_config(run.config_file).evaluate.protocols]


def show(groups: dict[str, list[RunFolder]], names: Sequence[str], target: Path | None) -> None:
    """Print a JSON line for each row and curve. ``target``: write the picture there."""
    for row in table(groups, names):
        print(json.dumps(row))
    curves = {name: curve(runs, names[0]) for name, runs in groups.items()}
    for name, one in curves.items():
        means = {version: round(sum(values) / len(values), 1) for version, values in one.items()}
        print(json.dumps({"group": name, "validation": means}))
    if target is not None:
        lacking = next((name for name, one in curves.items() if not one), None)
        if lacking is not None:
            raise UsageError(f"--picture: {lacking} has no validated version ([[rl.validation]] asks for them)")
        write_text(target, picture(curves, names[0]))


if __name__ == "__main__":
    sys.exit(main())
