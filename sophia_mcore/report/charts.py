"""The report's charts, as plotly figures in JSON that the page draws. With two runs the same charts lay them over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.records import Caption, Kept, Trajectory, Verdict
from sophia_mcore.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, figure, numbered
from sophia_mcore.report.reading import Problems, columns, records, rewarded
from sophia_mcore.score.candidates import caption_rewards
from sophia_mcore.score.reward import Candidate
from sophia_mcore.store.layout import RoundFolder, RunFolder
from sophia_mcore.track.metrics import TRAIN, read_metrics

_COLOURS = (GREY, BLUE, GREEN, ORANGE, PURPLE, RED)
_VERDICT_COLOURS = {"correct": GREEN, "wrong": RED, "no_answer": GREY, "timeout": ORANGE, "error": PURPLE}
_TRAINING = {
    "loss": "Loss (of the objective)",
    "logprob_kept": "Mean log-prob per token of the kept trajectories",
    "gradient_norm": "Gradient norm",
    "effective_sample_share": "Effective sample size over number of samples (importance ratios)",
    "share_clipped": "Share of tokens whose ratio was clipped",
    "tokens_per_second": "Training tokens per second",
    "learning_rate": "Learning rate",
}
_BINS = 60
_VERDICTS = (GREEN, RED)  # right, others


@dataclass
class Charted:
    """One run to draw: its name in legends ("" when it is the only one), and its report."""

    run: RunFolder
    config: Config
    report: dict[str, Any]
    name: str = ""
    problems: Problems = field(default_factory=Problems)


def charts(runs: list[Charted]) -> list[dict[str, str]]:
    """Charts for which there is data: [{"id", "title", "figure": JSON}], in the order of the flow."""
    figures: list[tuple[str, Any]] = [("pass@1 by answer type, 95% intervals", _pass_at_1(runs, "by_answer_type"))]
    if any(len(values["by_source"]) > 1 for charted in runs for values in _protocols(charted)):
        figures.append(("pass@1 by data set, 95% intervals", _pass_at_1(runs, "by_source")))
    for index in sorted({entry["round"] for charted in runs for entry in charted.report["rounds"]}):
        label = f"round {index}"
        figures += [(f"{title}, {label}", drawn) for title, drawn in _round_figures(runs, index)]
    figures.append(("Time of each phase", _seconds(runs)))
    return numbered(figures)


def _round_figures(runs: list[Charted], index: int) -> list[tuple[str, Any]]:
    drawn = []
    entry: dict[str, Any]
    for charted in runs:
        entry = next((e for e in charted.report["rounds"] if e["round"] == index), {})
        drawn.append((charted, charted.run.round(index), entry))
    counted = {
        "verdicts": "Verdicts",
        "dropped": "Why trajectories were dropped",
        "thoughts": "Thoughts (<think>) in the finished trajectories",
    }
    figures = [
        (title, _bars([(charted.name, entry.get(name) or {}) for charted, _, entry in drawn], "trajectories"))
        for name, title in counted.items()
    ]
    if len(runs) == 1:
        figures.append(("Verdicts by answer type", _verdicts_by_type(drawn[0][2].get("verdicts_by_type", {}))))
    rewards = [(charted.name, *_rewards(folder, charted)) for charted, folder, _ in drawn]
    alpha = runs[0].config.reward.alpha
    figures.append(("Visual reward of captions", _reward_figure([(n, caption) for n, caption, _ in rewards], alpha)))
    outcomes = [(name, outcome) for name, _, outcome in rewards]
    shares = "share of right trajectories of a question"
    alone = all(charted.config.verdict_alone for charted in runs)
    title = (
        f"Outcome reward: {shares}" if alone else f"{shares[0].upper()}{shares[1:]}, by the verdict (not the reward)"
    )
    figures.append((title, _reward_figure(outcomes, None)))
    figures += _length_figures([(charted, folder) for charted, folder, _ in drawn])
    lines = [(charted.name, _training(folder)) for charted, folder, _ in drawn]
    figures += [(title, _curve(lines, name)) for name, title in _TRAINING.items()]
    return figures


def _bars(counts: list[tuple[str, dict[str, int]]], unit: str) -> Any:
    import plotly.graph_objects as go

    total: Counter[str] = Counter()
    for _, mine in counts:
        total.update(mine)
    names = [name for name, _ in total.most_common()]
    if not names:
        return None
    labels = [name.replace("_", " ") for name in names]
    traces = [
        go.Bar(name=run, x=labels, y=[mine.get(n, 0) for n in names], marker_color=_colour(i))
        for i, (run, mine) in enumerate(counts)
    ]
    return figure(*traces, y=unit, barmode="group")


def _colour(index: int) -> str:
    return (BLUE, ORANGE)[index % 2]


def _verdicts_by_type(by_type: dict[str, dict[str, int]]) -> Any:
    import plotly.graph_objects as go

    if not by_type:
        return None
    traces = [
        go.Bar(
            name=verdict.replace("_", " "),
            x=list(by_type),
            y=[counts.get(verdict, 0) for counts in by_type.values()],
            marker_color=colour,
        )
        for verdict, colour in _VERDICT_COLOURS.items()
        if any(verdict in counts for counts in by_type.values())
    ]
    return figure(*traces, y="trajectories", barmode="stack")


def _rewards(folder: RoundFolder, charted: Charted) -> tuple[list[float], list[float]]:
    """Visual rewards of all (question, caption) pairs; shares of right trajectories of all questions."""
    names = ["trajectory_id", "question_id", "caption_id", "verdict"]
    rows = columns(folder.verdicts, Verdict, names, charted.problems)
    candidates = [Candidate(t, q, c, 0, False, v) for t, q, c, v in zip(*rows.values(), strict=True)]
    asked, right = Counter(c.question_id for c in candidates), Counter[str]()
    right.update(c.question_id for c in candidates if c.verdict == "correct")
    rewards = caption_rewards(charted.config, rewarded(charted.config, folder, candidates, charted.problems))
    return list(rewards.values()), [right[question] / asked[question] for question in asked]


def _reward_figure(values: list[tuple[str, list[float]]], alpha: float | None) -> Any:
    import plotly.graph_objects as go

    if not any(rewards for _, rewards in values):
        return None
    steps = [i / 20 for i in range(21)]
    traces = []
    for i, (name, rewards) in enumerate(values):
        counted = Counter(round(reward * 20) for reward in rewards)
        traces.append(go.Bar(name=name, x=steps, y=[counted[n] for n in range(21)], marker_color=_colour(i)))
    drawn = figure(*traces, x="reward", y="count", barmode="group")
    if alpha is not None:
        drawn.add_vline(x=alpha, line={"color": RED, "dash": "dash"}, annotation_text=f"alpha {alpha}")
    return drawn


def _length_figures(drawn: list[tuple[Charted, RoundFolder]]) -> list[tuple[str, Any]]:
    captions: list[tuple[str, list[int]]] = []
    right: list[tuple[str, list[int]]] = []
    others: list[tuple[str, list[int]]] = []
    kept: list[tuple[str, list[int]]] = []
    for charted, folder in drawn:
        prefix, problems = f"{charted.name} " if charted.name else "", charted.problems
        lengths = dict(zip(*columns(folder.trajectories, Trajectory, ["id", "tokens"], problems).values(), strict=True))
        rows = columns(folder.verdicts, Verdict, ["trajectory_id", "verdict"], problems)
        correct = {t for t, v in zip(*rows.values(), strict=True) if v == "correct"}
        captions.append((f"{prefix}captions", columns(folder.captions, Caption, ["tokens"], problems)["tokens"]))
        right.append((f"{prefix}correct", [n for t, n in lengths.items() if t in correct]))
        others.append((f"{prefix}others", [n for t, n in lengths.items() if t not in correct]))
        kept.append((f"{prefix}kept", [k.token_count for k in records(folder.kept_file, Kept, problems)]))
    return [
        ("Length of captions", _lengths(captions)),
        ("Length of trajectories", _lengths(right + others, _VERDICTS if len(drawn) == 1 else _COLOURS[1:])),
        ("Length of kept trajectories", _lengths(kept)),
    ]


def _lengths(groups: list[tuple[str, list[int]]], colours: tuple[str, ...] = _COLOURS[1:]) -> Any:
    import plotly.graph_objects as go

    shades = {name: colours[i % len(colours)] for i, (name, _) in enumerate(groups)}
    groups = [group for group in groups if group[1]]
    if not groups:
        return None
    low, high = min(min(n) for _, n in groups), max(max(n) for _, n in groups)
    width = max(1, -(-(high - low + 1) // _BINS))
    places = range(low, high + 1, width)
    traces = []
    for name, lengths in groups:
        counted = Counter((length - low) // width for length in lengths)
        bars = [counted[n] for n in range(len(places))]
        traces.append(go.Bar(name=name, x=list(places), y=bars, marker_color=shades[name]))
    return figure(*traces, x="tokens of the sampling model", y="count", barmode="overlay", bargap=0.05).update_traces(
        opacity=0.75 if len(traces) > 1 else 1.0
    )


def _training(folder: RoundFolder) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder.train_metrics_file) if line["phase"] == TRAIN]


def _curve(runs: list[tuple[str, list[dict[str, Any]]]], name: str) -> Any:
    import plotly.graph_objects as go

    traces = []
    for i, (run, lines) in enumerate(runs):
        points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
        if points:
            x, y = [p[0] for p in points], [p[1] for p in points]
            traces.append(go.Scatter(name=run, x=x, y=y, mode="lines", line={"color": _colour(i)}))
    return figure(*traces, x="step") if traces else None


def _seconds(runs: list[Charted]) -> Any:
    import plotly.graph_objects as go

    traces: list[Any] = []
    for charted in runs:
        for entry in charted.report["rounds"]:
            if entry.get("seconds"):
                label = f"{charted.name} round {entry['round']}".strip()
                spent = entry["seconds"]
                colour = _COLOURS[(len(traces) + 1) % len(_COLOURS)]
                traces.append(go.Bar(name=label, x=list(spent), y=list(spent.values()), marker_color=colour))
    return figure(*traces, y="seconds", barmode="group") if traces else None


def _protocols(charted: Charted) -> list[dict[str, Any]]:
    return [p for result in charted.report["evaluation"].values() for p in result["protocols"].values()]


def _pass_at_1(runs: list[Charted], split: str) -> Any:
    import plotly.graph_objects as go

    traces: list[Any] = []
    for charted in runs:
        for label, result in charted.report["evaluation"].items():
            for protocol, values in result.get("protocols", {}).items():
                types = {"all": values, **values.get(split, {})}
                centre = [100 * v["pass_at_1"] for v in types.values()]
                colour = _COLOURS[(len(traces) // 2) % len(_COLOURS)]
                traces.append(
                    go.Bar(
                        name=f"{charted.name} {label}, {protocol}".strip(),
                        x=list(types),
                        y=centre,
                        marker={"color": colour, "pattern": {"shape": ("", "/")[len(traces) % 2]}},
                        error_y={
                            "array": [100 * v["ci95"][1] - c for v, c in zip(types.values(), centre, strict=True)],
                            "arrayminus": [c - 100 * v["ci95"][0] for v, c in zip(types.values(), centre, strict=True)],
                            "color": GREY,
                        },
                    )
                )
    return figure(*traces, y="pass@1, %, 95% interval", barmode="group") if traces else None
