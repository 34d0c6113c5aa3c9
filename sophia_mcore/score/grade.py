"""The grader: extraction, the exact path, caches, and the killable workers behind one iterator."""

from __future__ import annotations

import importlib.metadata
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from sophia_mcore.config.schema import Score
from sophia_mcore.records import VerdictName
from sophia_mcore.score import exact
from sophia_mcore.score.extract import extract
from sophia_mcore.score.pool import Outcome, Pool
from sophia_mcore.score.rules import Rule, rule_for
from sophia_mcore.score.types import RULES_VERSION, VERIFIER, Grade, GradeItem

WINDOW = 4096  # items read ahead of the slowest unanswered one
CACHE_ENTRIES = 200_000
POLL_EVERY = 64
_VERDICTS: dict[str, VerdictName] = {"equal": "correct", "different": "wrong", "timeout": "timeout", "error": "error"}


def verifier_version() -> str:
    """Version of our rules and of the library behind them."""
    return f"{RULES_VERSION}+math-verify-{importlib.metadata.version('math-verify')}"


@dataclass(slots=True)
class _Row:
    grade: Grade | None
    base: Grade | None = None  # all but the verdict, while it is awaited


Key = tuple[exact.Gold, str]


class Grader:
    """Grades answers; a context manager that owns its worker processes.

    One unanswerable or dead worker never loses or reorders another's answer. Not for use by two threads at once; each
    thread may have its own.
    """

    def __init__(self, config: Score) -> None:
        self._pool = Pool(config.workers, config.timeout_seconds, config.memory_limit_mib)
        self._cache: dict[Key, VerdictName] = {}
        self._waiting: dict[Key, list[_Row]] = {}
        self._version = verifier_version()
        self._prepare_gold = lru_cache(maxsize=4096)(_prepare_gold)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def grade_many(self, items: Iterable[GradeItem]) -> Iterator[Grade]:
        """Grades in the order of the items, read lazily at most ``WINDOW`` ahead.

        Raises SophiaError if no worker process can start.
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
                window.append(self._prepare(item))
                if window[0].grade is not None or (self._waiting and len(window) % POLL_EVERY == 0):
                    break
            while window and window[0].grade is not None:
                yield window.popleft().grade  # type: ignore[misc]
            if self._waiting:
                blocked = not more or len(window) >= WINDOW
                for key, outcome in self._pool.collect(1.0 if blocked and window else 0.0):
                    self._settle(key, outcome)

    def _prepare(self, item: GradeItem) -> _Row:
        started = time.perf_counter()
        gold = self._prepare_gold(item.answer, item.answer_type, item.options, item.rules, item.tolerance)
        extracted = extract(item.response, gold.type)
        base = Grade(item.id, "no_answer", extracted or "", gold.type, 0.0, VERIFIER, self._version)
        if extracted is None:
            return _Row(base)
        key = (gold, extracted)
        verdict = self._cache.get(key)
        if verdict is None and key not in self._waiting:
            decided = exact.decide(gold, extracted)
            if decided is not None:
                verdict = "correct" if decided else "wrong"
                self._remember(key, verdict)
            else:
                self._waiting[key] = []
                self._pool.submit(key, _task(gold, extracted))
        if verdict is not None:
            return _Row(replace(base, verdict=verdict, seconds=time.perf_counter() - started))
        row = _Row(None, base)
        self._waiting[key].append(row)
        return row

    def _settle(self, key: Key, outcome: Outcome) -> None:
        verdict = _VERDICTS[outcome.kind]
        self._remember(key, verdict)
        for index, row in enumerate(self._waiting.pop(key)):
            assert row.base is not None
            row.grade = replace(row.base, verdict=verdict, seconds=0.0 if index else outcome.seconds)

    def _remember(self, key: Key, verdict: VerdictName) -> None:
        if len(self._cache) >= CACHE_ENTRIES:
            self._cache.clear()
        self._cache[key] = verdict


def _prepare_gold(
    answer: str, answer_type: str, options: tuple[str, ...], benchmark: str, tolerance: float | None
) -> exact.Gold:
    rule = rule_for(benchmark)
    return exact.prepare(answer, answer_type, options, rule if tolerance is None else replace(rule, absolute=tolerance))


def _task(gold: exact.Gold, prediction: str) -> dict[str, Any]:
    rule: Rule = gold.rule
    return {
        "gold": gold.raw, "prediction": prediction, "type": gold.type, "options": gold.options, "rule": asdict(rule),
    }  # fmt: skip
