"""fp8_check.html: the FP8 check as a page of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sophia_mcore.report.figures import BLUE, GREY, ORANGE, figure, numbered
from sophia_mcore.report.rendering import render
from sophia_mcore.store.atomic import write_text
from sophia_mcore.store.json_files import require_json
from sophia_mcore.store.layout import RunFolder


def write_fp8_page(run: RunFolder) -> Path:
    """Write the page from fp8_check.json and return its path. Raises SophiaError when it cannot be written."""
    check = require_json(run.fp8_check_file)
    path = run.fp8_check_html
    page = render("fp8.html.jinja", ["page.js"], run=run.path.name, check=check, charts=numbered(_figures(check)))
    write_text(path, page)
    return path


def _figures(check: dict[str, Any]) -> list[tuple[str, Any]]:
    layers, loss = check["layers"], check["loss"]
    found = [
        ("Loss with and without FP8", _losses({"reference": loss["reference"], "FP8": loss["fp8"]})),
        ("Cosine of each layer's gradient", _bars(layers, "cosine")),
        ("Norm of each layer's gradient, FP8 / reference", _bars(layers, "norm_ratio")),
    ]
    if any(row.get("alone") is not None for row in layers):
        found.append(("Mean log-prob gap with one layer alone in FP8, nats", _bars(layers, "alone")))
    return found


def _bars(layers: list[dict[str, Any]], value: str) -> Any:
    import plotly.graph_objects as go

    numbers, heights = [row["layer"] for row in layers], [row.get(value) for row in layers]
    colours = [BLUE if row["in_fp8"] else GREY for row in layers]
    return figure(go.Bar(x=numbers, y=heights, marker_color=colours), x="layer (grey: in bf16)")


def _losses(curves: dict[str, list[float]]) -> Any:
    import plotly.graph_objects as go

    traces = [
        go.Scatter(x=list(range(1, len(y) + 1)), y=y, mode="lines", name=name, line={"color": colour})
        for (name, y), colour in zip(curves.items(), (GREY, ORANGE), strict=True)
    ]
    return figure(*traces, x="step")
