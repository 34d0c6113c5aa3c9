"""FP8 is admitted by measurement: what `sophia fp8-check` has to have found before training in FP8 begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.store.json_files import json_or_empty, read_json
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import model_digest

# [fp8.check] under the names in fp8_check.json, which stay: a check that has passed still counts
_CHECK_NAMES = {"skip": "without_check", "samples": "check_samples", "steps": "check_steps"}
_NOT_NUMERICS = set(_CHECK_NAMES.values())


def check_digest(config: Config) -> str:
    """sha256 over what the check's result depends on: FP8 settings, thresholds, dtype, and every byte of the policy."""
    text = json.dumps(_numerics(fp8_settings(config)), sort_keys=True) + model_digest(config.models.policy)
    return hashlib.sha256(text.encode()).hexdigest()


def _numerics(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _NOT_NUMERICS}


def fp8_settings(config: Config) -> dict[str, Any]:
    """[fp8], [fp8.check] and train.dtype, as fp8_check.json keeps them."""
    values = config.fp8.model_dump(mode="json")
    named = {"fp8": values.pop("recipe"), "fp8_backend": values.pop("backend"), "dtype": config.train.dtype}
    thresholds = {_CHECK_NAMES.get(name, name): value for name, value in values.pop("check").items()}
    return named | values | thresholds


def require_check(config: Config, run: RunFolder) -> None:
    """Raise SophiaError unless training needs no check, or one of these settings and this policy has passed."""
    if not config.fp8.used or config.fp8.check.skip:
        return
    file, remedy = run.fp8_check_file, "run 'sophia fp8-check CONFIG', or set fp8.check.skip = true"
    try:
        found = read_json(file)
    except SophiaError as error:
        raise SophiaError(f"{error}; {remedy}") from None
    if found is None:
        raise SophiaError(f"fp8.recipe = {config.fp8.recipe!r} without a check of it in {run.path}: {remedy}")
    if found.get("digest") != check_digest(config):
        what = _differing(found.get("settings"), config) or "another policy or dtype"
        raise SophiaError(f"{file} is about other FP8 settings or another policy ({what}): {remedy}")
    if found.get("passed") is not True:
        why = "; ".join(found.get("failures", [])) or "it says not why"
        raise SophiaError(f"{file}: FP8 did not pass ({why}): change [fp8], or set fp8.check.skip = true")
    try:
        steps, wanted = _steps(config, found)
    except (KeyError, TypeError):
        raise SophiaError(f"{file}: cannot be read (no loss curves); {remedy}") from None
    if steps < wanted:
        raise SophiaError(f"{file}: its loss curves have {steps} steps, this training allows {wanted}: {remedy}")


def _steps(config: Config, found: Mapping[str, Any]) -> tuple[int, int]:
    """Steps of the check's loss curves, and how many this training asks for."""
    steps, trained = len(found["loss"]["fp8"]), config.train.steps
    if trained is None and found.get("train_steps") is None:  # as many steps as there are, in both
        return steps, 0
    return steps, config.fp8.check.steps if trained is None else min(config.fp8.check.steps, trained)


def has_passed(config: Config, run: RunFolder) -> bool:
    """Whether the run has a passed check with the settings of ``config``; the policy is not looked at."""
    found = json_or_empty(run.fp8_check_file)
    settings = found.get("settings")
    try:
        steps, wanted = _steps(config, found)
    except (KeyError, TypeError):
        return False
    same = isinstance(settings, dict) and _numerics(settings) == _numerics(fp8_settings(config))
    return found.get("passed") is True and same and steps >= wanted


def verdict(found: Mapping[str, Any]) -> str:
    """What to tell the user of a check that has not passed, with a proposal; "" of one that has."""
    return "" if found["passed"] else f"FP8 is not admitted: {'; '.join(found['failures'])}{advice(found)}"


def advice(found: Mapping[str, Any]) -> str:
    """Which setting would meet the limits, of a check that has not passed."""
    proposed = found["proposed"]
    if proposed is None:
        return "; with the delayed recipe no layer can stay in bf16: try tensorwise or blockwise"
    if not proposed:
        return "; log-probs and gradients are near enough, the loss curve is not: try blockwise"
    every = [row["layer"] for row in found["layers"] if row["in_fp8"]]
    if len(proposed) == len(every):
        return "; only without any FP8 layer are the limits met"
    kept = sorted({*proposed, *found["settings"]["layers_in_bf16"]})
    return f"; the limits on log-probs and gradients are met with fp8.layers_in_bf16 = {kept}"


def _differing(settings: Any, config: Config) -> str:
    """Names of the FP8 settings that the check had otherwise."""
    now = fp8_settings(config)
    return ", ".join(name for name, value in now.items() if isinstance(settings, dict) and settings.get(name) != value)
