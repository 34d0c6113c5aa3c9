"""Verdicts on answers to benchmark questions, by the protocol's own way: rules, and a language model where it has one.

``paper``: a language model extracts the final answer; it judges MMMU, MathVerse and MV-MATH, the grader the others.
``vlmevalkit``: that tool's rules; a language model reads what they leave open. Without a judge the grader, or those
rules, decide alone and the score is labelled "rules only".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from sophia_mcore.benchmarks.table import Benchmark, benchmark_named
from sophia_mcore.benchmarks.vlmevalkit import RULES, Ruled, split_thought
from sophia_mcore.records import Question, VerdictName
from sophia_mcore.verify.grade import Grader
from sophia_mcore.verify.reading.extract import extract
from sophia_mcore.verify.types import Grade, GradeItem, Judge

Scoring = Literal["paper", "vlmevalkit"]
SettledBy = Literal["rules", "llm", "none"]
CHARACTERS_PER_TOKEN = 4  # of ASCII text; for the estimate of a judge's cost. Any other character is a token.
_REPLY_TOKENS = 32  # an extraction or a verdict is short
_TEMPLATE_TOKENS = 250
_SHOWN_TOKENS = 1000  # of a response, its end: score.judge.RESPONSE_CHARACTERS
_PART = re.compile(r"[(（]\s*([1-9])\s*[)）]")


@dataclass(frozen=True, slots=True)
class Score:
    """The verdict on one answer. ``credit``: share of right parts (1 or 0 where there is one part only).

    ``settled_by`` "none": no rule could read the answer and there was no judge; it counts as wrong.
    """

    verdict: VerdictName
    extracted: str
    settled_by: SettledBy
    credit: float
    direct: bool = False  # VLMEvalKit's "prefetched": read without a language model


@dataclass(frozen=True, slots=True)
class Cost:
    """What a judge will be asked: at most so many calls, with about so many tokens."""

    calls: int
    prompt_tokens: int
    reply_tokens: int

    def __str__(self) -> str:
        return (
            f"at most {self.calls:,} calls of the judge, about {self.prompt_tokens:,} tokens of prompts and "
            f"{self.reply_tokens:,} of replies (replies that are stored already cost nothing)"
        )


RULES_ONLY = "rules only"


def label_of(benchmark: Benchmark, label: str) -> str:
    """How verdicts on one benchmark come about, from a scorer's label: VLMEvalKit has no rules for every benchmark.

    >>> label_of(benchmark_named("mvmath"), "vlmevalkit, judge-x"), label_of(benchmark_named("mmmu"), "paper, judge-x")
    ('the grader, rules only', 'paper, judge-x')
    """
    graded = label.startswith("vlmevalkit") and benchmark.scorer not in RULES
    return f"the grader, {RULES_ONLY}" if graded else label


def details_of(question: Question) -> dict[str, Any]:
    """The JSON of a benchmark's question: index, prompts, golds, values."""
    found = json.loads(question.details)
    assert isinstance(found, dict)
    return found


