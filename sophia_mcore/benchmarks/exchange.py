"""Predictions in other tools' files: VLMEvalKit's tables, written and read, and lmms-eval's samples, read."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from sophia_mcore.benchmarks.layouts import RawRow, read_table
from sophia_mcore.benchmarks.rows import row_of
from sophia_mcore.benchmarks.scoring import details_of
from sophia_mcore.benchmarks.table import Benchmark, benchmark_named, benchmarks
from sophia_mcore.benchmarks.vlmevalkit import split_thought
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.records import Question, with_thought
from sophia_mcore.store import atomic
from sophia_mcore.store.json_lines import read_json_lines, read_json_list

EMPTY = "?"  # a prediction that is written for an answer without text
CELL_LIMIT = 32_767  # characters of a cell of a workbook
_READ_AS_MISSING = {
    "#N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "-NaN", "-nan",
}  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_SAMPLES = re.compile(r"_?samples_(?P<task>.+)$")


@dataclass(frozen=True, slots=True)
class Predictions:
    """Somebody's answers: the benchmark, and (question, response) pairs; a thought stands in <think> tags."""

    benchmark: Benchmark
    answers: list[tuple[Question, str]]
    cut: int = 0  # answers that fill a cell of a workbook to the last character: their end is missing


# ---- reading


def read_predictions(file: Path, benchmark: str = "") -> Predictions:
    """Answers of a VLMEvalKit file (.tsv, .xlsx, .json) or of lmms-eval's samples (.jsonl).

    ``benchmark`` names the data set where the file's name does not. Raises UsageError when neither does or the file is
    of another kind, SophiaError when it is damaged or has no predictions.
    """
    if not file.is_file():
        raise UsageError(f"{file}: {'is a folder, name a file in it' if file.is_dir() else 'no such file'}")
    readers = {".tsv": read_table, ".xlsx": _workbook, ".json": _records, ".jsonl": _samples}
    if file.suffix not in readers:
        raise UsageError(f"{file}: not one of {', '.join(readers)}")
    found = benchmark_named(benchmark) if benchmark else _benchmark_of(file)
    rows: Sequence[Mapping[str, Any]] = readers[file.suffix](file)  # type: ignore[operator]
    if not rows:
        raise SophiaError(f"{file}: no rows")
    if "prediction" not in rows[0]:
        raise SophiaError(f"{file}: no column 'prediction' (it has {', '.join(map(str, rows[0]))[:200]})")
    layout = "hub" if file.suffix == ".jsonl" or not found.tsv else "tsv"
    answers, cut = [], 0
    for number, row in enumerate(rows):
        cells = {str(key): value for key, value in row.items()}
        cells |= {"place": f"{cells.get('source', '')}/{file.name}"}
        if found.multi_step and "problem_id" not in cells:
            cells["problem_id"] = cells.get("index")
        question = _question(found, number, cells, layout, file)
        prediction, thought = _text(cells["prediction"]), _text(cells.get("thinking"))
        prediction = "" if prediction == EMPTY else prediction
        cut += max(len(prediction), len(thought)) >= CELL_LIMIT and file.suffix == ".xlsx"
        answers.append((question, with_thought(thought, prediction) if thought else prediction))
    _refuse_twice(file, [question.id for question, _ in answers])
    if layout == "tsv":
        _refuse_twice(file, [_text(row.get("index")).strip() for row in rows])
    return Predictions(found, answers, cut)


def _refuse_twice(file: Path, names: Sequence[str]) -> None:
    """Refuses a row whose index or id (one of ``names``, by row; "" is none) is that of another row."""
    rows: dict[str, int] = {}
    for number, name in enumerate(names):
        if name and rows.setdefault(name, number) != number:
            raise SophiaError(f"{file}: row {number} has the index of another row: {name}, first in row {rows[name]}")


def _question(benchmark: Benchmark, number: int, cells: dict[str, Any], layout: str, file: Path) -> Question:
    row = row_of(benchmark, benchmark.name, number, RawRow(cells, layout, (file.parent,)), shown=False)
    problems = [problem for problem in row.problems if problem != "no question"]
    if problems:
        raise SophiaError(f"{file}: row {number}: {problems[0]}")
    return Question(
        id=row.id,
        question=row.question,
        answer=row.answer,
        answer_type=row.answer_type,
        options=row.options,
        source=row.source,
        benchmark=row.benchmark,
        details=row.details,
    )


def _benchmark_of(file: Path) -> Benchmark:
    """The data set that a file's name ends in: MODEL_DATASET.tsv, or DATE_samples_TASK.jsonl."""
    samples = _SAMPLES.search(file.stem)
    if samples:
        try:
            return benchmark_named(samples["task"])
        except UsageError as error:
            raise UsageError(f"{file.name}: {error}: name it with --on") from None
    names = [(name, one) for one in benchmarks().values() for name in (one.vlmevalkit, one.name, *one.names) if name]
    for name, one in sorted(names, key=lambda pair: -len(pair[0])):
        if file.stem.casefold() == name.casefold() or file.stem.casefold().endswith(f"_{name.casefold()}"):
            return one
    raise UsageError(f"{file.name}: the name ends in no benchmark's name (MODEL_DATASET.tsv): name it with --on")


