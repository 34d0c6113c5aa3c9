"""The rows of benchmarks.toml as typed values, and how a benchmark is found by any of its usual names."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sophia_mcore.errors import UsageError

PROTOCOLS = ("paper", "vlmevalkit")
_SAME = "same as paper"


@dataclass(frozen=True)
class Authors:
    """The layout of the authors' own repository: JSON, with images as files (keys of ``[NAME.authors]``)."""

    files: tuple[str, ...]  # the first pattern that finds files is the set
    folders: tuple[str, ...] = (".",)  # where image paths begin, from the folder of the file; the first that has them
    columns: Mapping[str, Any] = field(default_factory=dict)  # where they differ from the hub's
    key: str = ""  # the file is one object that holds the rows by name: the column that the name goes to
    beside: Mapping[str, str] = field(default_factory=dict)  # column -> a file that holds its values by that name
    filled: Mapping[str, Any] = field(default_factory=dict)  # a column that the file lacks, from a row of the same kind
    image_tag: str = ""  # images that only the text names
    tagged: tuple[str, ...] = ()  # the columns whose text names them, in the order of the prompt
    image_files: tuple[str, ...] = ("{}",)  # the file that a tag means: the first that is there


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; every field is a key of benchmarks.toml (docs/benchmarks.md explains them).

    ``hub`` and ``tsv`` map the values of a question to columns of that layout; ``values`` are made from other values.
    """

    name: str
    title: str
    names: tuple[str, ...]
    repository: str
    files: tuple[str, ...]
    questions: int
    rules: str
    groups: tuple[str, ...]
    scorer: str
    table: str
    hub: Mapping[str, Any]
    prompts: Mapping[str, str]
    row: Mapping[str, Any]
    tsv: Mapping[str, Any] = field(default_factory=dict)
    authors: Authors | None = None
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lookup: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    only: Mapping[str, str] = field(default_factory=dict)
    vlmevalkit: str = ""
    hub_is_authors: bool = False  # the hub has the authors' files, and no Parquet
    worst_of: str = ""  # the value that the variants of one question share
    variants: int = 0  # of each question, all of which must be right in the worst case
    judged: bool = False  # the paper asks an LLM for the verdict; elsewhere for the final answer only
    lettered: bool = False  # options stand in the columns A, B, C, ... of the table
    query_of_question: bool = False  # the table's question is the hub's question with its lettered options
    asked_in_image: bool = False  # the question stands in the image only
    options_in: str = ""  # the value whose text lists the options where no column has them
    unescaped_answers: bool = False  # the table's answers look like a Python list whose backslashes are not doubled
    multi_step: bool = False  # an answer may have parts (1), (2), ...
    text_only: bool = False  # questions without an image belong to it
    images_last: bool = False  # images follow the text in the prompt

    def columns(self, layout: str) -> Mapping[str, Any]:
        """The column of each value in a layout: "hub", "tsv" or "authors"."""
        if layout == "tsv":
            return self.tsv
        return {**self.hub, **self.authors.columns} if layout == "authors" and self.authors else self.hub

    def prompt(self, protocol: str) -> str:
        """The Jinja template of a protocol's prompt."""
        text = self.prompts[protocol]
        return self.prompts["paper"] if text == _SAME else text


@cache
def benchmarks() -> dict[str, Benchmark]:
    """All benchmarks by name, in the order of the paper's tables."""
    raw: dict[str, Any] = tomllib.loads((Path(__file__).parent / "benchmarks.toml").read_text(encoding="utf-8"))
    return {name: Benchmark(name=name, **{k: _typed(k, v) for k, v in row.items()}) for name, row in raw.items()}


def _typed(key: str, value: Any) -> Any:
    if key == "authors":
        return Authors(**{name: _typed("", cell) for name, cell in value.items()})
    return tuple(value) if isinstance(value, list) else value


def benchmark_named(name: str) -> Benchmark:
    """The benchmark of that name, or of one of its other names (case and punctuation do not count).

    Raises UsageError naming the nearest one.

    >>> benchmark_named("MathVista_MINI").name, benchmark_named("MMMU-Pro").name
    ('mathvista', 'mmmupro')
    """
    known = _by_any_name()
    found = known.get(_key(name))
    if found is not None:
        return benchmarks()[found]
    nearest = difflib.get_close_matches(_key(name), known, n=1)
    hint = f"did you mean {known[nearest[0]]!r}?" if nearest else f"known: {', '.join(benchmarks())}"
    raise UsageError(f"unknown benchmark {name!r} ({hint})")


@cache
def _by_any_name() -> dict[str, str]:
    return {
        _key(name): benchmark.name
        for benchmark in benchmarks().values()
        for name in (benchmark.name, benchmark.vlmevalkit, benchmark.repository.split("/")[-1], *benchmark.names)
        if name
    }


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
