"""The page's table of benchmarks, before and after, and the answers that changed between two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sophia_mcore.records import Answer, Question
from sophia_mcore.report.reading import Problems, columns, records
from sophia_mcore.store.layout import RunFolder

MAX_CHANGED = 200  # answers listed per protocol
_MAX_TEXT = 2_000
_ORDER = {"right to wrong": 0, "wrong to right": 1}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: a benchmark's score or a sub-metric; ``cells`` hold one summary per label, or None."""

    name: str
    group: str  # "": the benchmark's score
    cells: list[dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Block:
    """The lines of one benchmark (or of one source of ordinary questions) under one protocol."""

    title: str
    protocol: str
    scoring: str
    labels: list[str]
    lines: list[Line]
    published: list[dict[str, Any]]
    expected: int  # questions of the whole benchmark; 0: not a benchmark


def blocks(evaluation: dict[str, Any]) -> list[Block]:
    """All blocks of report.json's evaluation: benchmark after benchmark, then the other sources of questions."""
    labels = list(evaluation)
    protocols = list(dict.fromkeys(name for result in evaluation.values() for name in result["protocols"]))
    made = []
    for protocol in protocols:
        details = [evaluation[label]["protocols"].get(protocol) for label in labels]
        names = list(dict.fromkeys(name for one in details if one for name in one.get("benchmarks", {})))
        for name in names:
            found = [one["benchmarks"].get(name) if one else None for one in details]
            made.append(_block(protocol, labels, found))
        there = [one for one in details if one]
        shown = {source for one in there for found in one.get("benchmarks", {}).values() for source in found["sources"]}
        sources = list(dict.fromkeys(name for one in there for name in one["by_source"] if name not in shown))
        made += [_source_block(protocol, labels, details, source) for source in sources]
    return made


def _block(protocol: str, labels: list[str], found: list[dict[str, Any] | None]) -> Block:
    there = [one for one in found if one]
    first = there[0]
    lines = [Line("all", "", list(found))]
    if "worst_case" in first:
        lines.append(Line("worst case of all variants", "", [one and one.get("worst_case") for one in found]))
    for key in ("step_accuracy_rate", "question_completeness_rate"):
        if any(key in one.get("multi_step", {}) for one in there):
            steps = [one["multi_step"] if one and key in one["multi_step"] else None for one in found]
            cells = [one and {"score": one[key], "n": one["n"], "ci95": one["ci95"][key]} for one in steps]
            lines.append(Line(key.replace("_", " "), "multi-step", cells))
    for group in first["groups"]:
        for name in dict.fromkeys(name for one in there for name in one["groups"].get(group, {})):
            lines.append(Line(name, group, [one and one["groups"].get(group, {}).get(name) for one in found]))
    scoring = "; ".join(dict.fromkeys(one["scoring"] for one in there))
    published = list({row["model"]: row for one in there for row in one["published"]}.values())
    return Block(first["title"], protocol, scoring, labels, lines, published, first["expected_n"])


def _source_block(protocol: str, labels: list[str], details: list[Any], source: str) -> Block:
    """The same table for ordinary questions: the source's pass@1, and that of each answer type."""
    alone = all(len(one["by_source"]) == 1 for one in details if one)

    def cell(one: Any) -> dict[str, Any] | None:
        if not one or source not in one["by_source"]:
            return None
        summary = one["by_source"][source]
        found = {"score": summary["pass_at_1"], "n": summary["n"], "ci95": summary["ci95"]}
        if alone:
            unread = one["verdicts"].get("no_answer", 0) / max(1, one["samples"])
            found |= {"truncated": one["truncated"], "unreadable": unread, "judge_needed": 0.0}
        return found

    lines = [Line("all", "", [cell(one) for one in details])]
    types = list(dict.fromkeys(name for one in details if one for name in one["by_answer_type"])) if alone else []
    for name in types if len(types) > 1 else []:
        cells = []
        for one in details:
            summary = one["by_answer_type"].get(name) if one else None
            cells.append(summary and {"score": summary["pass_at_1"], "n": summary["n"], "ci95": summary["ci95"]})
        lines.append(Line(name, "answer type", cells))
    return Block(source, protocol, "paper, rules only", labels, lines, [], 0)


def changed_answers(run: RunFolder, evaluation: dict[str, Any], problems: Problems) -> list[dict[str, Any]]:
    """Per protocol, the questions whose first answer changed from the first model to the last.

    [{"protocol", "before", "after", "counts": {kind: n}, "rows": [...]}], right to wrong first; at most
    ``MAX_CHANGED`` rows each. [] where only one model was evaluated.
    """
    labels = list(evaluation)
    if len(labels) < 2:
        return []
    before, after = labels[0], labels[-1]
    questions = {q.id: q for q in records(run.evaluation_questions_file, Question, problems)}
    found = []
    for protocol in evaluation[before]["protocols"]:
        if protocol not in evaluation[after]["protocols"]:
            continue
        first, second = (_firsts(run, label, protocol, problems) for label in (before, after))
        rows = [
            _changed(questions[name], first[name], second[name])
            for name in questions
            if name in first and name in second and (first[name][0] == "correct") != (second[name][0] == "correct")
        ]
        rows.sort(key=lambda row: _ORDER[row["kind"]])
        counts = {kind: sum(row["kind"] == kind for row in rows) for kind in _ORDER}
        found.append(
            {"protocol": protocol, "before": before, "after": after, "counts": counts, "rows": rows[:MAX_CHANGED]}
        )
    return found


def _firsts(run: RunFolder, label: str, protocol: str, problems: Problems) -> dict[str, tuple[str, str, str]]:
    """(verdict, extracted, end of the text) of each question's first sample."""
    names = ["question_id", "index", "verdict", "extracted", "text"]
    rows = columns(run.evaluation(label, protocol), Answer, names, problems, lambda _, text: text[-_MAX_TEXT:])
    made = zip(*(rows[name] for name in names), strict=True)
    return {question: (verdict, said, text) for question, index, verdict, said, text in made if index == 0}


def _changed(question: Question, first: tuple[str, str, str], second: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "id": question.id,
        "kind": "right to wrong" if first[0] == "correct" else "wrong to right",
        "source": question.benchmark or question.source,
        "question": question.question[:_MAX_TEXT],
        "answer": question.answer[:_MAX_TEXT],
        "before": {"verdict": first[0], "said": first[1], "text": first[2]},
        "after": {"verdict": second[0], "said": second[1], "text": second[2]},
    }
