"""`sophia benchmark`: evaluates a model in a run folder of its own, or scores a file of predictions."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sophia_mcore.benchmarks.scoring import Scoring, upper_bound
from sophia_mcore.benchmarks.table import benchmark_named
from sophia_mcore.config.load import assign, explain
from sophia_mcore.config.schema import PAPER_PROTOCOL, VLMEVALKIT_PROTOCOL, Config, Judge, Score
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.environments import rollout_python
from sophia_mcore.pretrained.hub import hub_name
from sophia_mcore.records import Answer, Question
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.json_files import read_json
from sophia_mcore.store.labels import BASE
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_shard, read_values

_OF_SCORES = frozenset({"benchmark", "score", "scoring"})  # keys of what ``rescore`` gives
PROTOCOLS = {protocol.name: protocol for protocol in (PAPER_PROTOCOL, VLMEVALKIT_PROTOCOL)}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Options of the command line. ``on``: the benchmarks, each as NAME or as NAME=PATH of a local copy."""

    model: str
    on: Sequence[str]
    protocols: Sequence[str] = ("paper",)
    engine: str = "vllm"
    model_name: str = ""
    limit: int | None = None
    max_tokens: int | None = None
    judge: Judge | None = None
    max_bad_rows: int = 0
    workers: int = 2
    settings: Sequence[str] = ()


def benchmark_config(wanted: Wanted, folder: Path) -> Config:
    """The configuration of a benchmark run. Raises UsageError for an unknown benchmark, protocol or engine."""
    unknown = [name for name in wanted.protocols if name not in PROTOCOLS]
    if unknown:
        raise UsageError(f"--protocol {unknown[0]!r}: one of {', '.join(PROTOCOLS)}")
    tree: dict[str, Any] = {
        "run": {"name": re.sub(r"[^A-Za-z0-9._-]", "-", folder.absolute().name) or "benchmark", "folder": folder},
        "models": {"policy": _policy(wanted)},
        "environments": _environments(wanted),
        "data": {"max_bad_rows": wanted.max_bad_rows},
        "score": {"workers": wanted.workers, "judge": wanted.judge},
        "evaluate": {
            "only": True,
            "questions": [_source(one, wanted.limit) for one in wanted.on],
            "protocols": [_protocol(name, wanted.max_tokens) for name in wanted.protocols],
            "engine": _engine(wanted),
        },
        "track": {"enabled": False},
    }
    for assignment in wanted.settings:
        assign(tree, assignment)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(explain(error, Config)) from None


def _environments(wanted: Wanted) -> dict[str, Any]:
    """The Python that evaluates: for an endpoint the running one, since nothing is loaded; else one with the engine."""
    python = Path(sys.executable) if is_address(wanted.model) else rollout_python()
    return {} if python is None else {"rollout": python}


def is_address(model: str) -> bool:
    """Whether ``model`` is the address of an endpoint, not a folder."""
    return model.startswith(("http://", "https://"))


def _policy(wanted: Wanted) -> str:
    if is_address(wanted.model):
        return wanted.model_name
    if hub_name(Path(wanted.model)) is not None:
        return wanted.model
    if not Path(wanted.model).is_dir():
        raise UsageError(f"{wanted.model}: no such model folder (an endpoint is http://HOST:PORT/v1)")
    if not (Path(wanted.model) / "config.json").is_file():
        raise UsageError(f"{wanted.model}: no model folder: config.json is missing")
    return wanted.model


def _engine(wanted: Wanted) -> dict[str, Any]:
    if wanted.engine not in ("vllm", "transformers"):
        raise UsageError(f"--engine {wanted.engine!r}: vllm or transformers (an endpoint is an address as MODEL)")
    if is_address(wanted.model):
        if not wanted.model_name:
            raise UsageError(f"{wanted.model}: name the endpoint's model with --model-name")
        return {"kind": "openai", "base_url": wanted.model, "model_name": wanted.model_name}
    return {"kind": wanted.engine}


