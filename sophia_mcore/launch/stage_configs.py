"""Makes the configuration of each stage of [[stages]]: the file's settings, the stage's own, its folder, its model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sophia_mcore.config.load import explain, merge
from sophia_mcore.config.schema import Config
from sophia_mcore.config.stages import EVALUATE, LAST, VALIDATION, Stage
from sophia_mcore.data.columns import source_name
from sophia_mcore.errors import UsageError
from sophia_mcore.store.labels import BASE
from sophia_mcore.store.layout import RunFolder

_GIVEN = {  # keys that a stage does not choose, and what gives them
    "run.folder": "it follows from the run's folder and the stage's name",
    "run.name": "it follows from the run's name and the stage's name",
    "models.policy": "the stage begins with the model that the stage before has promoted, the first with models.policy",
    "rl.start": "the stage begins with the model that the stage before has promoted, the first with models.policy",
    "stages": "a stage has no stages",
}


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """A stage and the configuration of its run folder."""

    stage: Stage
    config: Config

    @property
    def run(self) -> RunFolder:
        """The stage's own run folder."""
        return RunFolder(self.config.run.folder)

    @property
    def label(self) -> str:
        """The stage with its place in the list, as "01-rl": the name of its folder."""
        return self.run.path.name


def stage_runs(config: Config) -> list[StageRun]:
    """Every stage as it is known before any has run: each with models.policy of the file.

    Raises UsageError with the stage's place and name for whatever cannot be used in one of them.
    """
    return [stage_run(config, index) for index in range(len(config.stages or ()))]


def stage_run(config: Config, index: int, policy: Path | None = None) -> StageRun:
    """Stage ``index``. ``policy``: the model that it begins with; None: models.policy. Raises like ``stage_runs``."""
    stage = (config.stages or ())[index]
    return StageRun(stage=stage, config=_config(config, index, stage, policy))


def _config(config: Config, index: int, stage: Stage, policy: Path | None) -> Config:
    where = f"stages.{index} ({stage.name})"
    tree = config.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"stages"})
    for key, value in stage.set.items():
        _set(tree, key, value, where)
    folder = RunFolder(config.run.folder).stage(index, stage.name).path
    own = {"name": f"{config.run.name}-{stage.name}", "folder": str(folder)}
    merge(tree, {"run": own} | ({"models": {"policy": str(policy)}} if policy is not None else {}))
    try:
        made = Config.model_validate(tree)
        _check(stage, made)
    except ValidationError as error:
        raise UsageError(f"{where}: {explain(error, Config)}") from None
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    if not stage.on_policy or made.rl is None:
        return made.model_copy(update={"rl": None})
    start = {} if policy is None else {"rl": made.rl.model_copy(update={"start": str(policy)})}
    return made.model_copy(update=start)


def _set(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Put ``value`` in the place of ``key``: "a.b.c", with the number of an entry where there is a list."""
    _refuse_given(key, value, where)
    if "." not in key:
        merge(tree, {key: value})
        return
    *path, last = key.split(".")
    here: Any = tree
    for part in path:
        if isinstance(here, list):
            here = here[_place(here, part, key, where)]
        else:
            here = here.setdefault(part, {})
        if not isinstance(here, (dict, list)):
            raise UsageError(f"{where}: set {key!r}: {part!r} is a value, not a section")
    if isinstance(here, list):
        here[_place(here, last, key, where)] = value
    else:
        here[last] = value


def _refuse_given(key: str, value: Any, where: str) -> None:
    """Raise UsageError if ``key``, or a key inside of its table, is one that a stage does not choose."""
    if isinstance(value, dict) and any(given == key or given.startswith(f"{key}.") for given in _GIVEN):
        for name, child in value.items():
            _refuse_given(f"{key}.{name}", child, where)
    elif key in _GIVEN:
        raise UsageError(f"{where}: set {key!r}: {_GIVEN[key]}")


def _place(entries: list[Any], part: str, key: str, where: str) -> int:
    if not part.isdecimal() or int(part) >= len(entries):
        raise UsageError(f"{where}: set {key!r}: {part!r} is no entry of a list of {len(entries)}, counted from 0")
    return int(part)


def _check(stage: Stage, config: Config) -> None:
    """Raise ValueError if the stage lacks what its kind or its promotion needs."""
    if config.evaluate.only:
        raise ValueError("evaluate.only trains nothing, and a stage trains")
    if stage.on_policy and config.rl is None:
        raise ValueError("kind = 'rl' needs the section [rl]: docs/on_policy.md shows one")
    if stage.on_policy and config.rl is not None and config.rl.start != BASE:
        raise ValueError(f"rl.start = {config.rl.start!r}: {_GIVEN['rl.start']}; set it to {BASE!r}")
    if stage.kind == "supervised" and config.train.data is None:
        raise ValueError("kind = 'supervised' needs train.data, a file of question-answer pairs")
    if stage.kind == "sophia" and config.train.data is not None:
        raise ValueError("kind = 'sophia' trains on kept trajectories, and train.data replaces them: use 'supervised'")
    if stage.promote == VALIDATION:
        if not stage.on_policy or config.rl is None:
            raise ValueError("promote = 'validation' belongs to kind = 'rl': its versions are validated")
        if config.rl.keep != "best":
            raise ValueError("promote = 'validation' needs rl.keep = 'best' and [[rl.validation]]")
    elif stage.promote != LAST:
        _check_metric(stage, config)


def _check_metric(stage: Stage, config: Config) -> None:
    if not config.evaluate.questions:
        raise ValueError(f"promote = {stage.promote!r}: nothing is evaluated: [[evaluate.questions]] is missing")
    if not config.evaluate.evaluate_base:
        raise ValueError(
            f"promote = {stage.promote!r} needs evaluate.evaluate_base: the model it began with is a candidate"
        )
    name, protocols, sets = stage.promote.removeprefix(EVALUATE), protocol_names(config), set_names(config)
    known = ["pass_at_1", *protocols, *sets]
    if known.count(name) > 1:
        raise ValueError(f"promote = {stage.promote!r}: {name!r} is a protocol and a set of questions: rename one")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {EVALUATE + near[0]!r}? " if near else ""
        raise ValueError(
            f"promote = {stage.promote!r}: not evaluated ({hint}valid: {', '.join(EVALUATE + one for one in known)})"
        )


def protocol_names(config: Config) -> Sequence[str]:
    """Names of the protocols."""
    return [protocol.name for protocol in config.evaluate.protocols]


def set_names(config: Config) -> Sequence[str]:
    """Names of the sets of evaluation questions, each once."""
    return list(dict.fromkeys(source_name(source) for source in config.evaluate.questions))
