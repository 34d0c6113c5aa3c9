"""VLMEvalKit's result tables, cell for cell, from scored answers: what its own code prints for the same answers.

A row is an object from column to value. None: no question of that kind, where its table has an empty cell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Table = list[dict[str, Any]]
OLYMPIAD_SOURCES = (
    "OE_MM_maths_en_COMP", "OE_MM_maths_zh_CEE", "OE_MM_maths_zh_COMP", "OE_MM_physics_en_COMP",
    "OE_MM_physics_zh_CEE", "OE_TO_maths_en_COMP", "OE_TO_maths_zh_CEE", "OE_TO_maths_zh_COMP",
    "OE_TO_physics_en_COMP", "OE_TO_physics_zh_CEE",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer for the tables: the question's values, whether it is right, whether it was read without an LLM."""

    values: Mapping[str, Any]
    right: bool
    direct: bool = False


def _mean(rows: Sequence[Scored]) -> float | None:
    return sum(row.right for row in rows) / len(rows) if rows else None


def _where(rows: Iterable[Scored], key: str, value: str) -> list[Scored]:
    return [row for row in rows if row.values.get(key) == value]


def _distinct(rows: Iterable[Scored], key: str) -> list[str]:
    return list(dict.fromkeys(str(row.values[key]) for row in rows if row.values.get(key)))


def by_split(rows: Sequence[Scored]) -> Table:
    """MMMU and MMMU-Pro: shares per split: all, then disciplines, then subjects, each in alphabetical order."""
    splits = _distinct(rows, "split") or ["none"]
    table: Table = []
    for split in splits:
        chosen = _where(rows, "split", split) if split != "none" else list(rows)
        line: dict[str, Any] = {"split": split, "Overall": _mean(chosen)}
        for key in ("l2-category", "category"):
            for name in sorted(_distinct(rows, key)):
                line[name] = _mean(_where(chosen, key, name))
        table.append(line)
    return table


def _hits(rows: Sequence[Scored], first: str, kinds: Callable[[Scored], Iterable[str]]) -> Table:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows:
        for kind in ("Overall", *filter(None, kinds(row))):
            for place, one in enumerate((True, row.direct, row.right)):
                counts[kind][place] += one
    return [
        {
            first: kind,
            "tot": total,
            "prefetch": direct,
            "hit": right,
            "prefetch_rate": direct / total * 100,
            "acc": right / total * 100,
        }
        for kind, (total, direct, right) in counts.items()
    ]


def hits_by_task_and_skill(rows: Sequence[Scored]) -> Table:
    """MathVista: percent, overall, per skill and per task (a question counts in each of its skills)."""
    return _hits(rows, "Task&Skill", lambda row: [*row.values["skills"], row.values["task"]])


def hits_by_category(rows: Sequence[Scored]) -> Table:
    """MathVision: percent, overall and per subject, sorted."""
    table = _hits(rows, "Subject", lambda row: [row.values["category"]])
    return sorted(table, key=lambda line: str(line["Subject"]))


def by_version(rows: Sequence[Scored]) -> Table:
    """MathVerse: percent per version: all, then subjects and subfields."""
    table: Table = []
    for version in _distinct(rows, "problem_version"):
        chosen = _where(rows, "problem_version", version)
        line: dict[str, Any] = {"split": version, "Overall": 100 * (_mean(chosen) or 0.0)}
        for key in ("subject", "subfield"):
            for name in _distinct(rows, key):
                share = _mean(_where(chosen, key, name))
                line[name] = None if share is None else 100 * share
        table.append(line)
    return table


def average_and_worst(rows: Sequence[Scored]) -> Table:
    """DynaMath: shares over all variants, and of the seed questions whose variants are all right."""
    seeds: dict[str, bool] = {}
    for row in rows:
        seeds[row.values["qid"]] = seeds.get(row.values["qid"], True) and row.right
    firsts = _where(rows, "varid", "1")
    worst = [Scored(row.values, seeds[row.values["qid"]]) for row in firsts]
    table: Table = []
    for setting, chosen in (("Average", list(rows)), ("Worst Case", worst)):
        line: dict[str, Any] = {"Setting": setting, "Overall": _mean(chosen)}
        for prefix, key in (("Subject", "subject"), ("Level", "knowledge_level")):
            for name in _distinct(rows, key):
                line[f"{prefix}-{name}"] = _mean(_where(chosen, key, name))
        table.append(line)
    return table


def by_source(rows: Sequence[Scored]) -> Table:
    """OlympiadBench: percent per source, per language and subject, per subject; AVG divides by all rows there are."""
    line: dict[str, Any] = {}
    sources = {name: _where(rows, "source", name) for name in OLYMPIAD_SOURCES}

    def percent(words: Sequence[str]) -> float | None:
        names = [name for name in sources if all(word in name for word in words)]
        share = _mean([row for name in names for row in sources[name]])
        return None if share is None else 100 * share

    for name in OLYMPIAD_SOURCES:
        line[name] = percent([name])
    for words in (("zh", "maths"), ("zh", "physics"), ("en", "maths"), ("en", "physics"), ("maths",), ("physics",)):
        line["_".join(words)] = percent(words)
    counted = [row for chosen in sources.values() for row in chosen]
    line["AVG"] = 100 * sum(row.right for row in counted) / len(rows) if rows else None
    return [line]


TABLES: dict[str, Callable[[Sequence[Scored]], Table]] = {
    "by_split": by_split,
    "hits_by_task_and_skill": hits_by_task_and_skill,
    "hits_by_category": hits_by_category,
    "by_version": by_version,
    "average_and_worst": average_and_worst,
    "by_source": by_source,
    "none": lambda rows: [],
}
