"""The plan of the on-policy stage as a table for a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from sophia_mcore.config.rl import Rl
from sophia_mcore.plan.hardware import GIB
from sophia_mcore.plan.layouts import describe
from sophia_mcore.plan.numbers import number
from sophia_mcore.plan.stage import Stage, StagePlan, version_bytes

_SHOWN = 4  # divisions beside the configuration's own
_BOTH_IDLE = 0.1  # share of time that both sides may wait before it is worth a line
_WIDE = 110  # columns of a terminal where the table has room for the divisions


def show_stage(plan: StagePlan, rl: Rl, gpus: int, console: Console) -> None:
    """Print the divisions of the GPUs and what a batch of the stage takes in each."""
    console.print(
        f"on-policy stage: batches of {rl.questions_per_batch:,} x {rl.group} answers, updates of "
        f"{rl.samples_per_update} answers, {rl.batches:,} batches, lag {rl.lag}, {rl.placement}",
        highlight=False,
    )
    console.print("assumed: " + "; ".join(plan.assumed), highlight=False)
    divisions = [("the file's: ", plan.own)] if plan.own is not None else []
    divisions += [("", stage) for stage in plan.others[:_SHOWN]]
    labels = [f"{whose}{_division(stage, rl, gpus)}" for whose, stage in divisions]
    narrow = console.width < _WIDE
    table = Table(
        *(Column("" if narrow else "GPUs: train + sample", overflow="fold"), Column("engines", justify="right")),
        *(Column(name, justify="right") for name in ("sample", "load", "train", "publish", "batch")),
        *(Column(name, justify="right") for name in ("trainer idle", "engines idle", "places filled", "days")),
        title="seconds of a batch, and who waits", title_justify="left", box=SIMPLE_HEAD, pad_edge=False,
        padding=(0, 0 if narrow else 1),
    )  # fmt: skip
    for index, (label, (_, stage)) in enumerate(zip(labels, divisions, strict=True)):
        table.add_row(str(index + 1) if narrow else label, *_figures(stage, plan, rl))
    console.print(table)
    for index, label in enumerate(labels if narrow else ()):
        console.print(f"{index + 1}: GPUs to train + sample: {label}", highlight=False)
    if plan.refused:
        console.print(f"the file's own division does not work here: {plan.refused}", highlight=False, soft_wrap=True)
    for stage in [plan.own] if plan.own is not None else plan.others[:1]:
        _notes(stage, plan, rl, console)


def _division(stage: Stage, rl: Rl, gpus: int) -> str:
    shared = rl.placement == "colocated"
    division = f"{gpus} shared" if shared else f"{stage.training_gpus} + {gpus - stage.training_gpus}"
    return f"{division}, {describe(stage.option.setting)}"


def _figures(stage: Stage, plan: StagePlan, rl: Rl) -> list[str]:
    turns = stage.turns
    return [
        f"{stage.engines} x TP{stage.sampler.tensor}",
        number(stage.sampling, 1),
        number(stage.loading, 1),
        number(stage.training + stage.old, 1),
        number(stage.publishing, 1),
        number(turns.seconds, 1),
        f"{turns.trainer_idle:.0%}",
        f"{turns.engine_idle:.0%}",
        f"{turns.filled:.0%}",
        number(plan.days(stage, rl.batches), 1),
    ]


def _notes(stage: Stage, plan: StagePlan, rl: Rl, console: Console) -> None:
    lines = []
    if stage.old:
        lines.append(f"old log-probs of the trainer: {number(stage.old, 1)} s of training")
    if plan.selection_seconds:
        lines.append(f"pre-selection, once: {number(plan.selection_seconds / 3600, 1)} hours")
    if stage.host:
        lines.append(f"host memory of a shared node: {number(stage.host / GIB, 0)} GiB while engines sample")
    if stage.copying:
        lines.append(
            f"copying a version into the memory of a node: {number(stage.copying, 1)} s, while engines go on; "
            f"{number(2 * version_bytes(stage.sampler.spec) / GIB, 0)} GiB of /dev/shm"
        )
    lines += tail_advice(stage, rl)
    for line in lines:
        console.print(line, highlight=False)


def tail_advice(stage: Stage, rl: Rl) -> list[str]:
    """What helps where engines wait for their longest answers: places are half empty while they sample.

    Answers of batch b + lag + 1 begin when batch b is trained. So lag + 1 batches take at least as long as the longest
    answer of one, its training and the hand-over of its version.
    """
    if rl.lag and min(stage.turns.engine_idle, stage.turns.trainer_idle) > _BOTH_IDLE:
        return [
            f"engines and trainer wait for each other: {rl.lag + 1} batches take at least as long as the longest "
            "answer of one, its training and its hand-over. Larger batches help, as does a larger rl.lag"
        ]
    sampling = 1.0 - stage.turns.engine_idle
    if rl.lag or stage.turns.filled >= 0.5 * sampling:
        return []
    per_engine = -(-rl.questions_per_batch // stage.engines)
    cause = "without a lag a unit is sampled alone and waits for its longest answer"
    if rl.questions_per_unit < per_engine:
        return [f"{cause}: raise rl.questions_per_unit, up to {per_engine} (one unit per engine)"]
    return [f"{cause}: rl.lag = 1 with rl.placement = 'separate' fills the places, as do larger batches"]
