"""Pictures to image features, each picture once, and the features to their image tokens of the text.

A picture is what the tower sees at once: a tile, or an image as a grid of patches. Its pixels are some consecutive rows
of `pixel_values`, its features some consecutive tokens.

Legend: T rows of pixels, F features of image tokens, L levels (1, and one for each DeepStack layer), H hidden size,
b rows of S tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sophia_mcore.errors import SophiaError

Grid = tuple[int, int]  # rows and columns of a picture; their product is its number of rows of pixels
Work = Callable[[Tensor, Sequence[Grid]], Tensor]


@dataclass(frozen=True, slots=True)
class Pixels:
    """Pictures: rows of pixels [T, *row_shape] one picture after another, and each one's grid."""

    values: Tensor
    grids: Sequence[Grid]

    @staticmethod
    def of(values: Tensor, grids: Sequence[Grid] | None) -> Pixels:
        """``grids`` None: every row of pixels is a picture of its own.

        Raises SophiaError when the grids make another number of rows.
        """
        grids = [(1, 1)] * len(values) if grids is None else grids
        if sum(map(rows_of, grids)) != len(values):
            raise SophiaError(f"{len(values)} rows of pixels, but the pictures make {sum(map(rows_of, grids))}")
        return Pixels(values, grids)


def rows_of(grid: Grid) -> int:
    """Rows of pixels of a picture."""
    return grid[0] * grid[1]


