"""Rates of a real GPU from the layers that `tests/gpu/blocks.py` timed on it, in place of the table's efficiencies."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Fp8, Objective, Parallel, Train
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.plan.cost import step_time
from sophia_mcore.plan.hardware import Device
from sophia_mcore.plan.memory import Row, Setting
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.store.json_files import require_json

_FP8_ALONE = 1e30  # FLOP/s: products without cost


def calibrated(device: Device, spec: ModelSpec, path: Path, recipe: str) -> tuple[Device, str]:
    """`device` with rates that reproduce the measured steps, and a line that describes them.

    bf16 steps scale products, attention and bandwidth alike; steps of the FP8 `recipe` then give the FP8 products.

    Raises:
        UsageError: the file cannot be read or holds no bf16 step, or its FP8 steps are
            faster than without matrix products.
    """
    found = _read(path)
    plain = [
        seconds / step_time(measured_setting(spec, found, length, "none"), device).total
        for length, seconds in _steps(found, "none")
    ]
    if not plain:
        raise UsageError(f"{path}: no bf16 step was measured (blocks.py --recipes none ...)")
    ratio = math.exp(sum(map(math.log, plain)) / len(plain))
    made = replace(
        device, bf16=device.bf16 / ratio, attention=device.attention / ratio, bandwidth=device.bandwidth / ratio
    )
    line = f"calibrated on {found.get('device', 'a GPU')} with {found.get('model', 'layers')}: bf16 x {1 / ratio:.2f}"
    rates = []
    for length, seconds in _steps(found, recipe) if recipe != "none" and device.fp8 else ():
        setting = measured_setting(spec, found, length, recipe)
        rest = step_time(setting, replace(made, fp8=_FP8_ALONE)).total
        if seconds <= rest:
            raise UsageError(f"{path}: {recipe} {length} took {seconds:.3g} s, less than without its matrix products")
        rates.append((step_time(setting, made).total - rest) * made.fp8 / (seconds - rest))
    if rates:
        fp8 = sum(rates) / len(rates)
        line += f", {recipe} x {fp8 / device.fp8:.2f}"
        made = replace(made, fp8=fp8)
    return made, f"{line} of the table's rates"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = require_json(path)
    except SophiaError as error:
        raise UsageError(str(error)) from None
    if not isinstance(found.get("steps"), dict):
        raise UsageError(f"{path}: no measured steps in it (tests/gpu/blocks.py writes them)")
    return found


def _steps(found: dict[str, Any], recipe: str) -> list[tuple[int, float]]:
    """(tokens of the row, seconds) of a recipe's steps that did not fail."""
    made = []
    for name, step in found["steps"].items():
        kind, _, length = name.partition(" ")
        if kind == recipe and length.isdigit() and isinstance(step.get("seconds"), float | int):
            made.append((int(length), float(step["seconds"])))
    return made


def measured_setting(spec: ModelSpec, found: dict[str, Any], length: int, recipe: str) -> Setting:
    """What blocks.py ran: some language layers of the policy's width on one rank, all tokens targets, no images."""
    sequence = found.get("sequence", 4096)
    language = replace(spec.language, num_layers=found.get("layers", 4), vocab_size=found.get("vocabulary", 8192))
    return Setting(
        spec=replace(spec, vision=None, projector=None, language=language),
        parallel=Parallel(),
        train=Train(dtype="bfloat16", distributed_optimizer=False),
        fp8=Fp8.model_validate({"recipe": recipe}),
        objective=Objective(),
        row=Row(tokens=length, squares=length * sequence, targets=length, pictures=0),
        data=1,
        micro_batches=1,
    )
