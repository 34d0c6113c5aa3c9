"""Start of the command against `import torch`, which any command that trains must pay.

python -m tests.bench.bench_startup [--repeats 5]

Prints one JSON line: median wall seconds of fresh processes, the kinds interleaved, and their ratio to `import torch`
(the file cache is warm, byte code is cached as after any first start, in a folder of this run). "check" parses
examples/digits/run.toml and prints it resolved: the dry run of a configuration, which looks at no data and no model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

KINDS = {
    "import torch": ["-c", "import torch"],
    "--help": ["-m", "sophia_mcore.cli", "--help"],
    "check": ["-m", "sophia_mcore.cli", "check", "examples/digits/run.toml"],
    "check --set": ["-m", "sophia_mcore.cli", "check", "examples/digits/run.toml", "--set", "train.steps=3"],
    "convert --help": ["-m", "sophia_mcore.cli", "convert", "--help"],
}


def seconds(arguments: list[str], environment: dict[str, str]) -> float:
    """Wall time of one process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - began


def main() -> None:
    """Run, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    taken: dict[str, list[float]] = {name: [] for name in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        for arguments in KINDS.values():
            seconds(arguments, environment)  # caches are warm before the clock starts
        for _ in range(repeats):
            for name, arguments in KINDS.items():
                taken[name].append(seconds(arguments, environment))
    median = {name: statistics.median(values) for name, values in taken.items()}
    ours, peer = max(value for name, value in median.items() if name != "import torch"), median["import torch"]
    values = {name: round(value, 3) for name, value in median.items()}
    line = {"name": "startup", "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(ours / peer, 3)}
    print(json.dumps(line | {"unit": "seconds, the slowest of ours", "values": values, "repeats": repeats}))


if __name__ == "__main__":
    main()
