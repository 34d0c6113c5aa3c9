"""An image into normalised tiles: ours against the original's way with Pillow, at the same pixels.

python -m tests.bench.bench_tiling [--width 1280] [--height 960] [--images 20] [--repeats 3]

Prints one JSON line; figures are CPU-seconds of one thread, best of the interleaved repeats. Cases: `pillow` (the
original's steps: resize, crop, each tile to a float tensor and normalised, stacked), `ours` (data.tiling, what training
uses: bit-equal to it), `resize` (only Pillow's two resizes, which every exact way needs unless it resizes by itself),
`torch_uint8` (torch's antialiased bicubic on uint8, not used: its pixels differ).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sophia_mcore.pretrained.internvl.tiling import IMAGENET_MEAN, IMAGENET_STD, ImageSpec, tiles

SPEC = ImageSpec(tile_size=448, tokens_per_tile=256, max_tiles=12)
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))


def photo(width: int, height: int) -> Image.Image:
    """Smooth colours with fine texture, as a photograph has both."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
    noise = random.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def pillow(image: Image.Image) -> Tensor:
    """Each tile is cropped from the resized image and made a tensor of its own."""
    size = SPEC.tile_size
    columns, rows = SPEC.grid(*image.size)
    canvas = image.resize((size * columns, size * rows))
    boxes = [(size * x, size * y, size * (x + 1), size * (y + 1)) for y in range(rows) for x in range(columns)]
    parts = [canvas.crop(box) for box in boxes] + [image.resize((size, size))] * (columns * rows > 1)
    pixels = (torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous() for part in parts)
    return torch.stack([part.float().div(255).sub_(MEAN).div_(STD) for part in pixels])


def resize_only(image: Image.Image) -> object:
    columns, rows = SPEC.grid(*image.size)
    return image.resize((448 * columns, 448 * rows)), image.resize((448, 448))


def torch_uint8(image: Image.Image) -> Tensor:
    """torch's own antialiased resize of uint8 planes, then the same normalisation."""
    size = SPEC.tile_size
    columns, rows = SPEC.grid(*image.size)
    whole = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]

    def resized(height: int, width: int) -> Tensor:
        return torch.nn.functional.interpolate(whole, (height, width), mode="bicubic", antialias=True)

    canvas = resized(size * rows, size * columns)
    cut = canvas.view(3, rows, size, columns, size).permute(1, 3, 0, 2, 4).reshape(-1, 3, size, size)
    parts = torch.cat((cut, resized(size, size))) if columns * rows > 1 else cut
    return parts.float().div_(255).sub_(MEAN).div_(STD)


CASES: dict[str, Callable[[Image.Image], object]] = {
    "pillow": pillow,
    "ours": lambda image: torch.from_numpy(tiles(image, SPEC)),
    "resize": resize_only,
    "torch_uint8": torch_uint8,
}


def main() -> None:
    """Run all cases, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 1280), ("height", 960), ("images", 20), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    image = photo(options.width, options.height)
    exact, other = pillow(image), torch_uint8(image)
    ours = torch.from_numpy(tiles(image, SPEC))
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(options.repeats):
        for name, work in CASES.items():
            start = time.process_time()
            for _ in range(options.images):
                work(image)
            seconds[name].append((time.process_time() - start) / options.images)
    speed = {name: 1 / min(values) for name, values in seconds.items()}
    levels = (other - exact).abs().mul(STD).mul(255)
    print(
        json.dumps(
            {
                "name": "tiling",
                "ours": round(speed["ours"], 1),
                "peer": round(speed["pillow"], 1),
                "ratio": round(speed["ours"] / speed["pillow"], 3),
                "unit": "images/cpu-second",
                "peer_name": "Pillow, fp32 tiles as in the original",
                "equal_pixels": bool(torch.equal(ours, exact)),
                "all": {name: round(value, 1) for name, value in speed.items()},
                "torch_uint8_levels": {"mean": round(float(levels.mean()), 4), "max": round(float(levels.max()), 2)},
                "shape": {"width": options.width, "height": options.height, "tiles": len(exact)},
            }
        )
    )


if __name__ == "__main__":
    main()
