"""Hyper-parameters of released models, from their config.json files, so that plans and checks need no download."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sophia_mcore.pretrained.spec import ModelSpec


def released_config(path: Path) -> dict[str, Any] | None:
    """The configuration of a released model, by its name or by a folder with this name; None if it is unknown.

    A vision-language model of the original layout with "-hf" behind its name is the same in transformers' layout.

    >>> released_config(Path("models/InternVL3-38B"))["vision_config"]["num_hidden_layers"]
    45
    """
    name = path.name.partition("@")[0].lower()
    for known, row in _table()["models"].items():
        own = known.rpartition("/")[2].lower()
        if name == own or ("vision" in row and name == f"{own}-hf"):
            return _config(row)
    return None


def released_names() -> tuple[str, ...]:
    """Names on the hub of the released models in the table."""
    return tuple(_table()["models"])


def first_models() -> tuple[str, str]:
    """Names on the hub of a (policy, reasoner) to start with."""
    start = _table()["start"]
    return start["policy"], start["reasoner"]


def spec_of(path: Path) -> ModelSpec | None:
    """The spec of a model, from its folder or from the table of released models; None if it is in neither.

    Raises UsageError for a folder whose configuration cannot be used.
    """
    own = (path / "config.json").is_file()
    config = None if own else released_config(path)
    if not own and config is None:
        return None
    from sophia_mcore.pretrained.spec import ModelSpec  # here: slow to import

    return (
        ModelSpec.from_model_dir(path) if config is None else ModelSpec.from_config(config, f"the release {path.name}")
    )


def _table() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "released.toml").read_text(encoding="utf-8"))


def _config(row: dict[str, Any]) -> dict[str, Any]:
    if "config" in row:
        return dict(row["config"])
    text = {
        "architectures": [row["language"]],
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        **row["sizes"],
    }
    if "vision" not in row:
        return text
    table = _table()
    frame: dict[str, Any] = table["frame"]
    sections = frame.pop("sections")
    return {**frame, sections["vision"]: table["vision"][row["vision"]], sections["language"]: text}