class Scorer:
    """Scores answers under one protocol. ``grader`` has no judge of its own; ``judge`` None: rules only."""

    def __init__(self, scoring: Scoring, grader: Grader, judge: Judge | None = None) -> None:
        self.scoring = scoring
        self._grader = grader
        self._judge = judge

    @property
    def label(self) -> str:
        """How verdicts come about, for tables: "vlmevalkit, rules only", "paper, judge ..."."""
        return f"{self.scoring}, {self._judge.version if self._judge else RULES_ONLY}"

    def score(self, answers: Sequence[tuple[Question, str]]) -> list[Score]:
        """Scores of (question, response) pairs, in order. Raises SophiaError when the judge's endpoint is away."""
        rows = [_Row(question, response) for question, response in answers]
        replies = self._extractions(rows)
        return self._by_rules(rows, replies) if self.scoring == "vlmevalkit" else self._by_grader(rows, replies)

    def cost(self, answers: Sequence[tuple[Question, str]]) -> Cost:
        """An upper bound of what ``score`` would ask a judge."""
        rows = [_Row(question, response) for question, response in answers]
        asked = [row for row in rows if self._asks(row)]
        judged = [row for row in asked if row.benchmark.judged]
        tokens = sum(_TEMPLATE_TOKENS + row.question_tokens for row in [*asked, *judged])
        tokens += sum(min(_SHOWN_TOKENS, _tokens(row.response)) for row in asked)
        calls = len(asked) + len(judged)
        return Cost(calls, tokens, _REPLY_TOKENS * calls)

    def _asks(self, row: _Row) -> bool:
        if self.scoring == "paper":
            return True
        rule = RULES.get(row.benchmark.scorer)
        return rule is not None and rule(row.values, row.answer, None).open

    def _extractions(self, rows: Sequence[_Row]) -> list[str | None]:
        """What the judge says the final answer is; None where it is not asked or gives none."""
        if self._judge is None:
            return [None] * len(rows)
        waiting: list[Future[str | None] | None] = [
            self._judge.extraction(row.asked, row.answer) if self._asks(row) else None for row in rows
        ]
        return [future.result() if future is not None else None for future in waiting]

    # ---- VLMEvalKit

    def _by_rules(self, rows: Sequence[_Row], replies: Sequence[str | None]) -> list[Score]:
        ruled: list[Ruled | None] = []
        for row, reply in zip(rows, replies, strict=True):
            rule = RULES.get(row.benchmark.scorer)
            ruled.append(rule(row.values, row.answer, reply) if rule else None)
        graded = iter(self._by_grader([row for row, one in zip(rows, ruled, strict=True) if one is None], None))
        waiting = [
            self._judge.verdict(row.asked, row.gold, one.found)
            if self._judge and one is not None and one.right is None and reply and row.benchmark.judged
            else None
            for row, one, reply in zip(rows, ruled, replies, strict=True)
        ]
        scores = []
        for one, reply, future in zip(ruled, replies, waiting, strict=True):
            if one is None:
                scores.append(next(graded))
            elif future is not None:
                verdict = future.result()
                scores.append(Score(verdict, one.found, "llm", float(verdict == "correct")))
            else:
                by: SettledBy = "llm" if reply is not None else "none" if one.right is None else "rules"
                name: VerdictName = "no_answer" if one.right is None else "correct" if one.right else "wrong"
                scores.append(Score(name, one.found, by, float(name == "correct"), one.direct))
        return scores

    # ---- the paper, by the grader and a judge

    def _by_grader(self, rows: Sequence[_Row], replies: Sequence[str | None] | None) -> list[Score]:
        items = [item for number, row in enumerate(rows) for item in row.items(number, _reply(replies, number))]
        grades: dict[int, list[Grade]] = {}
        for item, grade in zip(items, self._grader.grade_many(items), strict=True):
            grades.setdefault(int(item.id), []).append(grade)
        waiting = {
            number: self._judge.verdict(row.asked, row.gold, reply)
            for number, row in enumerate(rows)
            if self._judge and (reply := _reply(replies, number)) and row.benchmark.judged
            and not _right(row, grades[number])
        }  # fmt: skip
        return [
            _score(row, grades[number], _reply(replies, number), waiting.get(number)) for number, row in enumerate(rows)
        ]


def _reply(replies: Sequence[str | None] | None, number: int) -> str | None:
    return replies[number] if replies is not None else None


def _right(row: _Row, grades: Sequence[Grade]) -> bool:
    rights = [grade.verdict == "correct" for grade in grades]
    return all(rights) if row.parts else any(rights)


def _score(row: _Row, grades: Sequence[Grade], reply: str | None, judged: Future[VerdictName] | None) -> Score:
    rights = [grade.verdict == "correct" for grade in grades]
    first = next((grade for grade in grades if grade.verdict == "correct"), grades[0])
    verdict: VerdictName = first.verdict
    credit = float(verdict == "correct")
    if row.parts:
        credit = sum(rights) / len(rights)
        bad = next((grade for grade in grades if grade.verdict != "correct"), None)
        verdict = "correct" if bad is None else bad.verdict
    if judged is not None:
        verdict = judged.result()
        credit = 1.0 if verdict == "correct" else credit
    extracted = "; ".join(grade.extracted for grade in grades) if row.parts else reply or first.extracted
    by: SettledBy = "llm" if reply is not None else "none" if verdict == "no_answer" else "rules"
    return Score(verdict, extracted, by, credit)


