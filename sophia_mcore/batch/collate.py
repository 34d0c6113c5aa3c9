"""Collates packed samples into tensors. Shapes: S positions of a row, T rows of pixels, N pictures, n sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sophia_mcore.batch.samples import IGNORE, STORED
from sophia_mcore.batch.tokenize import TokenizedSample
from sophia_mcore.pretrained.family import ImageSize

Positions = Callable[[NDArray[np.int32], Sequence[ImageSize]], NDArray[np.int64]]

_PADDING_SEQUENCE = 1024  # tokens; padding is cut into short sequences, which makes attention over it cheap


def counted(input_ids: NDArray[np.int32], sizes: Sequence[ImageSize]) -> NDArray[np.int64]:
    """Positions 0, 1, 2, ... [L] of L tokens, independent of the images."""
    return np.arange(len(input_ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """One micro batch: a row of S positions with several sequences. Each sequence attends only to itself.

    Position t predicts targets[t], the token at t + 1 of the same sequence. It enters the loss if target_mask[t] is
    True. Padding (after each sequence up to the alignment, and at the end of the row) never enters the loss.
    """

    input_ids: Tensor  # [1, S] int64
    position_ids: Tensor  # [1, S] int64, restarting at 0 in every sequence; [3, 1, S] with three axes (M-RoPE)
    targets: Tensor  # [1, S] int64; IGNORE where target_mask is False
    target_mask: Tensor  # [1, S] bool
    weights: Tensor  # [1, S] fp32, the sample's weight at its targets, 0 elsewhere
    sequence_ids: Tensor  # [1, S] int64, index into sample_ids; -1 on padding
    kinds: Tensor  # [1, S] int64: STORED, FRESH, SUPERVISED or AUXILIARY (batch.samples)
    cu_seqlens: Tensor  # [n + 1] int32, boundaries of the sequences including padding; last = S
    max_seqlen: int  # longest sequence, padding included
    pixel_values: Tensor | None  # [T, *row_shape] fp32, of distinct images (T = 0 if none); None: not loaded
    # (rows, columns) of each of the N pictures, in units of rows of pixels: their products sum to T. A tile is (1, 1).
    picture_grids: tuple[tuple[int, int], ...]
    # [image tokens] int64: index of the feature that fills the i-th image token. Features are numbered over all
    # pictures in order; an image has ImageSize.tokens of them.
    feature_index: Tensor
    sample_ids: tuple[str, ...]
    picture_keys: tuple[str, ...] = ()  # a name of each of the N pictures; equal images have equal names
    behaviour_logprobs: Tensor | None = None  # [1, S] fp32: log mu(target), 0 elsewhere
    rollout_logprobs: Tensor | None = None  # [1, S] fp32: log-prob of the target in the sampling engine
    reference_logprobs: Tensor | None = None  # [1, S] fp32: log-prob of the target under the starting model
    kl: Tensor | None = None  # [1, S] fp32: weight of the sample's own k3 term

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The same batch with its tensors on `device`."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in values.items()
            if torch.is_tensor(value)
        }
        return replace(self, **moved)


def aligned(length: int, multiple: int) -> int:
    """`length` rounded up to a multiple."""
    return -(-length // multiple) * multiple


def collate(
    samples: Sequence[TokenizedSample],
    *,
    length: int,
    sequence_multiple: int,
    pixels: Callable[[str], NDArray[np.float32]] | None,
    row_shape: tuple[int, ...],
    positions: Positions = counted,
    padding_id: int = 0,
    behaviour_logprobs: Mapping[str, NDArray[np.float32]] | None = None,
    rollout_logprobs: Mapping[str, NDArray[np.float32]] | None = None,
    reference_logprobs: Mapping[str, NDArray[np.float32]] | None = None,
) -> PackedBatch:
    """Put the samples one after another into a row of `length` positions. Without samples the row is all padding.

    Args:
        samples: their lengths, each rounded up to sequence_multiple, sum to at most `length`.
        length: S, a multiple of sequence_multiple.
        sequence_multiple: sequences start and end at multiples of this (2 x context parallel size).
        pixels: image digest -> rows of pixels [t, *row_shape]. None: no pixel_values (later pipeline stages).
        row_shape: shape of one row of pixels.
        positions: (token ids, image sizes) of a sequence -> its positions, as `ImageProcessor.positions`.
        padding_id: token id of padding.
        behaviour_logprobs, rollout_logprobs, reference_logprobs: sample id -> natural-log probability of each
            response token, end token included. Samples that are not in the mapping get 0.

    Raises:
        ValueError: the samples do not fit, or a sample's log-probs are not one per target.
    """
    starts = [0, *accumulate(aligned(len(sample.input_ids), sequence_multiple) for sample in samples)]
    if starts[-1] > length or length % sequence_multiple:
        raise ValueError(f"{starts[-1]} tokens in multiples of {sequence_multiple} do not fit into a row of {length}")
    columns = {
        "input_ids": np.full(length, padding_id, np.int64),
        "targets": np.full(length, IGNORE, np.int64),
        "target_mask": np.zeros(length, np.bool_),
        "weights": np.zeros(length, np.float32),
        "sequence_ids": np.full(length, -1, np.int64),
        "kinds": np.full(length, STORED, np.int64),
        "kl": np.zeros(length, np.float32),
    }
    for index, (sample, start) in enumerate(zip(samples, starts, strict=False)):
        stop = start + len(sample.input_ids)
        first = start + max(sample.prompt_tokens - 1, 0)  # the position that predicts the first response token
        columns["input_ids"][start:stop] = sample.input_ids
        columns["targets"][first : stop - 1] = sample.input_ids[first - start + 1 :]
        columns["target_mask"][first : stop - 1] = True
        columns["weights"][first : stop - 1] = sample.weight
        columns["kl"][first : stop - 1] = sample.kl
        if sample.learned is not None:
            ignored = np.flatnonzero(~sample.learned) + first
            columns["targets"][ignored], columns["target_mask"][ignored] = IGNORE, False
            columns["weights"][ignored] = 0.0
        columns["sequence_ids"][start:stop] = index
        columns["kinds"][start:stop] = sample.kind
    given = {"behaviour_logprobs": behaviour_logprobs, "rollout_logprobs": rollout_logprobs}
    given["reference_logprobs"] = reference_logprobs
    for name, values in given.items():
        if values is not None:
            columns[name] = _token_values(samples, starts, length, values, name)
    boundaries = np.array([*starts, *_padding_boundaries(starts[-1], length, sequence_multiple)], np.int64)
    sizes = np.diff(boundaries)
    pixel_values, feature_index, pictures = _pixels(samples, pixels, row_shape)
    return PackedBatch(
        **{name: torch.from_numpy(column)[None] for name, column in columns.items()},
        position_ids=torch.from_numpy(_positions(samples, boundaries, positions)).unsqueeze(-2),
        cu_seqlens=torch.from_numpy(boundaries.astype(np.int32)),
        max_seqlen=int(sizes.max(initial=0)),
        pixel_values=pixel_values,
        feature_index=feature_index,
        sample_ids=tuple(sample.id for sample in samples),
        picture_grids=tuple(pictures.values()),
        picture_keys=tuple(pictures),
    )


def split_logprobs(batch: PackedBatch, logprobs: Tensor) -> dict[str, NDArray[np.float32]]:
    """Split log-probs [1, S] of a batch by sample: sample id -> values of its targets, as `collate` takes them."""
    flat, ids = logprobs.detach().float().cpu().reshape(-1), batch.sequence_ids.cpu().reshape(-1)
    mask = batch.target_mask.cpu().reshape(-1)
    return {name: flat[mask & (ids == index)].numpy() for index, name in enumerate(batch.sample_ids)}


def _positions(
    samples: Sequence[TokenizedSample], boundaries: NDArray[np.int64], positions: Positions
) -> NDArray[np.int64]:
    """Positions [S], or [3, S] with three axes. Padding positions count from the start of their sequence."""
    row = np.arange(boundaries[-1]) - np.repeat(boundaries[:-1], np.diff(boundaries))
    axes = positions(np.empty(0, np.int32), ()).shape[:-1]
    result = np.array(np.broadcast_to(row, (*axes, len(row))))
    for sample, start in zip(samples, boundaries, strict=False):
        result[..., start : start + len(sample.input_ids)] = positions(sample.input_ids, sample.image_sizes)
    return result


def _padding_boundaries(used: int, length: int, multiple: int) -> list[int]:
    step = aligned(_PADDING_SEQUENCE, multiple)
    return [*range(used + step, length, step), length] if used < length else []


def _token_values(
    samples: Sequence[TokenizedSample],
    starts: Sequence[int],
    length: int,
    given: Mapping[str, NDArray[np.float32]],
    name: str,
) -> NDArray[np.float32]:
    values = np.zeros(length, np.float32)
    for sample, start in zip(samples, starts, strict=False):
        targets = len(sample.input_ids) - sample.prompt_tokens
        own = given.get(sample.id)
        if own is None:
            continue
        if len(own) != targets:
            raise ValueError(f"{name} of {sample.id}: {len(own)} values for {targets} targets")
        first = start + sample.prompt_tokens - 1
        values[first : first + targets] = own
    return values


def _pixels(
    samples: Sequence[TokenizedSample],
    pixels: Callable[[str], NDArray[np.float32]] | None,
    row_shape: tuple[int, ...],
) -> tuple[Tensor | None, Tensor, dict[str, tuple[int, int]]]:
    """(pixel_values, feature_index, picture key -> grid). Each distinct image appears once, in order of appearance."""
    first: dict[str, tuple[int, int]] = {}  # image -> its first row of pixels, its first feature
    index = [np.empty(0, np.int64)]
    pictures: dict[str, tuple[int, int]] = {}
    count = features = 0
    for sample in samples:
        for image, size in zip(sample.images, sample.image_sizes, strict=True):
            if image not in first:
                first[image] = count, features
                pictures |= {f"{image}:{number}": size.grid or (1, 1) for number in range(size.pictures)}
                count, features = count + size.rows, features + size.tokens
            index.append(np.arange(first[image][1], first[image][1] + size.tokens))
    feature_index = torch.from_numpy(np.concatenate(index))
    if pixels is None:
        return None, feature_index, pictures
    rows = np.empty((count, *row_shape), np.float32)
    for image, (start, _) in first.items():
        own = pixels(image)
        rows[start : start + len(own)] = own
    return torch.from_numpy(rows), feature_index, pictures
