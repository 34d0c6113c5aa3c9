"""The terms of the reward and the efficiency of answers, for the report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.environments.types import POLICY
from sophia_mcore.records import Answer, Rollout
from sophia_mcore.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from sophia_mcore.report.groups import batches_of
from sophia_mcore.report.reading import Problems, columns, metrics
from sophia_mcore.score.efficiency import outcome_efficiency
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import RunFolder

_COLOURS = (BLUE, GREEN, ORANGE, PURPLE, RED, GREY)
Curve = tuple[str, str, str]  # key in metrics.jsonl, name, colour


def reward_data(config: Config, run: RunFolder, problems: Problems) -> dict[str, Any]:
    """For report.json: {"terms": {name: {"weight", "function"}}, "rounds": {...}, "stage": {key: [first, last]},
    "weighed_anew": {...}}; what is not there is left out.
    """
    terms = {one.label: {"weight": one.weight, "function": one.function} for one in config.reward_terms}
    found: dict[str, Any] = {"terms": terms}
    rounds = {}
    for index in range(config.run.rounds):
        summary = json_or_empty(run.round(index).kept_summary_file)  # whether it is damaged is told elsewhere
        if isinstance(summary.get("rewards"), dict):
            rounds[str(index)] = summary["rewards"]
    batches = [line for line in metrics(run.rl.metrics_file, problems) if line["phase"] == "batch"]
    stage = {key: [values[0], values[-1]] for key in reward_keys(batches) if (values := numbers_under(batches, key))}
    parts = {"rounds": rounds, "stage": stage, "weighed_anew": weighed_anew(config, run)}
    return found | {name: part for name, part in parts.items() if part}


def efficiency_data(run: RunFolder, problems: Problems) -> list[dict[str, Any]]:
    """Outcome efficiency of everything that was answered: [{"of", "share", "tokens", "answers"}], as
    ``score.efficiency`` says, in the order of the flow.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for index in run.rounds():
        kept = json_or_empty(run.round(index).kept_summary_file).get("outcome_efficiency")
        if isinstance(kept, dict) and {"share", "tokens", "answers"} <= kept.keys():
            found.append((f"trajectories of round {index}", kept))
    batches = batches_of(run)
    for name, numbers in zip(("first", "last"), ends(batches), strict=True):
        folders = [run.rl.batch(number) for number in numbers]
        value = outcome_efficiency(answer for folder in folders for answer in _last_turns(folder, problems))
        if value is not None:
            found.append((f"on-policy stage, {name} batches ({_numbered(numbers)})", value.as_json()))
        if len(batches) == 1:
            break
    for label, folder in _evaluations(run):
        rows = columns(folder, Answer, ["text", "extracted", "verdict", "tokens"], problems)
        value = outcome_efficiency(
            (text, extracted, verdict == "correct", tokens)
            for text, extracted, verdict, tokens in zip(*rows.values(), strict=True)
        )
        if value is not None:
            found.append((f"{label}, {folder.name}", value.as_json()))
    return [{"of": name} | value for name, value in found]


def reward_keys(batches: Iterable[dict[str, Any]]) -> list[str]:
    """Names of the values about rewards and turns that the batches of a stage have, in order."""
    wanted = re.compile(r"reward_\w+|accuracy_turn_\d+|turns_mean|cut_off_share|not_judged_share|broken_episodes_share")
    return list(dict.fromkeys(key for line in batches for key in line if wanted.fullmatch(key)))