def _source(text: str, limit: int | None) -> dict[str, Any]:
    name, _, path = text.partition("=")
    return {"benchmark": benchmark_named(name).name, "path": path, "limit": limit}


def _protocol(name: str, max_tokens: int | None) -> dict[str, Any]:
    values = PROTOCOLS[name].model_dump(mode="json")
    if max_tokens is not None:
        values["sampling"]["max_tokens"] = max_tokens
    return values


def judge_cost(config: Config, questions_file: Path) -> list[str]:
    """One line per protocol: the largest possible number of judge requests. An empty list without a judge."""
    if config.score.judge is None:
        return []
    questions = read_shard(questions_file, Question)
    lines = []
    for protocol in config.evaluate.protocols:
        cost = upper_bound(questions, protocol.scoring, protocol.sampling.max_tokens)
        lines.append(f"{protocol.name}: {cost}")
    return lines


def export_predictions(run: RunFolder, config: Config, label: str = BASE) -> list[Path]:
    """Write the first sample of every question as VLMEvalKit files, one per benchmark; returns their paths.

    They are RUN/predictions/PROTOCOL/MODEL/MODEL_DATASET.tsv, where DATASET is VLMEvalKit's name of the data set.
    """
    from sophia_mcore.benchmarks.exchange import write_predictions

    questions = {q.id: q for q in read_shard(run.evaluation_questions_file, Question) if q.benchmark}
    model = Path(str(config.models.policy)).name or "model"
    written = []
    for protocol in config.evaluate.protocols:
        folder = run.evaluation(label, protocol.name)
        stored = read_values(folder, Answer, ("question_id", "index", "text")) if folder.is_dir() else ()
        said = {name: text for name, index, text in stored if index == 0}
        for name in dict.fromkeys(question.benchmark for question in questions.values()):
            answers = [(q, said[q.id]) for q in questions.values() if q.benchmark == name and q.id in said]
            if answers:
                data_set = benchmark_named(name).vlmevalkit or name
                target = run.predictions / protocol.name / model / f"{model}_{data_set}.tsv"
                write_predictions(target, answers)
                written.append(target)
    return written


def rescore(
    file: Path, scoring: Scoring, score: Score, *, benchmark: str = "", model: str = "", dry_run: bool = False
) -> dict[str, Any]:
    """Score the predictions in a file.

    Returns the metrics of ``evaluate.benchmark_results``, how they were scored, and one entry per answer. ``dry_run``:
    score nothing; returns only {"cost": ...} of the judge. Raises UsageError and SophiaError like ``read_predictions``.
    """
    from sophia_mcore.benchmarks.exchange import read_predictions
    from sophia_mcore.benchmarks.opening import open_scorer
    from sophia_mcore.evaluate.benchmark_results import benchmark_results, outcome

    found = read_predictions(file, benchmark)
    with open_scorer(score, scoring) as scorer:
        cost = str(scorer.cost(found.answers)) if score.judge is not None else ""
        if dry_run:
            return {"cost": cost or "no judge: nothing is asked"}
        scores = scorer.score(found.answers)
        label = scorer.label
    outcomes = [outcome(question, one) for (question, _), one in zip(found.answers, scores, strict=True)]
    result = benchmark_results(found.benchmark.name, outcomes, model or file.stem, label)
    return result | {
        "file": str(file),
        "cut_cells": found.cut,
        "answers": [
            {"id": q.id, "verdict": one.verdict, "extracted": one.extracted, "settled_by": one.settled_by}
            for (q, _), one in zip(found.answers, scores, strict=True)
        ],
    }


def check_target(target: Path, file: Path) -> None:
    """Raise UsageError for a file of scores that is not .json, or that somebody else's file would be lost for."""
    if target.suffix != ".json":
        raise UsageError(f"{target}: scores are written as .json")
    if target.exists() and (target.samefile(file) or not _holds_scores(target)):
        raise UsageError(f"{target}: exists already and holds no scores; name another file, or remove it")


