"""What an on-policy run of a recipe was worth: its first batches and its last, from the answers that it has stored.

    python -m examples.recipes.figures NAME=RUN[,RUN] ... [--first 2] [--last 8] [--attempts] [--questions FILE.jsonl]

Each group is a name and the run folders of its seeds. Each question is asked once, so the answers of a batch are to
questions that the policy has not been trained on before. Printed is a Markdown row per measure: the mean of the first
and of the last batches, and their difference, each with its 95% interval, by resampling the questions. Then the last
batches of the first group less those of each other one, paired by question. Right answers and shares are in percent;
terms and tokens are as they are. ``--attempts``: also how two attempts differ. ``--questions``: right answers by the
field "kind" of these rows, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sophia_mcore.errors import UsageError, run_command
from sophia_mcore.records import Rollout
from sophia_mcore.score.efficiency import share_needed
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_folder

DRAWS = 2000
Values = dict[str, dict[str, list[float]]]  # measure -> question -> a value for each episode


def measures(turns: Sequence[Rollout], attempts: bool) -> Iterator[tuple[str, float]]:
    """What one episode says: its turns of the policy in order. ``attempts``: the first of two is an answer, too."""
    right = [100.0 * (one.verdict == "correct") for one in turns]
    yield "right", right[-1]
    yield "tokens", sum(len(one.token_ids) for one in turns)
    last = turns[-1]
    yield "outcome efficiency", share_needed(last.text, last.extracted) if last.verdict == "correct" else 0.0
    terms: dict[str, float] = defaultdict(float)
    for one in turns:
        for name, value in json.loads(one.scores or "{}").items():
            terms[name] += value or 0.0
    terms.pop("correct", None)
    yield from ((f"term {name}", value) for name, value in terms.items())
    if right[-1]:
        yield from ((f"term {name}, of right answers", value) for name, value in terms.items())
    if attempts and len(turns) == 2:
        yield "first attempt right", right[0]
        yield "second less first", right[1] - right[0]
        yield "wrong to right", 100.0 * (right[0] < right[1])
        yield "right to wrong", 100.0 * (right[0] > right[1])
        yield "same answer twice", 100.0 * (turns[0].extracted == turns[1].extracted)


def batches(run: RunFolder) -> list[Path]:
    """The folders of the batches that have answers, in order."""
    return sorted(path for path in run.rl.rollouts.glob("*") if path.name.isdigit() and any(path.glob("*.parquet")))


def collect(runs: Sequence[RunFolder], chosen: slice, attempts: bool, kinds: Mapping[str, str]) -> Values:
    """The values of the ``chosen`` batches of all runs."""
    found: Values = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for folder in batches(run)[chosen]:
            episodes: dict[tuple[str, int], list[Rollout]] = defaultdict(list)
            for row in read_folder(folder, Rollout):
                if row.asked == "policy" and not row.parent and row.status != "broken":
                    episodes[row.question_id, row.index].append(row)
            for (question, _), turns in sorted(episodes.items()):
                for name, value in measures(sorted(turns, key=lambda one: one.turn), attempts):
                    found[name][question].append(value)
                    if name == "right" and question in kinds:
                        found[f"right: {kinds[question]}"][question].append(value)
    return found


def draws(values: Mapping[str, Sequence[float]], names: Sequence[str] = ()) -> np.ndarray:
    """The mean, then DRAWS means of questions drawn with replacement. ``names``: of these questions."""
    names = names or sorted(values)
    sums = np.array([sum(values.get(name, ())) for name in names])
    counts = np.array([len(values.get(name, ())) for name in names])
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return np.concatenate([[sums.sum() / counts.sum()], means])


def shown(found: np.ndarray, sign: str = "") -> str:
    """Mean and interval."""
    low, high = np.percentile(found[1:], [2.5, 97.5])
    digits = 1 if abs(found[0]) >= 2.0 or (sign and max(abs(low), abs(high)) >= 2.0) else 2
    return f"{found[0]:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def paired(first: Values, other: Values) -> Iterator[tuple[str, int, np.ndarray]]:
    """(measure, questions, ``first`` less ``other``) on the questions that both were asked, drawn alike."""
    both = sorted(first["right"].keys() & other["right"].keys())
    for measure in sorted(first.keys() & other.keys()) if both else ():
        names = [name for name in both if name in first[measure] or name in other[measure]]
        if any(name in first[measure] for name in names) and any(name in other[measure] for name in names):
            yield measure, len(names), draws(first[measure], names) - draws(other[measure], names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("groups", nargs="+", metavar="NAME=RUN,RUN")
    parser.add_argument("--first", type=int, default=2)
    parser.add_argument("--last", type=int, default=8)
    parser.add_argument("--attempts", action="store_true")
    parser.add_argument("--questions", type=Path)
    options = parser.parse_args(arguments)
    groups: dict[str, list[RunFolder]] = {}
    for text in options.groups:
        name, equals, folders = text.partition("=")
        if not equals:
            parser.error(f"{text}: expected NAME=RUN,RUN")
        groups[name] = [RunFolder(Path(folder)) for folder in folders.split(",")]
    return run_command("figures", lambda: show(groups, options))


def show(groups: Mapping[str, Sequence[RunFolder]], options: argparse.Namespace) -> None:
    """Print the table of each group, and the last batches beside each other."""
    if options.questions and not options.questions.is_file():
        raise UsageError(f"--questions {options.questions}: no such file")
    for run in (run for runs in groups.values() for run in runs):
        count = len(batches(run))
        if not count:
            raise UsageError(f"{run.path}: no answers of an on-policy stage (`sophia rl` samples them)")
        if count < options.first + options.last:
            raise UsageError(
                f"{run.path}: has {count} batches with answers, so --first {options.first} and --last {options.last} "
                "would have some in common"
            )
    rows = options.questions.read_text(encoding="utf-8").splitlines() if options.questions else []
    kinds = {str(row["id"]): row["kind"] for row in map(json.loads, rows)}
    print("| run | measure | first batches | last batches | difference |\n|---|---|---|---|---|")
    lasts: dict[str, Values] = {}
    for name, runs in groups.items():
        ends = slice(options.first), slice(-options.last, None)
        first, last = (collect(runs, end, options.attempts, kinds) for end in ends)
        lasts[name] = last
        for measure in sorted(first.keys() & last.keys()):
            before, after = draws(first[measure]), draws(last[measure])
            print(f"| {name} | {measure} | {shown(before)} | {shown(after)} | {shown(after - before, '+')} |")
    reference, *others = lasts
    if others:
        print("\n| last batches of | measure | questions | difference |\n|---|---|---|---|")
    for other in others:
        for measure, count, found in paired(lasts[reference], lasts[other]):
            print(f"| {reference} less {other} | {measure} | {count} | {shown(found, '+')} |")


if __name__ == "__main__":
    sys.exit(main())
