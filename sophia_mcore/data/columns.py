"""Raw rows of any source -> Row: find the columns, bring every value into one form, note what is wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from sophia_mcore.config.schema import Columns, Source
from sophia_mcore.data.cells import (
    answer_of,
    broken_text,
    identifier_of,
    image_tag_problems,
    images_of,
    is_missing,
    options_of,
    question_of,
    shown,
    text_of,
    without_surrogates,
)
from sophia_mcore.data.presets import PRESETS
from sophia_mcore.errors import UsageError

_ROLES = ("images", "question", "answer", "answer_type", "options", "id")
_REQUIRED = ("images", "question", "answer")
_VIDEOS = ("video", "videos")  # columns of rows that ask about a video


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a source, read but not checked: images are bytes or files still to be read.

    Example: Row(source="digits", number=17, id="train-17", question="What is 3 + 2?", answer="5",
    images=(Path("boards/17.png"),)). ``problems`` says in words what is wrong already.
    """

    source: str
    number: int  # position in the source, counted from 0
    id: str
    question: str = ""
    answer: str = ""
    answer_type: str = ""
    options: tuple[str, ...] = ()
    images: tuple[bytes | Path, ...] = ()
    problems: tuple[str, ...] = ()
    benchmark: str = ""
    details: str = ""


def source_name(source: Source) -> str:
    """The label of a source: given, or the last part of its path without the file's suffix."""
    if source.benchmark:
        return source.name or source.benchmark
    path = Path(source.path.rstrip("/"))
    stem = path.stem if path.suffix in (".jsonl", ".json", ".parquet") else path.name
    return source.name or stem or "questions"


def with_options(question: str, options: tuple[str, ...]) -> str:
    r"""The question as models are asked it: followed by its lettered options, unless it lists them itself.

    >>> with_options("Which is larger?", ("a", "b"))
    'Which is larger?\n(A) a\n(B) b'
    >>> with_options("Which is larger? A. red B. blue", ("red", "blue"))
    'Which is larger? A. red B. blue'
    """
    if not options or len(options) > len(ascii_uppercase):
        return question
    pairs = [
        (letter, _without_letter(text, letter)) for letter, text in zip(ascii_uppercase, options, strict=False) if text
    ]
    listed = ".*?".join(rf"(?<![^\W_]){letter}[).:,\s]+{re.escape(text)}" for letter, text in pairs)
    if re.search(listed, question, re.DOTALL):
        return question
    return "\n".join([question, *(f"({letter}) {text}" for letter, text in pairs)])


def _without_letter(option: str, letter: str) -> str:
    """Some data sets write the letter into the option: "(B) 12"."""
    return re.sub(rf"^\s*\(?{letter}[).:]\s*(?=\S)", "", option).strip()


