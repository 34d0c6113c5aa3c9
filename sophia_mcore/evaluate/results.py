"""Computes pass@1 of every evaluated model from the stored answers, without engine and torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from sophia_mcore.benchmarks.scoring import details_of
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.evaluate.benchmark_results import Outcome, benchmark_results
from sophia_mcore.evaluate.statistics import pass_at_1, wilson
from sophia_mcore.records import Answer, Question
from sophia_mcore.store.labels import BASE, STAGE, round_label, round_of
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_metadata, read_shard, read_table, shard_files
from sophia_mcore.verify.comparing import exact
from sophia_mcore.verify.rules import rule_for

_COLUMNS = ["question_id", "verdict", "finish_reason", "token_ids", "settled_by", "credit", "direct"]


def results(run: RunFolder, config: Config, problem: Callable[[str], None]) -> dict[str, Any]:
    """The "evaluation" of report.json: {label: {"pass_at_1", "n", "ci95": [lo, hi], "protocols": {name: details}}}.

    Labels are "base", then "round-0", "round-1", ... "pass_at_1", "n" and "ci95" are those of the first protocol.
    Details: pass_at_1, n (questions), ci95 (Wilson), samples, verdicts, truncated (share), tokens_mean, and
    by_answer_type and by_source (the question's data set): {name: {"pass_at_1", "n", "ci95"}}.
    A protocol is left out until every question is answered, a label until its first protocol is complete.
    ``problem`` is called with a line about each damaged file; other models and protocols are still returned.
    """
    if not run.evaluation_questions_file.is_file():
        return {}
    try:
        questions = {question.id: question for question in read_shard(run.evaluation_questions_file, Question)}
    except SophiaError as error:
        problem(str(error))
        return {}
    found: dict[str, Any] = {}
    for label in _labels(run):
        protocols: dict[str, Any] = {}
        for protocol in config.evaluate.protocols:
            try:
                model = str(config.models.policy)
                details = protocol_results(run.evaluation(label, protocol.name), questions, model)
            except SophiaError as error:
                problem(str(error))
                continue
            if details["n"] == len(questions):
                protocols[protocol.name] = details
        first = protocols.get(config.evaluate.protocols[0].name)
        if first is not None:
            found[label] = {key: first[key] for key in ("pass_at_1", "n", "ci95")} | {"protocols": protocols}
    return found


def _labels(run: RunFolder) -> list[str]:
    folder = run.evaluation_questions_file.parent
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    rounds = sorted(index for name in names if (index := round_of(name)) is not None)
    done = [round_label(index) for index in rounds]
    others = sorted(set(names) - set(done) - {BASE}, key=lambda name: (name == STAGE, name))  # after STAGE_START
    return [BASE] * (BASE in names) + done + others


def answer_type(question: Question) -> str:
    """The answer type that the grader uses: the given type, or the type inferred from the answer."""
    try:
        gold = exact.prepare(question.answer, question.answer_type, question.options, rule_for(question.source))
    except Exception:  # a gold answer that cannot be parsed: the grader's verdict is "error", here it has no type
        return question.answer_type or "untyped"
    return gold.type or "untyped"


def protocol_results(folder: Path, questions: dict[str, Question], model: str = "") -> dict[str, Any]:
    """Details (as in ``results``) of the answers in ``folder`` so far. ``model``: its published scores are added.

    Raises SophiaError for an answer to an unknown question.
    """
    rights: list[tuple[str, bool]] = []
    types = {name: answer_type(question) for name, question in questions.items()}
    by_type: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    by_source: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    by_benchmark: dict[str, list[Outcome]] = defaultdict(list)
    values = {q.id: details_of(q)["values"] for q in questions.values() if q.benchmark}
    verdicts: Counter[str] = Counter()
    truncated = tokens = 0
    scoring = ""
    for shard in shard_files(folder) if folder.is_dir() else []:
        table = read_table(shard, Answer, columns=_COLUMNS)
        columns = {name: table.column(name) for name in _COLUMNS}
        columns["token_ids"] = pc.list_value_length(columns["token_ids"])
        scoring = scoring or (read_metadata(shard)["metadata"].get("scoring", "") if values else "")
        rows = zip(*(column.to_pylist() for column in columns.values()), strict=True)
        for question_id, verdict, reason, length, by, credit, direct in rows:
            if question_id not in questions:
                raise SophiaError(f"{shard}: an answer to question {question_id!r}, which is not in the evaluation")
            rights.append((question_id, verdict == "correct"))
            by_type[types[question_id]].append(rights[-1])
            by_source[questions[question_id].source or "unnamed"].append(rights[-1])
            verdicts[verdict] += 1
            truncated += reason == "length"
            tokens += length
            if question_id in values:
                cut = reason == "length"
                found = Outcome(question_id, values[question_id], verdict, by, credit, direct, cut)
                by_benchmark[questions[question_id].benchmark].append(found)
    count = max(1, len(rights))
    benchmarks = {name: benchmark_results(name, rows, model, scoring) for name, rows in sorted(by_benchmark.items())}
    for name, outcomes in by_benchmark.items():
        benchmarks[name]["sources"] = sorted({questions[one.question_id].source or "unnamed" for one in outcomes})
    return (
        _summary(rights)
        | ({"benchmarks": benchmarks, "scoring": scoring} if benchmarks else {})
        | {
            "samples": len(rights),
            "verdicts": dict(sorted(verdicts.items())),
            "truncated": truncated / count,
            "tokens_mean": tokens / count,
            "by_answer_type": {name: _summary(rows) for name, rows in sorted(by_type.items())},
            "by_source": {name: _summary(rows) for name, rows in sorted(by_source.items())},
        }
    )


def _summary(rights: list[tuple[str, bool]]) -> dict[str, Any]:
    share, n = pass_at_1(rights)
    return {"pass_at_1": share, "n": n, "ci95": list(wilson(share, n))}
