"""Settings of the sources of questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt, field_validator, model_validator

from sophia_mcore.config.base import Section


class Columns(Section):
    """Names of the source's columns. Each is a name, or a list of names that are tried in order."""

    # image_1: image_2 ... are read with it; []: questions of text alone
    images: tuple[str, ...] = ("images", "image", "image_path", "image_1")
    question: tuple[str, ...] = ("question", "problem", "query")
    answer: tuple[str, ...] = ("answer", "solution", "label")
    answer_type: tuple[str, ...] = ("answer_type", "type")
    options: tuple[str, ...] = ("options", "choices")
    id: tuple[str, ...] = ("id", "qid", "pid")

    @field_validator("*", mode="before")
    @classmethod
    def _one_name(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given


class Source(Section):
    """A set of questions: a hub name or local folder for `datasets`, Parquet files, or JSONL or CSV with images.

    With ``benchmark`` only path, name and limit are used: the columns of a benchmark are known (docs/benchmarks.md).
    """

    kind: Literal["datasets", "parquet", "jsonl", "csv", "benchmark"] = "benchmark"
    path: str = ""  # of a benchmark: a folder with a copy of its files, or VLMEvalKit's table; "": the files on the hub
    benchmark: str = ""  # "mathvista", "mmmu", ...
    name: str = ""  # label kept with each question; "" = last part of path
    subset: str | None = None  # `datasets` configuration name
    split: str = "train"
    images_folder: Path | None = None  # jsonl, csv: image paths are relative to it (default: the file's folder)
    preset: Literal["default", "mathv360k", "virl39k"] = "default"  # column mapping shipped with the package
    columns: Columns | None = None  # overrides the preset
    limit: PositiveInt | None = None  # first n rows
    answer_index: Literal[0, 1] | None = None  # the answer is its option's index, counted from this number

    @model_validator(mode="after")
    def _complete(self) -> Source:
        if bool(self.benchmark) != (self.kind == "benchmark"):
            raise ValueError("either kind and path are given, or benchmark")
        if not self.benchmark and not self.path:
            raise ValueError("path: required key is missing")
        return self

    @property
    def text_only(self) -> bool:
        """Whether its questions have no images, by the settings."""
        return self.columns is not None and not self.columns.images

    def same_rows(self, other: Source) -> bool:
        """Whether both read the same file, folder or data set, in any spelling and with any limit of rows."""
        if self.benchmark or other.benchmark:
            return self.benchmark == other.benchmark
        subsets = (self.subset, self.split) == (other.subset, other.split) or "datasets" not in (self.kind, other.kind)
        return subsets and Path(self.path).resolve() == Path(other.path).resolve()