class RowReader:
    """Turns raw rows of one source into Rows.

    ``available``: names of the source's columns. ``folder``: where image paths start, None if nowhere.
    Raises UsageError naming the nearest existing column when one that is needed is missing.
    """

    def __init__(self, source: Source, available: Iterable[str], folder: Path | None) -> None:
        preset = PRESETS[source.preset]
        self.name = source_name(source)
        self.folder = folder
        self._pattern = re.compile(preset.answer_pattern) if preset.answer_pattern else None
        names = list(available)
        wanted = source.columns or preset.columns
        self.columns = _resolve(wanted, set(names), source)
        self.text_only = not wanted.images
        self.image_columns = (
            () if self.text_only else _numbered_siblings(self.columns["images"], wanted.images, set(names))
        )
        self._answer_index = source.answer_index
        self._used = {column.partition(".")[0] for column, _ in self.columns.values()}
        self._videos = [name for name in names if self._is_video(name)]
        twice = sorted(name for name in set(self.top_level_columns()) if names.count(name) > 1)
        if twice:
            raise UsageError(
                f"source {self.name!r} has the column {twice[0]!r} {names.count(twice[0])} times: rename one"
            )

    def top_level_columns(self) -> list[str]:
        """The source's columns that have to be read."""
        columns = [*self.columns.values(), *((name, True) for name in (*self.image_columns, *self._videos))]
        return sorted({column if exact else column.split(".")[0] for column, exact in columns})

    def row(self, number: int, raw: Mapping[str, Any]) -> Row:
        """One row; whatever is wrong with it stands in ``problems``."""
        problems: list[str] = []
        tagged = text_of(self._value(raw, "question"))
        question = question_of(tagged, problems)
        answer = answer_of(self._value(raw, "answer"), self._pattern, problems)
        options = options_of(self._value(raw, "options"), problems)
        cells = [raw.get(name) for name in self.image_columns] or self._value(raw, "images")
        images = tuple(images_of(cells, self.folder, problems))
        problems += [f"videos are not supported (column {name!r})" for name, cell in raw.items()
                     if self._is_video(name) and not is_missing(cell) and cell not in (None, "", [])]  # fmt: skip
        if not images and not problems and not self.text_only:
            problems.append("no image")
        if not problems:
            answer, problems = self._against_options(answer, options)
            problems += image_tag_problems([tagged, *options], len(images))
        texts = {
            "id": identifier_of(self._value(raw, "id"), f"{self.name}-{number}", problems),
            "question": question,
            "answer": answer,
            "answer_type": text_of(self._value(raw, "answer_type")),
        }
        broken = [
            name for name, text in [*texts.items(), *(("options", text) for text in options)] if broken_text(text)
        ]
        if broken:
            problems.append(f"the {broken[0]} contains half of a surrogate pair (a damaged emoji, perhaps)")
        return Row(
            source=self.name,
            number=number,
            **{name: without_surrogates(text) for name, text in texts.items()},
            options=tuple(without_surrogates(option) for option in options),
            images=images,
            problems=tuple(without_surrogates(problem) for problem in problems),
        )

    def _is_video(self, name: str) -> bool:
        return name.lower() in _VIDEOS and name not in self._used

    def _against_options(self, answer: str, options: tuple[str, ...]) -> tuple[str, list[str]]:
        """The gold answer, and what is wrong with it in view of the row's options."""
        from sophia_mcore.data import gold  # here: the verifier is slow to import
        from sophia_mcore.verify.rules import rule_for

        if self._answer_index is not None and options:
            letter = gold.letter_of_index(answer, self._answer_index, options)
            if letter is None:
                return answer, [
                    f"the answer {shown(answer)!r} is not the index of one of {len(options)} options "
                    f"(answer_index = {self._answer_index})"
                ]
            return letter, []
        answer, problem = gold.several_answers(answer, options)
        if not options and not rule_for(self.name).alternatives:
            problem = problem or gold.listed_problem(answer)
        problem = problem or gold.no_answer(answer, options) or gold.answer_problem(answer, options)
        return answer, [problem] if problem else []

    def broken(self, number: int, problem: str) -> Row:
        """A row that could not even be read."""
        return Row(source=self.name, number=number, id=f"{self.name}-{number}", problems=(problem,))

    def _value(self, raw: Mapping[str, Any], role: str) -> Any:
        if role not in self.columns:
            return None
        column, exact = self.columns[role]
        if exact:
            return raw.get(column)
        value: Any = raw
        for part in column.split("."):
            if isinstance(value, Mapping):
                value = value.get(part)
            elif isinstance(value, (list, tuple)) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, (list, tuple)) and part in _SPEAKERS:
                value = next((turn for turn in value if _speaker(turn) in _SPEAKERS[part]), None)
            else:
                return None
        return value


_SPEAKERS = {"human": {"human", "user"}, "gpt": {"gpt", "assistant"}}  # a turn of a conversation by who says it


def _speaker(turn: Any) -> str:
    return str(turn.get("from") or turn.get("role") or "").lower() if isinstance(turn, Mapping) else ""


def _numbered_siblings(found: tuple[str, bool], wanted: tuple[str, ...], available: set[str]) -> tuple[str, ...]:
    """Columns such as image_1 ... image_7 that hold the images of a row together, in order; () for a single column.

    Those that the settings name where they name several; else all of the source's.
    """
    column, exact = found
    stem = column.rstrip("0123456789")
    if not exact or stem == column or not stem:
        return ()

    def number(name: str) -> int | None:
        rest = name.removeprefix(stem)
        return int(rest) if name.startswith(stem) and rest.isdigit() else None

    named = [name for name in wanted if number(name) is not None]
    names = [name for name in (named if len(named) > 1 else available) if number(name) is not None]
    return tuple(sorted(set(names) & available, key=lambda name: (number(name), name)))


def _resolve(columns: Columns, available: set[str], source: Source) -> dict[str, tuple[str, bool]]:
    """Role -> (column, whether the column has exactly that name, as opposed to a path into one)."""
    found = {}
    for role in _ROLES:
        candidates = getattr(columns, role)
        if role == "images" and not candidates:
            continue
        for candidate in candidates:
            if candidate in available or candidate.split(".")[0] in available:
                found[role] = candidate, candidate in available
                break
        else:
            if role in _REQUIRED:
                raise UsageError(_missing(role, candidates, available, source))
    return found


def _missing(role: str, candidates: tuple[str, ...], available: set[str], source: Source) -> str:
    scores = {
        name: max((difflib.SequenceMatcher(None, name.lower(), c.lower()).ratio() for c in candidates), default=0.0)
        for name in sorted(available)
    }
    nearest = max(scores, key=lambda name: scores[name], default="")
    hint = f"; nearest: {nearest!r}" if nearest and scores[nearest] > 0.5 else ""
    if role == "images" and any(name.lower() in _VIDEOS for name in available):
        hint = "; videos are not supported"
    return (
        f"source {source_name(source)!r} has no column for {role} (looked for {', '.join(candidates) or 'none'})"
        f"{hint}; it has {', '.join(sorted(available)) or 'no columns'}; set columns.{role} of the source"
    )
