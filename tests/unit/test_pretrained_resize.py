"""The compiled resize and the tiles and patches made with it, against Pillow and numpy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sophia_mcore.pretrained.internvl.tiling import ImageSpec, tiles
from sophia_mcore.pretrained.qwen_vl.processor import PatchGrids
from sophia_mcore.pretrained.resize import bicubic, order_of_passes

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noise(width: int, height: int, hard: bool = False) -> Image.Image:
    """Random colours; ``hard``: black and white only, where sums leave 0 to 255."""
    random = np.random.default_rng((width, height))
    values = random.integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(np.where(values < 128, 0, 255).astype(np.uint8) if hard else values)


def pillow(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def same(image: Image.Image, width: int, height: int) -> bool:
    return np.array_equal(bicubic(image, width, height)[..., :3], pillow(image, width, height))


@settings(max_examples=150, deadline=None)
@given(
    old=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    new=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    hard=st.booleans(),
)
def test_any_size_equals_pillow(old: tuple[int, int], new: tuple[int, int], hard: bool) -> None:
    assert same(noise(*old, hard=hard), *new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((1, 1), (448, 448)),
        ((3000, 7), (56, 448)),  # hundreds of weights, and a stripe that is not full
        ((7, 3000), (448, 56)),
        ((640, 480), (1792, 1344)),
        ((1654, 2339), (448, 448)),
        ((448, 700), (448, 448)),  # one pass
        ((700, 448), (448, 448)),
        ((448, 448), (448, 448)),  # none
    ],
)
def test_known_shapes(old: tuple[int, int], new: tuple[int, int]) -> None:
    assert same(noise(*old), *new)


def test_the_order_of_passes_changes_at_twice_the_loss() -> None:
    """Around the border one level of difference would tell the orders apart."""
    for height in (647, 648, 649, 650):
        assert same(noise(548, height), 448, 448), height
    assert order_of_passes(548, 648, 448, 448) == (True, False)
    assert order_of_passes(548, 649, 448, 448) == (False, True)
    assert order_of_passes(100, 448, 448, 448) == (True, False)  # the height stays


def reference_tiles(image: Image.Image, spec: ImageSpec) -> NDArray[np.float32]:
    """The original's way: each tile cropped from the canvas, normalised by itself."""
    size = spec.tile_size
    columns, rows = spec.grid(*image.size)
    canvas = image.resize((size * columns, size * rows))
    boxes = [(size * x, size * y, size * (x + 1), size * (y + 1)) for y in range(rows) for x in range(columns)]
    parts = [canvas.crop(box) for box in boxes]
    if len(parts) < spec.tile_count(*image.size):
        parts.append(image.resize((size, size)))
    mean, std = (np.asarray(values, np.float32) for values in (spec.mean, spec.std))
    values = np.stack([np.asarray(part) for part in parts]).astype(np.float32)
    return ((values / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(224, 224), (336, 280), (640, 480), (500, 1500), (1000, 333), (230, 160), (5, 4)])
@pytest.mark.parametrize("thumbnail", [True, False])
def test_tiles_equal_the_slow_way(size: tuple[int, int], thumbnail: bool) -> None:
    spec = ImageSpec(112, 16, 12, use_thumbnail=thumbnail, mean=MEAN, std=STD)
    found = tiles(noise(*size), spec)
    assert found.dtype == np.float32 and np.array_equal(found, reference_tiles(noise(*size), spec))


def reference_patches(image: Image.Image, grids: PatchGrids) -> NDArray[np.float32]:
    """Two equal frames, cut by one transposition as transformers' processor does."""
    rows, columns = grids.size(*image.size).grid or (0, 0)
    m, p = grids.merge, grids.patch
    mean, std = (np.asarray(values, np.float32) for values in (grids.mean, grids.std))
    values = np.asarray(image.resize((columns * p, rows * p))).astype(np.float32)
    values = ((values / np.float32(255) - mean) / std).transpose(2, 0, 1)
    frames = np.stack([values, values]).reshape(2, 3, rows // m, m, p, columns // m, m, p)
    return frames.transpose(2, 5, 3, 6, 1, 0, 4, 7).reshape(rows * columns, -1)


@pytest.mark.parametrize(("patch", "merge"), [(14, 2), (16, 2), (4, 3)])
@pytest.mark.parametrize("size", [(224, 224), (336, 280), (90, 700), (700, 90), (9, 9)])
def test_patches_equal_the_slow_way(size: tuple[int, int], patch: int, merge: int) -> None:
    grids = PatchGrids(patch=patch, merge=merge, min_pixels=3136, max_pixels=200_000, mean=MEAN, std=STD,
                       image_token_id=None, video_token_id=None)  # fmt: skip
    found = grids.pixels(noise(*size))
    assert found.dtype == np.float32 and found.flags["C_CONTIGUOUS"]
    assert np.array_equal(found, reference_patches(noise(*size), grids))
