"""Runs all checks of `sophia doctor` and prints them as a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from sophia_mcore.benchmarks.rows import read_any
from sophia_mcore.config.schema import Config, Environments
from sophia_mcore.data.preview import previews
from sophia_mcore.doctor import configuration as run
from sophia_mcore.doctor import environments, machine, storage
from sophia_mcore.doctor.rows import Row
from sophia_mcore.errors import SophiaError

_TABLE_COLUMNS = 120  # a narrower terminal breaks the words of a table of five columns
_COLOURS = {"ok": "green", "missing": "dim", "warning": "yellow", "stops": "red"}


def examine(config: Config | None) -> list[Row]:
    """Run all checks; returns their rows. An unexpected exception of a check becomes a row."""
    named = config.environments if config is not None else Environments()
    groups: list[tuple[str, Callable[[], list[Row]]]] = [
        ("machine", machine.checks),
        ("environments", lambda: environments.checks(named)),
        ("storage", lambda: storage.checks(config.run.folder if config is not None else Path())),
    ]
    if config is not None:
        groups.append(("configuration", lambda: run.checks(config)))
    rows: list[Row] = []
    for name, check in groups:
        try:
            rows += check()
        except Exception as error:  # an unexpected failure must not hide the other rows
            state: Literal["stops", "warning"] = "stops" if name == "configuration" else "warning"
            rows.append(Row(name=name, state=state, found=f"{type(error).__name__}: {error}"))
    return rows


def doctor(config: Config | None, console: Console) -> None:
    """Print the table. Raises SophiaError with the reasons when the configuration cannot run here."""
    rows = examine(config)
    if console.width < _TABLE_COLUMNS:
        _as_lines(rows, console)
    else:
        console.print(_as_table(rows))
    for preview in previews(config, read_any, run.refuse_size(config)) if config is not None else ():
        console.print(str(preview), markup=False, highlight=False)
    reasons = [f"{row.name}: {row.found}" for row in rows if row.state == "stops"]
    if config is not None and reasons:
        raise SophiaError(f"this configuration cannot run here: {'; '.join(reasons)}")


def _as_lines(rows: list[Row], console: Console) -> None:
    """Print a line for each row, with cost and remedy below it, for narrow terminals. Rows in state "ok" come first."""
    for row in sorted(rows, key=lambda row: list(_COLOURS).index(row.state)):
        found = f": {row.found}" if row.found else ""
        console.print(f"[{_COLOURS[row.state]}]{row.state:<8}[/]{escape(row.name + found)}", highlight=False)
        for word, text in (("costs", row.cost), ("to get it", row.remedy)):
            if text and row.state != "ok":
                console.print(Padding(f"[dim]{word}:[/] {escape(text)}", (0, 0, 0, 8)), highlight=False)


def _as_table(rows: list[Row]) -> Table:
    table = Table(title="sophia doctor", expand=False)
    for heading in ("what", "state", "found", "what it costs when missing", "how to get it"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        state = f"[{_COLOURS[row.state]}]{row.state}[/]"
        table.add_row(escape(row.name), state, escape(row.found), escape(row.cost), escape(row.remedy))
    return table
