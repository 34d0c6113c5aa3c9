"""A pytest plugin (`-p tests.support.cpu_seconds`): CPU seconds by file and the tests that cost most, at the end.

Child processes count as soon as somebody has waited for them, with the test during which that was.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest

SHOWN = 15


def used() -> float:
    """CPU seconds of this process and of the children that have been waited for."""
    return sum(os.times()[:4])


class CpuSeconds:
    """Takes the time of every test, its fixtures included."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before = used()
        result = yield
        self.seconds[item.nodeid] += used() - before  # type: ignore[assignment]
        return result

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The list, costliest first."""
        files: Counter[str] = Counter()
        for test, seconds in self.seconds.items():
            files[test.partition("::")[0]] += seconds  # type: ignore[assignment]
        terminalreporter.section("CPU seconds, child processes included")
        for table in (files, self.seconds):
            for name, seconds in table.most_common(SHOWN):
                terminalreporter.write_line(f"{seconds:8.1f}  {name}")
            terminalreporter.write_line("")


def pytest_configure(config: pytest.Config) -> None:
    """Take part in this session."""
    config.pluginmanager.register(CpuSeconds(), "cpu-seconds")
