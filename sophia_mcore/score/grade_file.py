"""`sophia grade IN.jsonl OUT.jsonl`: grades lines, streaming, resumable and on several cores.

The input is cut into units of lines, which any number of processes may share (``OUT.jsonl.parts``); the finished file
appears at once. Results of another verifier version are kept beside it and compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sophia_mcore.config.schema import Score
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.progress import NoProgress, Progress, counting
from sophia_mcore.score.children import helpers
from sophia_mcore.score.grading import open_grader
from sophia_mcore.score.lines import check_head, checked, readable_twice
from sophia_mcore.score.rescore import VerdictChanges, free_name
from sophia_mcore.store import atomic
from sophia_mcore.store.claims import CLAIMS
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.store.shards import read_shard, read_table, shard_files, unit_shard
from sophia_mcore.store.units import Unit, UnitQueue, run_units
from sophia_mcore.verify.grade import Grader
from sophia_mcore.verify.types import Grade, GradeItem

BYTES_PER_UNIT = 1 << 20  # what a kill can cost
PARALLEL_FROM_BYTES = 16 << 20  # below this one process is faster than starting others
_ADDED = ("verdict", "extracted", "answer_type", "seconds", "verifier", "verifier_version")
_JOINED, _PLAN = "joined.tmp", "plan.json"  # among the parts
_NAMES = ("correct", "wrong", "no_answer", "timeout", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedPart:
    """The output lines of a unit as they will stand in the file, and how often each (type, verdict) is among them.

    ``source_sha256``: of the bytes that were graded.
    """

    source_sha256: str
    text: bytes
    answer_types: tuple[str, ...]
    verdicts: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass
class GradeSummary:
    """Counts of a graded file, by (type, verdict), and the changes from an earlier version. ``str`` is a table."""

    by_type: Counter[tuple[str, str]] = field(default_factory=Counter)
    changes: VerdictChanges | None = None

    @property
    def verdicts(self) -> Counter[str]:
        """Counts by verdict."""
        counts: Counter[str] = Counter()
        for (_, verdict), count in self.by_type.items():
            counts[verdict] += count
        return counts

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("type", *_NAMES, "all")]
        for kind in sorted({kind for kind, _ in self.by_type}):
            counts = [self.by_type[kind, name] for name in _NAMES]
            rows.append((kind, *map(str, counts), str(sum(counts))))
        totals = self.verdicts
        rows.append(("all", *(str(totals[name]) for name in _NAMES), str(totals.total())))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*lines, str(self.changes)] if self.changes else lines)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where a unit's lines lie in the input."""

    start: int
    end: int
    first_line: int
    after_line: int

    def line_numbers(self) -> range:
        """Of the lines in the file, from 1."""
        return range(self.first_line, self.after_line)

    def read(self, file: BinaryIO) -> bytes:
        """The lines, from the opened input."""
        file.seek(self.start)
        return file.read(self.end - self.start)


def grade_file(
    in_path: Path,
    out_path: Path,
    config: Score,
    progress: Progress | None = None,
    *,
    bytes_per_unit: int = BYTES_PER_UNIT,
) -> GradeSummary:
    """Grade every line ``{"id", "response", "answer"[, "type", "options", "benchmark", "tolerance", "question"]}``.

    ``out_path`` gets the same lines in the same order plus "verdict", "extracted", "seconds", "answer_type", "verifier"
    and "verifier_version". Finished units of an interrupted run are not graded again. An existing output of another
    verifier version is kept as ``OUT.<version>.jsonl``, and the summary shows what changed.
    Raises UsageError naming the first bad line, or for an output that is a folder, the input or no grading; SophiaError
    while another process grades into it. A pipe, or "-" for standard input, is copied into a temporary file first: the
    input is read more than once.
    """
    with readable_twice(in_path) as source:
        return _grade_file(source, out_path, config, progress or NoProgress(), bytes_per_unit)


def _grade_file(in_path: Path, out_path: Path, config: Score, progress: Progress, bytes_per_unit: int) -> GradeSummary:
    if out_path.is_dir():
        raise UsageError(f"{out_path}: a folder; the output is a file")
    if out_path.is_symlink() or (out_path.exists() and not out_path.is_file()):
        raise UsageError(
            f"{out_path}: not a regular file (a link, pipe or device); the output is a new or regular file"
        )
    if out_path.exists() and out_path.samefile(in_path):
        raise UsageError(f"{out_path}: input and output are the same file")
    if out_path.exists() and not _is_graded(out_path):
        raise UsageError(f"{out_path} exists and is not an output of `sophia grade`: name another file, or remove it")
    check_head(in_path)
    processes = config.workers if in_path.stat().st_size >= PARALLEL_FROM_BYTES else 1
    parts = _parts(out_path)
    with _only_one(parts), helpers(processes - 1) as give:  # they start while lines are counted here
        pieces = _plan(in_path, config, bytes_per_unit)
        _drop_other_parts(in_path, parts, pieces)
        one = config if processes == 1 else config.model_copy(update={"workers": 1})
        if processes > 1:
            atomic.write_json(parts / _PLAN, {unit_id: astuple(piece) for unit_id, piece in pieces.items()})
            give({"kind": "file", "config": one.model_dump_json(), "in": str(in_path), "out": str(out_path)})
        with _Joined(out_path, pieces) as joined:
            _grade_units(in_path, out_path, one, progress, pieces, joined)
            return joined.finish()


