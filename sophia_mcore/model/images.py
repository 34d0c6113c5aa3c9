"""Tiles to image features, each tile once, and the features to their image tokens of the text.

Legend: T tiles, n tokens of a tile, H hidden size, b rows of S tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sophia_mcore.errors import SophiaError

TILES_AT_ONCE = 32  # a frozen tower's share of tiles is encoded in parts of this size


class ImageEncoder(nn.Module):
    """Vision tower and projector over the ranks that hold the same row (tensor x context parallel).

    Every rank holds both and encodes its share of the tiles; then all gather. Frozen parts run without gradient.

    Args:
        shared: group of all ranks with the same row; context: those of them that differ in the tokens they own.
        tiles_at_once: a frozen tower encodes at most this many tiles at a time (bounds its activations).
    """

    def __init__(
        self, vision: nn.Module, projector: nn.Module, shared: dist.ProcessGroup, context: dist.ProcessGroup,
        tiles_at_once: int = TILES_AT_ONCE,
    ) -> None:  # fmt: skip
        super().__init__()
        self.vision, self.projector = vision, projector
        self.shared, self.context, self.tiles_at_once = shared, context, tiles_at_once

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[T, 3, S, S], the same on all ranks of `shared` -> [T, n, H] on all of them."""
        return self._share_out(pixel_values, lambda mine: self._project(self._see(mine)))

    def see(self, pixel_values: Tensor) -> Tensor:
        """[T, 3, S, S] -> what the tower makes of them, [T, 1 + patches, C], on all ranks; without gradient."""
        with torch.no_grad():
            return self._share_out(pixel_values, self._see)

    def project(self, seen: Tensor) -> Tensor:
        """What `see` returned -> [T, n, H], on all ranks."""
        return self._share_out(seen, self._project)

    def _share_out(self, whole: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
        """`work` on this rank's share of the tiles [T, ...]; the results of all ranks in order."""
        size, rank = self.shared.size(), self.shared.rank()
        if size == 1:
            return work(whole)
        share = -(-len(whole) // size)
        mine = whole[rank * share : (rank + 1) * share]
        if len(mine) < share:  # the last ranks fill up with blank tiles, whose features nobody reads
            mine = torch.cat((mine, whole.new_zeros((share - len(mine), *whole.shape[1:]))))
        return _GatherTiles.apply(work(mine), self.shared, self.context)[: len(whole)]

    def _see(self, pixel_values: Tensor) -> Tensor:
        if trainable(self.vision):
            return self.vision(pixel_values)
        with torch.no_grad():
            return torch.cat([self.vision(part) for part in pixel_values.split(self.tiles_at_once)])

    def _project(self, seen: Tensor) -> Tensor:
        if trainable(self.vision) or trainable(self.projector):
            return self.projector(seen)
        with torch.no_grad():
            return torch.cat([self.projector(part) for part in seen.split(self.tiles_at_once)])


class TileCache:
    """Features of tiles that several rows of a step show, so that a frozen tower encodes each tile once per step."""

    def __init__(self) -> None:
        self._rows_left: Counter[str] = Counter()
        self._features: dict[str, Tensor] = {}

    def start(self, rows: Mapping[str, int]) -> None:
        """Forget everything; `rows`: in how many rows of the step to come each tile appears."""
        self._rows_left, self._features = Counter(rows), {}

    def encode(self, keys: Sequence[str], pixel_values: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """`encode` of the row's tiles [T, 3, S, S] with these keys; only tiles that are not known go through it.

        A tile's features are kept until its last row has come.
        """
        known = {key: self._features[key] for key in keys if key in self._features}
        new = [place for place, key in enumerate(keys) if key not in known]
        if new:
            known |= zip((keys[place] for place in new), encode(pixel_values[new]), strict=True)
        self._rows_left.subtract(keys)
        for key in keys:
            if self._rows_left[key] <= 0:
                self._features.pop(key, None)
            elif key not in self._features:
                self._features[key] = known[key].clone()  # a view would keep the whole row's features
        return torch.stack([known[key] for key in keys])


def trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


class _GatherTiles(torch.autograd.Function):
    """Every rank's tiles for all.

    Backward: the own tiles' gradient, summed over the context ranks (each saw other tokens of the row) and times the
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
