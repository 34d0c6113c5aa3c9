"""Raw rows of a benchmark -> questions: the values that prompts, scoring, metrics and exported tables are made of."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from sophia_mcore.benchmarks.eaten import restored
from sophia_mcore.benchmarks.layouts import RawRow, read_raw
from sophia_mcore.benchmarks.marks import highest_mark, settled
from sophia_mcore.benchmarks.prompts import render
from sophia_mcore.benchmarks.table import PROTOCOLS, Benchmark, benchmark_named
from sophia_mcore.config.schema import Source
from sophia_mcore.data.cells import (
    answer_of,
    broken_text,
    images_of,
    is_missing,
    literal,
    options_of,
    reserved_in,
    without_surrogates,
)
from sophia_mcore.data.columns import Row
from sophia_mcore.data.sources import read_source
from sophia_mcore.errors import SophiaError

_LISTS = ("task", "skills")  # values that may be several: a question counts in each
_CHOICES = re.compile(r"\s*\nChoices:\n.*", re.DOTALL)
_HINT = re.compile(r"^Hint:.*?\nQuestion:\s*", re.DOTALL)
_TYPES = {"multi_choice": "choice", "multiple-choice": "choice", "multi-choice": "choice", "multiple choice": "choice"}


def read_any(source: Source) -> Iterator[Row]:
    """Rows of a benchmark, or of an ordinary source of questions."""
    return read_benchmark(source) if source.benchmark else read_source(source)


def read_benchmark(source: Source) -> Iterator[Row]:
    """Questions of ``source.benchmark``, at most ``source.limit``; what is wrong with a row stands in its problems.

    Raises UsageError when the files are not there, SophiaError for a damaged file or when no row is of the benchmark.
    """
    benchmark = benchmark_named(source.benchmark)
    label = source.name or benchmark.name
    wanted = (row for row in read_raw(benchmark, source.path) if _belongs(benchmark, row))
    number = -1
    rows: dict[str, int] = {}  # index in a table -> the row where it stands first
    for number, raw in enumerate(islice(wanted, source.limit)):
        row, index = row_of(benchmark, label, number, raw), raw.cells.get("index")
        if raw.layout == "tsv" and index and rows.setdefault(index, number) != number:
            row = replace(row, problems=(*row.problems, f"duplicate index {index}, first in row {rows[index]}"))
        yield row
    if number < 0:
        of = ", ".join(f"{key} = {value!r}" for key, value in benchmark.only.items())
        where = source.path or benchmark.repository
        raise SophiaError(f"benchmark {benchmark.name}: {where} holds no rows {of}".strip())


def _belongs(benchmark: Benchmark, raw: RawRow) -> bool:
    if not benchmark.only and "type" not in benchmark.values:
        return True
    values = values_of(benchmark, raw)
    return values.get("type") != "TP" and all(values.get(key) == value for key, value in benchmark.only.items())


def values_of(benchmark: Benchmark, raw: RawRow) -> dict[str, Any]:
    """The values of a row by name: text, or a list where the benchmark has several; missing ones are "".

    ``options`` are (letter, text) pairs; without images.
    """
    named = {key: column for key, column in benchmark.columns(raw.layout).items() if key != "images"}
    values: dict[str, Any] = {key: restored(_text(_cell(raw.cells, column))) for key, column in named.items()}
    values["place"] = raw.cells["place"]
    for key in [*(key for key in _LISTS if key in named), *(["options"] if "options" in named else [])]:
        values[key] = _cell(raw.cells, named[key])
    cell = _cell(raw.cells, named["answer"])
    if benchmark.unescaped_answers and raw.layout == "tsv" and isinstance(cell, str) and cell[:2] == "['":
        cell = [cell[2:-2]]  # its backslashes are those of LaTeX, not of Python
    values["golds"] = _golds(cell)
    if benchmark.unescaped_answers:
        values["answer"] = "['" + "', '".join(values["golds"]) + "']"
    _derive(benchmark, values)
    for key, table in benchmark.lookup.items():
        values[key] = values.get(key) or next((k for k, names in table.items() if values["category"] in names), "")
    if "skills" in named:
        values["skills"] = _several(values["skills"])
    return values


def _derive(benchmark: Benchmark, values: dict[str, Any]) -> None:
    """Values that the layout has no column for, by the benchmark's own rules."""
    for key, rule in benchmark.values.items():
        if values.get(key):
            continue
        base = str(values.get(rule.get("from", ""), ""))
        if "pattern" in rule:
            found = re.search(rule["pattern"], base)
            values[key] = found[found.lastindex or 0] if found else rule.get("default", "")
        elif "join" in rule:
            values[key] = f"{base}_{values.get(rule['join'], '')}"
        elif "variants" in rule:
            variant = str(values.get(rule["variants"]) or 1)
            values[key] = str(1000 * (int(variant) - 1) + int(base)) if base.isdigit() and variant.isdigit() else base
        else:
            values[key] = rule["value"]


