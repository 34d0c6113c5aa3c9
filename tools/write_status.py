"""Write docs/status.md and the README's table from docs/status.toml and the records of the lanes.

`python tools/write_status.py [--take]`

`make test`, `make test-slow` and `make test-cuda-path` leave records in build/status: how the tests of each file ended.
--take copies these records to docs/status/, which are part of the project, before the page is written. `make gpu-check`
writes docs/bench/gpu.md. A test says when the page is not what its sources say.
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
MARKS = ("<!-- status: python tools/write_status.py writes this table -->\n", "<!-- /status -->\n")
LANES = {"cpu": "CPU", "cuda_path": "CUDA path on a CPU", "gpu": "GPU"}
# a lane that runs in two environments has a record of each, so that neither hides a failure of the other
RECORDS = {"cpu": ("cpu",), "cuda_path": ("cuda_path", "cuda_path_next")}
HEAD = """# Status: what has been seen

This page lists what has been seen, not what should work. It is generated: `python tools/write_status.py`.

| column | meaning |
|---|---|
| CPU | Debian 12, 2 cores, Python 3.11, gloo |
| CUDA path on a CPU | the code of the GPU path, run on a CPU with substitutes for the device |
| GPU | on a real device. {gpu} |

"tested" means that the test suite runs it and that all of it passed in the last recorded run ({runs}). "tested, no
record" means that the suite has tests of it which no record names yet. "seen" means that it was run by hand or in an
example. "-" means that the feature needs no GPU.

The CUDA path on a CPU says nothing about speed, and nothing about the numerics of the kernels that were substituted.
"""


def page(docs: Path = DOCS) -> str:
    """The text of docs/status.md."""
    rows, records = _sources(docs)
    dates = [f"{LANES[lane]}: {max(r['date'] for r in found.values())}" for lane, found in records.items() if found]
    said = (
        "[What was seen](bench/gpu.md)"
        if _seen_on_gpu(docs / "bench" / "gpu.md")
        else "**Nothing has been run on a GPU yet**"
    )
    parts = [HEAD.format(gpu=said, runs="; ".join(dates) or "there is none")]
    for section in rows["section"]:
        parts.append(f"## {section['title']}\n{_table('feature', section['row'], records)}")
    return "\n".join(parts).rstrip() + "\n"


def readme(text: str, docs: Path = DOCS) -> str:
    """The README's ``text`` with its table, the rows ``[[readme]]``, as the sources have it now."""
    rows, records = _sources(docs)
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (begin and end):
        raise SystemExit(f"error: {README.name}: the marks {MARKS[0].strip()} and {MARKS[1].strip()} are missing")
    return before + begin + _table("", rows["readme"], records) + end + after


def _sources(docs: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(rows, records by lane)"""
    rows = tomllib.loads((docs / "status.toml").read_text())
    records = {lane: together([_read(docs / "status" / f"{n}.json") for n in names]) for lane, names in RECORDS.items()}
    return rows, records


def _table(title: str, rows: list[dict[str, Any]], records: dict[str, dict[str, Any]]) -> str:
    lines = [f"| {title} | {' | '.join(LANES.values())} |".replace("|  |", "| |"), "|---|---|---|---|"]
    for row in rows:
        cells = [cell(row.get(lane), records.get(lane, {})) for lane in LANES]
        lines.append(f"| {row['feature']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def together(records: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The outcomes of all records by test file, added up; the date is the newest."""
    found: dict[str, dict[str, Any]] = {}
    for name, result in (item for record in records for item in record.items()):
        other = found.get(name, {"passed": 0, "skipped": 0, "failed": 0, "date": ""})
        counts = {kind: other[kind] + result[kind] for kind in ("passed", "skipped", "failed")}
        found[name] = counts | {"date": max(other["date"], result["date"])}
    return found


def cell(claim: dict[str, Any] | None, record: dict[str, dict[str, Any]]) -> str:
    """What stands in a cell: a claim without tests is what was said; with tests, what the record says of them."""
    if claim is None:
        return "not yet"
    said, tests = claim.get("said", ""), claim.get("tests", [])
    if not tests:
        return said
    found = [result for test in tests for name, result in record.items() if _is_of(name, test)]
    unknown = [test for test in tests if not any(_is_of(name, test) for name in record)]
    failed, passed, skipped = (sum(r[kind] for r in found) for kind in ("failed", "passed", "skipped"))
    if failed:
        word = f"**{failed} of {failed + passed} tests failed**"
    elif unknown:
        word = "tested, no record"
    elif not passed:
        word = "skipped in the last run"
    else:
        word = "tested" + f" ({skipped} of {passed + skipped} skipped)" * bool(skipped)
    return f"{word}, {said}" if said else word


def _seen_on_gpu(page: Path) -> bool:
    """Whether a row of the page of `make gpu-check` is good; a page of red rows shows nothing that works."""
    rows = page.read_text().splitlines() if page.is_file() else []
    return any(row.startswith("| ") and "| good |" in row for row in rows)


def _is_of(name: str, test: str) -> bool:
    return name == test or name.startswith(f"{test}/")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text()) if path.is_file() else {}


def take(build: Path = ROOT / "build" / "status", docs: Path = DOCS) -> None:
    """Merge the lanes' records into docs/status/; files whose tests are gone are dropped."""
    (docs / "status").mkdir(exist_ok=True)
    for record in (name for names in RECORDS.values() for name in names):
        merged = _read(docs / "status" / f"{record}.json") | _read(build / f"{record}.json")
        known = {name: result for name, result in sorted(merged.items()) if (docs.parent / name).is_file()}
        if known:
            (docs / "status" / f"{record}.json").write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--take"]):
        raise SystemExit(f"error: {' '.join(sys.argv[1:])}: only --take is known")
    if sys.argv[1:]:
        take()
    (DOCS / "status.md").write_text(page())
    README.write_text(readme(README.read_text()))
