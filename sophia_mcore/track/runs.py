"""What MLflow gets of a run folder: one parent run per round, one child per phase. Read-only, without MLflow."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import EXIT_STOPPED
from sophia_mcore.phase import Phase
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.labels import BASE, round_label
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.track.lineage import LINEAGE, lineage_of, tags_of
from sophia_mcore.track.metrics import RESERVED, STAGE_STEP, read_metrics

_SECRET_NAME = re.compile(r"(password|passwd|secret|token|api_key|credential)$", re.IGNORECASE)
_URL_USER = re.compile(r"(?<=://)[^/\s@]+@")
HIDDEN = "***"
Point = tuple[str, float, int, int]  # name, value, step, milliseconds since 1970


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """One MLflow run.

    ``lines`` is an append-only series: the k-th line never changes its meaning, so a count of lines is a cursor.
    ``summary`` are values without a step that may still change; they are uploaded when they do.
    """

    phase: str  # "round" for the parent
    finished: bool = False
    lines: list[list[Point]] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)  # artifact name -> content
    tags: dict[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """Changes when the summary or an artifact changes."""
        content = json.dumps([self.summary, self.texts, self.tags], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def parent_of(run: RunFolder, config: Config, index: int, phases: Sequence[Phase]) -> TrackedRun:
    """The round itself: resolved configuration, report, pass@1."""
    report = json_or_empty(run.report_json)
    rounds = report.get("rounds", [])
    mine = next((entry for entry in rounds if isinstance(entry, dict) and entry.get("round") == index), {})
    evaluation = report.get("evaluation", {})
    if not isinstance(evaluation, dict):
        evaluation = {}
    lineage = lineage_of(run, index, phases)
    mine_evaluated = {label: evaluation[label] for label in (BASE, round_label(index)) if label in evaluation}
    return TrackedRun(
        phase="round",
        finished=round_label(index) in evaluation or (bool(mine) and run.round(index).model.is_dir()),
        summary={**numbers(mine), **numbers(mine_evaluated, "evaluation.")},
        params=params_of(config),
        texts={**texts_of(run), LINEAGE: json.dumps(lineage, indent=2)},
        tags=tags_of(lineage),
    )


def children_of(run: RunFolder, config: Config, index: int, phases: Sequence[Phase]) -> list[TrackedRun]:
    """Phases of the round with results: training, scoring, and all that RUN/metrics.jsonl names.

    The parameters of a child are the settings that its phase depends on; the parent has all.
    """
    params = params_of(config)
    folder = run.round(index)
    children: dict[str, TrackedRun] = {}
    before: dict[str, int] = {}  # child with a curve -> how often its phase was done with results that no longer hold
    for phase in phases:
        if phase.measured is None:
            continue
        files = phase.measured(folder)
        summary = json_or_empty(files.summary)
        lines = read_metrics(files.steps) if files.steps is not None else []
        system = read_metrics(files.system) if files.system is not None else []
        if lines or summary:
            children[phase.name] = TrackedRun(
                phase=phase.name, finished=bool(summary), lines=points(lines), summary=numbers(summary)
            )
        if system:
            children["system"] = TrackedRun(phase="system", finished=bool(summary), lines=points(system))
        if files.steps is not None:
            aside = len(list(run.aside.glob(f"*/{files.steps.parent.relative_to(run.path)}")))
            before |= {phase.name: aside, "system": aside}
    children |= {attempt.phase: attempt for attempt in _attempts(run, index)}
    for line in read_metrics(run.metrics_file):  # written when a phase has ended; its step is the round
        name = line["phase"]
        if line.get("step", 0) == index and not name.startswith(STAGE_STEP):
            child = children.setdefault(name, TrackedRun(phase=name, finished=True))
            if name not in before:
                child.lines.extend(points([line]))
    own = {phase.name: {n: value for n, value in params.items() if phase.depends_on(n)} for phase in phases}
    found = [replace(child, params=own.get(child.phase, {})) for child in children.values()]
    # A phase that is done again has an MLflow run of its own: a curve goes on in no other.
    return [replace(c, phase=f"{c.phase} again {before[c.phase]}") if before.get(c.phase) else c for c in found]


def _attempts(run: RunFolder, index: int) -> Iterator[TrackedRun]:
    """The attempts of jobs of one task; of an array, whose tasks may be thousands, all in one."""
    arrays: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(run.slurm.attempts.glob(f"*-r{index}-*.json")):
        attempt = json_or_empty(path)
        if attempt.get("round") != index:
            continue
        if "_" in attempt["job"]:
            arrays.setdefault(attempt["phase"], []).append(attempt)
            continue
        values = {"code": attempt["code"], "restart": attempt["restart"], "seconds": _seconds(attempt)}
        yield TrackedRun(
            phase=f"{attempt['phase']} attempt {attempt['job']}.{attempt['restart']}",
            finished=attempt["ended"] is not None,
            summary=numbers(values),
            tags={"slurm.job": attempt["job"], "slurm.nodes": attempt["nodes"], "message": attempt["message"][:500]},
        )
    for phase, found in arrays.items():
        values = {
            "attempts": len(found),
            "failed": sum(attempt["code"] not in (0, EXIT_STOPPED, None) for attempt in found),
            "stopped": sum(attempt["code"] == EXIT_STOPPED for attempt in found),
            "task_seconds": sum(_seconds(attempt) or 0.0 for attempt in found),
        }
        ended = all(attempt["ended"] is not None for attempt in found)
        texts = {"attempts.json": json.dumps(found, indent=2)}
        yield TrackedRun(phase=f"{phase} attempts", finished=ended, summary=numbers(values), texts=texts)


def _seconds(attempt: Mapping[str, Any]) -> float | None:
    return None if attempt["ended"] is None else attempt["ended"] - attempt["began"]


def redact(text: str) -> str:
    """``text`` with user names and passwords in URLs hidden, and values of keys whose names suggest a secret.

    >>> redact('uri = "postgresql://me:pw@host/db"')
    'uri = "postgresql://***@host/db"'
    """
    text = _URL_USER.sub(f"{HIDDEN}@", text)
    return re.sub(
        r'(?mi)^(\s*[\w.]*(?:password|passwd|secret|token|api_key|credential)\s*=\s*)".*"$', rf'\1"{HIDDEN}"', text
    )


def params_of(config: Config) -> dict[str, str]:
    """The configuration flattened: "train.learning_rate" -> "2e-05"."""
    return {
        name: HIDDEN if _SECRET_NAME.search(name) else redact(str(value))[:500]
        for name, value in _flatten(config.model_dump(mode="json", exclude_none=True))
    }


def texts_of(run: RunFolder) -> dict[str, str]:
    texts = {}
    for path in (run.config_file, run.report_json, run.report_html):
        try:
            text = path.read_text()
        except (OSError, ValueError):
            continue
        # The page was written without secrets, and its scripts run only as they are.
        texts[path.name] = text if path == run.report_html else redact(text)
    return texts


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, child in tree.items():
            yield from _flatten(child, f"{prefix}{name}.")
    elif isinstance(tree, (list, tuple)) and any(isinstance(item, Mapping) for item in tree):
        for position, child in enumerate(tree):
            yield from _flatten(child, f"{prefix}{position}.")
    else:
        yield prefix.removesuffix("."), tree


def numbers(tree: Any, prefix: str = "") -> dict[str, float]:
    """Finite numbers of a JSON tree, lists by position, under names that MLflow accepts."""
    if isinstance(tree, (list, tuple)):
        tree = {str(position): item for position, item in enumerate(tree)}
    return {
        _metric_name(name): float(value)
        for name, value in _flatten(tree, prefix)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def points(lines: list[dict[str, Any]]) -> list[list[Point]]:
    """The numbers of each line of a metrics file."""
    return [
        [
            (name, value, line["step"], int(line.get("time", 0) * 1000))
            for name, value in numbers({k: v for k, v in line.items() if k not in RESERVED}).items()
        ]
        for line in lines
    ]


def _metric_name(name: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", name)
