"""Which questions a batch asks, and which of them an update learns from. Pure functions of seeds and numbers.

A batch is a run of consecutive positions of the question stream. An epoch is a permutation of all questions; a batch
never crosses an epoch, so no question is twice in a batch: the last positions of an epoch, fewer than a batch, are left
out, other ones in each epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sophia_mcore.errors import UsageError
from sophia_mcore.store.lineage import seed_for


def batch_questions(question_ids: Sequence[str], batch: int, size: int, seed: int) -> list[str]:
    """The ``size`` questions of batch number ``batch`` (from 0), in the order of the stream.

    Raises UsageError when there are fewer questions than a batch asks.

    >>> batch_questions(["a", "b", "c"], 0, 3, seed=0) == batch_questions(["a", "b", "c"], 0, 3, seed=0)
    True
    """
    if len(question_ids) < size:
        raise UsageError(
            f"rl.questions_per_batch = {size} is more than the {len(question_ids)} questions there are to ask"
        )
    per_epoch = len(question_ids) // size
    epoch, place = divmod(batch, per_epoch)
    order = np.random.default_rng(seed_for(seed, "rl", "epoch", epoch)).permutation(len(question_ids))
    return [question_ids[index] for index in order[place * size : (place + 1) * size]]


def rollout_seed(seed: int, batch: int, question_id: str, index: int) -> int:
    """Seed of a rollout: it depends on nothing but its place, so any engine and any order give the same text."""
    return seed_for(seed, "rl", batch, question_id, index)


def update_parts(question_ids: Sequence[str], batch: int, questions_per_update: int, seed: int) -> list[list[str]]:
    """The questions of each update of a batch: permuted, then cut into parts of ``questions_per_update``.

    The last part is smaller when the numbers do not divide.
    """
    order = np.random.default_rng(seed_for(seed, "rl", "order", batch)).permutation(len(question_ids))
    shuffled = [question_ids[index] for index in order]
    return [shuffled[start : start + questions_per_update] for start in range(0, len(shuffled), questions_per_update)]
