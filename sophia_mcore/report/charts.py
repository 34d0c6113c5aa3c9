"""The report's charts, as plotly figures in JSON that the page draws."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from sophia_mcore.store.layout import RunFolder
from sophia_mcore.track.metrics import read_metrics

_BLUE, _ORANGE, _GREEN, _GREY = "#3b7dd8", "#d9822b", "#3a9d5d", "#8a8f98"
_COLOURS = (_GREY, _BLUE, _GREEN, _ORANGE)


def charts(run: RunFolder, report: dict[str, Any]) -> list[dict[str, str]]:
    """Charts for which the run has data: [{"id", "title", "figure": JSON}], in the order of the flow."""
    figures: list[tuple[str, Any]] = []
    for entry in report["rounds"]:
        folder = run.round(entry["round"])
        label = f"round {entry['round']}"
        if "verdicts" in entry:
            figures.append((f"Verdicts, {label}", _bars(entry["verdicts"], "trajectories")))
        if entry.get("dropped"):
            figures.append((f"Why trajectories were dropped, {label}", _bars(entry["dropped"], "trajectories")))
        if folder.kept_file.is_file():
            figures.append((f"Length of kept trajectories, {label}", _lengths(folder.kept_file)))
        figures += [(f"{name}, {label}", figure) for name, figure in _training(folder.train / "metrics.jsonl")]
    by_type = _by_type(report["evaluation"])
    if by_type is not None:
        figures.insert(0, ("pass@1 by answer type", by_type))
    return [
        {"id": f"chart-{i}", "title": title, "figure": json.dumps(json.loads(figure.to_json())).replace("<", "\\u003c")}
        for i, (title, figure) in enumerate(figures)
    ]


def _figure(*traces: Any, x: str = "", y: str = "", **layout: Any) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure(traces)
    figure.update_layout(
        template="none",
        height=280,
        margin={"l": 60, "r": 20, "t": 10, "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": _GREY},
        xaxis={"title": x, "gridcolor": "rgba(138,143,152,0.25)"},
        yaxis={"title": y, "gridcolor": "rgba(138,143,152,0.25)", "rangemode": "tozero"},
        legend={"orientation": "h", "y": 1.1},
        **layout,
    )
    return figure


def _bars(counts: dict[str, int], unit: str) -> Any:
    import plotly.graph_objects as go

    names = sorted(counts, key=lambda name: -counts[name])
    labels = [name.replace("_", " ") for name in names]
    return _figure(go.Bar(x=labels, y=[counts[n] for n in names], marker_color=_BLUE), y=unit)


def _lengths(kept_file: Path) -> Any:
    import plotly.graph_objects as go
    import pyarrow.parquet as pq

    lengths = pq.read_table(kept_file, columns=["token_count"]).column(0).to_pylist()
    counted = sorted(Counter(lengths).items())
    if len(counted) <= 60:
        trace = go.Bar(x=[c[0] for c in counted], y=[c[1] for c in counted], marker_color=_GREEN)
    else:
        trace = go.Histogram(x=lengths, nbinsx=60, marker_color=_GREEN)
    return _figure(trace, x="tokens of the reasoner", y="kept trajectories")


def _training(metrics_file: Path) -> list[tuple[str, Any]]:
    import plotly.graph_objects as go

    lines = [line for line in read_metrics(metrics_file) if line["phase"] == "train"]
    shown = {
        "loss": "Loss (filtered negative log-likelihood)",
        "logprob_kept": "Mean log-prob per token of the kept trajectories",
        "gradient_norm": "Gradient norm",
        "tokens_per_second": "Training tokens per second",
    }
    found = []
    for name, title in shown.items():
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            trace = go.Scatter(x=[p[0] for p in points], y=[p[1] for p in points], mode="lines", line={"color": _BLUE})
            found.append((title, _figure(trace, x="step")))
    return found


def _by_type(evaluation: dict[str, Any]) -> Any:
    import plotly.graph_objects as go

    traces: list[Any] = []
    for index, (label, result) in enumerate(evaluation.items()):
        for protocol, values in result.get("protocols", {}).items():
            types = {"all": values, **values.get("by_answer_type", {})}
            centre = [100 * v["pass_at_1"] for v in types.values()]
            traces.append(
                go.Bar(
                    name=f"{label}, {protocol}",
                    x=list(types),
                    y=centre,
                    marker={"color": _COLOURS[index % len(_COLOURS)], "pattern": {"shape": _pattern(len(traces))}},
                    error_y={
                        "array": [100 * v["ci95"][1] - c for v, c in zip(types.values(), centre, strict=True)],
                        "arrayminus": [c - 100 * v["ci95"][0] for v, c in zip(types.values(), centre, strict=True)],
                        "color": _GREY,
                    },
                )
            )
    return _figure(*traces, y="pass@1, %, 95% interval", barmode="group") if traces else None


def _pattern(index: int) -> str:
    return ("", "/")[index % 2]
