"""Which module decides how many verdicts.

python -m tests.bench.bench_deciders [--run RUN ...] [--pairs FILE.jsonl ...] [--stream QUESTIONS]
    [--kinds N] [--rare N] [--off MODULE.FUNCTION ...]

Prints one table row per module and one column per set. --run: the trajectories of a run's rounds; --pairs: lines with
"response", "answer" (or "gold") and, where they have them, "type", "options", "benchmark"; --stream: those of
tests/bench/answers; --kinds: N made pairs of each kind of tests/unit/test_grade_kinds. A verdict belongs to the module
whose function first returned it, and "workers" are what the exact rules leave open. --rare: a second table, of the
functions that decide at most N verdicts of all sets together, with what the workers' libraries (math-verify, pint) say
of the same answers. --off: a third one, of the verdicts that change where one of these functions leaves everything open
to the rules behind it and, in the end, to the libraries.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

from sophia_mcore.records import Question, Trajectory
from sophia_mcore.store.shards import read_folder, read_shard
from sophia_mcore.verify import GradeItem
from sophia_mcore.verify.comparing import exact
from sophia_mcore.verify.comparing.equivalence import algebra_equal, converted_equal, equivalent
from sophia_mcore.verify.comparing.unread import nothing_unread
from sophia_mcore.verify.reading.extract import extract
from sophia_mcore.verify.rules import rule_for
from tests.bench.answers import stream
from tests.support import grade_corrections, grade_kinds, grade_lookalikes

PACKAGE = str(Path(exact.__file__).parent)


WORKERS = "workers"


def decider(decide: Callable[[], bool | None]) -> str:
    """The function that first returned the value that ``decide`` returns, as "module.name"; WORKERS for None."""
    # per frame: the last (value, function) that a function called from it returned
    stack: list[tuple[bool, str] | None] = [None]

    def watch(frame: FrameType, event: str, value: Any) -> None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if event == "call":
            stack.append(None)
        elif event == "return":
            inner = stack.pop()
            if isinstance(value, bool):
                code = frame.f_code
                own = f"{Path(code.co_filename).stem}.{code.co_name}"
                stack[-1] = (value, inner[1] if inner and inner[0] is value else own)

    sys.setprofile(watch)
    try:
        result = decide()
    finally:
        sys.setprofile(None)
    return WORKERS if result is None or stack[0] is None else stack[0][1]


@dataclass(frozen=True)
class Decided:
    """An answer, the function that decided about it, and its verdict."""

    by: str
    gold: exact.Gold
    found: str
    verdict: bool | None


def decided(items: Iterable[GradeItem]) -> Iterator[Decided]:
    """Each answer, graded without the workers."""
    for item in items:
        gold = exact.prepare(item.answer, item.answer_type, item.options, rule_for(item.rules))
        found = extract(item.response, gold.type)
        if found is None:
            yield Decided("extract (no answer)", gold, "", False)
        else:
            yield Decided(decider(partial(exact.decide, gold, found)), gold, found, exact.decide(gold, found))
        for cached in (exact.parse_number, exact.evaluate):
            cached.cache_clear()  # type: ignore[attr-defined]


def by_library(one: Decided) -> bool:
    """What math-verify and pint say of an answer."""
    text = exact.clean(one.found)
    converted = converted_equal(one.gold.text, text)
    if converted is not None:
        return converted
    return nothing_unread(one.gold.text, text) and algebra_equal(one.gold.text, text, one.gold.type == "interval")


def rare_table(found: Sequence[Decided], most: int) -> str:
    """A row for each function that decides, but at most ``most`` verdicts: how many, and how many a library turns."""
    counts = Counter(one.by for one in found if one.verdict is not None and "." in one.by)
    lines = ["| function | decides | a library says otherwise | such as |", "|---|---|---|---|"]
    for name, number in sorted(counts.items(), key=lambda pair: (pair[1], pair[0])):
        if number > most:
            continue
        turned = [one for one in found if one.by == name and by_library(one) is not one.verdict]
        shown = f"`{turned[0].found}` for `{turned[0].gold.raw}`" if turned else ""
        lines.append(f"| {name} | {number} | {len(turned)} | {shown} |")
    return "\n".join(lines)


def verdicts(items: Sequence[GradeItem], off: str = "") -> list[bool]:
    """Whether each answer is right, in this process. ``off``: the function that decides nothing."""
    module, _, name = off.partition(".")
    nothing = patch(f"sophia_mcore.verify.{module}.{name}", lambda *_, **__: None) if off else nullcontext()
    with nothing:
        _forget()
        return [_is_right(item) for item in items]


def _is_right(item: GradeItem) -> bool:
    gold = exact.prepare(item.answer, item.answer_type, item.options, rule_for(item.rules))
    found = extract(item.response, gold.type)
    if found is None:
        return False
    result = exact.decide(gold, found)
    if result is not None:
        return result
    task = {"gold": gold.raw, "prediction": found, "type": gold.type if gold.given else "", "options": gold.options}
    return equivalent({**task, "rule": asdict(gold.rule)})


def _forget() -> None:
    """Empty the caches of the verifier's functions."""
    for name, module in list(sys.modules.items()):
        if name.startswith("sophia_mcore.verify."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def off_table(items: Sequence[GradeItem], names: Sequence[str]) -> str:
    """A row for each function: how many verdicts change without it."""
    whole = verdicts(items)
    lines = ["| without | verdicts that change | such as |", "|---|---|---|"]
    for name in names:
        turned = [one for one, a, b in zip(items, whole, verdicts(items, name), strict=True) if a is not b]
        shown = f"`{turned[0].response[-60:]!r}` for `{turned[0].answer}`" if turned else ""
        lines.append(f"| {name} | {len(turned)} of {len(items)} | {shown} |")
    return "\n".join(lines)


def of_run(run: Path) -> Iterator[GradeItem]:
    """All trajectories of all rounds."""
    questions = {q.id: q for q in read_shard(run / "questions.parquet", Question)}
    for folder in sorted(run.glob("round-*/trajectories")):
        for row in read_folder(folder, Trajectory):
            q = questions[row.question_id]
            text = "" if row.finish_reason == "length" else row.text
            yield GradeItem(row.id, text, q.answer, q.answer_type, q.options, q.source)


def of_pairs(path: Path) -> Iterator[GradeItem]:
    """The lines of a file; the file's name stands for the benchmark where a line names none."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        kind = row.get("type") or row.get("answer_type") or ""
        options, rules = tuple(row.get("options") or ()), row.get("benchmark") or row.get("rules") or path.stem
        answer = row["answer"] if "answer" in row else row["gold"]
        yield GradeItem(str(row.get("id", number)), row["response"], str(answer), kind, options, rules)


def of_kinds(number: int) -> Iterator[GradeItem]:
    """Pairs of each kind that is easily mistaken, right and wrong ones."""
    for kind, maker in (grade_kinds.KINDS | grade_lookalikes.KINDS | grade_corrections.KINDS).items():
        chance = random.Random(kind)
        made: list[grade_kinds.Pair] = []
        while len(made) < number:
            made += maker(chance)
        for index, pair in enumerate(made):
            yield GradeItem(f"{kind}{index}", pair.response, pair.gold, pair.type, pair.options, pair.rules)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, nargs="*", default=[])
    parser.add_argument("--pairs", type=Path, nargs="*", default=[])
    parser.add_argument("--stream", type=int, default=0, metavar="QUESTIONS")
    parser.add_argument("--kinds", type=int, default=0, metavar="N")
    parser.add_argument("--rare", type=int, default=0, metavar="N")
    parser.add_argument("--off", nargs="*", default=[], metavar="MODULE.FUNCTION")
    options = parser.parse_args()
    items: dict[str, list[GradeItem]] = {}
    if options.run:
        items["runs"] = [item for run in options.run for item in of_run(run)]
    if options.stream:
        items["stream"] = list(stream(options.stream, 8))
    if options.pairs:
        items["pairs"] = [item for path in options.pairs for item in of_pairs(path)]
    if options.kinds:
        items["kinds"] = list(of_kinds(options.kinds))
    found = {name: list(decided(some)) for name, some in items.items()}
    columns = {name: Counter(one.by.partition(".")[0] for one in rows) for name, rows in found.items()}
    print("| decided by | " + " | ".join(f"{name} ({c.total()})" for name, c in columns.items()) + " |")
    print("|---" * (len(columns) + 1) + "|")
    total = sum(columns.values(), Counter())
    for module, _ in total.most_common():
        print(f"| {module} | " + " | ".join(f"{100 * c[module] / c.total():.2f}%" for c in columns.values()) + " |")
    if options.rare:
        print()
        print(rare_table([one for rows in found.values() for one in rows], options.rare))
    if options.off:
        print()
        print(off_table([item for some in items.values() for item in some], options.off))


if __name__ == "__main__":
    main()
