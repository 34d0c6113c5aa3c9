"""Two runs side by side: settings that differ, benchmarks, pass@1 with the difference's interval, flipped questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.phase import Phase
from sophia_mcore.records import Question
from sophia_mcore.report.answer import bars
from sophia_mcore.report.benchmarks import blocks
from sophia_mcore.report.charts import Charted, charts
from sophia_mcore.report.collect import collect
from sophia_mcore.report.on_policy import on_policy
from sophia_mcore.report.pairs import answers_of, pair
from sophia_mcore.report.reading import Problems, records
from sophia_mcore.report.rendering import render
from sophia_mcore.store.atomic import write_text
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.track.runs import redact


def write_comparison(
    first: tuple[RunFolder, Config],
    second: tuple[RunFolder, Config],
    phases: Sequence[Phase],
    target: Path | None = None,
) -> Path:
    """Write the page that compares two runs to ``target`` (default: into the second's folder) and return it.

    Damaged parts are named on the page. Raises UsageError for a target whose name is not a page's.
    """
    target = target or second[0].path / f"compare-with-{first[0].path.resolve().name}.html"
    if target.suffix != ".html" or target.is_dir():
        raise UsageError(f"--output {target}: the name of a page ends in .html, such as compare.html")
    runs = [_charted(*first, phases, "A"), _charted(*second, phases, "B")]
    pairs = compare_answers(runs[0], runs[1])
    evaluations = {f"{c.name}, {label}": one for c in runs for label, one in c.report["evaluation"].items()}
    missing = [f"{charted.name}: {line}" for charted in runs for line in charted.report["missing"]]
    missing += [f"{c.name}: {line}" for c in runs for line in c.problems.lines if line not in c.report["missing"]]
    page = render(
        "compare.html.jinja",
        ["page.js"],
        runs=runs,
        pairs=pairs,
        blocks=blocks(evaluations),
        settings=differing_settings(first[1], second[1]),
        missing=missing,
        stale=[f"{charted.name}: {line}" for charted in runs for line in charted.report["stale"]],
        unchecked=[f"{charted.name}: {line}" for charted in runs for line in charted.report["unchecked"]],
        bars=bars([(charted.name, charted.report["evaluation"]) for charted in runs]),
        on_policy=on_policy(runs),
        charts=charts(runs),
    )
    write_text(target, page)
    return target


def _charted(run: RunFolder, config: Config, phases: Sequence[Phase], name: str) -> Charted:
    problems = Problems()
    return Charted(run, config, collect(config, run, phases, problems), name, problems)


def differing_settings(first: Config, second: Config) -> list[tuple[str, str, str]]:
    """(key, value in the first, value in the second) of every setting that differs; "-" where it is missing."""

    def flat(tree: Any, path: str = "") -> dict[str, str]:
        if isinstance(tree, dict):
            return {k: v for name, child in tree.items() for k, v in flat(child, f"{path}{name}.").items()}
        return {path.removesuffix("."): redact(str(tree))}

    before, after = (flat(config.model_dump(mode="json", exclude_none=True)) for config in (first, second))
    return [
        (key, before.get(key, "-"), after.get(key, "-"))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def compare_answers(first: Charted, second: Charted) -> list[dict[str, Any]]:
    """For each model and protocol that both runs have answers of: counts of questions by who is right, and flips.

    The difference B - A is paired by question (id and text): mean of the differences, with the normal 95% interval
    of a mean of paired differences.
    """
    questions = [
        {q.id: q for q in records(c.run.evaluation_questions_file, Question, c.problems)} for c in (first, second)
    ]
    common = {
        name: question
        for name, question in questions[0].items()
        if name in questions[1]
        and (questions[1][name].question, questions[1][name].images) == (question.question, question.images)
    }
    pairs = []
    for label in first.report["evaluation"]:
        for protocol in first.report["evaluation"][label]["protocols"]:
            answers = [answers_of(c.run, label, protocol, c.problems) for c in (first, second)]
            both = [name for name in common if name in answers[0] and name in answers[1]]
            if both:
                found = pair(both, answers[0], answers[1], common)
                pairs.append({"label": label, "protocol": protocol} | found)
    return pairs
