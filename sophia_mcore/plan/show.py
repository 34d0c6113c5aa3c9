"""The plan as tables for a terminal."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import zip_longest

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sophia_mcore.errors import SophiaError
from sophia_mcore.plan.command import Plan
from sophia_mcore.plan.cost import Seconds, chunk_seconds
from sophia_mcore.plan.hardware import GIB
from sophia_mcore.plan.layouts import Option, Refusal, describe, micro_batches, simulated_option
from sophia_mcore.plan.memory import Memory, model_parameters, saving
from sophia_mcore.plan.numbers import number as _number
from sophia_mcore.plan.round import (
    Phase,
    gpu_hours,
    longer,
    preempted,
    round_phases,
    storage,
    total_seconds,
    towers_otherwise,
)  # fmt: skip
from sophia_mcore.plan.show_stage import show_stage

PREEMPTION_HOURS = 4


def show(plan: Plan, console: Console, top: int) -> None:
    """Print the plan."""
    work = plan.work
    console.print(
        f"{_number(model_parameters(plan.spec) / 1e9, 1)}B parameters on {plan.gpus} x {plan.device.name}: "
        f"{work.rows_per_step} rows of {work.sequence_length:,} tokens per step, samples of {work.mean_tokens:,.0f} "
        f"tokens on average; {plan.ranking.fitting} layouts fit, {len(plan.ranking.refusals)} do not",
        highlight=False,
    )
    if work.assumed:
        console.print("assumed: " + "; ".join(work.assumed), highlight=False)
    if plan.calibration:
        console.print(plan.calibration, highlight=False)
    idle = plan.best.setting.data - work.rows_per_step
    if idle > 0:
        console.print(
            f"{idle:,} of {plan.best.setting.data:,} replicas have no row of the step's {work.rows_per_step:,}: fewer "
            "GPUs or a larger train.global_batch_samples",
            style="yellow",
            highlight=False,
        )
    options = distinct(plan.ranking.options)[:top]
    console.print(_layout_table(options, plan.own))
    if isinstance(plan.own, Refusal):
        console.print(f"the file's own layout does not work here: {plan.own.reason}", highlight=False, soft_wrap=True)
    console.print(_parts_table(plan))
    console.print(_saving_line(plan), highlight=False)
    if plan.spec.vision is not None:
        console.print(_tower_line(plan), highlight=False)
    console.print(_round_table(plan))
    console.print(_what_if_table(plan))
    if isinstance(plan.stage, str):
        console.print(f"the on-policy stage is not planned: {plan.stage}", highlight=False, soft_wrap=True)
    elif plan.stage is not None:
        show_stage(plan.stage, plan.config.on_policy, plan.gpus, console)
    for refusal in nearest(plan.ranking.refusals)[:5]:
        console.print(f"does not fit: {refusal.reason}", highlight=False, soft_wrap=True)


def distinct(options: tuple[Option, ...]) -> list[Option]:
    """The fastest option of each (TP, PP, VPP, CP, FP8)."""
    seen: dict[tuple[object, ...], Option] = {}
    for option in options:
        p = option.setting.parallel
        seen.setdefault((p.tensor, p.pipeline, p.virtual_pipeline, p.context, option.setting.fp8.recipe), option)
    return list(seen.values())


def nearest(refusals: tuple[Refusal, ...]) -> list[Refusal]:
    """The nearest miss of each tensor-parallel size, and the first reason of each size that cannot be cut."""
    seen: dict[int, Refusal] = {}
    for refusal in refusals:
        seen.setdefault(refusal.parallel.tensor, refusal)
    return list(seen.values())


def _layout_table(options: list[Option], own: Option | Refusal) -> Table:
    """The options, with the configuration's own layout last where it works."""
    table = Table(title="layouts, fastest first", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("layout", "rows/rank", "step s", "tokens/s/GPU", "MFU", "bubble", "GiB"):
        table.add_column(name, justify="left" if name == "layout" else "right", overflow="fold")
    rows = [("", option) for option in options] + ([("the file's: ", own)] if isinstance(own, Option) else [])
    for whose, option in rows:
        assert option.time is not None
        table.add_row(
            f"{whose}{describe(option.setting)}",
            str(option.setting.micro_batches),
            _number(option.time.total, 1),
            f"{option.tokens_per_second:,.0f}",
            f"{option.mfu:.1%}",
            f"{option.time.bubble:.1%}",
            _number(option.memory.total / GIB, 0),
        )
    return table


def _parts_table(plan: Plan) -> Table:
    """Memory of the fullest stage, and the time of the busiest one with waiting, gradients and optimizer."""
    time, memory = plan.best.time, plan.best.memory
    assert time is not None
    table = Table(title="the fastest layout in parts", title_justify="left")
    for name in (f"memory, stage {plan.best.stage}", "GiB", "time of a step", "s"):
        table.add_column(name, justify="right" if name in ("GiB", "s") else "left")
    sizes = {field.name: getattr(memory, field.name) for field in fields(Memory)} | {"total": memory.total}
    seconds = {field.name: getattr(time.parts, field.name) for field in fields(Seconds)}
    seconds |= {"waiting": time.pipeline - time.parts.total, "gradients": time.gradients, "optimizer": time.optimizer}
    seconds |= {"total": time.total}
    left = [(name, _number(size / GIB, 1)) for name, size in sizes.items()]
    right = [(name, _number(value, 2)) for name, value in seconds.items()]
    for (what, size), (part, value) in zip_longest(left, right, fillvalue=("", "")):
        table.add_row(what, size, part, value)
    return table


def _saving_line(plan: Plan) -> str:
    """What a checkpoint needs beside the training; the node's memory is not known here."""
    setting = plan.best.setting
    stages = [saving(setting, stage) for stage in range(setting.parallel.pipeline)]
    most = max(stages, key=lambda stage: stage.host)
    ranks = min(plan.gpus, plan.device.per_node)
    rank, node, gpu = (_number(size / GIB, 1) for size in (most.host, ranks * most.host, most.device))
    line = f"saving a checkpoint: up to {rank} GiB of host memory a rank, {node} GiB a node; {gpu} GiB of a GPU"
    if most.held:
        line += f"; {_number(ranks * most.held / GIB, 0)} GiB a node until it is written"
    return line


def _tower_line(plan: Plan) -> str:
    """Cost of the tower. It is on the first stage, which need not be the busiest."""
    setting = plan.best.setting
    forward, backward = chunk_seconds(setting, plan.device, 0, 0)
    spent = (forward.tower + backward.tower) * setting.micro_batches
    what = "images" if setting.spec.family is None else setting.spec.family.picture_name
    return f"tower, on stage 0: {setting.row.pictures:.0f} {what} per row, {_number(spent, 2)} s of the step"


def _round_table(plan: Plan) -> Table:
    table = Table(title="the round", title_justify="left")
    for name in ("phase", "hours", "GPU-hours", ""):
        table.add_column(name, justify="right" if name in ("hours", "GPU-hours") else "left", overflow="fold")
    for phase in plan.phases:
        known = phase.seconds is not None
        hours = _number((phase.seconds or 0) / 3600, 1) if known else "?"
        spent = _number((phase.seconds or 0) * phase.gpus / 3600, 0) if known else "?"
        table.add_row(phase.name, hours, spent, phase.note)
    missing = [phase.name for phase in plan.phases if phase.seconds is None]
    seconds = total_seconds(plan.phases)
    note = f"{_number(seconds / 86400, 1)} days" + (f" without {', '.join(missing)}" if missing else "")
    table.add_row("all", _number(seconds / 3600, 1), _number(gpu_hours(plan.phases), 0), note)
    stored = storage(plan.config, plan.spec, plan.work)
    listed = ", ".join(f"{name} {_number(size / 1e9, 0)}" for name, size in stored.items())
    table.add_row("storage", "", "", f"{_number(sum(stored.values()) / 1e9, 0)} GB beside the images: {listed}")
    return table


def _what_if_table(plan: Plan) -> Table:
    table = Table(title="what if", title_justify="left")
    table.add_column("change")
    table.add_column("effect", overflow="fold")
    best = plan.best
    assert best.time is not None
    for layers, seconds in towers_otherwise(best, plan.device):
        table.add_row(
            f"first and last stage: {layers} layers",
            f"step {_number(seconds, 1)} s ({seconds / best.time.total - 1:+.1%})",
        )
    table.add_row("trajectories 2x longer", _compare(plan, _longer_phases(plan)))
    try:
        changed = _compare(plan, preempted(plan.phases, PREEMPTION_HOURS * 3600))
    except SophiaError as error:
        changed = str(error)
    table.add_row(f"preemption every {PREEMPTION_HOURS} hours", changed)
    return table


def _longer_phases(plan: Plan) -> list[Phase]:
    """Sampling and training of the same layout with trajectories twice as long."""
    work = longer(plan.work, 2.0)
    old = plan.best.setting
    setting = replace(
        old, row=work.row(), micro_batches=micro_batches(work.rows_per_step, old.data, old.parallel)
    )  # fmt: skip
    option = simulated_option(replace(plan.best, setting=setting), work, plan.device, plan.gpus)
    return round_phases(plan.config, plan.spec, plan.reasoner, work, option, plan.device, plan.gpus)


def _compare(plan: Plan, phases: list[Phase]) -> str:
    before, after = total_seconds(plan.phases), total_seconds(phases)
    return f"{_number(after / 86400, 2)} days instead of {_number(before / 86400, 2)} ({after / before - 1:+.0%})"