def _holds_scores(file: Path) -> bool:
    try:
        found = read_json(file) or {}
    except SophiaError:  # no JSON object
        return False
    return found.keys() >= _OF_SCORES


def write_scores(target: Path, result: dict[str, Any]) -> None:
    """Write the result of ``rescore`` as JSON."""
    write_json(target, result)


def judge_of(address: str, model_name: str) -> Judge | None:
    """The judge that the options name; None without an address. Raises UsageError if the model's name is missing."""
    if not address:
        if model_name:
            raise UsageError(f"--judge-model {model_name}: give the judge's address with --judge URL")
        return None
    if not model_name:
        raise UsageError(f"--judge {address}: name its model with --judge-model")
    try:
        return Judge(base_url=address, model_name=model_name, extract=True)
    except ValidationError as error:
        raise UsageError(f"--judge: {explain(error, Judge)}") from None


def shown_results(results: dict[str, dict[str, Any]]) -> list[str]:
    """Lines for the terminal from results by protocol: score, confidence interval, shares, and the paper's scores."""
    lines = []
    for protocol, found in results.items():
        for one in found.get("benchmarks", {}).values():
            lines += shown_benchmark(one, protocol)
    return lines


def shown_benchmark(one: dict[str, Any], protocol: str = "") -> list[str]:
    """Lines for the terminal from the results of one benchmark."""
    if one["score"] is None:
        return [f"{one['title']}: no answers of the reported split"]
    low, high = one["ci95"]
    how = f"{protocol} ({one['scoring']})" if protocol else one["scoring"]
    cut = "unknown" if one["truncated"] is None else f"{100 * one['truncated']:.1f}%"
    lines = [
        f"{one['title']}, {how}: {100 * one['score']:.2f}  [{100 * low:.1f}, {100 * high:.1f}], n {one['n']:,}; "
        f"truncated {cut}, unreadable {100 * one['unreadable']:.1f}%, "
        f"judge needed {100 * one['judge_needed']:.1f}%"
    ]
    if one.get("judge_failed"):
        failed = f"{100 * one['judge_failed']:.1f}% of the answers got no usable reply of the judge"
        lines.append(f"  warning: {failed}; --rescore of the predictions asks it again")
    if one["n"] != one["expected_n"]:
        lines.append(f"  not the whole benchmark: it has {one['expected_n']:,} questions")
    if "worst_case" in one:
        lines.append(f"  worst case {100 * one['worst_case']['score']:.2f}, n {one['worst_case']['n']:,}")
    lines += [f"  the paper prints {100 * row['score']:.2f} for {row['model']}" for row in one["published"]]
    return lines


def run_benchmark(wanted: Wanted, folder: Path, *, dry_run: bool = False, new_settings: bool = False) -> list[str]:
    """Run a benchmark in ``folder`` on this machine, or resume it; returns the lines to print.

    ``dry_run``: only check the questions and print the judge's cost. ``new_settings``: as in ``run_phases``, which also
    says what is raised.
    """
    import typer

    from sophia_mcore.evaluate.results import results
    from sophia_mcore.launch.local import run_phases
    from sophia_mcore.launch.phases import wanted_phases

    config = benchmark_config(wanted, folder)
    questions, *others = [phase.name for phase in wanted_phases(config)]
    run = run_phases(config, [questions], [0], new_settings=new_settings)
    for line in judge_cost(config, run.evaluation_questions_file):
        typer.echo(line)
    if dry_run:
        return [f"{len(read_shard(run.evaluation_questions_file, Question)):,} questions; nothing was asked"]
    run_phases(config, others, [0], new_settings=new_settings)
    problems: list[str] = []
    found = results(run, config, problems.append)
    if problems or BASE not in found:
        raise SophiaError(problems[0] if problems else f"{run.path}: the evaluation is not finished")
    lines = shown_results(found[BASE]["protocols"])
    lines += [f"predictions: {path}" for path in export_predictions(run, config)]
    return [*lines, f"report: {run.report_html}"]
