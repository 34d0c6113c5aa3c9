"""The on-policy stage of a configuration on N GPUs: how they are best shared, and what a batch takes.

`turns.simulate` plays engines and trainer; here their speeds are put together from the models of training and sampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sophia_mcore.config.engines import VllmEngine
from sophia_mcore.config.rl import Rl
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.plan.cost import picture_flops
from sophia_mcore.plan.hardware import DISK, HOST_LINK, MEMORY, Device
from sophia_mcore.plan.layouts import Option, own_option, rank_layouts
from sophia_mcore.plan.memory import model_parameters
from sophia_mcore.plan.rollout import Sampler, sampler
from sophia_mcore.plan.turns import Parties, Turns, batches_of, simulate
from sophia_mcore.plan.workload import Assumptions, Workload, response_lengths, workload
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.tensors import parameters

_BATCHES = 6  # that are played, beside one per batch of lag
_SPLITS = 8  # of the GPUs that are tried, at most
_USEFUL = 0.5  # share of groups with right and wrong answers where nothing says more: assumed
_SWITCH_SECONDS = 2.0  # an engine's sleep and waking beside its weights: assumed


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The stage on one division of the GPUs. Seconds are those of a batch; ``sampling`` is the time in which engines
    have answers to sample; ``host``: bytes that a node needs beside its GPUs.
    """

    training_gpus: int  # all of them where they are shared
    engines: int
    sampler: Sampler
    option: Option  # the layout of the trainer
    training: float
    old: float  # the trainer's log-probs before the first update
    publishing: float
    loading: float
    turns: Turns
    host: float
    copying: float = 0.0  # of a version into the memory of each node that samples; engines go on meanwhile

    @property
    def sampling(self) -> float:
        return self.turns.seconds * (1.0 - self.turns.engine_idle) - self.loading


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The configuration's own division first, then the best others, fastest first. ``assumed``: for the reader."""

    work: Workload
    useful: float
    assumed: tuple[str, ...]
    own: Stage | None
    refused: str  # why the own division does not work; "" where it does
    others: tuple[Stage, ...]
    selection_seconds: float  # of the pre-selection, once

    def days(self, stage: Stage, batches: int) -> float:
        return (batches * stage.turns.seconds + self.selection_seconds) / 86400


def stage_plan(config: Config, spec: ModelSpec, device: Device, gpus: int, given: Assumptions) -> StagePlan:
    """Plan [rl] of ``config`` on ``gpus`` devices.

    Raises:
        UsageError: engines that are not vLLM's, or rows too short for a sample.
        SophiaError: no division of the GPUs works; in the words of the configuration's own.
    """
    rl = config.on_policy
    if not isinstance(rl.engine, VllmEngine):
        raise UsageError(f"rl.engine.kind = {rl.engine.kind!r}: only vLLM engines are planned")
    useful, about = useful_share(rl, given.kept)
    work = stage_work(config, spec, useful, given)
    own, refused = None, ""
    try:
        own = divide(config, spec, work, device, gpus, _own_training(config, device, gpus))
    except SophiaError as error:
        refused = str(error)
    others = []
    for count in divisions(device, gpus) if rl.placement == "separate" else ():
        if own is not None and count == own.training_gpus:
            continue
        try:
            others.append(divide(config, spec, work, device, gpus, count, free=True))
        except SophiaError:
            continue
    if own is None and not others:
        raise SophiaError(f"the on-policy stage does not fit {gpus} x {device.name}: {refused}")
    others.sort(key=lambda stage: stage.turns.seconds)
    best = own or others[0]
    return StagePlan(
        work=work, useful=useful, assumed=(*about, *_answers_assumed(rl, given, work)), own=own, refused=refused,
        others=tuple(others), selection_seconds=selection_seconds(rl, work, best, gpus),
    )  # fmt: skip


def useful_share(rl: Rl, given: float | None) -> tuple[float, tuple[str, ...]]:
    """Share of the groups with right and wrong answers, and what was assumed about it.

    With a pre-selection it is the mean of 1 - p^G - (1-p)^G over accuracies p between its limits.
    """
    if given is not None:
        return given, ()
    if rl.select.samples:
        low, high = rl.select.minimum, rl.select.maximum
        points = [low + (high - low) * (i + 0.5) / 100 for i in range(100)]
        share = sum(1.0 - p**rl.group - (1.0 - p) ** rl.group for p in points) / len(points)
        return share, (f"{share:.0%} of the groups have right and wrong answers (accuracies as selected; --kept)",)
    return _USEFUL, (f"{_USEFUL:.0%} of the groups have right and wrong answers (--kept)",)


