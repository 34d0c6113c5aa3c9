"""Log-probs that a sampling engine has recorded, and whether they belong to the policy's tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.records import Answer, Trajectory


def recorded_logprobs(row: Trajectory | Answer, setting: str) -> NDArray[np.float32]:
    """log mu of each response token, checked. Raises SophiaError naming the row, the setting and what is wrong."""
    values = row.token_logprobs
    where = f"trajectory {row.id}: {setting} cannot be served"
    if not values:
        raise SophiaError(f"{where}, its engine recorded no log-probs")
    if len(values) != len(row.token_ids):
        raise SophiaError(f"{where}, {len(values)} log-probs for {len(row.token_ids)} tokens")
    for place, value in enumerate(values):
        if not math.isfinite(value) or value > 1e-4:
            raise SophiaError(f"{where}, the log-prob of token {place} is {value}")
    return np.minimum(np.array(values, np.float32), 0.0)


def require_same_tokenizer(policy: Path, reasoner: Path | None) -> None:
    """Raise UsageError with the reason unless both models cut plain text into the same token ids.

    Added special tokens may differ: samples that spell one are dropped.
    """
    remedy = "choose objective.behaviour none, unit or reference"
    if reasoner is None:
        raise UsageError(
            f"objective.behaviour = 'recorded': the reasoner is an endpoint, its tokenizer is unknown; {remedy}"
        )
    ours, theirs = _tokenizer_parts(policy), _tokenizer_parts(reasoner)
    different = [name for name, part in ours.items() if part != theirs[name]]
    if different:
        raise UsageError(
            f"objective.behaviour = 'recorded': the tokenizers of {policy} and {reasoner} differ ({different[0]}), "
            f"so the reasoner's log-probs belong to other tokens than the policy's; {remedy}"
        )


def _tokenizer_parts(model_dir: Path) -> dict[str, Any]:
    path = model_dir / "tokenizer.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); objective.behaviour = 'recorded' compares it") from None
    model = value.get("model") or {}
    return {
        "vocabulary": model.get("vocab"),
        "merges": [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model.get("merges") or []],
        "model type": (model.get("type"), model.get("ignore_merges")),
        "normalizer": value.get("normalizer"),
        "pre-tokenizer": value.get("pre_tokenizer"),
    }