def row_of(benchmark: Benchmark, label: str, number: int, raw: RawRow, *, shown: bool = True) -> Row:
    """The question of a raw row; what is wrong with it stands in its problems. ``shown`` False: without its images."""
    problems: list[str] = []
    values = values_of(benchmark, raw)
    values["index"] = values.get("index") or str(number + 1)
    options = _options(benchmark, raw.cells, values, problems)
    options = options if any(options) else ()  # blanks alone are no options
    values["options_cell"] = values.get("options", "")
    images = _images(benchmark, raw, problems) if shown and not values.get("no_image") else ()
    placed = bool(highest_mark([str(values.get("question", ""))]))  # MathVision's 528 is "<image1>": the image asks
    highest = highest_mark([str(values.get("question", "")), *options])
    options = _marked(values, options, highest, len(images)) if shown else options  # as given for answers that exist
    values["options"] = [(letter, text) for letter, text in zip(ascii_uppercase, options, strict=False) if text]
    _texts(benchmark, values, options, highest, len(images))
    options = options or options_in(str(values.get(benchmark.options_in, "")))
    answer = _answer(values, options, problems)
    if shown and not images and not problems and not benchmark.text_only:
        problems.append("no image")
    unasked = str(values["question"]).strip().lower() in ("", "nan")  # pandas writes an empty cell as nan
    in_image = benchmark.asked_in_image or (placed and bool(images))
    if unasked and not in_image and "value" not in benchmark.values.get("question", {}):
        problems.append("no question")
    if not options:
        problems += _options_missing(benchmark, raw.layout, values, answer)
    reserved = reserved_in(values["question"]) or reserved_in(values["query"])
    problems += [f"the question {reserved}"] if reserved else []
    prompts = {
        name: render(benchmark.prompt(name), values | {"protocol": name}, len(images), benchmark.images_last)
        for name in PROTOCOLS
    }
    details = {"index": values["index"], "prompts": prompts, "golds": values["golds"], "values": _kept(values)}
    text = json.dumps(details, ensure_ascii=False)
    if broken_text(text + values["question"] + answer):
        problems.append("the row contains half of a surrogate pair (a damaged emoji, perhaps)")
    return Row(
        source=label,
        number=number,
        id=without_surrogates(str(values.get("id") or f"{label}-{number}")),
        question=without_surrogates(values["question"] or values.get("judge_question") or "(in the image)"),
        answer=without_surrogates(answer),
        answer_type=_type(values),
        options=tuple(without_surrogates(option) for option in options),
        images=images,
        problems=tuple(without_surrogates(problem) for problem in problems),
        benchmark=benchmark.name,
        details=without_surrogates(text),
    )


