"""The requests of one work unit on their way to records, whatever order they end in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.generate.phase import Asked
from sophia_mcore.store.units import Unit

TokensOf = Callable[[int], int]  # tokens that the request of a place has so far


class UnitWork(Protocol):
    """A unit between its claim and its shard. A place is the number of a request within the unit."""

    unit: Unit
    size: int  # requests, those that may never be asked included

    def ready(self, most: int) -> list[tuple[int, Request]]:
        """At most so many requests that can be asked now; each is given once."""

    def take(self, place: int, completion: Completion) -> None:
        """A request has ended."""

    def job(self) -> Callable[[], Any] | None:
        """What is to be done beside the engine, such as verdicts; None: nothing. Not called while one is running."""

    def settle(self, result: Any) -> None:
        """A job has ended with this result."""

    def cut(self, tokens: TokensOf) -> list[int]:
        """Running requests that need not go on; they never end."""

    @property
    def over(self) -> int:
        """How many requests need nothing more of the engine."""

    def outcome(self) -> tuple[Sequence[Any], Mapping[str, Any]] | None:
        """Once all is done: the records in the order of their requests, and what the shard's metadata says of them."""


class WholeUnit:
    """All requests of a unit are asked. ``grade`` turns all records into what is stored (None: the records)."""

    def __init__(
        self,
        unit: Unit,
        asked: Sequence[Asked[Any]],
        model_digest: str,
        grade: Callable[[Sequence[Any]], Sequence[Any]] | None,
    ) -> None:
        self.unit, self.size = unit, len(asked)
        self._asked, self._digest, self._grade = asked, model_digest, grade
        self._given = 0
        self._records: dict[int, Any] = {}
        self._stored: Sequence[Any] | None = None

    def ready(self, most: int) -> list[tuple[int, Request]]:
        begin, self._given = self._given, min(self._given + most, self.size)
        return [(place, self._asked[place].request) for place in range(begin, self._given)]

    def take(self, place: int, completion: Completion) -> None:
        self._records[place] = self._asked[place].record(completion, self._digest)

    def job(self) -> Callable[[], Any] | None:
        if len(self._records) < self.size or self._stored is not None:
            return None
        records = [self._records[place] for place in range(self.size)]
        if self._grade is None:
            self._stored = records
            return None
        grade = self._grade
        return lambda: grade(records)

    def settle(self, result: Any) -> None:
        self._stored = result

    def cut(self, tokens: TokensOf) -> list[int]:
        return []

    @property
    def over(self) -> int:
        return len(self._records)

    def outcome(self) -> tuple[Sequence[Any], Mapping[str, Any]] | None:
        return None if self._stored is None else (self._stored, {})