def stage_work(config: Config, spec: ModelSpec, useful: float, given: Assumptions) -> Workload:
    """The updates of the stage as a workload of the trainer: samples per update are those that are trained on."""
    rl, view = config.on_policy, config.rl_view()
    share = {"none": useful, "ssr": 1.0, "resample": min(1.0, useful * draws(rl, useful))}[rl.fill]
    samples = rl.samples_per_update * share
    made = replace(
        workload(view, spec, given),
        response=response_lengths(rl.max_tokens, given),
        kept=useful,
        global_batch=max(1, round(samples)),
        steps=rl.batches * rl.updates_per_batch,
    )
    made.row()
    return made


def draws(rl: Rl, useful: float) -> int:
    """How often a batch draws its number of questions, until enough groups are useful or it may not go on."""
    return min(math.ceil(1.0 / useful), 1 + rl.max_resamples) if rl.fill == "resample" else 1


def _answers_assumed(rl: Rl, given: Assumptions, work: Workload) -> tuple[str, ...]:
    answers = () if given.response_tokens else (f"answers of {work.response.mean:,.0f} tokens (--response-tokens)",)
    if not rl.rethink.share:
        return answers
    return (*answers, f"{rl.rethink.share:.0%} of them go on for {rethinking_tokens(rl):,.0f} tokens")


