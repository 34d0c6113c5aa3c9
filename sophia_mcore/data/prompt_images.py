"""How many images the prompts of an engine have: vLLM keeps memory for the most, each with all its tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sophia_mcore.config.engines import Engine, VllmEngine
from sophia_mcore.config.schema import Config, Source
from sophia_mcore.data.columns import Row, source_name
from sophia_mcore.errors import UsageError
from sophia_mcore.store.layout import RunFolder

Reader = Callable[[Source], Iterator[Row]]


class Prompts(NamedTuple):
    """Questions whose images an engine sees. ``part``: key of their sources; ``key``: of the engine.

    ``file`` has them once they are checked.
    """

    part: str
    sources: tuple[Source, ...]
    file: Path
    key: str
    engine: Engine


def all_prompts(config: Config) -> list[Prompts]:
    """The questions of a run, each set with an engine that sees its images."""
    run, rl, evaluate = RunFolder(config.run.folder), config.rl, config.evaluate
    data = ("data.questions", config.data.questions, run.questions_file)
    rows: list[Prompts] = []
    if not evaluate.only and config.train.data is None:
        rows.append(Prompts(*data, "captions.engine", config.captions.engine))
    if rl is not None:
        asked = ("rl.questions", rl.questions, run.rl.own_questions_file) if rl.questions else data
        held_out = ("rl.validation", rl.validation, run.rl.validation_questions_file)
        rows += [Prompts(*part, "rl.engine", rl.engine) for part in (asked, held_out)]
    exam = ("evaluate.questions", evaluate.questions, run.evaluation_questions_file)
    rows.append(Prompts(*exam, "evaluate.engine", evaluate.engine))
    return [one for one in rows if one.sources]


def most_images(*files: Path) -> int:
    """Images of the question with the most; 0 if no file is there. ``files``: checked questions."""
    return max((_most(file) for file in files if file.is_file()), default=0)


def _most(file: Path) -> int:
    import pyarrow.compute as pc  # here: slow to import

    from sophia_mcore.records import Question
    from sophia_mcore.store.shards import read_table

    lengths = pc.list_value_length(read_table(file, Question, ["images"])["images"])
    return int(pc.max(lengths).as_py() or 0)


def largest_row(sources: Iterable[Source], read: Reader) -> tuple[str, Row] | None:
    """(name of the source, row) with the most images of the good rows; None without any. Images are not read."""
    rows = ((source_name(source), row) for source in sources for row in read(source) if not row.problems)
    return max(rows, key=lambda found: len(found[1].images), default=None)


def check_number(prompts: Prompts, read: Reader) -> str:
    """Raise UsageError if a question has more images than the user has set for its engine; else how many it has."""
    assert isinstance(prompts.engine, VllmEngine) and prompts.engine.max_images_per_prompt is not None
    limit = prompts.engine.max_images_per_prompt
    if prompts.file.is_file():
        most, where = most_images(prompts.file), f"a question in {prompts.file}"
    else:
        found = largest_row(prompts.sources, read)
        most = len(found[1].images) if found else 0
        where = f"{found[0]} row {found[1].number} ({found[1].id})" if found else ""
    if most > limit:
        raise UsageError(
            f"{prompts.part}: {where} has {most} images, more than {prompts.key}.max_images_per_prompt = {limit}: "
            f"set it to {most}, or leave it out"
        )
    return f"{limit}; {prompts.part} has {most} at most"
