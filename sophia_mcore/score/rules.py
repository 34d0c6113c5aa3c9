"""The tables of rules.toml: names of answer types, and precision by benchmark; and inferring a type."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sophia_mcore.score import exact


@dataclass(frozen=True)
class Tables:
    """Contents of rules.toml."""

    aliases: dict[str, str]


@cache
def tables() -> Tables:
    """The shipped tables, read once."""
    raw: dict[str, Any] = tomllib.loads((Path(__file__).parent / "rules.toml").read_text())
    return Tables(aliases=raw["aliases"])


_OPTION_LETTER = re.compile(r"[(\[]?[A-J][)\].]?")


def answer_type(given: str, answer: str, options: tuple[str, ...]) -> str:
    """The type to grade by: a known given name, else inferred from the gold answer and the options.

    >>> answer_type("", "B", ())
    'choice'
    """
    known = tables().aliases.get(given.strip().casefold(), "") if given else ""
    if known and not (known == "choice" and not options and not _OPTION_LETTER.fullmatch(answer.strip())):
        return known
    if options and exact.option_index(exact.clean(answer), options) is not None:
        return "choice"
    return infer(exact.clean(answer))


def infer(gold: str) -> str:
    """Type of a cleaned gold answer from its form alone."""
    if _OPTION_LETTER.fullmatch(gold):
        return "choice"
    if exact.plain_text(gold) in exact.YES_NO:
        return "yes_no"
    if exact.parse_number(gold) is not None:
        return "number"
    if exact.is_words(exact.plain_text(gold)):
        return "text"
    return "math"
