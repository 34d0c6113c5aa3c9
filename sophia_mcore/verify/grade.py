"""The grader: extraction, the exact path, caches, the killable workers and the judge behind one iterator."""

from __future__ import annotations

import contextlib
import importlib.metadata
import queue
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.records import VerdictName
from sophia_mcore.verify.comparing import exact
from sophia_mcore.verify.pool import Outcome, Pool
from sophia_mcore.verify.reading.extract import extract
from sophia_mcore.verify.rules import rule_for
from sophia_mcore.verify.types import RULES_VERSION, VERIFIER, Grade, GradeItem, Judge

WINDOW = 4096  # items read ahead of the slowest unanswered one
CACHE_ENTRIES = 200_000
POLL_EVERY = 64
_VERDICTS: dict[str, VerdictName] = {"equal": "correct", "different": "wrong", "timeout": "timeout", "error": "error"}


def verifier_version(judge: Judge | None = None) -> str:
    """Version of our rules, of the library behind them, and of the judge if there is one."""
    try:
        library = importlib.metadata.version("math-verify")
    except importlib.metadata.PackageNotFoundError as error:
        raise SophiaError("grading needs the package math-verify: pip install 'sophia-mcore[score]'") from error
    return f"{RULES_VERSION}+math-verify-{library}" + (f"+{judge.version}" if judge else "")


@dataclass(slots=True)
class _Row:
    """An item on its way; ``grade`` is set at the end."""

    base: Grade  # all but the verdict
    gold: exact.Gold
    question: str
    grade: Grade | None = None


class Grader:
    """Grades answers; a context manager that owns its worker processes and its judge.

    ``workers`` processes compare what the exact rules leave open, each comparison for at most ``timeout_seconds`` of
    CPU time and within ``memory_limit_mib`` of memory. ``judge`` decides on free text that is not the gold answer's.
    One stuck or dead worker never loses or reorders another's answer. Not for use by two threads at once; each thread
    may have its own. Raises SophiaError when math-verify is missing.
    """

    def __init__(
        self,
        workers: int = 2,
        timeout_seconds: float = 1.0,
        memory_limit_mib: int = 2048,
        judge: Judge | None = None,
    ) -> None:
        self._judge = judge
        self.version = verifier_version(judge)
        self._pool = Pool(workers, timeout_seconds, memory_limit_mib)
        self._cache: dict[Hashable, VerdictName] = {}
        self._waiting: dict[Hashable, list[_Row]] = {}  # rows that await the same comparison or judgement
        self._judged: queue.SimpleQueue[tuple[Hashable, Future[Any]]] = queue.SimpleQueue()
        self._prepare_gold = lru_cache(maxsize=4096)(_prepare_gold)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()
        if self._judge:
            self._judge.close()

    def grade_many(self, items: Iterable[GradeItem]) -> Iterator[Grade]:
        """Grades in the order of the items, read lazily at most ``WINDOW`` ahead.

        Raises SophiaError if no worker process can start, and whatever the judge raises.
        """
        window: deque[_Row] = deque()
        source = iter(items)
        more = True
        while more or window:
            while more and len(window) < WINDOW:
                item = next(source, None)
                if item is None:
                    more = False
                    break
                window.append(self._start(item))
                if window[0].grade is not None or (self._waiting and len(window) % POLL_EVERY == 0):
                    break
            while window and window[0].grade is not None:
                yield window.popleft().grade  # type: ignore[misc]
            if self._waiting:
                self._collect(blocking=bool(window) and (not more or len(window) >= WINDOW))

    # ---- one item

    def _start(self, item: GradeItem) -> _Row:
        started = time.perf_counter()
        try:
            gold = self._prepare_gold(item.answer, item.answer_type, item.options, item.rules, item.tolerance)
        except Exception:  # a mistake of ours on a strange gold answer: the worker will meet it too and say "error"
            gold = exact.Gold(item.answer, item.answer, "", item.options, rule_for(item.rules))
        extracted = extract(item.response, gold.type, gold.options if gold.type == "choice" else ())
        row = _Row(
            Grade(item.id, "no_answer", extracted or "", gold.type, 0.0, VERIFIER, self.version), gold, item.question
        )
        if extracted is not None:
            self._compare(row, started)
        elif self._judge and self._judge.extracts and item.response.strip():
            key = ("extract", item.question, item.response)
            if self._wait_for(key, row):
                self._on_judgement(key, self._judge.extraction(item.question, item.response))
        else:
            row.grade = row.base
        return row

    def _compare(self, row: _Row, started: float) -> None:
        """Set the row's grade, or let it wait for the workers or the judge."""
        gold, extracted = row.gold, row.base.extracted
        judged = self._judge is not None and gold.type == "text" and gold.rule.judge
        key: Hashable = (gold, extracted, row.question if judged else "")
        verdict = self._cache.get(key)
        if verdict is None and key not in self._waiting:
            decided = _decide(gold, extracted)
            if decided is not None and not (judged and not decided):
                verdict = "correct" if decided else "wrong"
            elif decided is None and _endless(extracted):
                verdict = "timeout"  # no worker would come to an end
            if verdict is not None:
                self._remember(key, verdict)
        if verdict is not None:
            row.grade = replace(row.base, verdict=verdict, seconds=time.perf_counter() - started)
        elif self._wait_for(key, row):
            if judged and self._judge:
                self._on_judgement(key, self._judge.verdict(row.question, gold.raw, extracted))
            else:
                self._pool.submit(key, _task(gold, extracted))

    def _wait_for(self, key: Hashable, row: _Row) -> bool:
        """Whether this row is the first to wait for ``key``."""
        rows = self._waiting.setdefault(key, [])
        rows.append(row)
        return len(rows) == 1

    # ---- results

    def _on_judgement(self, key: Hashable, future: Future[Any]) -> None:
        future.add_done_callback(lambda done: self._judged.put((key, done)))

    def _collect(self, blocking: bool) -> None:
        """Settle what has finished; ``blocking``: wait a little if nothing has."""
        with contextlib.suppress(queue.Empty):
            while self._judge:
                idle = blocking and not self._pool.pending
                self._judgement(*(self._judged.get(timeout=0.05) if idle else self._judged.get_nowait()))
                blocking = False
        if self._pool.pending:
            wait = (0.05 if self._judge else 1.0) if blocking else 0.0
            for key, outcome in self._pool.collect(wait):
                self._settle(key, _VERDICTS[outcome.kind], outcome)

    def _judgement(self, key: Hashable, future: Future[Any]) -> None:
        assert isinstance(key, tuple)
        result = future.result()
        if key[0] != "extract":
            self._settle(key, result, None)
            return
        for row in self._waiting.pop(key):
            if result:
                row.base = replace(row.base, extracted=result)
                self._compare(row, time.perf_counter())
            else:
                row.grade = replace(row.base, verdict="error" if result is None else "no_answer")

    def _settle(self, key: Hashable, verdict: VerdictName, outcome: Outcome | None) -> None:
        if verdict != "error":
            self._remember(key, verdict)
        for index, row in enumerate(self._waiting.pop(key)):
            row.grade = replace(row.base, verdict=verdict, seconds=outcome.seconds if outcome and not index else 0.0)

    def _remember(self, key: Hashable, verdict: VerdictName) -> None:
        if len(self._cache) >= CACHE_ENTRIES:
            self._cache.clear()
        self._cache[key] = verdict