def divisions(device: Device, gpus: int) -> Iterator[int]:
    """Numbers of training GPUs that are tried: whole nodes where there are several, else halves and quarters."""
    unit = device.per_node if gpus > device.per_node else max(1, gpus // 8)
    counts = list(range(unit, gpus, unit))
    step = math.ceil(len(counts) / _SPLITS) if counts else 1
    yield from counts[step - 1 :: step]


def _own_training(config: Config, device: Device, gpus: int) -> int:
    """GPUs that train in the configuration's own division."""
    rl = config.on_policy
    if rl.placement == "colocated":
        return gpus
    if rl.rollout_nodes:
        return gpus - rl.rollout_nodes * device.per_node
    return config.parallel.world_size


def divide(
    config: Config, spec: ModelSpec, work: Workload, device: Device, gpus: int, training: int, *, free: bool = False
) -> Stage:
    """The stage with ``training`` GPUs for the trainer and the rest for engines (colocated: all for both).

    ``free``: the best layout of the trainer and as many engines as fit, in place of the configuration's.
    Raises SophiaError where one side does not fit.
    """
    rl, view = config.on_policy, config.rl_view()
    assert isinstance(rl.engine, VllmEngine)
    colocated = rl.placement == "colocated"
    if training < 1:
        raise SophiaError(f"no GPU of {gpus} is left to train: {gpus - training} would sample")
    if not colocated and training >= gpus:
        raise SophiaError(f"no GPU of {gpus} is left to sample: {training} would train")
    option = None if free else own_option(view, spec, work, device, training)
    if not isinstance(option, Option):
        option = rank_layouts(view, spec, work, device, training, fp8=False).options[0]
    prompt = work.pictures * work.picture.tokens + work.prompt_tokens
    slots = rl.engine.max_sequences
    used = sampler(spec, device, rl.engine.tensor_parallel, slots, prompt, work.response)
    sampling = gpus if colocated else gpus - training
    engines = sampling // used.tensor
    if engines < 1:
        raise SophiaError(f"an engine needs {used.tensor} GPUs, only {sampling} sample")
    nodes = max(1, training // device.per_node)
    size = 2.0 * (model_parameters(spec) - frozen_parameters(config, spec))
    rate = MEMORY if rl.versions == "memory" else DISK
    copies = rl.versions == "memory" and gpus > device.per_node  # published into the run folder, copied by each node
    publishing, loading = size / (DISK if copies else rate) / nodes, load_seconds(spec, rate)
    copying = size / DISK if copies else 0.0
    moving = 0.0
    if colocated:
        moving = 2 * trainer_bytes(option) / HOST_LINK  # out of the device's memory and back
        loading += _SWITCH_SECONDS
    assert option.time is not None
    train = rl.updates_per_batch * option.time.total
    old = old_logprob_seconds(rl, option)
    turns = play(
        rl, work, used, engines, prompt, train=train + old + moving, publish=publishing, load=loading, copy=copying
    )
    return Stage(
        training_gpus=training, engines=engines, sampler=used, option=option, training=train, old=old,
        publishing=publishing + moving, loading=loading, turns=turns,
        host=host_bytes(spec, option, device, training, _versions_held(rl, copies)) if colocated else 0.0,
        copying=copying,
    )  # fmt: skip


def play(
    rl: Rl,
    work: Workload,
    used: Sampler,
    engines: int,
    prompt: float,
    *,
    train: float,
    publish: float,
    load: float,
    copy: float,
) -> Turns:
    """Batches of the stage one after another, with units of ``rl.questions_per_unit`` questions."""
    answers = rl.questions_per_batch * rl.group * draws(rl, work.kept)
    read = (2.0 * model_parameters(used.spec) * prompt + work.pictures * picture_flops(used.spec, work.picture)) / (
        used.device.bf16 * used.tensor
    )
    lengths = work.response.values(answers)
    batches = batches_of(with_rethinking(rl, lengths), rl.questions_per_unit * rl.group, _BATCHES + rl.lag)
    parties = Parties(
        engines=engines, places=used.places, step=used.step, read=read,
        load=load, train=train, publish=publish, copy=copy,
    )  # fmt: skip
    return simulate(batches, parties, rl.lag)


def with_rethinking(rl: Rl, lengths: Sequence[float]) -> list[float]:
    """A share of the answers goes on behind a trigger: there they are as much longer."""
    more = rethinking_tokens(rl)
    return [
        length + (more if (number * rl.rethink.share) % 1.0 < rl.rethink.share else 0.0)
        for number, length in enumerate(lengths)
    ]


def rethinking_tokens(rl: Rl) -> float:
    """Tokens behind a trigger, on average: assumed, half of what is allowed."""
    return 0.5 * rl.rethink.most_tokens if rl.rethink.share else 0.0


def frozen_parameters(config: Config, spec: ModelSpec) -> float:
    """Parameters that training leaves as they are; their files are linked from version to version."""
    sizes, train = parameters(spec), config.train
    frozen = 0 if train.train_vision_tower else sizes["vision"]
    return frozen + (0 if train.train_projector else sizes["projector"])


def load_seconds(spec: ModelSpec, rate: float) -> float:
    """A version into an engine: read once to verify it (the second time it is cached), then by each tensor-parallel
    worker over its host link. ``rate``: bytes/s where versions lie."""
    size = 2.0 * model_parameters(spec)
    return size / rate + size / HOST_LINK


def old_logprob_seconds(rl: Rl, option: Option) -> float:
    """A forward pass over the batch's samples, where old log-probs are measured: a third of its updates' passes."""
    if not rl.measures_old:
        return 0.0
    assert option.time is not None
    passes = 4.0 if option.setting.train.recompute == "full" else 3.0
    return rl.updates_per_batch * option.time.pipeline / passes


def trainer_bytes(option: Option) -> float:
    """What a rank moves between device and host when engines take over its device: gradients are not kept."""
    return option.memory.weights + option.memory.optimizer


def host_bytes(spec: ModelSpec, option: Option, device: Device, gpus: int, versions: int) -> float:
    """Host memory of a node whose GPUs are shared: the trainer's state of its ranks, and the versions that lie there at
    once.
    """
    ranks = min(gpus, device.per_node)
    return ranks * trainer_bytes(option) + versions * version_bytes(spec)


def version_bytes(spec: ModelSpec) -> float:
    """A version's bf16 weights."""
    return 2.0 * model_parameters(spec)


def _versions_held(rl: Rl, copies: bool) -> int:
    """In a node's memory: those that are kept and one that is written; a copy, and one that is loaded; one read."""
    return 1 if rl.versions == "run" else 2 if copies else 3


def selection_seconds(rl: Rl, work: Workload, stage: Stage, gpus: int) -> float:
    """The pre-selection: every question ``rl.select.samples`` times, on all GPUs, engines full all the time."""
    answers = rl.select.samples * work.questions
    used = stage.sampler
    steps = answers * sum(work.response.values()) / len(work.response.values())
    return steps / used.places * used.step(used.places) / max(1, gpus // used.tensor)
