"""Validation of the policy's versions: which are due, where their answers lie, how many are right.

Engines answer the validation questions with the version itself, between the units of batches. Seeds depend neither on
the version nor on the engine, so versions are compared under the same random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

from sophia_mcore.config.rl import Rl
from sophia_mcore.config.schema import Config
from sophia_mcore.records import Answer, Question
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_shard, read_values
from sophia_mcore.store.units import UnitQueue, units_of


def is_due(rl: Rl, version: int) -> bool:
    """Whether a version is validated: the first, the last, and every ``rl.validate_every_batches``-th.

    >>> [version for version in range(8) if is_due(Rl(batches=7, validate_every_batches=3), version)]
    [0, 3, 6, 7]
    """
    return version % rl.validate_every_batches == 0 or version == rl.batches


def due_versions(rl: Rl, newest: int) -> list[int]:
    """The versions up to ``newest`` that are validated, lowest first."""
    return [version for version in range(newest + 1) if is_due(rl, version)]


def validation_queue(
    config: Config, run: RunFolder, version: int, protocol: str, question_ids: Iterable[str]
) -> UnitQueue:
    """The units of one version under one protocol. Items are questions."""
    units = units_of(question_ids, config.evaluate.questions_per_unit)
    folder = run.rl.validation(version, protocol)
    return UnitQueue(folder, units, f"validation {version}", attempts=config.cluster.unit_attempts)


def accuracy(config: Config, run: RunFolder, version: int) -> float | None:
    """Share of right answers of a version under the first protocol; None until every question is answered or given up.

    Raises SophiaError for damaged shards.
    """
    if not run.rl.validation_questions_file.is_file():
        return None
    ids = [question.id for question in read_shard(run.rl.validation_questions_file, Question)]
    protocol = config.evaluate.protocols[0].name
    if (
        not run.rl.validation(version, protocol).is_dir()
        or not validation_queue(config, run, version, protocol, ids).done()
    ):
        return None
    rights = [right == "correct" for (right,) in read_values(run.rl.validation(version, protocol), Answer, ["verdict"])]
    return sum(rights) / len(rights)
