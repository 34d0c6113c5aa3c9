"""How long sampling takes: engines that decode many sequences at once, each step as long as memory or products need.

A simulation of continuous batching: the next sequence replaces one that ends; at the end the longest are alone.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass

from sophia_mcore.errors import SophiaError
from sophia_mcore.plan.cost import picture_flops
from sophia_mcore.plan.hardware import Device
from sophia_mcore.plan.memory import model_parameters
from sophia_mcore.plan.workload import Lengths
from sophia_mcore.pretrained.family import Picture
from sophia_mcore.pretrained.spec import ModelSpec

_SIMULATED = 4096  # sequences of one engine; more repeat the pattern
_STEP_SECONDS = 2e-3  # scheduling and launches of a decoding step: assumed, not measured
_CACHE_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A model in an inference engine on `tensor` devices, with room for `places` sequences."""

    spec: ModelSpec
    device: Device
    tensor: int
    places: int
    context: float  # tokens in the cache per sequence, on average
    parameters: int  # of the model

    def step(self, running: int) -> float:
        """Seconds of one decoding step of `running` sequences."""
        read = 2.0 * self.parameters + running * self.context * cache_bytes(self.spec)
        products = 2.0 * self.parameters * running / self.device.bf16
        exchange = 2 * self.spec.language.num_layers * self.device.message_seconds if self.tensor > 1 else 0.0
        return max(read / self.device.bandwidth, products) / self.tensor + exchange + _STEP_SECONDS


def cache_bytes(spec: ModelSpec) -> float:
    """Bytes of keys and values of one token in bf16."""
    language = spec.language
    return 2.0 * 2 * language.num_layers * language.num_key_value_heads * language.head_dim


def sampler(spec: ModelSpec, device: Device, tensor: int, slots: int, prompt: float, lengths: Lengths) -> Sampler:
    """The engine on the fewest devices from `tensor` on that hold the weights and at least eight sequences.

    Raises:
        SophiaError: a whole node is too small.
    """
    values, parameters = lengths.values(), model_parameters(spec)
    context = prompt + sum(values) / len(values) / 2
    while tensor <= device.per_node:
        room = tensor * device.memory * _CACHE_SHARE - 2.0 * parameters
        places = int(room / (cache_bytes(spec) * 2 * context))  # the long ones stay longest
        if places >= 8:
            places = min(slots, places)
            return Sampler(
                spec=spec, device=device, tensor=tensor, places=places, context=context, parameters=parameters
            )
        tensor *= 2
    raise SophiaError(f"a node of {device.per_node} x {device.name} is too small for a {spec.language.family} sampler")


def sampling_seconds(
    engine: Sampler,
    sequences: int,
    gpus: int,
    prompt: float,
    lengths: Lengths,
    pictures: float,
    picture: Picture | None = None,
) -> float:
    """Seconds until `sequences` sequences are sampled on `gpus` devices; reading the prompts included.

    Raises:
        SophiaError: fewer devices than one engine needs.
    """
    engines = gpus // engine.tensor
    if engines == 0:
        raise SophiaError(f"the sampler needs {engine.tensor} GPUs, only {gpus} are planned")
    own = math.ceil(sequences / engines)
    values = lengths.values(min(own, _SIMULATED))
    random.Random(0).shuffle(values)  # noqa: S311  a fixed order, no secret
    seconds = decode_seconds(engine, values)
    mean = sum(values) / len(values)
    if own > len(values):
        seconds += (own - len(values)) * mean / engine.places * engine.step(engine.places)
    rate = engine.device.bf16 * engine.tensor
    reading = 2.0 * model_parameters(engine.spec) * prompt + pictures * picture_flops(engine.spec, picture)
    return seconds + own * reading / rate


def decode_seconds(engine: Sampler, lengths: list[float]) -> float:
    """Seconds to decode sequences of these lengths, taken in this order as places become free."""
    waiting = iter(lengths)
    ends: list[float] = []  # in decoding steps since the start
    clock = seconds = 0.0
    for length in waiting:
        heapq.heappush(ends, clock + length)
        if len(ends) < engine.places:
            continue
        first = heapq.heappop(ends)
        seconds += (first - clock) * engine.step(len(ends) + 1)
        clock = first
    while ends:
        first = heapq.heappop(ends)
        seconds += (first - clock) * engine.step(len(ends) + 1)
        clock = first
    return seconds