def grade_one(
    response: str,
    answer: str,
    answer_type: str = "",
    options: Sequence[str] = (),
    question: str = "",
    *,
    rules: str = "",
    tolerance: float | None = None,
    judge: Judge | None = None,
) -> Grade:
    r"""The verdict on one response; the fields are those of ``GradeItem``. For many responses use ``Grader``.

    A worker process starts (about a second) only when the exact rules leave the comparison open. Only ``judge`` reads
    the question.

    >>> grade_one(r"Half of it, so \boxed{\frac{1}{2}}.", "0.5").verdict
    'correct'
    """
    item = GradeItem("", response, answer, answer_type, tuple(options), rules, tolerance, question)
    with Grader(workers=1, judge=judge) as grader:
        return next(grader.grade_many([item]))


def _prepare_gold(
    answer: str, answer_type: str, options: tuple[str, ...], benchmark: str, tolerance: float | None
) -> exact.Gold:
    rule = rule_for(benchmark)
    return exact.prepare(
        answer, answer_type, options, rule if tolerance is None else replace(rule, absolute=None, tolerance=tolerance)
    )


def _decide(gold: exact.Gold, prediction: str) -> bool | None:
    try:
        return exact.decide(gold, prediction)
    except Exception:  # a mistake of ours on a strange answer: the worker will meet it too and say "error"
        return None


def _endless(prediction: str) -> bool:
    try:
        return exact.endless(prediction)
    except Exception:  # as above
        return False


def _task(gold: exact.Gold, prediction: str) -> dict[str, Any]:
    return {
        "gold": gold.raw,
        "prediction": prediction,
        "type": gold.type if gold.given else "",
        "options": gold.options,
        "rule": asdict(gold.rule),
    }
