"""Code that `sophia convert`, `sophia verify` and checkpoints_tools/ share: progress bar, calls and printed lines."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sophia_mcore.errors import SophiaError, run_command
from sophia_mcore.pretrained.hub import local_folder
from sophia_mcore.store.digests import Digest
from sophia_mcore.weights.conversion import DEFAULT_SHARD_MIB, WORKERS, Conversion, Destination, named_dtype
from sophia_mcore.weights.convert import Summary, convert
from sophia_mcore.weights.verify import verify


class BytesProgress:
    """Shows a bar with bytes per second. Prints one line at the end of a task if stderr is not a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._plain = not console.is_terminal
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console, disable=self._plain)
        self._task, self._id = "", self._bars.add_task("", visible=False)
        self._total = self._done = 0
        self._since = time.monotonic()

    def __enter__(self) -> BytesProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, task: str, total: int, completed: int = 0) -> None:
        """Begin ``task`` of ``total`` bytes."""
        self._task, self._total, self._done, self._since = task, total, completed, time.monotonic()
        self._id = self._bars.add_task(task, total=total, completed=completed)

    def advance(self, count: int = 1) -> None:
        """Add ``count`` bytes to those that are done."""
        self._done += count
        self._bars.advance(self._id, count)
        if self._plain and self._done >= self._total:
            seconds = max(1e-9, time.monotonic() - self._since)
            print(
                f"{self._task}: {self._total / 1e9:.3g} GB, {self._total / 1e9 / seconds:.3g} GB/s",
                file=sys.stderr,
                flush=True,
            )

    def note(self, text: str) -> None:
        """Show a remark beside the bar."""
        self._bars.update(self._id, description=f"{self._task} {text}")


def run_convert(conversion: Conversion) -> Summary:
    """Call `convert.convert` with a bar and print a summary (or the plan, with ``dry_run``). Raises like `convert`."""
    conversion = replace(conversion, source=local_folder(conversion.source))
    with BytesProgress() as progress:
        summary = convert(conversion, progress)
    if conversion.dry_run:
        print("\n".join(summary.plan))
        print("\n".join(f"{name}: {size} bytes" for name, size in summary.files.items()))
    done = "would write" if conversion.dry_run else "wrote"
    proven = "every value within the FP8 bound" if conversion.to == "fp8" else "equal bit for bit"
    checked = f", read back and {proven}" if summary.verified else ""
    checked += "; the source has the digests of its own conversion.json" if summary.source_checked else ""
    for warning in summary.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"{done} {len(summary.plan)} tensors, {summary.nbytes / 1e9:.3g} GB, "
        f"{summary.source_layout} -> {summary.target_layout}: {conversion.destination}{checked}"
    )
    return summary


def run_verify(a: Path, b: Path, base: Path | None = None) -> None:
    """Print that two checkpoints are equal, or that one is a correct FP8 copy of the other.

    Either may be a name on the hub. Raises SophiaError that names the tensors in which they differ.
    """
    from sophia_mcore.weights.quantize.fp8 import check_fp8, fp8_pair  # imports pyarrow

    a, b = local_folder(a), local_folder(b)

    with BytesProgress() as progress:
        if (pair := fp8_pair(a, b)) is not None:
            found = check_fp8(*pair, progress)
            print(
                f"{pair[1]} is an FP8 copy of {pair[0]}: {len(found.quantized)} tensors quantized, largest error "
                f"{found.worst:.3g} of the rounding bound; {found.untouched} equal bit for bit"
            )
            return
        comparison = verify(a, b, base=base, progress=progress)
    if not comparison.is_equal:
        raise SophiaError(f"{a} and {b}: {comparison.describe()}")
    print(comparison.describe())


def convert_tool(to: Destination, description: str, arguments: Sequence[str] | None = None) -> int:
    """Main function of a tool that converts to layout ``to``: parses the arguments and returns the exit code."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    if to == "fp8":
        parser.add_argument("--calibration", type=Path, required=True, help="a run folder, or a file of texts")
        parser.add_argument("--quantizer", type=Path, help="Python of the environment with nvidia-modelopt")
        parser.add_argument("--dry-run", action="store_true", help="list the tensors, write nothing")
        return _run(to, parser.parse_args(arguments))
    if to == "megatron":
        parser.add_argument("--tp", type=int, default=1, dest="tensor", help="tensor-parallel ranks to cut for")
        parser.add_argument("--pp", type=int, default=1, dest="pipeline", help="pipeline stages to cut for")
    else:
        parser.add_argument("--base", type=Path, help="model folder that a trainer's checkpoint belongs to")
        parser.add_argument("--shard-size-mib", type=int, default=DEFAULT_SHARD_MIB, help="largest file")
    parser.add_argument("--dtype", type=named_dtype, help="cast all tensors: bf16, fp16 or fp32")
    parser.add_argument("--verify", action="store_true", help="read the result back and compare bit by bit")
    digests = parser.add_mutually_exclusive_group()
    digests.add_argument(
        "--digest", choices=get_args(Digest), default="xxh3-128", help="kind of digest of every tensor"
    )
    digests.add_argument("--no-checksums", action="store_const", const=None, dest="digest", help="no digests")
    parser.add_argument("--workers", type=int, default=WORKERS, help="tensors copied at a time")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    return _run(to, parser.parse_args(arguments))


def _run(to: Destination, options: argparse.Namespace) -> int:
    return run_command("convert", lambda: run_convert(Conversion(to=to, **vars(options))) and None)


def verify_tool(arguments: Sequence[str] | None = None) -> int:
    """Main function of the tool that compares two checkpoints; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare two checkpoints of any layouts, tensor by tensor.")
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--base", type=Path, help="model folder that a trainer's checkpoint belongs to")
    options = parser.parse_args(arguments)
    return run_command("verify", lambda: run_verify(options.a, options.b, options.base))