def grade_lines(in_path: Path, out_path: Path, config: Score, progress: Progress) -> None:
    """Grade units of ``out_path`` beside the process of `grade_file`, which has planned them."""
    plan = json.loads((_parts(out_path) / _PLAN).read_bytes())
    _grade_units(in_path, out_path, config, progress, {unit_id: _Piece(*numbers) for unit_id, numbers in plan.items()})


def _grade_units(
    in_path: Path,
    out_path: Path,
    config: Score,
    progress: Progress,
    pieces: dict[str, _Piece],
    joined: _Joined | None = None,
) -> None:
    """Grade the units that are not done, together with any other process that does.

    The process with ``joined`` joins the parts meanwhile, and stays until all are done.
    """
    parts = _parts(out_path)
    with open_grader(config) as grader:

        def work(unit: Unit, report: Callable[[int], None]) -> list[GradedPart]:
            if joined is not None:
                joined.add_finished()
            return [_grade_piece(grader, in_path, pieces[unit.id], report)]

        units = [Unit(unit_id, tuple(map(str, piece.line_numbers()))) for unit_id, piece in pieces.items()]
        queue = UnitQueue(parts, units, owner="grade", in_order=True)  # as they are joined
        run_units(queue, GradedPart, work, counting(progress, "grade"), wait=joined is not None)


def _parts(out_path: Path) -> Path:
    return out_path.with_name(out_path.name + ".parts")


@contextlib.contextmanager
def _only_one(parts: Path) -> Iterator[None]:
    """No other command works in ``parts``; what a killed one was writing is removed."""
    with folder_lock(parts / "lock"):
        _remove_unfinished(parts)
        yield


def _remove_unfinished(parts: Path) -> None:
    for path in parts.iterdir():
        if path.name == _JOINED or path.name.startswith(atomic.TEMPORARY_PREFIX):
            path.unlink(missing_ok=True)


def _drop_other_parts(in_path: Path, parts: Path, pieces: dict[str, _Piece]) -> None:
    """Parts of other lines or of another version, and damaged ones, are of no use."""
    with open(in_path, "rb") as file:
        for path in shard_files(parts):
            piece = pieces.get(path.stem)
            if piece is None or not _made_from(path, hashlib.sha256(piece.read(file)).hexdigest()):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise SophiaError(f"{path}: no part of this output, and it cannot be removed ({error})") from None


def _made_from(path: Path, source_sha256: str) -> bool:
    try:
        return read_table(path, GradedPart, ["source_sha256"]).column(0).to_pylist() == [source_sha256]
    except SophiaError:
        return False


def _remove(parts: Path) -> None:
    """Remove what was made here; a folder with anything else in it stays."""
    shutil.rmtree(parts / CLAIMS, ignore_errors=True)
    with contextlib.suppress(OSError):
        _remove_unfinished(parts)
        for path in [*shard_files(parts), parts / _PLAN, parts / "lock"]:
            path.unlink(missing_ok=True)
        parts.rmdir()


def _plan(path: Path, config: Score, bytes_per_unit: int) -> dict[str, _Piece]:
    """Units of consecutive lines by id, which holds a hash of their place and of the verifier with its settings."""
    with open_grader(config) as grader:
        settings = f"{grader.version} {config.timeout_seconds} {config.memory_limit_mib}"
    pieces: dict[str, _Piece] = {}
    try:
        with open(path, "rb") as file:
            start, first = 0, 1
            while head := file.read(bytes_per_unit):
                tail = file.readline()
                after = first + head.count(b"\n") + (tail != b"" or not head.endswith(b"\n"))
                piece = _Piece(start, file.tell(), first, after)
                digest = hashlib.sha256(f"{settings} {start} {piece.end}".encode()).hexdigest()
                pieces[f"{len(pieces):06d}-{digest[:16]}"] = piece
                start, first = piece.end, after
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return pieces


