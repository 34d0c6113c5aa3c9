"""`sophia check CONFIG --against BENCHMARK`: lists training questions that are in a benchmark, writes the others."""

from __future__ import annotations

import base64
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sophia_mcore.benchmarks.contamination import Match, find
from sophia_mcore.benchmarks.rows import read_benchmark
from sophia_mcore.benchmarks.table import benchmark_named
from sophia_mcore.config.schema import Config, Source
from sophia_mcore.data.columns import Row
from sophia_mcore.data.sources import local_tables, read_source
from sophia_mcore.errors import UsageError
from sophia_mcore.store.atomic import write_text

LISTED = 50


def check_against(config: Config, against: Sequence[str], drop: Path | None) -> list[str]:
    """Compare the training questions with benchmarks.

    Returns the lines to print: matches (at most ``LISTED``), and counts per benchmark and reason. ``against``: the
    benchmarks, each as NAME or NAME=PATH. ``drop``: a .jsonl file to write. It gets every valid training question
    without a match, with its images, and can be used as a source of kind "jsonl"; all matches are written beside
    it. Raises UsageError for an unknown benchmark, another suffix or a file of somebody else, SophiaError for a
    source that cannot be read.
    """
    if drop is not None and drop.suffix != ".jsonl":
        raise UsageError(f"--drop {drop}: the questions are written as .jsonl")
    sources = []
    for text in against:
        name, _, path = text.partition("=")
        sources.append(Source(benchmark=benchmark_named(name).name, path=path))
    benchmark_rows = itertools.chain.from_iterable(read_benchmark(source) for source in sources)
    given = [*config.data.questions, *(config.rl.questions if config.rl else ())]
    if drop is not None:
        _check_new(drop, given)
    training = itertools.chain.from_iterable(read_source(source) for source in given)
    matches: list[Match] = []
    kept: list[str] = []
    rows = 0
    for row, found in find(training, benchmark_rows):
        rows += 1
        matches += found
        if drop is not None and not found and not row.problems:
            kept.append(_line(row))
    lines = [str(match) for match in matches[:LISTED]]
    if len(matches) > LISTED:
        lines.append(f"and {len(matches) - LISTED:,} more")
    shared = len({(match.source, match.row) for match in matches})
    lines.append(
        f"{shared:,} of {rows:,} training questions share text or image with {', '.join(s.benchmark for s in sources)}"
    )
    counts = Counter((match.benchmark, match.reason) for match in matches)
    lines += [f"  {benchmark}: {count:,} {reason}" for (benchmark, reason), count in sorted(counts.items())]
    if drop is not None:
        listed = _listed(drop)  # first: a file of questions with one beside it is ours
        write_text(listed, "".join(json.dumps(_fields(match), ensure_ascii=False) + "\n" for match in matches))
        write_text(drop, "".join(kept))
        lines.append(f'{len(kept):,} questions without a match: {drop} (kind = "jsonl"); all matches: {listed}')
    return lines


def _listed(drop: Path) -> Path:
    return drop.with_name(f"{drop.stem}.dropped.jsonl")


def _check_new(drop: Path, given: Sequence[Source]) -> None:
    """Raise UsageError for a file that is not an earlier result of the same command, above all a training source."""
    read = {path.resolve() for source in given for path in local_tables(source)}
    for path in (drop, _listed(drop)):
        if path.resolve() in read:
            raise UsageError(f"--drop {path}: the training questions are read from this file; name another")
    if drop.exists() and not _listed(drop).is_file():
        raise UsageError(f"--drop {drop}: exists already, and is no result of --drop; name another file or remove it")


def _fields(match: Match) -> dict[str, object]:
    return {name: getattr(match, name) for name in match.__slots__}


def _line(row: Row) -> str:
    """A training question as a line of JSON. It contains the images, so that it needs no other file."""
    images = [image.read_bytes() if isinstance(image, Path) else image for image in row.images]
    fields = {
        "id": row.id,
        "question": row.question,
        "answer": row.answer,
        "answer_type": row.answer_type,
        "options": list(row.options),
        "images": [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in images],
    }
    return json.dumps(fields, ensure_ascii=False) + "\n"
