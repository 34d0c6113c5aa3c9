"""`sophia grade IN.jsonl OUT.jsonl`: grades lines, streaming and resumable."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Score
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.progress import NoProgress, Progress
from sophia_mcore.score.grade import Grader, verifier_version
from sophia_mcore.score.types import VERIFIER, Grade, GradeItem


@dataclass
class GradeSummary:
    """Counts of a graded file, by verdict and by (type, verdict). ``str`` gives a small table."""

    verdicts: Counter[str] = field(default_factory=Counter)
    by_type: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, answer_type: str, verdict: str) -> None:
        """Count one verdict."""
        self.verdicts[verdict] += 1
        self.by_type[answer_type, verdict] += 1

    def __str__(self) -> str:
        names = ("correct", "wrong", "no_answer", "timeout", "error")
        types = sorted({answer_type for answer_type, _ in self.by_type})
        rows: list[tuple[str, ...]] = [("type", *names, "all")]
        for kind in types:
            counts = [self.by_type[kind, name] for name in names]
            rows.append((kind, *map(str, counts), str(sum(counts))))
        rows.append(("all", *(str(self.verdicts[name]) for name in names), str(self.verdicts.total())))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def grade_file(in_path: Path, out_path: Path, config: Score, progress: Progress | None = None) -> GradeSummary:
    """Grade every line ``{"id", "response", "answer"[, "type", "options", "benchmark"]}`` of ``in_path``.

    ``out_path`` gets the same lines in the same order plus "verdict", "extracted", "answer_type", "seconds", "verifier"
    and "verifier_version". While it works the lines grow in ``<out_path>.partial``, which a second run continues;
    the finished file appears at once. Raises UsageError naming the first bad line.
    """
    progress = progress or NoProgress()
    total = _check(in_path)
    partial = out_path.with_name(out_path.name + ".partial")
    summary = GradeSummary()
    try:
        done = _resume(in_path, partial, summary)
        progress.start("grade", total, done)
        with Grader(config) as grader, open(partial, "a", encoding="utf-8") as out:
            source = _rows(in_path, done)
            rows: list[dict[str, Any]] = []

            def items() -> Iterator[GradeItem]:
                for row in source:
                    rows.append(row)
                    yield _item(row)

            for grade in grader.grade_many(items()):
                row = rows.pop(0)
                out.write(json.dumps(_merged(row, grade), ensure_ascii=False) + "\n")
                summary.add(grade.answer_type, grade.verdict)
                progress.advance()
        partial.replace(out_path)
    except OSError as error:
        raise SophiaError(f"cannot write {out_path}: {error.strerror}") from error
    return summary


def _merged(row: dict[str, Any], grade: Grade) -> dict[str, Any]:
    return {
        **row,
        "verdict": grade.verdict,
        "extracted": grade.extracted,
        "answer_type": grade.answer_type,
        "seconds": round(grade.seconds, 6),
        "verifier": grade.verifier,
        "verifier_version": grade.verifier_version,
    }


def _item(row: dict[str, Any]) -> GradeItem:
    return GradeItem(
        str(row["id"]), row["response"], row["answer"], row.get("type") or "", tuple(row.get("options") or ()),
        row.get("benchmark") or "",
    )  # fmt: skip


def _rows(path: Path, skip: int) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as lines:
        filled = (line for line in lines if line.strip())
        for line in islice(filled, skip, None):
            yield json.loads(line)


def _check(path: Path) -> int:
    """Number of lines; every line is checked before any work."""
    try:
        with open(path, encoding="utf-8") as lines:
            count = 0
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                _check_line(path, number, line)
                count += 1
            return count
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _check_line(path: Path, number: int, line: str) -> None:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where} is not a JSON object")
    for key in ("id", "response", "answer"):
        if key not in row:
            raise UsageError(f'{where} has no "{key}"')
    for key in ("response", "answer"):
        if not isinstance(row[key], str):
            raise UsageError(f'{where}: "{key}" is not a string')


def _resume(in_path: Path, partial: Path, summary: GradeSummary) -> int:
    """Number of lines that an earlier run graded with this verifier; whatever follows them in the file is cut off."""
    if not partial.exists():
        return 0
    done, good_bytes = 0, 0
    with open(partial, "rb") as lines:
        for row, line in zip(_rows(in_path, 0), lines, strict=False):
            graded = _graded(line)
            if not line.endswith(b"\n") or {key: graded.get(key) for key in row} != row:
                break
            if (graded.get("verifier"), graded.get("verifier_version")) != (VERIFIER, verifier_version()):
                break
            summary.add(graded["answer_type"], graded["verdict"])
            done, good_bytes = done + 1, good_bytes + len(line)
    with open(partial, "r+b") as file:
        file.truncate(good_bytes)
    return done


def _graded(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
