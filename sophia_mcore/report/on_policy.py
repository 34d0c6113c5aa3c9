"""The on-policy stage's section of a page: its figures, its curves over batches, and the groups of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.evaluate.statistics import wilson
from sophia_mcore.records import Answer, Question
from sophia_mcore.report.charts import Charted
from sophia_mcore.report.examples import Browser
from sophia_mcore.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, figure, numbered
from sophia_mcore.report.reading import Problems, columns, metrics, read_json, records
from sophia_mcore.report.rewards import anew_figures, first_to_last, numbers_under, reward_curves, reward_figures
from sophia_mcore.rl.versions import newest_version
from sophia_mcore.store.layout import RunFolder

_SUMMARY = {
    "batches": int, "updates": int, "version": int, "validation_accuracy": float | None, "tokens_sampled": int,
    "tokens_trained": int, "seconds_waiting": float, "seconds_training": float, "seconds_publishing": float,
}  # fmt: skip
_RUNS = (BLUE, ORANGE)
Named = tuple[str, str, str]  # a curve: its key in metrics.jsonl, its name, its colour where there is one run
_Chart = tuple[str, str, str, tuple[Named, ...]]  # title, phase of its lines, unit, curves
_CURVES: tuple[_Chart, ...] = (
    ("Groups of a batch", "batch", "groups", (
        ("groups_mixed", "mixed: these teach", BLUE), ("groups_all_right", "all right", GREEN),
        ("groups_all_wrong", "all wrong", RED), ("groups_lost", "lost", GREY))),
    ("Mean length of answers", "batch", "tokens", (
        ("tokens_right", "right", GREEN), ("tokens_wrong", "wrong", RED), ("tokens_mean", "all", GREY))),
    ("Answers cut off, and not judged", "batch", "share", (
        ("truncated_share", "cut off", ORANGE), ("broken_share", "timeout or error", PURPLE))),
    ("Entropy of sampled tokens (mean of -log p)", "batch", "nats", (("entropy_sampled", "entropy", BLUE),)),
    ("Log-prob gap of engine and trainer", "batch", "nats", (
        ("rollout_gap_mean", "mean", BLUE), ("rollout_gap_p99", "p99", ORANGE))),
    ("Lag of the sampling version behind the trained one", "batch", "versions", (
        ("lag_mean", "mean", BLUE), ("lag_max", "most", GREY))),
    ("Seconds of a batch", "batch", "seconds", (
        ("seconds_waiting", "waiting for answers", ORANGE), ("seconds_training", "training", BLUE),
        ("seconds_publishing", "publishing", PURPLE))),
    ("Share of answers that are trained on", "batch", "share", (("effective_share", "share", BLUE),)),
    ("Replayed and auxiliary samples of each update", "update", "samples", (
        ("samples_replayed", "replayed", PURPLE), ("samples_auxiliary", "auxiliary", ORANGE))),
    ("Age of replayed samples", "update", "batches", (("replay_age_mean", "mean", PURPLE),)),
    ("Loss of the stage", "update", "", (("loss", "loss", BLUE),)),
    ("Gradient norm of the stage", "update", "", (("gradient_norm", "norm", BLUE),)),
    ("Share of tokens whose ratio was clipped, in the stage", "update", "share", (("share_clipped", "share", BLUE),)),
)  # fmt: skip


@dataclass
class Stage:
    """What the section shows. ``figures``: (name, value of each run). ``groups``: only on the page of one run."""

    figures: list[tuple[str, list[str]]]
    charts: list[dict[str, str]]
    names: list[str]
    groups: Browser | None = None
    index: str = ""
    missing: list[str] = field(default_factory=list)


def on_policy(runs: Sequence[Charted]) -> Stage | None:
    """Figures and curves of the runs' stages, laid over each other; None when no run has one."""
    if not any(_begun(charted.run) for charted in runs):
        return None
    logs = [(c.name, metrics(c.run.rl.metrics_file, c.problems)) for c in runs]
    alone = all(charted.config.verdict_alone for charted in runs)
    title = "Right answers of each batch" + (" (the reward)" if alone else ", by the verdict (not the reward)")
    accuracy: _Chart = (title, "batch", "share", (("accuracy", "accuracy", BLUE),))
    drawn = [_drawn(logs, chart) for chart in (*reward_curves(logs), accuracy)]  # the reward first
    drawn.append(("Validation questions answered right, by version", _validation(runs)))
    drawn += [_drawn(logs, chart) for chart in _CURVES]
    rows = [_figures(charted, lines) for charted, (_, lines) in zip(runs, logs, strict=True)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Stage(
        figures=[(name, [row.get(name, "-") for row in rows]) for name in names],
        charts=numbered(drawn, "stage-chart"),
        names=[charted.name for charted in runs],
        missing=[line for charted in runs for line in _missing(charted)],
    )


def _figures(charted: Charted, lines: list[dict[str, Any]]) -> dict[str, str]:
    """What stands in the table, by name."""
    run, problems = charted.run, charted.problems
    batches = [line for line in lines if line["phase"] == "batch"]
    if not batches:
        return {}
    summary = read_json(run.rl.summary_file, problems, _SUMMARY) or {}
    rl = charted.config.rl
    found = {"batches": f"{len(batches):,}" + (f" of {rl.batches:,}" if rl is not None else "")}
    right = numbers_under(batches, "accuracy")
    if right:
        row, value = first_to_last("right answers", right, _percent)
        found[row] = value
    if summary.get("validation_accuracy") is not None:
        kept = f" (version {summary['version']})" if "version" in summary else ""
        found["best on the validation questions"] = _percent(summary["validation_accuracy"]) + kept
    found["tokens sampled"] = f"{sum(numbers_under(batches, 'tokens_sampled')):,}"
    found["answers sampled"] = f"{sum(numbers_under(batches, 'answers')):,}"
    found["answers that were trained on"] = f"{sum(numbers_under(batches, 'answers_effective')):,}"
    if gaps := numbers_under(batches, "rollout_gap_p99"):
        found["largest p99 of the log-prob gap"] = f"{max(gaps):.2g} nats"
    found |= reward_figures(batches) | anew_figures(charted.config, run, problems)
    for key, name in (("waiting", "waiting for answers"), ("training", "training"), ("publishing", "publishing")):
        found[f"seconds {name}"] = f"{sum(numbers_under(batches, f'seconds_{key}')):,.0f}"
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _begun(run: RunFolder) -> bool:
    return run.rl.rollouts.is_dir() or run.rl.train.is_dir()


def _missing(charted: Charted) -> list[str]:
    run, rl, prefix = charted.run, charted.config.rl, f"{charted.name}: " if charted.name else ""
    if not _begun(run) or run.rl.summary_file.is_file():
        return []
    try:
        newest = newest_version(run.rl.versions)
    except SophiaError as error:
        charted.problems.add(str(error))
        newest = None
    done = newest.version if newest else 0
    return [f"{prefix}the end of the on-policy stage ({done}{f' of {rl.batches}' if rl else ''} batches are trained)"]


def _drawn(logs: list[tuple[str, list[dict[str, Any]]]], chart: _Chart) -> tuple[str, Any]:
    title, phase, unit, named = chart
    return title, _curves(logs, phase, unit, named)


def _curves(runs: list[tuple[str, list[dict[str, Any]]]], phase: str, unit: str, named: tuple[Named, ...]) -> Any:
    """The curves of a chart; with several runs each run has a colour, and a dash tells the curves apart."""
    import plotly.graph_objects as go

    traces = []
    for i, (run, lines) in enumerate(runs):
        for k, (key, name, colour) in enumerate(named):
            mine = [line for line in lines if line["phase"] == phase and numbers_under([line], key)]
            points = [(line["step"], line[key]) for line in mine]
            if not points or (len(named) > 1 and not any(value for _, value in points)):
                continue
            x, y = [p[0] for p in points], [p[1] for p in points]
            line = {"color": _RUNS[i % 2], "dash": ("solid", "dash", "dot", "dashdot")[k]} if len(runs) > 1 else {}
            shade = line or {"color": colour}
            traces.append(go.Scatter(name=f"{run} {name}".strip(), x=x, y=y, mode="lines", line=shade))
    return figure(*traces, x=phase, y=unit) if traces else None


def _validation(runs: Sequence[Charted]) -> Any:
    """Share of right answers of each validated version, with Wilson's intervals; first protocol."""
    import plotly.graph_objects as go

    traces = []
    for i, charted in enumerate(runs):
        points = validation(charted.run, charted.config.evaluate.protocols[0].name, charted.problems)
        if not points:
            continue
        bounds = [wilson(share, n) for _, share, n in points]
        traces.append(
            go.Scatter(
                name=charted.name,
                x=[version for version, _, _ in points],
                y=[100 * share for _, share, _ in points],
                mode="lines+markers",
                line={"color": _RUNS[i % 2]},
                error_y={
                    "array": [100 * (high - p[1]) for p, (_, high) in zip(points, bounds, strict=True)],
                    "arrayminus": [100 * (p[1] - low) for p, (low, _) in zip(points, bounds, strict=True)],
                    "color": GREY,
                },
            )
        )
    return figure(*traces, x="version", y="%, 95% interval") if traces else None


def validation(run: RunFolder, protocol: str, problems: Problems) -> list[tuple[int, float, int]]:
    """(version, share of right answers, questions) of every version whose validation questions are all answered."""
    asked = len(records(run.rl.validation_questions_file, Question, problems))
    found = []
    for version, folder in run.rl.validated().items():
        rows = columns(folder / protocol, Answer, ["question_id", "verdict"], problems)
        questions = set(rows["question_id"])
        if asked and len(questions) >= asked:
            right = sum(verdict == "correct" for verdict in rows["verdict"]) / len(rows["verdict"])
            found.append((version, right, len(questions)))
    return found
