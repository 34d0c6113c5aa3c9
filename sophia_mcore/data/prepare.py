"""Check every question before any model starts, store its images, write the checked questions."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from sophia_mcore.config.schema import Source
from sophia_mcore.data import images as image_files
from sophia_mcore.data.cells import shown_path
from sophia_mcore.data.columns import Row, source_name, with_options
from sophia_mcore.data.files_read import remember_files
from sophia_mcore.data.images import RefuseSize
from sophia_mcore.data.sources import read_source
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.records import Question
from sophia_mcore.store import atomic, shards
from sophia_mcore.store.images import ImageAdder, ImageStore
from sophia_mcore.store.layout import bad_rows_file
from sophia_mcore.store.lineage import file_digest

_WINDOW_ROWS = 256  # rows whose images are read and checked together
_LISTED = 20
_KINDS = (
    "image missing",
    "image unreadable",
    "image too large",
    "image is empty",
    "image path",
    "image is an address",
    "image too narrow",
    "videos are not supported",
    "no image",
    "no question",
    "no answer",
    "duplicate id",
    "duplicate index",
    "the question",
    "the answer",
    "the options",
    "the id",
    "line",
)

Reader = Callable[[Source], Iterator[Row]]
Progress = Callable[[int], None]  # gets the number of rows checked so far


@dataclass(frozen=True, slots=True)
class PrepareSummary:
    """What came of the sources."""

    rows: int
    questions: int
    images: int  # distinct
    bad_rows: int
    reasons: dict[str, int]  # kind of problem -> rows


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    source: str
    row: int  # counted from 0
    id: str
    problem: str

    def __str__(self) -> str:
        return f"{self.source} row {self.row} (id {self.id!r}): {self.problem}"


def prepare_questions(
    sources: Sequence[Source],
    image_store: ImageStore,
    questions_file: Path | str,
    *,
    max_bad_rows: int = 0,
    max_image_pixels: int = 100_000_000,
    refuse_size: RefuseSize | None = None,
    progress: Progress | None = None,
    read: Reader = read_source,
) -> PrepareSummary:
    """Read and check all rows of all sources, add their images to the store and write the questions.

    Run again with the same settings it returns the summary of the first time. Rows are counted from 0.
    With several sources each id is prefixed by the name of its source. ``refuse_size``: raises SophiaError for an image
    of a width and height that the policy cannot take. ``read`` gives the rows of a source.
    Raises SophiaError naming the bad rows (the first 20 here, all in ``questions.bad.jsonl``) when there are more than
    ``max_bad_rows``, when a source is empty or no row is good, or when the file was made from other settings;
    UsageError when a source, a split or a column does not exist.
    """
    target = Path(questions_file)
    settings = _fingerprint(sources, max_image_pixels)
    contents = _contents(sources)
    if target.exists():
        return _already_prepared(target, settings, contents)
    checker = _Checker(image_store, max_image_pixels, refuse_size)
    with image_store.adding() as adder:
        for rows in _windows(_all_rows(sources, read)):
            checker.check(rows, adder)
            if progress:
                progress(checker.rows)
        bad_file = bad_rows_file(target)
        _report_bad_rows(checker, bad_file, max_bad_rows)
    summary = PrepareSummary(
        rows=checker.rows,
        questions=len(checker.questions),
        images=len({digest for question in checker.questions for digest in question.images}),
        bad_rows=len(checker.bad),
        reasons=dict(checker.reasons),
    )
    remember_files(target, checker.digests())
    with suppress(FileExistsError):  # another process prepared the same
        shards.write_shard(
            target,
            checker.questions,
            Question,
            {"settings": settings, "contents": contents, "summary": asdict(summary)},
        )
    return summary


# Settings of a source that a fingerprint always has; later ones only where they are set, so that older runs go on.
_FIRST_SETTINGS = ("kind", "path", "name", "subset", "split", "images_folder", "preset", "columns", "limit")


def _fingerprint(sources: Sequence[Source], max_image_pixels: int) -> str:
    settings = [
        {name: source.model_dump(mode="json")[name] for name in _FIRST_SETTINGS}
        | source.model_dump(mode="json", exclude=set(_FIRST_SETTINGS), exclude_defaults=True)
        for source in sources
    ]
    text = json.dumps([*settings, max_image_pixels], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _contents(sources: Sequence[Source]) -> dict[str, str]:
    """sha256 of each source that is a single file here."""
    files = [Path(source.path) for source in sources]
    return {str(file): file_digest(file) for file in files if file.is_file()}


def _already_prepared(target: Path, settings: str, contents: dict[str, str]) -> PrepareSummary:
    metadata = shards.read_metadata(target)["metadata"]
    before = metadata.get("contents", {})
    changed = [file for file, digest in contents.items() if before.get(file, digest) != digest]
    if changed:
        raise SophiaError(f"{changed[0]} has changed since {target} was made from it: use another run folder")
    if metadata.get("settings") != settings:
        raise SophiaError(
            f"{target} was made from other sources or settings: use another run folder, or remove the file and "
            "what was made from it"
        )
    return PrepareSummary(**metadata["summary"])


def _all_rows(sources: Sequence[Source], read: Reader) -> Iterator[Row]:
    names = [source_name(source) for source in sources]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"two question sources are named {twice[0]!r}: give them different names (name = ...)")
    for source, name in zip(sources, names, strict=True):
        for row in read(source):
            own = row.id == f"{name}-{row.number}"  # made from the name already
            yield row if len(sources) == 1 or own else replace(row, id=f"{name}-{row.id}")


def _windows(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while window := list(islice(rows, _WINDOW_ROWS)):
        yield window


class _Checker:
    """Collects good questions and bad rows. An image file that many rows share is read and checked once."""

    def __init__(self, store: ImageStore, max_pixels: int, refuse_size: RefuseSize | None) -> None:
        self.questions: list[Question] = []
        self.bad: list[BadRow] = []
        self.reasons: Counter[str] = Counter()
        self.rows = 0
        self._store = store
        self._max_pixels = max_pixels
        self._refuse_size = refuse_size
        self._ids: dict[str, str] = {}  # id -> where it was first seen
        self._files: dict[Path, tuple[str, str]] = {}  # path -> digest or "", problem or ""
        self._checked: dict[str, str] = {}  # digest -> problem or ""

    def check(self, rows: list[Row], adder: ImageAdder) -> None:
        """Check a window of rows, reading and verifying their images side by side."""
        paths = list(dict.fromkeys(i for row in rows for i in row.images if isinstance(i, Path)))
        new = [path for path in paths if path not in self._files]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            contents = dict(zip(new, pool.map(_read_file, new), strict=True))
            loaded = [content for content in contents.values() if isinstance(content, bytes)]
            inline = [image for row in rows for image in row.images if isinstance(image, bytes)]
            by_digest = {hashlib.sha256(data).hexdigest(): data for data in [*loaded, *inline]}
            fresh = {digest: data for digest, data in by_digest.items() if digest not in self._checked}
            problems = pool.map(lambda data: _image_problem(data, self._max_pixels, self._refuse_size), fresh.values())
            self._checked.update(zip(fresh, problems, strict=True))
        for digest, data in fresh.items():
            if not self._checked[digest]:
                adder.add(data)
        for path, content in contents.items():
            digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else ""
            problem = self._checked[digest] if digest else str(content)
            self._files[path] = digest, f"{problem} [{shown_path(path)}]" if problem else ""
        for row in rows:
            self._take(row)

    def digests(self) -> dict[Path, str]:
        """sha256 of each image file that was read; "" for one that is missing or cannot be read."""
        return {path: digest for path, (digest, _) in self._files.items()}

    def _take(self, row: Row) -> None:
        self.rows += 1
        problems = list(row.problems)
        digests = []
        for image in row.images:
            digest, problem = self._files[image] if isinstance(image, Path) else self._inline(image)
            digests.append(digest)
            problems += [problem] if problem else []
        where = f"{row.source} row {row.number}"
        if row.id in self._ids:
            problems.append(f"duplicate id, first in {self._ids[row.id]}")
        self._ids.setdefault(row.id, where)
        if problems:
            self.bad.append(BadRow(row.source, row.number, row.id, "; ".join(problems)))
            self.reasons.update({_kind(problem) for problem in problems})
            return
        self.questions.append(
            Question(
                id=row.id,
                question=with_options(row.question, row.options),
                answer=row.answer,
                answer_type=row.answer_type,
                images=tuple(digests),
                options=row.options,
                source=row.source,
                benchmark=row.benchmark,
                details=row.details,
            )
        )

    def _inline(self, data: bytes) -> tuple[str, str]:
        digest = hashlib.sha256(data).hexdigest()
        return digest, self._checked[digest]


def _read_file(path: Path) -> bytes | str:
    """Content of an image file, or what is wrong with it."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return "image missing"
    except IsADirectoryError:
        return "image unreadable: it is a folder"
    except OSError as error:
        return f"image unreadable: {error.strerror}"
    except ValueError as error:  # a NUL in the path
        return f"image unreadable: {error}"


