"""The smallest configuration that is valid, as values and as TOML; a test names only what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Config

MINIMAL_TOML = """
[run]
name = "x"
folder = "run"
[models]
policy = "policy"
reasoner = "reasoner"
[[data.questions]]
kind = "jsonl"
path = "questions.jsonl"
"""


def make_config(
    folder: str | Path = "run", policy: str | Path = "policy", reasoner: str | Path = "reasoner", **sections: Any
) -> Config:
    """A configuration of a run in ``folder``; ``sections`` replace single settings (a dict) or whole sections."""
    values: dict[str, Any] = {
        "run": {"name": "test", "folder": folder},
        "models": {"policy": policy, "reasoner": reasoner},
        "data": {"questions": [{"kind": "jsonl", "path": "questions.jsonl"}]},
    }
    return Config.model_validate(merged(values, sections))


def merged(values: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """``values`` with single settings replaced; a section that is no dict replaces the old one whole."""
    result = dict(values)
    for name, section in sections.items():
        old = result.get(name, {})
        result[name] = {**old, **section} if isinstance(section, dict) else section
    return result
