"""Which trajectories think: a share of neither all nor none hints at a template or endpoint that loses thoughts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from sophia_mcore.records import END_OF_THOUGHT, THOUGHT, Trajectory
from sophia_mcore.store.shards import read_table

WHOLE, NONE, NOT_OPENED, NOT_CLOSED = "whole", "none", "not_opened", "not_closed"


def count_thoughts(shards: Sequence[Path]) -> dict[str, int]:
    """Finished trajectories (those cut off are left out) by what they hold of a thought, the most frequent first.

    ``whole``: <think>...</think>; ``none``: neither tag; ``not_opened``, ``not_closed``: one tag without the other.
    """
    counts: Counter[str] = Counter()
    for path in shards:
        table = read_table(path, Trajectory, columns=("text", "finish_reason"))
        texts = table.filter(pc.equal(table.column("finish_reason"), "stop")).column("text")
        total = len(texts)
        whole = _count(texts, f"(?s){THOUGHT}.*?{END_OF_THOUGHT}")
        opened, closed = _count(texts, THOUGHT), _count(texts, END_OF_THOUGHT)
        either = _count(texts, f"{THOUGHT}|{END_OF_THOUGHT}")
        counts[WHOLE] += whole
        counts[NONE] += total - either
        counts[NOT_OPENED] += either - opened
        counts[NOT_CLOSED] += either - closed
        counts["wrong_order"] += opened + closed - either - whole
    return {name: count for name, count in counts.most_common() if count}


def complaint(counts: dict[str, int]) -> str:
    """What is to be said about the counts; "" when all trajectories think, or none."""
    total = sum(counts.values())
    if not total or counts.get(WHOLE, 0) == total or counts.get(NONE, 0) == total:
        return ""
    others = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if name != WHOLE)
    return (
        f"{counts.get(WHOLE, 0):,} of {total:,} finished trajectories hold a whole thought "
        f"({THOUGHT}...{END_OF_THOUGHT}; {others}): only these are trained under the long-thinking prompt; "
        "see docs/method.md, System prompts"
    )


def _count(texts: object, pattern: str) -> int:
    return pc.sum(pc.match_substring_regex(texts, pattern)).as_py() or 0
