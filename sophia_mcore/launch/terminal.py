"""Progress bars of a local run: one rich display for the phases in this process and in child processes."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars

from sophia_mcore.progress import LineProgress, Progress


class TerminalProgress:
    """Shows a bar per task, which stays when the task is done. Prints plain lines if stderr is not a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._plain: Progress | None = None if self._console.is_terminal else LineProgress(sys.stderr)
        self._bars = RichBars(
            SpinnerColumn(finished_text="[green]ok[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self._console,
            disable=self._plain is not None,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self._finish_indeterminate()
        self._bars.stop()

    def start(self, task: str, total: int, completed: int = 0) -> None:
        """Begin a bar. ``total`` 0: not known yet."""
        if self._plain:
            self._plain.start(task, total, completed)
            return
        self._finish_indeterminate()
        self._task = self._bars.add_task(escape(task).ljust(34), total=total or None, completed=completed, note="")

    def _finish_indeterminate(self) -> None:
        """End the bar of the last task, so that it does not spin on if its last items were not counted here."""
        if self._task is not None:
            task = self._bars.tasks[self._bars.task_ids.index(self._task)]
            if not task.finished:
                self._bars.update(self._task, total=task.completed)

    def advance(self, count: int = 1) -> None:
        """Move the current bar."""
        if self._plain:
            self._plain.advance(count)
        elif self._task is not None:
            self._bars.advance(self._task, count)

    def note(self, text: str) -> None:
        """Show a remark beside the current bar."""
        if self._plain:
            self._plain.note(text)
        elif self._task is not None:
            self._bars.update(self._task, note=escape(text))

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)
