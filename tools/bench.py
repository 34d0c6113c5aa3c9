"""Run benchmarks and print the index of goals: `make bench`, or `python tools/bench.py [--record] NAME ...`.

Every benchmark prints JSON lines, each with its "name". They go to build/bench/lines.jsonl with date, command and
seconds; the newest line of a name counts. With --record they go to docs/bench/lines.jsonl too, and docs/bench/index.md
is written from that file alone (`--page` only writes the page; a test says when it is due).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GOALS = ROOT / "tools" / "bench_goals.toml"
LINES, PAGE = ROOT / "docs" / "bench" / "lines.jsonl", ROOT / "docs" / "bench" / "index.md"
LATEST = ROOT / "build" / "bench" / "lines.jsonl"
HEAD = """# Goals and where they stand

The newest JSON line of each benchmark, beside its goal. A ratio compares ours with the peer in one run: other machines
give other figures, but about the same ratios. The last column names the module in `tests.bench` that measures it
(`python -m tests.bench.bench_store`). `make bench` prints this table from its own run.
`python tools/bench.py --record store` runs one benchmark and writes this page. "-": not measured.

"""


TIMES = """
## How long each took
On the machine named, with the load average at the start: other work beside it makes it longer.

| line | seconds | machine | load |
|---|---|---|---|
"""


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Lines by their names."""
    if not file.is_file():
        return {}
    return {line["name"]: line for line in map(json.loads, file.read_text().splitlines())}


def write(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Replace the lines of these names, keep the others."""
    file.parent.mkdir(parents=True, exist_ok=True)
    found = read(file) | {line["name"]: line for line in lines}
    new = file.with_suffix(".new")
    new.write_text("".join(json.dumps(found[name]) + "\n" for name in sorted(found)))
    os.replace(new, file)


def value(line: dict[str, Any], key: str) -> Any:
    """The figure at a key such as "decode/ratio"; None if the line has none."""
    found: Any = line
    for part in key.split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def shown(number: Any) -> str:
    """At most four digits that count."""
    if not isinstance(number, int | float):
        return "-"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def row(goal: dict[str, Any], lines: dict[str, dict[str, Any]]) -> list[str]:
    """Cells of one goal."""
    line = lines.get(goal.get("line", ""))
    least, most = goal.get("at_least"), goal.get("at_most")
    text = goal.get("goal") or (f"at least {shown(least)}" if least is not None else f"at most {shown(most)}")
    if line is None:
        where = goal.get("where") or f"`bench_{goal['bench']}`"
        return [goal["number"], goal["what"], text, "-", "-", "-", "-", "-", where]
    measured = value(line, goal["key"])
    met = "-"
    if isinstance(measured, int | float):
        met = "yes" if (measured >= least if least is not None else measured <= most) else "**no**"
        if "peer" in goal and any("stand-in" in str(code) for code in line.get("peer_code", {}).values()):
            met = "not shown: a stand-in for the peer's code"
    ours, peer = (shown(value(line, goal[side])) if side in goal else "-" for side in ("ours", "peer"))
    command = f"`{line['command']}`"
    return [goal["number"], goal["what"], text, shown(measured), met, ours, peer, line["date"], command]


def table(lines: dict[str, dict[str, Any]], benches: Sequence[str] = ()) -> str:
    """Every goal as a Markdown table; ``benches``: those of these benchmarks alone."""
    goals = tomllib.loads(GOALS.read_text())["goal"]
    if benches:
        goals = [goal for goal in goals if goal.get("bench") in benches]
    head = ["#", "what", "goal", "measured", "met", "ours", "peer", "date", "benchmark"]
    rows = [head, ["---"] * len(head), *(row(goal, lines) for goal in goals)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def page() -> str:
    """docs/bench/index.md."""
    lines = read(LINES)
    rows = [
        f"| {name} | {line['seconds_in_all']:.0f} | {line['machine']} | {line['load']} |\n"
        for name, line in sorted(lines.items())
    ]
    return HEAD + table(lines) + TIMES + "".join(rows)


def run(name: str, options: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The lines of one benchmark, also printed as they come. Raises CalledProcessError."""
    module = f"tests.bench.bench_{name}"
    began, load = time.monotonic(), os.getloadavg()[0]
    if took := [line for line in read(LINES).values() if line["command"].split()[0] == f"bench_{name}"]:
        print(f"bench {name}: took {took[0]['seconds_in_all']:.0f} s on {took[0]['machine']}", file=sys.stderr)
    command = [sys.executable, "-m", module, *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    lines = [json.loads(text) for text in done.stdout.splitlines() if text.startswith("{")]
    said = [Path(option).name if option.startswith("/") else option for option in options]  # no paths of this machine
    about: dict[str, Any] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "command": shlex.join([f"bench_{name}", *said])}
    about |= {"seconds_in_all": round(time.monotonic() - began, 1), "load": round(load, 1)}
    about |= {"machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"}
    return [line | about for line in lines]


def main() -> int:
    """Run the benchmarks, print the index; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--record", action="store_true", help="into docs/bench")
    parser.add_argument("--page", action="store_true", help="only write docs/bench/index.md")
    parser.add_argument("--options", default="", help="of the benchmark, one string; for one name")
    given = parser.parse_args()
    if given.page:
        PAGE.write_text(page())
        return 0
    failed = []
    for name in given.names:
        if not (ROOT / "tests" / "bench" / f"bench_{name}.py").is_file():
            known = sorted(path.stem.removeprefix("bench_") for path in (ROOT / "tests" / "bench").glob("bench_*.py"))
            print(f"bench {name}: there is none of this name; one of {', '.join(known)}", file=sys.stderr)
            failed.append(name)
            continue
        try:
            lines = run(name, given.options.split())
        except subprocess.CalledProcessError as error:
            print(f"bench {name}: failed with code {error.returncode}", file=sys.stderr)
            failed.append(name)
            continue
        write(LATEST, lines)
        if given.record:
            write(LINES, lines)
            PAGE.write_text(page())
    print(table(read(LATEST), () if len(given.names) > 1 else given.names), end="", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
