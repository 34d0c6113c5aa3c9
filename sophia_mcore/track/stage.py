"""What MLflow gets of the on-policy stage: one run, a child of the round that it began from, and children of its own.

Read-only, without MLflow. The link back to the round is kept twice: as the parent, where MLflow knows that round, and
as tags (``lineage.start``), which name the starting model by content.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.rl.questions import checked_questions
from sophia_mcore.rl.start import start_folder
from sophia_mcore.rl.validation import accuracy, due_versions
from sophia_mcore.rl.versions import newest_version, pointer_file, read_version
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.json_lines import read_json_lines
from sophia_mcore.store.labels import STAGE, STAGE_START, round_of
from sophia_mcore.store.layout import CONVERSION, RunFolder
from sophia_mcore.store.lineage import UID_FILE
from sophia_mcore.track.lineage import LINEAGE, export_link, shards_link, tags_of
from sophia_mcore.track.metrics import RESERVED, STAGE_STEP, read_metrics
from sophia_mcore.track.runs import TrackedRun, numbers, params_of, points, texts_of

_UID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The MLflow run that the stage's starting model came from: ``uid`` of its run folder, round ("rl": of a stage)."""

    uid: str
    round: str
    phase: str


def origin_of(run: RunFolder, config: Config, uid: str) -> Origin | None:
    """Where the stage began; None for "base" and for a folder that is no run's. ``uid``: of ``run``."""
    start = config.on_policy.start
    if (index := round_of(start)) is not None:
        return Origin(uid=uid, round=str(index), phase="round")
    folder = Path(start)
    index, of_stage = round_of(folder.parent.name), folder.parent.name == STAGE
    if folder.name != "model" or (index is None and not of_stage):
        return None
    try:
        theirs = (folder.parent.parent / UID_FILE).read_text().strip()
    except (OSError, ValueError):
        return None
    if not _UID.fullmatch(theirs):  # it becomes part of a query
        return None
    return Origin(uid=theirs, round=STAGE if index is None else str(index), phase=STAGE if index is None else "round")


def stage_of(run: RunFolder, config: Config) -> list[TrackedRun]:
    """The stage, then its children; [] while nothing of it is there, or the configuration has no [rl]."""
    if config.rl is None or not (run.rl.versions.is_dir() or run.rl.select.is_dir()):
        return []
    lines = read_metrics(run.rl.metrics_file)
    summary = json_or_empty(run.rl.summary_file)
    chosen = json_or_empty(run.rl.select_file)
    evaluation = json_or_empty(run.report_json).get("evaluation", {})
    evaluated = {label: value for label, value in evaluation.items() if label in (STAGE, STAGE_START)}
    lineage = stage_lineage(run, config, origin_of(run, config, ""))
    stage = TrackedRun(
        phase=STAGE,
        finished=bool(summary),
        lines=points([_by_phase(line) for line in lines]),
        summary={
            **numbers(summary),
            **numbers({name: chosen[name] for name in ("questions", "chosen") if name in chosen}, "select."),
            **numbers(evaluated, "evaluation."),
            **numbers(_seconds(run), "seconds."),
        },
        params=params_of(config),
        texts={**texts_of(run), LINEAGE: json.dumps(lineage, indent=2)},
        tags=tags_of(lineage),
    )
    return [stage, *_validation(run, config, bool(summary)), *_engines(run, bool(summary))]


def _by_phase(line: dict[str, Any]) -> dict[str, Any]:
    """A batch and an update have steps of their own, so their values have names of their own."""
    return {name if name in RESERVED else f"{line['phase']}/{name}": value for name, value in line.items()}


def _seconds(run: RunFolder) -> dict[str, float]:
    """What `sophia rl` noted of its steps: the sum over all starts."""
    found: dict[str, float] = {}
    for line in read_metrics(run.metrics_file):
        if line["phase"].startswith(STAGE_STEP) and isinstance(line.get("seconds"), int | float):
            name = line["phase"].removeprefix(STAGE_STEP)
            found[name] = found.get(name, 0.0) + line["seconds"]
    return found


def _validation(run: RunFolder, config: Config, finished: bool) -> list[TrackedRun]:
    """Accuracy of the versions, lowest first, up to the first that is not answered yet: so the series only grows."""
    newest = newest_version(run.rl.versions)
    lines = []
    for number in due_versions(config.on_policy, newest.version if newest else -1):
        version, value = read_version(run.rl.versions, number), accuracy(config, run, number)
        if version is None or value is None:
            break
        lines.append({"step": number, "time": _time(pointer_file(run.rl.versions, number)), "accuracy": value})
    return [TrackedRun(phase="rl validation", finished=finished, lines=points(lines))] if lines else []


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _engines(run: RunFolder, finished: bool) -> list[TrackedRun]:
    """What the engines did, summed up: their logs grow side by side, so together they are no series."""
    logs = sorted(run.rl.engines.glob("*.jsonl"))
    units = [unit for log in logs for _, unit in read_json_lines(log) if isinstance(unit, dict)]  # the rest is torn
    if not units:
        return []
    names = ("rollouts", "tokens", "seconds", "seconds_loading", "seconds_drain")
    totals = {name: sum(unit.get(name) or 0 for unit in units) for name in names}
    summary = numbers({"engines": len(logs), "units": len(units), **totals})
    return [TrackedRun(phase="rl engines", finished=finished, summary=summary)]


def stage_lineage(run: RunFolder, config: Config, origin: Origin | None) -> dict[str, Any]:
    """Links of the stage by content, last first: model <- versions <- questions <- the model that it began with."""
    summary = json_or_empty(run.rl.summary_file)
    links: dict[str, Any] = {}
    if summary:
        links["model"] = {name: summary[name] for name in ("version", "digest") if name in summary}
    newest = newest_version(run.rl.versions)
    if newest is not None:
        links["versions"] = {"newest": newest.version, "sha256": _chain(run, newest.version)}
    for name, path in (
        ("questions", checked_questions(config, run)),
        ("chosen", run.rl.questions_file),
        ("validation", run.rl.validation_questions_file),
    ):
        try:
            link = shards_link([path])
        except SophiaError:
            link = {}
        if link:
            links[name] = link
    links["start"] = _start(run, config) | ({"run": origin.uid} if origin and origin.uid else {})
    return links


def _chain(run: RunFolder, newest: int) -> str:
    """One hash over the digests of all versions: two stages that went the same way have the same."""
    hashes = hashlib.sha256()
    for number in range(newest + 1):
        version = read_version(run.rl.versions, number)
        hashes.update(f"{number} {version.digest if version else ''}\n".encode())
    return hashes.hexdigest()


def _start(run: RunFolder, config: Config) -> dict[str, Any]:
    """The starting model: its name, the digest of version 0, and the proof of its export where it is one."""
    rl = config.on_policy
    folder = start_folder(config, run)
    first = read_version(run.rl.versions, 0)
    found = {"name": rl.start, **({"digest": first.digest} if first else {})}
    return {**found, **export_link(folder / CONVERSION)}