def _grade_piece(grader: Grader, path: Path, piece: _Piece, report: Callable[[int], None]) -> GradedPart:
    with open(path, "rb") as file:
        source = piece.read(file)
    lines = source.split(b"\n")
    sources: list[tuple[str, dict[str, Any]]] = []

    def items() -> Iterator[GradeItem]:
        for number, line in enumerate(lines, start=piece.first_line):
            if line.strip():
                row = checked(path, number, line)
                sources.append((line.decode().removeprefix("\ufeff").rstrip(), row))
                yield _item(row)

    merged: list[str] = []
    counts: Counter[tuple[str, str]] = Counter()
    for index, grade in enumerate(grader.grade_many(items())):
        text, row = sources[index]
        merged.append(_merged(text, row, grade))
        counts[grade.answer_type, grade.verdict] += 1
        if index % 200 == 199:
            report(index + 1)
    kinds, verdicts = zip(*counts, strict=True) if counts else ((), ())
    written = "".join(f"{line}\n" for line in merged).encode()
    digest = hashlib.sha256(source).hexdigest()
    return GradedPart(
        source_sha256=digest, text=written, answer_types=kinds, verdicts=verdicts, counts=tuple(counts.values())
    )


def _merged(text: str, row: dict[str, Any], grade: Grade) -> str:
    added = dict(zip(_ADDED, (grade.verdict, grade.extracted, grade.answer_type, round(grade.seconds, 6),
                              grade.verifier, grade.verifier_version), strict=True))  # fmt: skip
    if any(name in row for name in _ADDED):
        return json.dumps({**row, **added})
    return f"{text[:-1].rstrip()}, {json.dumps(added)[1:]}"


def _item(row: dict[str, Any]) -> GradeItem:
    return GradeItem(
        id=str(row["id"]),
        response=row["response"],
        answer=row["answer"],
        answer_type=row.get("type") or "",
        options=tuple(row.get("options") or ()),
        rules=row.get("benchmark") or "",
        tolerance=row.get("tolerance"),
        question=row.get("question") or "",
    )


# ---- the output


class _Joined:
    """The output file in the making: each part joins it as soon as all those before it have."""

    def __init__(self, out_path: Path, unit_ids: Iterable[str]) -> None:
        self._out_path = out_path
        self._parts = _parts(out_path)
        self._waiting = deque(unit_shard(self._parts, unit_id) for unit_id in unit_ids)
        self._summary = GradeSummary()
        self._path = self._parts / _JOINED

    def __enter__(self) -> _Joined:
        with self._errors():
            self._file = open(self._path, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise atomic.write_failed(self._out_path, error) from error

    def add_finished(self) -> None:
        """Join the parts whose turn it is."""
        while self._waiting and self._waiting[0].is_file():
            for part in read_shard(self._waiting.popleft(), GradedPart):
                with self._errors():
                    self._file.write(part.text)
                for kind, verdict, count in zip(part.answer_types, part.verdicts, part.counts, strict=True):
                    self._summary.by_type[kind, verdict] += count

    def finish(self) -> GradeSummary:
        """Compare the file with an older one, put it into its place and remove the parts."""
        self.add_finished()
        if self._waiting or not self._path.exists():
            gone = self._waiting[0] if self._path.exists() else self._parts
            raise SophiaError(f"{gone}: somebody has removed it; run again")
        with self._errors():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._summary.changes = _compare_and_keep(self._out_path, self._path)
            self._path.replace(self._out_path)
        _remove(self._parts)
        return self._summary


def _is_graded(path: Path) -> bool:
    try:
        with open(path, "rb") as lines:
            first = lines.readline()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return not first.strip() or "verdict" in _loaded(first)


def _compare_and_keep(old_path: Path, new_path: Path) -> VerdictChanges | None:
    """The changes, by id, if ``old_path`` is the output of another version, which is kept under that version's name."""
    if not old_path.is_file():
        return None
    with open(old_path, "rb") as old_lines, open(new_path, "rb") as new_lines:
        old_version = _loaded(old_lines.readline()).get("verifier_version")
        new_version = _loaded(new_lines.readline()).get("verifier_version")
        if old_version in (None, new_version) or new_version is None:
            return None
        old_lines.seek(0)
        new_lines.seek(0)
        verdicts = {str(row.get("id")): str(row.get("verdict")) for row in map(_loaded, old_lines)}
        changes = VerdictChanges(str(old_version), str(new_version))
        for row in map(_loaded, new_lines):
            if (identifier := str(row["id"])) in verdicts:
                changes.add(identifier, verdicts[identifier], row["verdict"])
    old_path.replace(free_name(old_path, changes.old_version))
    return changes


def _loaded(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        value = json.loads(line)
        return value if isinstance(value, dict) else {}
    return {}
