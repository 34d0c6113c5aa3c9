"""Write report.json and report.html of a run. Works on unfinished and damaged runs and names the missing parts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.phase import Phase
from sophia_mcore.report.answer import bars, gains
from sophia_mcore.report.benchmarks import blocks, changed_answers
from sophia_mcore.report.collect import collect
from sophia_mcore.report.fp8_page import write_fp8_page
from sophia_mcore.report.reading import Problems
from sophia_mcore.report.rendering import render
from sophia_mcore.store.atomic import write_json, write_text
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.track.runs import redact

MAX_EXAMPLES = 10_000


def write_report(config: Config, run: RunFolder, phases: Sequence[Phase], problems: Problems | None = None) -> Path:
    """Write both files and return the path of the page, which names ``problems`` met before as well. An FP8 check gets
    a page of its own.

    Raises SophiaError when they cannot be written.
    """
    problems = problems or Problems()
    report = collect(config, run, phases, problems)
    page = render_page(config, run, report, problems)
    write_json(run.report_json, report)
    write_text(run.report_html, page)
    if run.fp8_check_file.is_file():
        _write_fp8_page(run)
    return run.report_html


def _write_fp8_page(run: RunFolder) -> None:
    try:
        write_fp8_page(run)
    except (SophiaError, KeyError, TypeError) as error:  # a damaged file, which training names as well
        print(f"warning: {run.fp8_check_html} is not written: {error!r}", file=sys.stderr, flush=True)


def render_page(config: Config, run: RunFolder, report: dict[str, Any], problems: Problems) -> str:
    """The run as one HTML page without any outside resource; texts from models are data, never markup.

    Unreadable parts are added to ``report["missing"]``, and the figures of an on-policy stage become
    ``report["on_policy"]``.
    """
    from sophia_mcore.report.charts import Charted, charts
    from sophia_mcore.report.examples import browser, in_script
    from sophia_mcore.report.groups import groups
    from sophia_mcore.report.on_policy import on_policy
    from sophia_mcore.report.reasons import nothing_kept

    charted = Charted(run, config, report, problems=problems)
    drawn = charts([charted])
    stage = on_policy([charted])
    if stage is not None:
        report["missing"] += stage.missing
        report["on_policy"] = {name: values[0] for name, values in stage.figures}
        stage.groups = groups(run, problems)
        stage.index = in_script(stage.groups.index) if stage.groups is not None else ""
    begun = [entry["round"] for entry in report["rounds"] if run.round(entry["round"]).path.is_dir()]
    alone = run.is_stage_alone
    shown = None if alone else browser(run, begun or [0], MAX_EXAMPLES, config, problems)
    changed = changed_answers(run, report["evaluation"], problems)
    reasons = [(index, nothing_kept(run, config, index, problems)) for index in begun]
    gained = gains(run, report["evaluation"], problems)
    report["missing"] += [line for line in problems.lines if line not in report["missing"]]
    return render(
        "page.html.jinja",
        ["page.js", "browser.js"],
        report=report,
        gains=gained,
        bars=bars([("", report["evaluation"])]),
        reasons=reasons,
        on_policy=stage,
        alone=alone,
        charts=drawn,
        browser=shown,
        blocks=blocks(report["evaluation"]),
        changed=changed,
        index=in_script(shown.index) if shown is not None else "",
        config=config,
        config_text=redact(dump_toml(config)),
    )