def _marked(values: dict[str, Any], options: tuple[str, ...], highest: int, images: int) -> tuple[str, ...]:
    """The options without marks "<imagek>"; the golds, and a table's prompt, where a mark says something, likewise."""
    if highest > 1 and values.get("query"):  # a sole mark stays there, as VLMEvalKit has it
        values["query"] = settled(values["query"], highest, images)
    if highest:
        values["answer"] = settled(str(values["answer"]), highest, images)
        values["golds"] = [settled(gold, highest, images) for gold in values["golds"]]
    return tuple(settled(option, highest, images) for option in options)


def _texts(benchmark: Benchmark, values: dict[str, Any], options: Sequence[str], highest: int, images: int) -> None:
    """Question (as a reader sees it) and query (as the benchmark's table has it), each from the other."""
    question, query = values.get("question", ""), values.get("query", "")
    if benchmark.query_of_question and query:
        question = _HINT.sub("", _CHOICES.sub("", query if query == question else question))
    question = settled(question, highest, images)
    if benchmark.query_of_question and not query:
        lettered = "\n".join(f"({letter}) {text}" for letter, text in values["options"])
        query = f"{question}\nChoices:\n{lettered}" if options else question
    values["question"], values["query"] = question.strip(), query or question
    values["option_list"] = repr(list(options)) if options or values["options_cell"] not in ("", None) else ""


def _options(
    benchmark: Benchmark, cells: Mapping[str, Any], values: Mapping[str, Any], problems: list[str]
) -> tuple[str, ...]:
    """Texts of the options: a list in one column, or one column per letter."""
    if "options" in values:
        cell = values["options"]
        listed = literal(cell) if isinstance(cell, str) and cell[:2] == "[[" else cell
        if isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], list):
            cell = listed[0]  # one row of MMMU-Pro has its list within a list
        parsed = literal(cell) if isinstance(cell, str) and cell.strip()[:1] in ("[", "{") else None
        cell = restored(cell if parsed is None else parsed)  # what parsing eats, too
        return options_of(None if cell in ("", []) else cell, problems)
    if benchmark.lettered:
        return options_of([restored(cells.get(letter) or "") for letter in ascii_uppercase], problems)
    return ()


def _options_missing(benchmark: Benchmark, layout: str, values: Mapping[str, Any], answer: str) -> list[str]:
    """Why a row without options should have some; a table does not say which questions are multiple choice.

    Without lettered columns an empty list may be that of an open question, whose answer may be a letter.
    """
    if not benchmark.lettered and "options" not in benchmark.columns(layout):
        return []
    if _type(values) == "choice":
        return ["the options are missing, though the question is multiple choice"]
    cell = values["options_cell"]
    listed = literal(cell) if isinstance(cell, str) else cell
    emptied = bool(listed) if isinstance(listed, (list, tuple, Mapping)) else layout == "authors" and cell is None
    if (benchmark.lettered or emptied) and not values.get("question_type") and re.fullmatch("[A-Z]", answer):
        return [f"the options are missing, though the answer is the letter {answer}"]
    return []


_OPTION_LINES = re.compile(r"^\(?([A-J])\)?\s*[:.)、]\s*(\S.*?)\s*$", re.MULTILINE)


def options_in(text: str) -> tuple[str, ...]:
    r"""The options that a question lists itself, one a line behind "Choices:", from A on; () if it lists none.

    >>> options_in("How long?\nChoices:\nA:3\nB:6 cm")
    ('3', '6 cm')
    """
    found = _OPTION_LINES.findall(text.rpartition("Choices:")[2]) if "Choices:" in text else []
    in_order = len(found) > 1 and [letter for letter, _ in found] == list(ascii_uppercase[: len(found)])
    return tuple(option for _, option in found) if in_order else ()


def _images(benchmark: Benchmark, raw: RawRow, problems: list[str]) -> tuple[bytes | Path, ...]:
    found: list[bytes | Path] = []
    for column in benchmark.columns(raw.layout)["images"]:
        found += _found(_cell(raw.cells, column), raw.folders, problems)
    if not found and not problems and raw.layout == "tsv":
        found = _found(raw.cells.get("image_path"), raw.folders, problems)  # files beside the table
    return tuple(found)


