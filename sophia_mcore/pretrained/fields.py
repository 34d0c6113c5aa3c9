"""Reads keys of a config.json. Errors name the section and the key."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from sophia_mcore.errors import UsageError


class Fields:
    """Reads keys of one section of a config.json. All methods raise UsageError. ``where``: the section, for errors."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def need(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise UsageError(f"{self.where}: {key} is missing")
        return self.values[key]

    def get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def size(self, key: str, default: int | None = None) -> int:
        """The value of ``key``, which must be a whole number above 0."""
        value = self.need(key) if default is None else self.get(key, default)
        if type(value) is not int or value < 1:
            raise UsageError(f"{self.where}: {key} = {value!r} is not a whole number above 0")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """The value of ``key``, which must be a finite number above 0."""
        value = self.need(key) if default is None else self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise UsageError(f"{self.where}: {key} = {value!r} is not a number above 0")
        return float(value)

    def divides(self, name: str, part: int, of: str, whole: int) -> None:
        """Check that ``part`` divides ``whole`` without remainder (heads and hidden size, for example)."""
        if whole % part:
            raise UsageError(f"{self.where}: {name} = {part} does not divide {of} = {whole}")

    def section(self, key: str) -> Fields:
        return Fields(self.need(key), f"{self.where}: {key}")

    def only(self, key: str, *allowed: Any) -> None:
        """Check that ``key`` is missing or has one of the values that this implementation supports."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise UsageError(f"{self.where}: {key} = {value!r} is not supported, only {choices}")


def side_of_square(value: int | list[int], where: str, key: str) -> int:
    """Side of a square that is given as a number or as [side, side]. Raises UsageError if it is not a square."""
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise UsageError(f"{where}: {key} = {value} is not square")
    side = int(sides.pop())
    if side < 1:
        raise UsageError(f"{where}: {key} = {value} is not above 0")
    return side


def nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
