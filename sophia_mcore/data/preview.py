"""The first rows of a question source and what becomes of them, for `sophia check` and `sophia doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sophia_mcore.config.schema import Config, Source
from sophia_mcore.data.cells import shown, shown_path
from sophia_mcore.data.columns import Row, source_name, with_options
from sophia_mcore.data.sources import on_the_hub, read_source
from sophia_mcore.errors import SophiaError

if TYPE_CHECKING:
    from sophia_mcore.data.images import RefuseSize

ROWS = 10
Reader = Callable[[Source], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class Preview:
    """A source's first rows as lines to print. ``refused``: why nothing can be read of it, "" if something can."""

    title: str
    lines: tuple[str, ...]
    bad: int = 0
    refused: str = ""

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {line}" for line in self.lines)])


def previews(config: Config, read: Reader = read_source, refuse_size: RefuseSize | None = None) -> list[Preview]:
    """One of each source of questions, those for evaluation after the others.

    ``read`` gives the rows of a source; ``refuse_size`` raises SophiaError for an image that the policy cannot take.
    """
    limit = config.data.max_image_pixels
    return [
        preview(part, source, several=len(sources) > 1, max_pixels=limit, read=read, refuse_size=refuse_size)
        for part, sources in (
            ("data.questions", config.data.questions),
            ("rl.questions", config.rl.questions if config.rl else ()),
            ("rl.validation", config.rl.validation if config.rl else ()),
            ("evaluate.questions", config.evaluate.questions),
        )
        for source in sources
    ]


def preview(
    part: str, source: Source, *, several: bool = False, max_pixels: int = 100_000_000, read: Reader = read_source,
    refuse_size: RefuseSize | None = None,
) -> Preview:  # fmt: skip
    """The first ten rows of ``source`` as models will be asked them, or why they are bad.

    Of an image only the head is read: a file that is damaged further on is found by the questions phase.
    ``several``: the ids get the source's name in front. Raises nothing.
    """
    name = source_name(source)
    title = f"{part}: {name} ({source.path})"
    if on_the_hub(source):
        return Preview(f"{title}: a name on the hub, not looked up", ())
    try:
        rows = list(islice(read(source), ROWS))
    except SophiaError as error:
        reason = str(error).splitlines()[0]
        return Preview(f"{title}: {reason}", (), refused=reason)
    if several:
        rows = [row if row.id == f"{name}-{row.number}" else replace(row, id=f"{name}-{row.id}") for row in rows]
    described = [_described(row, max_pixels, refuse_size) for row in rows]
    bad = sum(not good for good, _ in described)
    count = f"the first {len(rows)} rows" if len(rows) == ROWS else f"all {len(rows)} rows"
    return Preview(f"{title}: {count}, {bad} of them bad", tuple(line for _, line in described), bad)


def looked_at(row: Row, max_pixels: int, refuse_size: RefuseSize | None) -> tuple[list[str], list[str]]:
    """(sizes of the row's images, what is wrong with the row)."""
    seen = [_size(image, max_pixels, refuse_size) for image in row.images]
    return [size for size, _ in seen], [*row.problems, *(problem for _, problem in seen if problem)]


def _described(row: Row, max_pixels: int, refuse_size: RefuseSize | None) -> tuple[bool, str]:
    """Whether the row is good, and its line."""
    sizes, problems = looked_at(row, max_pixels, refuse_size)
    if problems:
        return False, f"row {row.number} ({shown(row.id)}) is bad: {_one_line('; '.join(problems), 300)}"
    kind = f" ({row.answer_type})" if row.answer_type else ""
    question = _one_line(with_options(row.question, row.options), 160)
    return True, f"{shown(row.id)}: [{', '.join(sizes)}] {question} -> {_one_line(row.answer, 80)}{kind}"


def _size(image: bytes | Path, max_pixels: int, refuse_size: RefuseSize | None) -> tuple[str, str]:
    from sophia_mcore.data.images import size_of  # here: Pillow is slow to import

    try:
        width, height = size_of(image, max_pixels)
        if refuse_size is not None:
            refuse_size(width, height)
    except SophiaError as error:
        return "", f"{error} [{shown_path(image)}]" if isinstance(image, Path) else str(error)
    return f"{width} x {height}", ""


def _one_line(text: str, longest: int) -> str:
    """The text as one printable line of at most so many characters and an ellipsis."""
    flat = "".join(character if character.isprintable() else " " for character in " | ".join(text.splitlines()))
    return flat if len(flat) <= longest else flat[:longest] + "..."
