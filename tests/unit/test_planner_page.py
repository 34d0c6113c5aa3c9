"""The outputs in docs/planner_examples.md are what the commands above them print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_shows_what_the_commands_print(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "planner_examples.md").read_text()
    shown = re.findall(r"^`sophia (plan [^`]+)` prints.*?^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(shown) == 2
    environment = os.environ | {"COLUMNS": "118", "HF_HOME": str(tmp_path)}  # no model is in the cache
    for arguments, expected in shown:
        command = [sys.executable, "-m", "sophia_mcore.cli", *arguments.split()]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
        assert "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines()) == expected
    head = "".join(shown[0][1].splitlines(keepends=True)[:9])
    assert head in (ROOT / "docs" / "planner.md").read_text()
