"""Numbers that the paper prints, for the models that it evaluates."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

_OTHERS = "(?:mpo|pretrained|instruct|awq|gptq|int8|int4)"


def published(benchmark: str, model: str) -> list[dict[str, Any]]:
    """The paper's rows of a benchmark for the model of that name or folder: [{"model", "score"}], shares 0-1.

    [] where the paper does not evaluate the model. The name decides: nothing here looks at weights. A released
    model that is another stage or a quantization of it is not that model.

    >>> published("mathvista", "models/InternVL3-8B-hf")[0]
    {'model': 'InternVL3-8B', 'score': 0.678}
    >>> published("mathvista", "InternVL2_5-8B-MPO"), published("mathvista", "InternVL3_5-8B")
    ([], [])
    """
    raw = _table()
    key = _key(model)
    named = [
        name for name in raw["models"] if re.search(rf"(?<![a-z0-9]){_key(name)}(?![a-z0-9])(?!-{_OTHERS}\b)", key)
    ]
    if not named or benchmark not in raw["columns"]:
        return []
    place = raw["columns"].index(benchmark)
    rows = raw["models"][named[0]]
    return [
        {"model": named[0] if kind == "as released" else f"{named[0]} {kind}", "score": round(values[place] / 100, 6)}
        for kind, values in rows.items()
    ]


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.casefold())


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))