def _image_problem(data: bytes, max_pixels: int, refuse_size: RefuseSize | None) -> str:
    try:
        size = image_files.check(data, max_pixels)
        if refuse_size is not None:
            refuse_size(*size)
    except SophiaError as error:
        return str(error)
    return ""


def _kind(problem: str) -> str:
    """The words of a problem that rows share: those before the details."""
    return next((kind for kind in _KINDS if problem.startswith(kind)), "other")


def _report_bad_rows(checker: _Checker, bad_file: Path, max_bad_rows: int) -> None:
    """Write all bad rows beside the questions. Raise if there are too many or no good rows."""
    bad = checker.bad
    if bad:
        atomic.write_text(bad_file, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad))
    else:
        bad_file.unlink(missing_ok=True)
    if len(bad) <= max_bad_rows and checker.questions:
        return
    counts = ", ".join(f"{count} {kind}" for kind, count in checker.reasons.most_common())
    limit = f"allowed {max_bad_rows}" if checker.questions else "no row is good"
    more = [f"  and {len(bad) - _LISTED} more"] if len(bad) > _LISTED else []
    lines = [f"  {row}" for row in bad[:_LISTED]] + more
    head = f"{len(bad)} of {checker.rows} rows are bad ({limit}): {counts}; all are listed in {bad_file}"
    raise SophiaError("\n".join([head, *lines]))
