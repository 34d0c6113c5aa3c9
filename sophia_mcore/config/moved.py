"""Keys that have moved: read from their old place too, with a warning that names the new one, in this version only.

Keys that have gone: left out where they have no effect, refused with the reason elsewhere.
"""

from __future__ import annotations

from typing import Any

_LOSS_OPTIONS = ("name", "beta", "max_weight", "shaping", "clip_low", "clip_high", "dual_clip")
_FP8_CHECK = (
    "max_logprob_gap_mean", "max_logprob_gap_p99", "min_gradient_cosine", "max_gradient_norm_gap", "max_loss_gap",
)  # fmt: skip
MOVED: dict[str, str] = {
    **{f"objective.{key}": f"objective.loss.{key}" for key in _LOSS_OPTIONS},
    "train.fp8": "fp8.recipe",
    "train.fp8_backend": "fp8.backend",
    "fp8.without_check": "fp8.check.skip",
    "fp8.check_samples": "fp8.check.samples",
    "fp8.check_steps": "fp8.check.steps",
    **{f"fp8.{key}": f"fp8.check.{key}" for key in _FP8_CHECK},
}

# key: (value without effect, why any other is refused)
RETIRED: dict[str, tuple[Any, str]] = {
    "train.optimizer_offload_fraction": (
        0.0,
        "megatron-core's optimizer on the host trains and saves, but cannot load what it saved; use more GPUs",
    ),
    "fp8.primary_weights": (
        False,
        "master weights would be made from memory that nobody has filled, and blocks of a tensor scaled one by one",
    ),
}


def drop_retired(tree: dict[str, Any]) -> None:
    """Remove keys that have gone, from ``tree`` itself. Raises ValueError for a value that would have had an effect."""
    for key in RETIRED:
        section, name = _section(tree, key, make=False)
        if section is not None and name in section:
            check_retired(key, section.pop(name))


def check_retired(key: str, value: Any) -> None:
    """Raise ValueError for a value of a key that has gone which would have had an effect."""
    harmless, reason = RETIRED[key]
    if value != harmless:
        raise ValueError(f"{key} = {value!r} is not supported: {reason}")


def move_keys(tree: dict[str, Any]) -> dict[str, str]:
    """Put the values of moved keys into their new place, in ``tree`` itself; returns new key by old key.

    Raises ValueError where a key is given in both places, or its new place is no section.
    """
    found = {}
    for old, new in MOVED.items():
        section, key = _section(tree, old, make=False)
        if section is None or key not in section:
            continue
        target, name = _section(tree, new, make=True)
        if target is None:
            raise ValueError(f"{old} is {new} now, and {new.rpartition('.')[0]} is not a section")
        if name in target:
            raise ValueError(f"{old} is {new} now, and both are given")
        target[name] = section.pop(key)
        found[old] = new
    return found


def _section(tree: dict[str, Any], key: str, *, make: bool) -> tuple[dict[str, Any] | None, str]:
    """The table that ``key`` lies in (None: there is none), and the key's last part."""
    *path, last = key.split(".")
    for part in path:
        child = tree.setdefault(part, {}) if make else tree.get(part)
        if not isinstance(child, dict):
            return None, last
        tree = child
    return tree, last