class ImageEncoder(nn.Module):
    """Vision tower and projector over the ranks that hold the same row (tensor x context parallel).

    Every rank holds both and encodes its share of the pictures; then all gather. Frozen parts run without gradient.

    Args:
        shared: group of all ranks with the same row; context: those of them that differ in the tokens they own.
        tokens: image tokens of a picture of so many rows of pixels; levels: L.
        rows_at_once: a frozen tower encodes at most so many rows of pixels at a time (bounds its activations).
    """

    def __init__(
        self, vision: nn.Module, projector: nn.Module, shared: dist.ProcessGroup, context: dist.ProcessGroup,
        *, tokens: Callable[[int], int], levels: int, rows_at_once: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.vision, self.projector = vision, projector
        self.shared, self.context, self.rows_at_once = shared, context, rows_at_once
        self.tokens, self.levels = tokens, levels

    def forward(self, pictures: Pixels) -> Tensor:
        """Pictures, the same on all ranks of `shared` -> their features [F, L, H] on all of them."""
        return self._share_out(pictures, self.tokens, lambda own, grids: self._project(self._see(own, grids), grids))

    def see(self, pictures: Pixels) -> Tensor:
        """What the tower makes of pictures, [T, ...], on all ranks; without gradient."""
        with torch.no_grad():
            return self._share_out(pictures, _same, self._see)

    def project(self, seen: Tensor, grids: Sequence[Grid]) -> Tensor:
        """What `see` returned -> features [F, L, H], on all ranks."""
        return self._share_out(Pixels(seen, grids), self.tokens, self._project)

    def _share_out(self, whole: Pixels, made: Callable[[int], int], work: Work) -> Tensor:
        """`work` on this rank's share of the pictures; the results of all ranks in order.

        A picture of r rows becomes made(r) rows.
        """
        size, rank = self.shared.size(), self.shared.rank()
        if size == 1:
            return work(whole.values, whole.grids)
        rows = [rows_of(grid) for grid in whole.grids]
        bounds, starts = shares(rows, size), list(accumulate(rows, initial=0))
        first, last = bounds[rank], bounds[rank + 1]
        if first == last:  # nothing to do, but trained parameters need a gradient: a picture that nobody reads
            first = rows.index(min(rows))
            last = first + 1
        own = work(whole.values[starts[first] : starts[last]], whole.grids[first:last])
        counts = [sum(map(made, rows[start:end])) for start, end in pairwise(bounds)]
        longest = max(counts)
        padded = torch.cat((own, own.new_zeros((longest - len(own), *own.shape[1:]))))
        gathered = _GatherShares.apply(padded, self.shared, self.context)
        return torch.cat([gathered[i * longest : i * longest + count] for i, count in enumerate(counts)])

    def _see(self, values: Tensor, grids: Sequence[Grid]) -> Tensor:
        if trainable(self.vision):
            return self.vision(values, grids)
        with torch.no_grad():
            return torch.cat([self.vision(part, some) for part, some in self._parts(values, grids)])

    def _project(self, seen: Tensor, grids: Sequence[Grid]) -> Tensor:
        if trainable(self.vision) or trainable(self.projector):
            return self._by_token(self.projector(seen))
        with torch.no_grad():
            return torch.cat([self._by_token(self.projector(part)) for part, _ in self._parts(seen, grids)])

    def _by_token(self, features: Tensor) -> Tensor:
        return features.reshape(-1, self.levels, features.shape[-1])

    def _parts(self, values: Tensor, grids: Sequence[Grid]) -> Iterator[tuple[Tensor, Sequence[Grid]]]:
        """Consecutive pictures that together have at most `rows_at_once` rows, or one that has more."""
        start = count = first = 0
        for number, grid in enumerate(grids):
            if count and count + rows_of(grid) > self.rows_at_once:
                yield values[start : start + count], grids[first:number]
                start, count, first = start + count, 0, number
            count += rows_of(grid)
        yield values[start:], grids[first:]


def shares(rows: Sequence[int], size: int) -> list[int]:
    """Where each rank's consecutive pictures begin, and the end, so that all have nearly the same rows of pixels.

    >>> shares([4, 4, 4, 4], 2), shares([20, 4, 4, 4], 2), shares([9], 2)
    ([0, 2, 4], [0, 1, 4], [0, 0, 1])
    """
    total, middles = sum(rows), [end - count / 2 for end, count in zip(accumulate(rows), rows, strict=True)]
    cuts = [sum(middle < rank * total / size for middle in middles) for rank in range(1, size)]
    return [0, *cuts, len(rows)]


def _same(rows: int) -> int:
    return rows


class PictureCache:
    """What was made of pictures that several rows of a step show, so that a frozen tower sees each once per step."""

    def __init__(self) -> None:
        self._rows_left: Counter[str] = Counter()
        self._made: dict[str, Tensor] = {}

    def start(self, rows: Mapping[str, int]) -> None:
        """Forget everything; `rows`: in how many rows of the step to come each picture appears."""
        self._rows_left, self._made = Counter(rows), {}

    def encode(
        self, keys: Sequence[str], pictures: Pixels, made: Callable[[int], int], encode: Callable[[Pixels], Tensor]
    ) -> Tensor:
        """`encode` of a row's pictures with these keys; only those that are not known go through it.

        A picture of r rows of pixels becomes made(r) rows, which are kept until its last row of the batch has come.
        """
        rows = [rows_of(grid) for grid in pictures.grids]
        known = {key: self._made[key] for key in keys if key in self._made}
        new = [place for place, key in enumerate(keys) if key not in known]
        if new:
            values = pictures.values.split(rows)
            some = Pixels(torch.cat([values[place] for place in new]), [pictures.grids[place] for place in new])
            parts = encode(some).split([made(rows[place]) for place in new])
            known |= zip((keys[place] for place in new), parts, strict=True)
        self._rows_left.subtract(keys)
        for key in keys:
            if self._rows_left[key] <= 0:
                self._made.pop(key, None)
            elif key not in self._made:
                self._made[key] = known[key].clone()  # a view would keep the whole row's features
        return torch.cat([known[key] for key in keys])


def trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


class _GatherShares(torch.autograd.Function):
    """Every rank's results for all; all have the same shape.

    Backward: the own results' gradient, summed over the context ranks (each saw other tokens of the row) and times the
    tensor-parallel size: megatron-core then averages the parameters' gradients over these ranks, which makes the sum.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, shared: dist.ProcessGroup, context: dist.ProcessGroup) -> Tensor:
        ctx.groups, ctx.share = (shared, context), len(features)
        gathered = features.new_empty((shared.size() * len(features), *features.shape[1:]))
        dist.all_gather_into_tensor(gathered, features.contiguous(), group=shared)
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        shared, context = ctx.groups
        if context.size() > 1:
            grad = grad.contiguous()
            dist.all_reduce(grad, group=context)
        start = shared.rank() * ctx.share
        return grad[start : start + ctx.share] * (shared.size() // context.size()), None, None


def fill_image_tokens(hidden: Tensor, features: Tensor, input_ids: Tensor, image_token_id: int) -> Tensor:
    """Replace the embeddings [S, b, H] of the image tokens of rows [b, S] by `features` [image tokens, H], in order.

    The replaced embeddings get no gradient, as in the original.
    """
    places = (input_ids == image_token_id).flatten().nonzero().squeeze(1)
    length, rows, width = hidden.shape
    flat = hidden.transpose(0, 1).reshape(rows * length, width)
    flat = flat.index_copy(0, places, features.to(hidden.dtype))
    return flat.view(rows, length, width).transpose(0, 1).contiguous()


def spread_image_tokens(features: Tensor, input_ids: Tensor, image_token_id: int) -> Tensor:
    """`features` [image tokens, ...] at the image tokens' places of rows [b, S], zero elsewhere: [S, b, ...]."""
    places = (input_ids == image_token_id).flatten().nonzero().squeeze(1)
    rows, length = input_ids.shape
    flat = features.new_zeros(rows * length, *features.shape[1:]).index_copy(0, places, features)
    return flat.unflatten(0, (rows, length)).transpose(0, 1).contiguous()


def check_image_tokens(
    input_ids: Tensor, feature_index: Tensor, features: int, image_token_id: int, boundaries: Sequence[int],
    sample_ids: Sequence[str] = (),
) -> None:  # fmt: skip
    """Refuse a row whose image tokens do not match its image features one to one.

    Args:
        input_ids: [b, S]; boundaries: where the sequences of a row begin, and S.
        feature_index: [image tokens] rows of the `features` encoded ones.
        sample_ids: names for the message, one per sequence.

    Raises:
        SophiaError: names the samples that have image tokens, with their counts.
    """
    wanted, found = feature_index.numel(), int((input_ids == image_token_id).sum())
    if wanted and int(feature_index.max()) >= features:
        raise SophiaError(f"feature_index names feature {int(feature_index.max())}, but the batch has {features}")
    if wanted == found:
        return
    counts = [int((row[start:end] == image_token_id).sum()) for row in input_ids for start, end in pairwise(boundaries)]
    names = [sample_ids[i] if i < len(sample_ids) else f"sequence {i} of the row" for i in range(len(counts))]
    suspects = [f"{name} has {count}" for name, count in zip(names, counts, strict=True) if count]
    raise SophiaError(
        f"image tokens and features differ: {found} image tokens, but {wanted} features "
        f"({'; '.join(suspects) or 'no sample has image tokens'})"
    )