def _workbook(file: Path) -> list[dict[str, Any]]:
    import openpyxl

    try:
        sheet = openpyxl.load_workbook(file, read_only=True, data_only=True).worksheets[0]
        rows = sheet.iter_rows(values_only=True)
        names = [_text(name) for name in next(rows, ())]
        return [dict(zip(names, [_text(cell) for cell in row], strict=False)) for row in rows]
    except Exception as error:  # the library raises many kinds for a file that is no workbook
        raise SophiaError(f"cannot read {file}: not a workbook ({str(error).splitlines()[0]})") from error


def _records(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, item in enumerate(read_json_list(file)):
        if isinstance(item, str):
            raise SophiaError(f"{file}: entry {number} is {item}")
        rows.append({key: value if isinstance(value, (list, dict)) else _text(value) for key, value in item.items()})
    return rows


def _samples(file: Path) -> list[dict[str, Any]]:
    """lmms-eval's samples that hold the document itself ("doc"), as its --log_samples writes them."""
    rows = []
    for number, sample in read_json_lines(file):
        if isinstance(sample, str):
            raise SophiaError(f"{file}: line {number} is {sample}")
        try:
            reply = sample.get("filtered_resps") or sample.get("resps")
            while isinstance(reply, list):
                reply = reply[0] if reply else ""
            rows.append(dict(sample["doc"]) | {"prediction": reply})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SophiaError(f"{file}: line {number} is not a sample with its document ({error!r})") from error
    return rows


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


# ---- writing


def export_rows(answers: Sequence[tuple[Question, str]]) -> list[dict[str, str]]:
    """VLMEvalKit's rows: every column of its table but the image, then prediction and thinking.

    Columns of options that no row uses are left out, as in a table that does not have them.
    """
    rows = [_export_row(question, response) for question, response in answers]
    letters = [name for name in ascii_uppercase if any(name in row for row in rows)]
    used = [name for name in letters if any(row.get(name) for row in rows)]
    last = letters.index(used[-1]) if used else -1
    dropped = set(letters[last + 1 :])
    return [{name: text for name, text in row.items() if name not in dropped} for row in rows]


def _export_row(question: Question, response: str) -> dict[str, str]:
    benchmark = benchmark_named(question.benchmark)
    values = details_of(question)["values"]
    options = dict(values.get("options") or ())
    columns, origin = benchmark.row["columns"], benchmark.row.get("from", {})
    fixed = benchmark.row.get("fixed", {})
    row: dict[str, str] = {}
    for name in columns:
        if name in fixed:
            row[name] = fixed[name]
        elif len(name) == 1 and name in ascii_uppercase:
            row[name] = options.get(name, "")
        elif name == "image_path" and not values.get(name):
            continue
        else:
            value = values.get(origin.get(name, name), "")
            row[name] = repr(value) if isinstance(value, list) else str(value)
    answer, thought = split_thought(response)
    return row | {"prediction": readable_cell(answer), "thinking": thought}


def readable_cell(text: str) -> str:
    """A prediction that pandas does not read as missing: one blank stands behind such a text.

    ``EMPTY`` stands for one without any text: VLMEvalKit stops at an empty one, and finds a blank in gold answers.

    >>> readable_cell(""), readable_cell("None"), readable_cell("5")
    ('?', 'None ', '5')
    """
    if not text.strip():
        return EMPTY
    return f"{text} " if text in _READ_AS_MISSING else text


def write_predictions(file: Path, answers: Sequence[tuple[Question, str]]) -> int:
    """Write answers as VLMEvalKit's .tsv, .xlsx or .json; returns how many cells had to be cut (workbooks only).

    Raises UsageError for another suffix, SophiaError when the file cannot be written.
    """
    rows = export_rows(answers)
    names = list(dict.fromkeys(name for row in rows for name in row))
    if file.suffix == ".tsv":
        text = io.StringIO()
        writer = csv.DictWriter(text, names, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({name: value.replace("\x00", "") for name, value in row.items()} for row in rows)
        atomic.write_text(file, text.getvalue())
        return 0
    if file.suffix == ".json":
        atomic.write_text(file, json.dumps(rows, ensure_ascii=False, indent=1))
        return 0
    if file.suffix == ".xlsx":
        return _write_workbook(file, names, rows)
    raise UsageError(f"{file}: predictions are written as .tsv, .xlsx or .json")


def _write_workbook(file: Path, names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> int:
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    cut = 0
    for number, row in enumerate([dict(zip(names, names, strict=True)), *rows], start=1):
        for place, name in enumerate(names, start=1):
            text = _CONTROL.sub("", row.get(name, ""))
            if len(text) > CELL_LIMIT:
                cut += 1
                text = text[-CELL_LIMIT:] if name == "prediction" else text[:CELL_LIMIT]  # the answer is at the end
            cell = sheet.cell(number, place)
            cell.value = text
            if text:
                cell.data_type = "s"  # never a formula or an address
    buffer = io.BytesIO()
    book.save(buffer)
    atomic.write_bytes(file, buffer.getvalue())
    return cut
