"""Shared by the charts of all pages: colours, layout, and the JSON form that a page draws."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sophia_mcore.report.examples import in_script

BLUE, ORANGE, GREEN, GREY, RED, PURPLE = "#3b7dd8", "#d9822b", "#3a9d5d", "#8a8f98", "#c9544b", "#8a63c9"


def figure(*traces: Any, x: str = "", y: str = "", **layout: Any) -> Any:
    """The traces as a plotly figure in the pages' layout; a legend where there are several."""
    import plotly.graph_objects as go

    drawn = go.Figure(traces)
    drawn.update_layout(
        template="none",
        height=280 + 20 * (len(traces) > 4),
        margin={"l": 60, "r": 20, "t": 10 + 20 * -(-len(traces) // 2) * (len(traces) > 1), "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY},
        xaxis={"title": x, "automargin": True, "gridcolor": "rgba(138,143,152,0.25)"},
        yaxis={"title": y, "automargin": True, "gridcolor": "rgba(138,143,152,0.25)", "rangemode": "tozero"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        showlegend=len(traces) > 1,
        **layout,
    )
    return drawn


def numbered(figures: Iterable[tuple[str, Any]], prefix: str = "chart") -> list[dict[str, str]]:
    """Titles and figures as the page draws them, [{"id", "title", "figure": JSON}]; without those that are None.

    ``prefix`` begins the ids, which are unique in a page.
    """
    return [
        {"id": f"{prefix}-{i}", "title": title, "figure": in_script(json.loads(drawn.to_json()))}
        for i, (title, drawn) in enumerate((title, drawn) for title, drawn in figures if drawn is not None)
    ]