def _found(cell: Any, folders: Sequence[Path], problems: list[str]) -> list[bytes | Path]:
    """The images of a cell; paths below the first folder that has all of them, or else below the likeliest.

    That is the one that lacks the fewest, and of several the one where the folder of the images is.
    """
    tried: list[tuple[tuple[int, int], list[bytes | Path], list[str]]] = []
    for folder in folders:
        wrong: list[str] = []
        images = list(images_of(cell, folder, wrong))
        absent = [image for image in images if isinstance(image, Path) and not os.path.isfile(image)]
        if not wrong and not absent:
            return images
        tried.append(((len(wrong) + len(absent), sum(not image.parent.is_dir() for image in absent)), images, wrong))
    _, images, wrong = min(tried, key=itemgetter(0))
    problems += wrong
    return images


def _answer(values: dict[str, Any], options: Sequence[str], problems: list[str]) -> str:
    """The gold answer in the form that the grader reads: a letter where it is the text of one option."""
    golds = values["golds"]
    if not golds:
        problems.append("no answer")
        return ""
    raw = golds[0] if len(golds) == 1 else str(golds)
    places = [place for place, text in enumerate(options) if text and text.strip() == raw.strip()]
    named = len(raw.strip()) == 1 and raw.strip() in ascii_uppercase[: len(options)]
    if len(places) == 1 and not (named and _type(values) == "choice" and "answer_option" not in values):
        values["answer_option"] = values.get("answer_option") or ascii_uppercase[places[0]]
        return ascii_uppercase[places[0]]
    if len(golds) > 1:
        return raw
    found: list[str] = []
    answer = answer_of(raw, None, found)
    if found and "several lines" in found[0]:  # parts of a multi-step answer may stand on lines of their own
        return " ".join(raw.split())
    problems += found
    if _type(values) == "choice" and options and not named and not places:
        problems.append(f"the answer {raw[:80]!r} is none of the {len(options)} options")
    return answer


def _golds(cell: Any) -> list[str]:
    """The gold answers of a cell: a list, or the text of one, means alternatives; any other cell is one answer."""
    if isinstance(cell, str) and cell.strip()[:1] == "[":
        value = literal(cell)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            cell = value
    cell = restored(cell)  # before blanks go: a form feed is one
    if isinstance(cell, (list, tuple)):
        return [str(item).strip() for item in cell if item is not None and not is_missing(item) and str(item).strip()]
    text = _text(cell)
    return [text] if text.strip() and text.strip().lower() != "nan" else []


def _type(values: Mapping[str, Any]) -> str:
    """The answer type for the grader, as the data set names it; "choice" wherever it says so."""
    given = values.get("question_type") or ""
    kind = _TYPES.get(given) or _TYPES.get(values.get("answer_type") or "")
    if kind:
        return kind
    if values.get("options") and not given:
        return "choice"
    named = str(values.get("answer_type") or "")
    return named if named in ("integer", "float", "list", "choice") else ""


def _kept(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in ("place", "golds", "options_cell")}


def _cell(cells: Mapping[str, Any], column: Any) -> Any:
    """The cell of a column; a dot leads into an object, or into the text of one."""
    if column in cells:
        return cells[column]
    value: Any = cells
    for part in str(column).split("."):
        if isinstance(value, str):
            value = literal(value) if value[:1] == "{" else None
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    if value is None or is_missing(value):
        return ""
    return repr(dict(value)) if isinstance(value, Mapping) else str(value)


def _several(value: Any) -> list[str]:
    if value is None or is_missing(value) or value == "":
        return []
    read = literal(value) if isinstance(value, str) else value
    return [str(item) for item in read] if isinstance(read, (list, tuple)) else [str(value)]
