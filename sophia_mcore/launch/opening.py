"""Opens a run for its report. If config.toml is missing or damaged, settings are assumed from the run's files."""

from __future__ import annotations

from pathlib import Path

from sophia_mcore.config.schema import PAPER_PROTOCOL, Config
from sophia_mcore.errors import UsageError
from sophia_mcore.launch.local import open_run
from sophia_mcore.report.reading import Problems
from sophia_mcore.store.layout import RunFolder

_ASSUMED = "the page assumes the default settings, and the protocols that were evaluated"


def open_for_report(path: Path, problems: Problems) -> tuple[RunFolder, Config]:
    """The run and its configuration. What is wrong with config.toml is added to ``problems``.

    Raises UsageError like ``open_run`` if the folder has no other files of a run either.
    """
    try:
        return open_run(path)
    except UsageError as error:
        run = RunFolder(path)
        if not (path.is_dir() and (run.questions_file.is_file() or run.round(0).path.is_dir())):
            raise
        problems.add(f"{error if run.config_file.exists() else 'config.toml'}; {_ASSUMED}")
        return run, _assumed(run)


def _assumed(run: RunFolder) -> Config:
    names = {path.name for path in run.evaluation_questions_file.parent.glob("*/*") if path.is_dir()}
    ordered = sorted(names, key=lambda name: (name != PAPER_PROTOCOL.name, name))  # the first is used for pass@1
    protocols = [{"name": name, "sampling": {}} for name in ordered]
    unknown = {"kind": "jsonl", "path": "unknown"}
    evaluate = {"protocols": protocols, "questions": [unknown]} if protocols else {}
    return Config.model_validate(
        {
            "run": {"name": "unknown", "folder": run.path},
            "models": {"policy": "unknown", "reasoner": "unknown"},
            "data": {"questions": [unknown]},
            "evaluate": evaluate,
        }
    )
