"""A pytest plugin (`-p tests.support.record --record FILE`): how the tests of each file ended, for docs/status.md.

Files of an earlier run stay in FILE; those of this run are replaced.
"""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.addoption("--record", type=Path, default=None, metavar="FILE", help="JSON file of outcomes by test file")


class Record:
    """Counts outcomes; a test whose set-up or end fails has failed."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst of a test's three parts."""
        order = ("passed", "skipped", "failed")
        before = self._outcomes.get(report.nodeid, "passed")
        self._outcomes[report.nodeid] = max(before, report.outcome, key=order.index)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that is skipped whole or cannot be imported has no tests to report; it counts as one."""
        if report.outcome != "passed":
            self._outcomes[report.nodeid] = report.outcome

    def pytest_sessionfinish(self) -> None:
        """Write the file, with the date and the Python of each test file's run."""
        counts: dict[str, dict[str, int]] = defaultdict(lambda: {"passed": 0, "skipped": 0, "failed": 0})
        for node, outcome in self._outcomes.items():
            counts[node.partition("::")[0]][outcome] += 1
        when = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
        found = json.loads(self._target.read_text()) if self._target.is_file() else {}
        found |= {name: count | when for name, count in counts.items()}
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._target.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Take part in this session if it is asked for."""
    if config.getoption("--record"):
        config.pluginmanager.register(Record(config.getoption("--record")), "record")
