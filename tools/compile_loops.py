"""Compile the loops that numba would compile at their first call, into the cache beside their sources.

`make env` runs it once. Without it every rank of the first training would compile them at the same time.
"""

from __future__ import annotations

from PIL import Image

from sophia_mcore.batch.pack import pack
from sophia_mcore.pretrained.internvl.tiling import ImageSpec, tiles
from sophia_mcore.pretrained.qwen_vl.processor import PatchGrids


def main() -> None:
    """Call each loop once, with arrays of the kinds that training gives it."""
    pack([1], 1)
    picture, third = Image.new("RGB", (3, 5)), (0.5, 0.5, 0.5)
    tiles(picture, ImageSpec(tile_size=14, tokens_per_tile=1))
    PatchGrids(patch=2, merge=2, min_pixels=64, max_pixels=64, mean=third, std=third,
               image_token_id=None, video_token_id=None).pixels(picture)  # fmt: skip


if __name__ == "__main__":
    main()