def reward_curves(logs: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[tuple[str, str, str, tuple[Curve, ...]]]:
    """Charts of the stage: the terms' means, and right answers by turn. None where the reward is the verdict alone."""
    keys = reward_keys(line for _, lines in logs for line in lines if line["phase"] == "batch")
    terms = [key for key in keys if key.startswith("reward_") and key != "reward_deviation"]
    turns = [key for key in keys if key.startswith("accuracy_turn_")]
    charts = (("Terms of the reward, means of each batch", "value", terms), ("Right answers by turn", "share", turns))
    return [
        (title, "batch", unit, tuple((key, _name(key), _COLOURS[i % 6]) for i, key in enumerate(chosen)))
        for title, unit, chosen in charts
        if chosen
    ]


def reward_figures(batches: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Rows of the stage's table: each value in the first and the last batches."""
    found = {}
    for key in reward_keys(batches):
        row, value = first_to_last(key.replace("_", " "), numbers_under(batches, key), "{:.3f}".format)
        found[row] = value
    return found


def weighed_anew(config: Config, run: RunFolder) -> dict[str, Any]:
    """summary.json of a stage whose answers were weighed anew, as ``train.on_policy.anew`` has written it; {} if none
    of the settings of now.
    """
    found = json_or_empty(run.rl.weighed_file)
    trained = {one.label: one.weight for one in config.reward_terms}
    return found if found.get("trained_with") == trained and isinstance(found.get("weights"), dict) else {}


def anew_figures(config: Config, run: RunFolder, problems: Problems) -> dict[str, str]:
    """Rows of the stage's table about its answers under other weights."""
    found = weighed_anew(config, run)
    if not found:
        return {}
    trained = found["trained_with"]
    weights = (f"{name} {weight:g} (was {trained.get(name, 0.0):g})" for name, weight in found["weights"].items())
    rows = {"weighed anew with": ", ".join(weights)}
    batches = [line for line in metrics(run.rl.weighed / "metrics.jsonl", problems) if line["phase"] == "batch"]
    for key in ("reward_mean", "reward_deviation"):
        if values := numbers_under(batches, key):
            row, value = first_to_last(f"weighed anew: {key.replace('_', ' ')}", values, "{:.3f}".format)
            rows[row] = value
    useful, before = found.get("answers_effective", 0), found.get("answers_effective_trained", 0)
    return rows | {"weighed anew: answers with an advantage": f"{useful:,} (trained on: {before:,})"}


def first_to_last(name: str, values: Sequence[float], shown: Callable[[float], str]) -> tuple[str, str]:
    """A row of the stage's table: the means of the first and the last batches, which have none in common."""
    first, last = ends(values)
    if len(values) == 1:
        return f"{name}, first to last batches", f"{shown(values[0])} (one batch)"
    count = f"{len(first)} batches each" if len(first) > 1 else "one batch each"
    return f"{name}, first to last batches", f"{shown(_mean(first))} to {shown(_mean(last))} ({count})"


def ends(values: Sequence[Any], most: int = 5) -> tuple[Sequence[Any], Sequence[Any]]:
    """The first and the last values, as many of each, at most ``most``, none of them in both.

    >>> ends([1, 2, 3]), ends([1, 2, 3, 4, 5], most=2), ends([1])
    (([1], [3]), ([1, 2], [4, 5]), ([1], [1]))
    """
    size = min(most, max(1, len(values) // 2))
    return values[:size], values[-size:]


def _numbered(numbers: Sequence[int]) -> str:
    """Numbers of batches, counted from 1 as in the charts."""
    return f"{numbers[0] + 1}" if len(numbers) == 1 else f"{numbers[0] + 1} to {numbers[-1] + 1}"


def _last_turns(folder: Path, problems: Problems) -> Iterator[tuple[str, str, bool, int]]:
    """(text, extracted answer, right, tokens) of each episode of a batch: the policy's last turn speaks for it."""
    names = ["question_id", "index", "turn", "asked", "parent", "text", "extracted", "verdict", "tokens"]
    rows = columns(folder, Rollout, names, problems)
    found: dict[tuple[str, int], tuple[int, tuple[str, str, bool, int]]] = {}
    for question, index, turn, asked, parent, text, extracted, verdict, tokens in zip(*rows.values(), strict=True):
        if asked == POLICY and not parent and turn >= found.get((question, index), (0,))[0]:
            found[question, index] = turn, (text, extracted, verdict == "correct", tokens)
    return (answer for _, answer in found.values())


def _evaluations(run: RunFolder) -> list[tuple[str, Path]]:
    """(label, folder of a protocol) of everything that was evaluated."""
    parent = run.evaluation_questions_file.parent
    folders = [path for path in sorted(parent.glob("*/*")) if path.is_dir()]
    return [(path.parent.name, path) for path in folders]


def _name(key: str) -> str:
    return key.removeprefix("reward_").replace("_", " ")


def numbers_under(lines: Sequence[dict[str, Any]], key: str) -> list[float]:
    """The numbers under a key of metrics lines; other values are left out."""
    return [line[key] for line in lines if isinstance(line.get(key), int | float)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
