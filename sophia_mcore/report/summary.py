"""The summaries that `sophia run` and `sophia rl` print at their end: results, counts, and the report's path."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sophia_mcore.report.reading import read_json
from sophia_mcore.report.rendering import visible
from sophia_mcore.store.labels import STAGE, STAGE_START
from sophia_mcore.store.layout import RunFolder


def print_summary(run: RunFolder, console: Console | None = None) -> None:
    """Print pass@1 before and after, the counts of each round and where the report lies."""
    console = console or Console()
    report = read_json(run.report_json) or {"rounds": [], "evaluation": {}}
    for entry in report["rounds"]:
        console.print(escape(_round_line(entry)), highlight=False)
    if report["evaluation"]:
        console.print(_evaluation_table(report["evaluation"]))
    print_stale(run, console)
    print_missing(run, console)
    console.print(f"report: {escape(str(run.report_html))}", highlight=False)
    model = run.round(report["rounds"][-1]["round"]).model if report["rounds"] else None
    if model is not None and model.is_dir():
        console.print(f"model:  {escape(str(model))}", highlight=False)
    console.print("next:   open the report; docs/getting_started.md, 'From here to 38B', shows how it grows")


def print_stage_summary(run: RunFolder, console: Console | None = None) -> None:
    """Print what came of the on-policy stage: pass@1 before and after, and where its model lies."""
    console = console or Console()
    stage = read_json(run.rl.summary_file) or {}
    evaluation = (read_json(run.report_json) or {}).get("evaluation", {})
    line = f"on-policy stage: {stage.get('batches', 0)} batches, {stage.get('tokens_sampled', 0):,} tokens sampled"
    if stage.get("validation_accuracy") is not None:
        line += f"; best on the validation questions {100 * stage['validation_accuracy']:.1f}%"
    console.print(escape(line), highlight=False)
    if found := {label: evaluation[label] for label in (STAGE_START, STAGE) if label in evaluation}:
        console.print(_evaluation_table(found))
    console.print(f"report: {escape(str(run.report_html))}", highlight=False)
    version = f" (version {stage['version']})" if "version" in stage else ""
    console.print(f"model:  {escape(str(run.rl.model))}{version}", highlight=False)


def print_missing(run: RunFolder, console: Console | None = None) -> None:
    """Print one line for each part that report.json names as missing."""
    console = console or Console()
    for name in (read_json(run.report_json) or {}).get("missing", []):
        line = " ".join(visible(name).split())
        console.print(f"[yellow]not there (yet):[/] {escape(line)}", highlight=False, soft_wrap=True)


def print_stale(run: RunFolder, console: Console | None = None) -> None:
    """Print one line for each part that report.json names as stale, and one for the parts that could not be checked."""
    console = console or Console()
    report = read_json(run.report_json) or {}
    for key, word in (("stale", "[red]stale:[/]"), ("unchecked", "[yellow]not checked:[/]")):
        for line in report.get(key, []):
            console.print(f"{word} {escape(' '.join(visible(line).split()))}", highlight=False, soft_wrap=True)


def _round_line(entry: dict[str, Any]) -> str:
    names = ("questions", "captions", "trajectories", "kept")
    counts = " -> ".join(f"{entry[name]:,} {name}" for name in names if name in entry)
    line = f"round {entry['round']}: {counts}"
    train = entry.get("train")
    if train:
        line += f"; trained {train['steps']} steps, loss {train['loss_first']:.3f} -> {train['loss_last']:.3f}"
        before, after = train.get("logprob_before"), train.get("logprob_after")
        if before is not None and after is not None:
            line += f"; log-prob per token of the kept {before:.3f} -> {after:.3f}"
        gap = train.get("rollout_gap")
        if gap:
            line += f"; trainer against sampling engine {gap['mean']:.4f} nats per token, p99 {gap['p99']:.4f}"
            line += ": TOO FAR APART" * (gap["p99"] > train["rollout_gap_limit"])
    return line


def _evaluation_table(evaluation: dict[str, Any]) -> Table:
    table = Table(title="pass@1 on held-out questions")
    table.add_column("model")
    protocols = list(next(iter(evaluation.values())).get("protocols", {}))
    for protocol in protocols:
        table.add_column(f"{escape(protocol)}, 95% interval", justify="right")
    table.add_column("questions", justify="right")
    for label, result in evaluation.items():
        cells = [_interval(result["protocols"].get(name)) for name in protocols]
        table.add_row(label, *cells, str(result["n"]))
    return table


def _interval(result: dict[str, Any] | None) -> str:
    if result is None:
        return "-"
    low, high = result["ci95"]
    return f"{100 * result['pass_at_1']:.1f}%  {100 * low:.1f}-{100 * high:.1f}"
