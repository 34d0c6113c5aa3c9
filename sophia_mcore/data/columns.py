"""Raw rows of any source -> Row: find the columns, bring every value into one form, note what is wrong."""

from __future__ import annotations

import difflib
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from sophia_mcore.config.schema import Columns, Source
from sophia_mcore.data.presets import PRESETS
from sophia_mcore.errors import UsageError

# Text that would be read as structure once it stands in a prompt.
RESERVED = ("<IMG_CONTEXT>", "<img>", "</img>", "<|im_start|>", "<|im_end|>")
_ROLES = ("images", "question", "answer", "answer_type", "options", "id")
_REQUIRED = ("images", "question", "answer")


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


def source_name(source: Source) -> str:
    """The label of a source: given, or the last part of its path without the file's suffix."""
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
    pairs = [(letter, _without_letter(text, letter)) for letter, text in zip(ascii_uppercase, options, strict=False)]
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
        self.columns = _resolve(source.columns or preset.columns, set(available), source)

    def top_level_columns(self) -> list[str]:
        """The source's columns that have to be read."""
        return sorted({column if exact else column.split(".")[0] for column, exact in self.columns.values()})

    def row(self, number: int, raw: Mapping[str, Any]) -> Row:
        """One row; whatever is wrong with it stands in ``problems``."""
        problems: list[str] = []
        question = _question(self._value(raw, "question"), problems)
        answer = _answer(self._value(raw, "answer"), self._pattern, problems)
        images = tuple(_images(self._value(raw, "images"), self.folder, problems))
        if not images and not problems:
            problems.append("no image")
        return Row(
            source=self.name,
            number=number,
            id=_identifier(self._value(raw, "id"), f"{self.name}-{number}", problems),
            question=question,
            answer=answer,
            answer_type=_text(self._value(raw, "answer_type")),
            options=_options(self._value(raw, "options"), problems),
            images=images,
            problems=tuple(problems),
        )

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
            else:
                return None
        return value


def _resolve(columns: Columns, available: set[str], source: Source) -> dict[str, tuple[str, bool]]:
    """Role -> (column, whether the column has exactly that name, as opposed to a path into one)."""
    found = {}
    for role in _ROLES:
        candidates = getattr(columns, role)
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
    return (
        f"source {source_name(source)!r} has no column for {role} (looked for {', '.join(candidates) or 'none'})"
        f"{hint}; it has {', '.join(sorted(available)) or 'no columns'}; set columns.{role} of the source"
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _question(value: Any, problems: list[str]) -> str:
    """The question without ``<image>`` tags: images come first, in their order."""
    text = _image_tags_removed(_text(value))
    if not text:
        problems.append("no question")
    reserved = [mark for mark in RESERVED if mark in text]
    if reserved:
        problems.append(f"the question contains {reserved[0]}, which is reserved for prompts")
    return text


def _image_tags_removed(text: str) -> str:
    """Tags before or after the text go; tags inside it become "(image 1)", so that the sentence keeps its sense."""
    for pattern in (r"^(?:\s*<image>)+", r"(?:<image>\s*)+$"):
        rest = re.sub(pattern, "", text).strip()
        if "<image>" not in rest:
            return rest
    numbers = itertools.count(1)
    return re.sub("<image>", lambda _: f"(image {next(numbers)})", text).strip()


def _answer(value: Any, pattern: re.Pattern[str] | None, problems: list[str]) -> str:
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, (list, tuple, Mapping)):
        problems.append(f"the answer is a {type(value).__name__}, not one value")
        return ""
    text = _text(value)
    match = pattern.search(text) if pattern else None
    text = _unboxed(match.group(1) if match else text).strip()
    if not text:
        problems.append("no answer")
    return text


def _unboxed(text: str) -> str:
    """The inside of ``\\boxed{...}`` when that is all there is."""
    inner = re.fullmatch(r"\s*\$?\s*\\boxed\{(.*)\}\s*\$?\s*", text, re.DOTALL)
    if inner is None:
        return text
    depth = 0
    for character in inner.group(1):
        depth += (character == "{") - (character == "}")
        if depth < 0:  # the first brace closes before the end: two boxes
            return text
    return inner.group(1)


def _identifier(value: Any, default: str, problems: list[str]) -> str:
    text = _text(value)
    if any(ord(character) < 32 for character in text):
        problems.append("the id contains a control character")
    return text or default


def _options(value: Any, problems: list[str]) -> tuple[str, ...]:
    """Texts of the choices, from a list, an object {"A": ...} in its order, or JSON of either."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except ValueError:
            problems.append("the options are not valid JSON")
            return ()
    if isinstance(value, Mapping):
        value = [item for item in value.values() if item is not None]  # Arrow fills absent keys with None
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, str) or not isinstance(value, Iterable):
        problems.append("the options are not a list")
        return ()
    return tuple(_text(item) for item in value)


def _images(value: Any, folder: Path | None, problems: list[str]) -> Iterable[bytes | Path]:
    """Bytes, {"bytes", "path"} as `datasets` stores them, paths, Pillow images, or lists of these."""
    if value is None:
        return
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _images(item, folder, problems)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        yield bytes(value)
    elif isinstance(value, Mapping) and value.get("bytes") is not None:
        yield bytes(value["bytes"])
    elif isinstance(value, Mapping) and value.get("path"):
        yield from _path(str(value["path"]), folder, problems)
    elif isinstance(value, (str, Path)) and str(value).strip():
        yield from _path(str(value).strip(), folder, problems)
    elif hasattr(value, "save") and hasattr(value, "mode"):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        yield buffer.getvalue()
    elif isinstance(value, Mapping) or not isinstance(value, (str, Path)):
        problems.append(f"image unreadable: a {type(value).__name__} is neither bytes nor a path")


def _path(text: str, folder: Path | None, problems: list[str]) -> Iterable[Path]:
    """A path below ``folder``. Data may not name files elsewhere; links that the user put there may point anywhere."""
    if re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        problems.append(f"image is an address, not a file: {text[:100]}; download the images first")
    elif folder is None:
        problems.append(f"image path {text[:100]}: set images_folder of the source")
    else:
        base = os.path.abspath(folder)
        path = os.path.normpath(os.path.join(base, text))
        if path != base and os.path.commonpath([base, path]) == base:
            yield Path(path)
        else:
            problems.append(f"image path {text[:100]} leads out of {folder}")
