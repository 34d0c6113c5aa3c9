"""The browser of the on-policy stage's groups: a question's answers in one batch, right and wrong beside each other."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sophia_mcore.evaluate.results import answer_type
from sophia_mcore.records import BROKEN, Question, Rollout
from sophia_mcore.report.examples import Browser, cut, in_blocks
from sophia_mcore.report.reading import Problems, columns, records
from sophia_mcore.store.layout import RunFolder

FLAGS = ("mixed", "all_right", "all_wrong", "broken", "truncated", "rethought")
MAX_GROUPS = 1_000
_MAX_TEXT = 6_000  # characters of one answer in the page; the store has it whole
PICTURES = 0.5  # of the page's room for pictures
_NAMES = ["id", "question_id", "index", "text", "tokens", "finish_reason", "verdict", "extracted", "version", "trigger"]


def groups(run: RunFolder, problems: Problems, most: int = MAX_GROUPS) -> Browser | None:
    """Groups of the first batch, the last, and batches at even distances between them; None without any.

    A batch whose further draws of questions lie in folders of their own is shown with them.
    """
    batches = batches_of(run)
    questions = {
        q.id: q
        for path in (run.questions_file, run.rl.own_questions_file, run.rl.questions_file)
        for q in records(path, Question, problems)
    }
    shown: list[dict[str, Any]] = []
    if batches:
        first = _of_batch(batches[0], run, questions, problems)
        shown = first[:most]
        chosen = evenly(batches[1:], most // max(1, len(first)) - 1)
        for number in chosen:
            shown += _of_batch(number, run, questions, problems)
    if not shown:
        return None
    return in_blocks(shown, FLAGS, run, problems, PICTURES)


def evenly(numbers: list[int], count: int) -> list[int]:
    """At most ``count`` of the numbers, at even distances, the last among them.

    >>> evenly([1, 2, 3, 4, 5, 6], 3), evenly([1, 2], 5), evenly([1, 2], 0)
    ([2, 4, 6], [1, 2], [])
    """
    if count <= 0 or not numbers:
        return []
    if count >= len(numbers):
        return numbers
    return [numbers[(i + 1) * len(numbers) // count - 1] for i in range(count)]


def batches_of(run: RunFolder) -> list[int]:
    """Numbers of the batches that have rollouts, lowest first."""
    names = (path.name.partition(".")[0] for path in run.rl.rollouts.glob("*") if path.is_dir())
    return sorted({int(name) for name in names if name.isdecimal()})


def _of_batch(number: int, run: RunFolder, questions: dict[str, Question], problems: Problems) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for folder in [run.rl.batch(number), *sorted(run.rl.rollouts.glob(f"{number:08d}.*"))]:
        rows = columns(folder, Rollout, _NAMES, problems, lambda name, text: cut(text, _MAX_TEXT))
        for values in zip(*rows.values(), strict=True):
            row = dict(zip(_NAMES, values, strict=True))
            found[row["question_id"]].append(row)
    return [_group(number, name, questions.get(name), rows) for name, rows in sorted(found.items())]


def _group(number: int, name: str, question: Question | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    rows.sort(key=lambda row: (row["index"], row["id"]))
    right = [row["tokens"] for row in rows if row["verdict"] == "correct"]
    others = [row["tokens"] for row in rows if row["verdict"] != "correct"]
    holds = {
        "mixed": bool(right) and bool(others),
        "all_right": not others,
        "all_wrong": not right,
        "broken": any(row["verdict"] in BROKEN for row in rows),
        "truncated": any(row["finish_reason"] == "length" for row in rows),
        "rethought": any(row["trigger"] for row in rows),
    }
    versions = sorted({row["version"] for row in rows})
    said = f"version {versions[0]}" if len(versions) == 1 else f"versions {versions[0]} to {versions[-1]}"
    return {
        "id": name,
        "round": f"batch {number}",
        "question": cut(question.question, _MAX_TEXT) if question else "(the question is not in the store)",
        "options": [cut(option, _MAX_TEXT) for option in question.options] if question else [],
        "answer": cut(question.answer, _MAX_TEXT) if question else "",
        "type": answer_type(question) if question else "unknown",
        "source": said,
        "images": list(question.images) if question else [],
        "captions": [],
        "answers": [_answer(row) for row in rows],
        "tokens_right": _mean(right),
        "tokens_wrong": _mean(others),
        "flags": sum(1 << bit for bit, flag in enumerate(FLAGS) if holds[flag]),
    }


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    shown = {name: row[name] for name in ("id", "text", "tokens", "verdict", "extracted")}
    return shown | {"finish": row["finish_reason"]} | ({"trigger": row["trigger"]} if row["trigger"] else {})


def _mean(lengths: list[int]) -> str:
    return f"{sum(lengths) / len(lengths):.0f} tokens" if lengths else "-"
