"""Which model of a stage of [[stages]] goes on to the next one, by its score on held-out questions.

What is chosen follows from the files of the stage's run folder alone. RUN/stages/NN-NAME/promoted.json keeps the choice
with the scores and digests that it was made from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sophia_mcore import __version__
from sophia_mcore.config.stages import EVALUATE, LAST, VALIDATION
from sophia_mcore.errors import SophiaError
from sophia_mcore.evaluate.results import results
from sophia_mcore.launch.stage_configs import StageRun, protocol_names
from sophia_mcore.provenance.settings import model_folder
from sophia_mcore.rl.validation import accuracy
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.content import Contents
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.labels import BASE, STAGE, STAGE_START, round_label


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that may go on.

    ``digest``: as in the records of settings. ``score``: share of right answers, None if it is not known.
    """

    label: str
    model: Path
    digest: str | None
    score: float | None


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """The choice of a stage. The first candidate is the model that the stage began with."""

    stage: str
    rule: str
    chosen: Candidate
    candidates: tuple[Candidate, ...]

    @property
    def nothing_better(self) -> bool:
        """Whether the model that the stage began with goes on."""
        return self.chosen is self.candidates[0]

    def __str__(self) -> str:
        others = ", ".join(_scored(one) for one in self.candidates if one is not self.chosen)
        if self.nothing_better:
            return (
                f"stage {self.stage}: no model is better by {self.rule} than the one that it began with, which goes on "
                f"({_scored(self.chosen)}; {others})"
            )
        return f"stage {self.stage}: {_scored(self.chosen)} goes on by {self.rule} ({others})"


def _scored(one: Candidate) -> str:
    return one.label if one.score is None else f"{one.label} {100 * one.score:.1f}%"


def choose(one: StageRun) -> Promotion:
    """The model of a finished stage that goes on.

    With "last" it is the stage's last model. By a score it is the first of the models with the highest, so that a model
    has to be better than the one that the stage began with. Raises SophiaError when a score or a model is missing.
    """
    rule = one.stage.promote
    score_of = _scores(one)
    contents = Contents()
    found = tuple(
        Candidate(label=label, model=model, digest=contents.given(model_folder(model)), score=score_of(label))
        for label, model in _models(one)
    )
    for candidate in found:
        if candidate.score is None and rule != LAST:
            raise SophiaError(f"stage {one.label}: no {rule} of {candidate.label}: its questions are not all answered")
    chosen = found[-1] if rule == LAST else max(found, key=lambda candidate: candidate.score or 0.0)
    if chosen.digest is None:
        raise SophiaError(f"stage {one.label}: {chosen.model}, which is to go on, is no model folder")
    return Promotion(stage=one.label, rule=rule, chosen=chosen, candidates=found)


def _models(one: StageRun) -> list[tuple[str, Path]]:
    start = (STAGE_START if one.stage.on_policy else BASE, one.config.models.policy)
    if one.stage.on_policy:
        return [start, (STAGE, one.run.rl.model)]
    return [start, *((round_label(index), one.run.round(index).model) for index in range(one.config.run.rounds))]


def _scores(one: StageRun) -> Callable[[str], float | None]:
    """The score of a label under the stage's rule; with "last" that of the first protocol, where there is one."""
    config, run = one.config, one.run
    if one.stage.promote == VALIDATION:
        versions = {STAGE_START: 0, STAGE: json_or_empty(run.rl.summary_file).get("version", -1)}
        return lambda label: accuracy(config, run, versions[label])
    problems: list[str] = []
    evaluation = results(run, config, problems.append)
    if problems and one.stage.promote != LAST:
        raise SophiaError(f"stage {one.label}: {problems[0]}")
    name = "pass_at_1" if one.stage.promote == LAST else one.stage.promote.removeprefix(EVALUATE)
    first, *_ = names = protocol_names(config)

    def score(label: str) -> float | None:
        details = evaluation.get(label, {}).get("protocols", {}).get(name if name in names else first, {})
        if name not in (*names, "pass_at_1"):  # a set of questions
            details = details.get("by_source", {}).get(name, {})
        return details.get("pass_at_1")

    return score


def record(one: StageRun, made: Promotion, before: Promotion | None) -> None:
    """Write the choice into the stage's folder. ``before``: that of the stage before. Raises SophiaError."""
    write_json(
        one.run.promoted_file,
        {
            **_compared(made),
            "stage": made.stage,
            "kind": one.stage.kind,
            "model": str(made.chosen.model),
            "digest": made.chosen.digest,
            "models": {candidate.label: str(candidate.model) for candidate in made.candidates},
            "origin": _origin(one, before),
            "sophia_mcore": __version__,
            "time": round(time.time(), 3),
        },
    )


def is_recorded(one: StageRun, made: Promotion) -> bool:
    """Whether the stage's folder has this choice, from the same scores of the same models."""
    found = json_or_empty(one.run.promoted_file)
    return {key: found.get(key) for key in _compared(made)} == _compared(made)


def _compared(made: Promotion) -> dict[str, Any]:
    return {
        "promote": made.rule,
        "chosen": made.chosen.label,
        "candidates": [
            {"label": candidate.label, "digest": candidate.digest, "score": candidate.score}
            for candidate in made.candidates
        ],
    }


def _origin(one: StageRun, before: Promotion | None) -> Mapping[str, str | None]:
    """Where the stage's first model came from."""
    if before is None:
        return {"models.policy": str(one.config.models.policy)}
    return {"stage": before.stage, "chosen": before.chosen.label, "digest": before.chosen.digest}
