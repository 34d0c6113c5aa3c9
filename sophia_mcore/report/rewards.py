"""The terms of the reward and the efficiency of answers, for the report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.records import Answer
from sophia_mcore.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from sophia_mcore.report.reading import Problems, columns, metrics
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import RunFolder

_COLOURS = (BLUE, GREEN, ORANGE, PURPLE, RED, GREY)
Curve = tuple[str, str, str]  # key in metrics.jsonl, name, colour


def reward_data(config: Config, run: RunFolder, problems: Problems) -> dict[str, Any]:
    """For report.json: {"terms": {name: {"weight", "function"}}, "rounds": {...}, "stage": {key: [first, last]},
    "outcome_efficiency": {label: {protocol: value}}}; what is not there is left out.
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
    efficiency: dict[str, dict[str, float]] = {}
    for label, folder in _evaluations(run):
        value = _efficiency(folder, problems)
        if value is not None:
            efficiency.setdefault(label, {})[folder.name] = round(value, 4)
    parts = {"rounds": rounds, "stage": stage, "outcome_efficiency": efficiency}
    return found | {name: part for name, part in parts.items() if part}


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
    """Rows of the stage's table: each value in the first and the last five batches."""
    found = {}
    for key in reward_keys(batches):
        values = numbers_under(batches, key)
        first, last = values[:5], values[-5:]
        found[f"{key.replace('_', ' ')}, first and last five batches"] = f"{_mean(first):.3f} to {_mean(last):.3f}"
    return found


def outcome_efficiency(answers: Iterable[tuple[str, str, bool]]) -> float | None:
    """Mean over answers (text, extracted answer, right) of right x share of the text up to the right answer's first
    appearance: 1 means that nothing is said behind it (compare arXiv 2412.21187). An estimate: in characters, and the
    first place where the final answer stands by itself, though it may stand there as an operand.
    """
    shares = []
    for text, extracted, right in answers:
        whole = len(text.strip())
        found = re.search(rf"(?<!\w){re.escape(extracted)}(?!\w)", text) if right and extracted else None
        shares.append(min(1.0, found.end() / whole) if found and whole else float(right))
    return sum(shares) / len(shares) if shares else None


def _evaluations(run: RunFolder) -> list[tuple[str, Path]]:
    """(label, folder of a protocol) of everything that was evaluated."""
    parent = run.evaluation_questions_file.parent
    folders = [path for path in sorted(parent.glob("*/*")) if path.is_dir()]
    return [(path.parent.name, path) for path in folders]


def _efficiency(folder: Path, problems: Problems) -> float | None:
    rows = columns(folder, Answer, ["text", "extracted", "verdict"], problems)
    return outcome_efficiency(
        (text, extracted, verdict == "correct")
        for text, extracted, verdict in zip(rows["text"], rows["extracted"], rows["verdict"], strict=True)
    )


def _name(key: str) -> str:
    return key.removeprefix("reward_").replace("_", " ")


def numbers_under(lines: Sequence[dict[str, Any]], key: str) -> list[float]:
    """The numbers under a key of metrics lines; other values are left out."""
    return [line[key] for line in lines if isinstance(line.get(key), int | float)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
