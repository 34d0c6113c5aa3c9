"""Moved and removed keys of the configuration.

A moved key is also read from its old place, with a warning that names the new place, in this version only. A removed
key is ignored if its value has no effect, and refused with the reason otherwise.
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

# removed key -> (the value that has no effect, why any other value is refused)
RETIRED: dict[str, tuple[Any, str]] = {
    "train.optimizer_offload_fraction": (
        0.0,
        "megatron-core's optimizer on the host trains and saves, but cannot load what it saved; use more GPUs",
    ),
    "fp8.primary_weights": (
        False,
        "master weights would be made from uninitialised memory, and each block of a tensor would get its own scale",
    ),
}


def drop_retired(tree: dict[str, Any]) -> None:
    """Delete removed keys from ``tree``, in place. Raises ValueError for a value that had an effect."""
    for key in RETIRED:
        section, name = _section(tree, key, make=False)
        if section is not None and name in section:
            check_retired(key, section.pop(name))


def check_retired(key: str, value: Any) -> None:
    """Raise ValueError if ``value`` of the removed ``key`` had an effect."""
    harmless, reason = RETIRED[key]
    if value != harmless:
        raise ValueError(f"{key} = {value!r} is not supported: {reason}")


def move_keys(tree: dict[str, Any]) -> dict[str, str]:
    """Move the values of moved keys to their new places in ``tree``, in place; returns old key -> new key.

    Raises ValueError if a key is given in both places, or if its new place is not in a section.
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
    """(table that contains ``key``, last part of ``key``). The table is None if it does not exist."""
    *path, last = key.split(".")
    for part in path:
        child = tree.setdefault(part, {}) if make else tree.get(part)
        if not isinstance(child, dict):
            return None, last
        tree = child
    return tree, last