class _Row:
    """An answer with what is needed to score it."""

    def __init__(self, question: Question, response: str) -> None:
        self.question = question
        self.response = response
        self.answer = split_thought(response)[0]
        self.benchmark: Benchmark = benchmark_named(question.benchmark)
        self._details = details_of(question)
        self.values: Mapping[str, Any] = self._details["values"]
        multi_step = self.benchmark.multi_step and self.multi_step
        self.nested = multi_step and _nested(question.answer)
        self.parts = _parts(question.answer) if multi_step and not self.nested else {}

    @property
    def multi_step(self) -> bool:
        return bool(self.values.get("answer_type") == "multi-step")

    @property
    def asked(self) -> str:
        """The question as a judge should see it."""
        return str(self.values.get("judge_question") or self.question.question)

    @property
    def gold(self) -> str:
        options = dict(self.values.get("options") or ())
        text = options.get(self.question.answer, "")
        return f"{self.question.answer} ({text})" if text else self.question.answer

    @property
    def question_tokens(self) -> int:
        return _tokens(self.asked) + _tokens(self.gold)

    def items(self, number: int, reply: str | None) -> list[GradeItem]:
        """What the grader is asked: one item per gold answer that would do, or per part of a multi-step answer."""
        response = self.response if reply is None else f"\\boxed{{{reply}}}"
        if self.parts:
            said = _parts(self.answer) or _in_order(self.answer, len(self.parts))
            return [self._item(number, said.get(part, ""), gold, "") for part, gold in self.parts.items()]
        if self.nested:
            return [self._item(number, "", self.question.answer, "")]  # only a judge can settle it
        golds = self._details["golds"]
        golds = golds if len(golds) > 1 else _alternatives(self.question.answer)
        return [self._item(number, response, gold, self.question.answer_type) for gold in golds]

    def _item(self, number: int, response: str, gold: str, answer_type: str) -> GradeItem:
        return GradeItem(
            id=str(number),
            response=response,
            answer=gold,
            answer_type=answer_type,
            options=self.question.options,
            rules=self.benchmark.rules,
            tolerance=_tolerance(str(self.values.get("error") or "")),
            question=self.asked,
        )


def _alternatives(gold: str) -> list[str]:
    r"""Gold answers of which any will do, as MV-MATH writes them: "A \# \# B"."""
    found = [part.strip() for part in re.split(r"\\?#\s*\\?#", gold)]
    return [part for part in found if part] or [gold]


def _parts(text: str) -> dict[str, str]:
    """Parts of an answer by their number, from the last "(1)" on that is followed by text; {} if there are none.

    >>> _parts("(1) 14; (2) 37.")
    {'1': '14', '2': '37'}
    >>> _parts("**(1)** 14\\n**(2)** 37")
    {'1': '14', '2': '37'}
    """
    marks = list(_PART.finditer(text))
    starts = [i for i, mark in enumerate(marks) if mark[1] == "1"]
    for start in reversed(starts):
        chosen = [marks[start]]
        for mark in marks[start + 1 :]:
            if int(mark[1]) == len(chosen) + 1:
                chosen.append(mark)
        ends = [*(mark.start() for mark in chosen[1:]), len(text)]
        found = {
            mark[1]: text[mark.end() : end].strip(" \n;；.。，,*_#") for mark, end in zip(chosen, ends, strict=True)
        }
        if len(found) > 1 and all(found.values()):
            return found
    return {}


def _nested(gold: str) -> bool:
    """Whether "(1)" stands twice in a gold answer: it has parts of parts, which no rule can tell apart.

    >>> _nested("(1) 14; (2) 37."), _nested("(1) 14; (2) (1) 37; (2) 5")
    (False, True)
    """
    return sum(mark[1] == "1" for mark in _PART.finditer(gold)) > 1


_BETWEEN = re.compile(r"\s*[;；,，、]\s*|\s+and\s+")


def _in_order(answer: str, count: int) -> dict[str, str]:
    """Parts of a final answer that has no numbers: it must list exactly ``count`` of them.

    >>> _in_order("Answer: {14; 37}", 2), _in_order("Answer: {14}", 2)
    ({'1': '14', '2': '37'}, {})
    """
    found = (extract(answer) or "").strip()
    if found[:1] == "{" and found[-1:] == "}":
        found = found[1:-1]
    listed = _BETWEEN.split(found.strip(" .。;；"))
    if len(listed) != count or not all(listed):
        return {}
    return {str(number): text for number, text in enumerate(listed, start=1)}


def _tolerance(error: str) -> float | None:
    """The tolerance of an OlympiadBench answer, "1e-1" or one per answer "0.1,0.2": then the smallest."""
    found = []
    for part in error.split(","):
        try:
            found.append(float(part))
        except ValueError:
            continue
    return min(found, default=None)


def _tokens(text: str) -> int:
    ascii_only = len(text.encode("ascii", "ignore"))
    return ascii_only // CHARACTERS_PER_TOKEN + len(text) - ascii_only + 1


def upper_bound(questions: Iterable[Question], scoring: Scoring, max_tokens: int) -> Cost:
    """The cost of judging answers that are not there yet: every question asked, every answer as long as allowed."""
    calls = prompts = 0
    for question in questions:
        if not question.benchmark:
            continue
        row = _Row(question, "")
        times = 1 + row.benchmark.judged
        if scoring == "vlmevalkit" and row.benchmark.scorer not in RULES:
            continue
        calls += times
        prompts += times * (_TEMPLATE_TOKENS + row.question_tokens) + min(_SHOWN_TOKENS, max_tokens)
    return Cost(calls, prompts, _REPLY_TOKENS * calls)


def readable(response: str, answer_type: str) -> bool:
    """Whether any final answer is found in a response."""
    return extract(response, answer_type) is not None
