"""Checks a parallel layout against a model. Pure functions without torch, so they can run before any model starts."""

from __future__ import annotations

import math

from sophia_mcore.config.schema import Config, Parallel
from sophia_mcore.errors import UsageError
from sophia_mcore.pretrained.spec import ModelSpec


def fp8_refusal(recipe: str, lacks: str) -> UsageError:
    """The error for an `fp8.recipe` that cannot run here. `lacks`: the missing part, such as "a CUDA device"."""
    return UsageError(
        f"fp8.recipe = {recipe!r} needs {lacks}, which is not here; set it to 'none', or fp8.backend to "
        "'emulated' (slow: for checks)"
    )


def check_run_layout(spec: ModelSpec, config: Config, parallel: Parallel | None = None) -> None:
    """Raise UsageError if the configuration's layout cannot work for the model. Every command that looks at a policy
    calls this before anything is sampled, and so does the model when it is built. ``parallel``: None: that of the
    configuration."""
    check_layout(spec, parallel or config.parallel, config.batch.sequence_length_tokens, fp8=config.fp8.used)
    layers = spec.language.num_layers
    beyond = [layer for layer in config.fp8.layers_in_bf16 if layer >= layers]
    if config.fp8.used and beyond:
        raise UsageError(f"fp8.layers_in_bf16: there is no layer {beyond[0]}, the last one is {layers - 1}")


def check_layout(
    spec: ModelSpec, parallel: Parallel, sequence_length_tokens: int | None = None, fp8: bool = False
) -> None:
    """Raise UsageError if the layout cannot divide the model: one line with setting, value and what would fit."""
    language = spec.language
    heads, kv_heads, tensor = language.num_attention_heads, language.num_key_value_heads, parallel.tensor
    if heads % tensor:
        raise UsageError(f"parallel.tensor = {tensor} does not divide {heads} attention heads; {_divisors(heads)} do")
    if kv_heads % tensor and tensor % kv_heads:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
        raise UsageError(
            f"parallel.tensor = {tensor} fits no even share of {kv_heads} key-value heads; "
            f"{', '.join(map(str, fitting))} do"
        )
    if language.intermediate_size % tensor:
        common = math.gcd(heads, language.intermediate_size)
        fitting = [n for n in range(1, common + 1) if common % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
        raise UsageError(
            f"parallel.tensor = {tensor} does not divide intermediate_size = {language.intermediate_size}; "
            f"{', '.join(map(str, fitting))} do"
        )
    if parallel.sequence_parallel and tensor == 1:
        raise UsageError("parallel.sequence_parallel needs parallel.tensor > 1")
    layers = layers_per_stage(language.num_layers, parallel)[0][0]
    if layers < spec.levels - 1:
        raise UsageError(
            f"the first pipeline stage (or its first virtual chunk) has {layers} language layers, but the model adds "
            f"image features to the first {spec.levels - 1}: set parallel.layers_on_first_stage higher or use fewer "
            "stages"
        )
    check_sequence_length(parallel, sequence_length_tokens, fp8)


def layers_per_stage(layers: int, parallel: Parallel) -> list[list[int]]:
    """Number of language layers of each [pipeline rank][model chunk].

    >>> layers_per_stage(8, Parallel(pipeline=2, virtual_pipeline=2))
    [[2, 2], [2, 2]]
    >>> layers_per_stage(7, Parallel(pipeline=2, layers_on_first_stage=3))
    [[3], [4]]

    Raises:
        UsageError: the layers do not fit the stages.
    """
    stages, chunks = parallel.pipeline, parallel.virtual_pipeline or 1
    first, last = parallel.layers_on_first_stage, parallel.layers_on_last_stage
    if stages == 1:
        if parallel.virtual_pipeline is not None:
            raise UsageError("parallel.virtual_pipeline needs parallel.pipeline > 1")
        if first is not None or last is not None:
            raise UsageError("parallel.layers_on_first_stage and layers_on_last_stage need parallel.pipeline > 1")
        return [[layers]]
    counts: list[int | None] = [None] * stages
    counts[0], counts[-1] = first, last
    free = [i for i, count in enumerate(counts) if count is None]
    rest = layers - (first or 0) - (last or 0)
    if rest < len(free) or (free and rest % len(free)) or (not free and rest):
        if len(free) == stages:
            raise UsageError(
                f"{layers} language layers do not fit parallel.pipeline = {stages}; {_divisors(layers)} do evenly"
            )
        raise UsageError(
            f"{layers} language layers do not fit parallel.pipeline = {stages} with layers_on_first_stage = {first}, "
            f"layers_on_last_stage = {last}: {rest} layers are left for {len(free)} stages"
        )
    whole = [count if count is not None else rest // len(free) for count in counts]
    uneven = [count for count in whole if count % chunks]
    if uneven:
        raise UsageError(f"parallel.virtual_pipeline = {chunks} does not divide a stage of {uneven[0]} language layers")
    return [[count // chunks] * chunks for count in whole]


def check_sequence_length(parallel: Parallel, sequence_length_tokens: int | None, fp8: bool = False) -> None:
    """Raise UsageError if a row cannot be divided into 2 x CP slices for context parallelism, and each slice by TP for
    sequence parallelism."""
    unit = parallel.row_multiple(fp8)
    if sequence_length_tokens is not None and sequence_length_tokens % unit:
        nearest = max(unit, sequence_length_tokens // unit * unit)
        raise UsageError(
            f"batch.sequence_length_tokens = {sequence_length_tokens} is not a multiple of {unit}, which "
            f"parallel.context = {parallel.context}{', sequence parallelism' if parallel.sequence_parallel else ''}"
            f"{', FP8' if fp8 else ''} need; nearest: {nearest}"
        )


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
