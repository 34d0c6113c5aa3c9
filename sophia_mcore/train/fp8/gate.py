"""FP8 is admitted by measurement: what `sophia fp8-check` has to have found before training in FP8 begins."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.store.json_files import read_json
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import model_digest

# [fp8.check] under the names in fp8_check.json, which stay: a check that has passed still counts
_CHECK_NAMES = {"skip": "without_check", "samples": "check_samples", "steps": "check_steps"}
_NOT_NUMERICS = set(_CHECK_NAMES.values())


def check_digest(config: Config) -> str:
    """sha256 over what the check's result depends on: FP8 settings, thresholds, dtype, and every byte of the policy."""
    numerics = {name: value for name, value in fp8_settings(config).items() if name not in _NOT_NUMERICS}
    text = json.dumps(numerics, sort_keys=True) + model_digest(config.models.policy)
    return hashlib.sha256(text.encode()).hexdigest()


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
        steps, trained = len(found["loss"]["fp8"]), config.train.steps
    except (KeyError, TypeError):
        raise SophiaError(f"{file}: cannot be read (no loss curves); {remedy}") from None
    wanted = config.fp8.check.steps if trained is None else min(config.fp8.check.steps, trained)
    by_epochs = trained is None and found.get("train_steps") is None  # as many steps as there are, in both
    if steps < wanted and not by_epochs:
        raise SophiaError(f"{file}: its loss curves have {steps} steps, this training allows {wanted}: {remedy}")


def _differing(settings: Any, config: Config) -> str:
    """Names of the FP8 settings that the check had otherwise."""
    now = fp8_settings(config)
    return ", ".join(name for name, value in now.items() if isinstance(settings, dict) and settings.get(name) != value)
