"""fp8_check.html: the FP8 check as a page of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sophia_mcore.store.atomic import write_text
from sophia_mcore.store.layout import RunFolder

_BLUE, _ORANGE, _GREY = "#3b7dd8", "#d9822b", "#8a8f98"


def write_fp8_page(run: RunFolder) -> Path:
    """Write the page from fp8_check.json and return its path. Raises SophiaError when it cannot be written."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sophia_mcore.report", "page"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    check = json.loads((run.path / "fp8_check.json").read_text())
    path = run.path / "fp8_check.html"
    text = environment.get_template("fp8.html.jinja").render(
        run=run.path.name,
        check=check,
        figures=[{"title": title, "html": _html(figure)} for title, figure in _figures(check)],
        style=(Path(__file__).parent / "page" / "page.css").read_text(),
        plotly=get_plotlyjs(),
    )
    write_text(path, text)
    return path


def _html(figure: Any) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False}))


def _figures(check: dict[str, Any]) -> list[tuple[str, Any]]:
    layers, loss = check["layers"], check["loss"]
    numbers = [row["layer"] for row in layers]
    colours = [_BLUE if row["in_fp8"] else _GREY for row in layers]
    steps = list(range(1, len(loss["fp8"]) + 1))
    found = [
        ("Loss with and without FP8", _lines(steps, {"reference": loss["reference"], "FP8": loss["fp8"]}, "step")),
        ("Cosine of each layer's gradient", _bars(numbers, [row["cosine"] for row in layers], colours)),
        ("Norm of each layer's gradient, FP8 / reference", _bars(numbers, [r["norm_ratio"] for r in layers], colours)),
    ]
    alone = [row.get("alone") for row in layers]
    if any(value is not None for value in alone):
        found.append(("Mean log-prob gap with one layer alone in FP8, nats", _bars(numbers, alone, colours)))
    return found


def _bars(numbers: list[int], values: list[float | None], colours: list[str]) -> Any:
    import plotly.graph_objects as go

    return _figure(go.Bar(x=numbers, y=values, marker_color=colours), x="layer (grey: in bf16)")


def _lines(steps: list[int], curves: dict[str, list[float]], x: str) -> Any:
    import plotly.graph_objects as go

    colours = (_GREY, _ORANGE)
    traces = [
        go.Scatter(x=steps, y=values, mode="lines", name=name, line={"color": colour})
        for (name, values), colour in zip(curves.items(), colours, strict=True)
    ]
    return _figure(*traces, x=x)


def _figure(*traces: Any, x: str) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure(traces)
    figure.update_layout(
        template="none", height=280, margin={"l": 60, "r": 20, "t": 10, "b": 45}, font={"color": _GREY},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", xaxis={"title": x}, legend={"orientation": "h"},
    )  # fmt: skip
    return figure
