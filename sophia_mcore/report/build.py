"""Write report.json and report.html of a run. Works on unfinished runs: what is missing is named, not guessed."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

from sophia_mcore import __version__
from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.report.collect import collect
from sophia_mcore.store.atomic import write_json, write_text
from sophia_mcore.store.layout import RunFolder

MAX_EXAMPLES = 10_000


def write_report(config: Config, run: RunFolder) -> Path:
    """Write both files and return the path of the page. Raises SophiaError when they cannot be written."""
    report = collect(config, run)
    write_json(run.report_json, report)
    write_text(run.report_html, render_page(config, run, report))
    return run.report_html


def render_page(config: Config, run: RunFolder, report: dict[str, Any]) -> str:
    """The run as one HTML page without any outside resource; texts from models are data, never markup."""
    import jinja2
    from plotly.offline import get_plotlyjs

    from sophia_mcore.report.charts import charts
    from sophia_mcore.report.examples import examples, pack

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sophia_mcore.report", "page"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    here = Path(__file__).parent / "page"
    shown, images = examples(run, MAX_EXAMPLES)
    return environment.get_template("page.html.jinja").render(
        report=report,
        charts=charts(run, report),
        examples=pack({"examples": shown, "images": images}),
        example_count=len(shown),
        config_text=dump_toml(config),
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        python=platform.python_version(),
        style=(here / "page.css").read_text(),
        script=(here / "page.js").read_text(),
        plotly=get_plotlyjs(),
    )
