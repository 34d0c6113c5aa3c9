"""The tables of rules.toml: names of answer types, units, and the precision of each benchmark."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TYPES = (
    "integer", "decimal", "percent", "fraction", "scientific", "quantity", "expression", "equation", "interval",
    "tuple", "set", "matrix", "several", "parts", "choice", "yes_no", "date", "time", "list", "text",
)  # fmt: skip
NUMBER_TYPES = frozenset({"integer", "decimal", "percent", "fraction", "scientific"})


@dataclass(frozen=True, slots=True)
class Rule:
    """Precision of comparison; every field is a key of rules.toml (docs/grading.md).

    ``places``: numbers written with a decimal point are equal when they agree after rounding to so many places.
    ``absolute``, ``relative``: largest difference allowed, for any number; of a gold answer below 0.01 ``absolute``
    counts in proportion. ``tolerance``: largest difference allowed, as it comes with the answer. ``gold_places``: the
    prediction is rounded to as many places as the gold answer has. ``truncate_integers``: decimals of the prediction
    are cut off when the gold answer is an integer. ``similar_option``: a prediction that names no option takes the
    most similar one. ``alternatives``: a gold answer that is a list of texts, or holds "##", names several of which
    any is right. ``contained``: short words count as given where only words that say nothing stand beside them.
    ``judge``: free text is put before the language-model judge if there is one.
    """

    places: int | None = 6
    absolute: float | None = None
    tolerance: float | None = None
    relative: float | None = None
    gold_places: bool = False
    truncate_integers: bool = False
    similar_option: bool = False
    alternatives: bool = False
    contained: bool = False
    judge: bool = True

    @property
    def tolerant(self) -> bool:
        """Whether numbers may differ."""
        return (self.absolute, self.relative, self.tolerance) != (None, None, None)


@dataclass(frozen=True)
class Tables:
    """Contents of rules.toml."""

    aliases: dict[str, str]
    inferred: frozenset[str]  # names of a question's type that say nothing of the answer's form
    units: dict[str, str]  # spelling -> name in pint
    currencies: dict[str, str]  # spelling, sign or word -> name
    benchmarks: dict[str, Rule]
    default: Rule
    names: dict[str, str]  # beginning of a source's name -> benchmark
    numerals: dict[str, int]  # words for 0 to 19 and the tens
    not_nouns: frozenset[str]
    qualifiers: frozenset[str]
    plurals: frozenset[str]
    harmless: frozenset[str]
    class_nouns: frozenset[str]
    class_nouns_of_any: frozenset[str]
    elements: frozenset[str]


@cache
def tables() -> Tables:
    """The shipped tables, read once."""
    raw: dict[str, Any] = tomllib.loads((Path(__file__).parent / "rules.toml").read_text(encoding="utf-8"))
    aliases = {name: kind for kind, names in raw["types"].items() for name in [kind, *names]}
    units = {spelling: unit for unit, spellings in raw["units"].items() for spelling in spellings}
    currencies = {spelling: name for name, spellings in raw["currencies"].items() for spelling in spellings}
    benchmarks = {name: Rule(**{**raw["default"], **values}) for name, values in raw["benchmarks"].items()}
    names = {name: name for name in benchmarks} | raw["names"]
    words = raw["words"]
    numerals = {word: value for value, word in enumerate(words["ones"])}
    numerals |= {word: 10 * tens for tens, word in enumerate(words["tens"], start=2)}
    sets = [frozenset(words[name]) for name in ("not_nouns", "qualifiers", "plurals", "harmless")]
    sets += [frozenset(words[name]) for name in ("class_nouns", "class_nouns_of_any", "elements")]
    inferred = frozenset(raw["inferred"]["names"])
    return Tables(aliases, inferred, units, currencies, benchmarks, Rule(**raw["default"]), names, numerals, *sets)


def rule_for(benchmark: str) -> Rule:
    """The rule of a benchmark by name (case, spaces and punctuation do not count); the default for any other name."""
    return tables().benchmarks.get(known_benchmark(benchmark), tables().default)


@cache
def known_benchmark(name: str) -> str:
    """The benchmark that a source is named after; "" if there is none.

    Its name is the longest beginning of ``name`` in whole words, without what stands before a slash.

    >>> known_benchmark("MMMU-Pro"), known_benchmark("AI4Math/MathVista_MINI"), known_benchmark("mathvist")
    ('mmmupro', 'mathvista', '')
    """
    words = re.findall(r"[a-z0-9]+", name.casefold().rpartition("/")[2])
    names = tables().names
    return next((names[key] for n in range(len(words), 0, -1) if (key := "".join(words[:n])) in names), "")


def known_type(name: str) -> str:
    """Our name of an answer type as a data set calls it; "" for an unknown name.

    >>> known_type("multi_choice")
    'choice'
    """
    return tables().aliases.get(_spelled(name), "")


def is_type_name(name: str) -> bool:
    """Whether a data set may call an answer's type so; for some names the type is inferred all the same.

    >>> is_type_name("short-answer"), known_type("short-answer"), is_type_name("shrot-answer")
    (True, '', False)
    """
    return _spelled(name) in tables().inferred or known_type(name) != ""


def _spelled(name: str) -> str:
    return re.sub(r"[ -]+", "_", name.strip().casefold())
