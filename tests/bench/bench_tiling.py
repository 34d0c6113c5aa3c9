"""Images into normalised tiles: ours against the original's way with Pillow, at the same pixels.

python -m tests.bench.bench_tiling [--rounds 3] [--repeats 5]

Prints one JSON line; a round takes each size of the mix once. Figures are images per CPU-second, all threads counted
(both sides use one); ratios are medians over the interleaved repeats. The mix is an assumption: sizes that benchmarks
and training sets of this field hold. Cases: `pillow` (the original's steps: resize, crop, each tile to a float tensor
and normalised, stacked), `ours` (`pretrained.internvl.tiling`, what training uses: bit-equal), `torch_uint8` (torch's
antialiased bicubic on uint8, not used: its pixels differ). `decode`: the same from the bytes of JPEG files on.
`stages`: milliseconds of ours per image of the mix. `first_call_cpu_seconds`: in a fresh process, without and with the
compiled code of an earlier one on the disk.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sophia_mcore.data.images import decode
from sophia_mcore.pretrained.internvl.tiling import IMAGENET_MEAN, IMAGENET_STD, ImageSpec, tiles
from sophia_mcore.pretrained.resize import bicubic

SPEC = ImageSpec(tile_size=448, tokens_per_tile=256, max_tiles=12)
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
MIX = {
    "diagram": (336, 280), "figure": (512, 384), "photo": (640, 480), "portrait photo": (480, 640), "chart": (850, 600),
    "web photo": (1280, 960), "screenshot": (1920, 1080), "infographic": (800, 2400), "scanned page": (1654, 2339),
}  # fmt: skip
FIRST_CALL = """
import time, sys
from PIL import Image
from tests.bench.bench_tiling import SPEC, tiles
import numba
start = time.process_time()
tiles(Image.new("RGB", (640, 480)), SPEC)
print(time.process_time() - start)
"""


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


def ours(image: Image.Image) -> Tensor:
    """What training uses."""
    return torch.from_numpy(tiles(image, SPEC))


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


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """CPU-seconds of one call, all threads."""
    start = time.process_time()
    for _ in range(rounds):
        work()
    return (time.process_time() - start) / rounds


def measured(work: Mapping[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """CPU-seconds per case and repeat, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, case in work.items():
            seconds[name].append(cpu_seconds(case, rounds))
    return seconds


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times as fast, median of the repeats."""
    return round(median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)), 2)


def stages(images: list[Image.Image]) -> dict[str, float]:
    """Milliseconds of ours per image of the mix."""
    size = SPEC.tile_size
    grids = [SPEC.grid(*image.size) for image in images]
    found = {
        "from Pillow's memory": lambda: [image.tobytes("raw", "RGBX") for image in images],
        "both resizes with that": lambda: [
            (bicubic(i, c * size, r * size), bicubic(i, size, size)) for i, (c, r) in zip(images, grids, strict=True)
        ],
        "all": lambda: [tiles(image, SPEC) for image in images],
    }
    return {name: round(1e3 * cpu_seconds(work, 3) / len(images), 2) for name, work in found.items()}


def first_call() -> list[float]:
    """CPU-seconds of the first image in two fresh processes that share an empty folder of compiled code."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder}
        runs = [
            subprocess.run([sys.executable, "-c", FIRST_CALL], env=environment, check=True, capture_output=True)
            for _ in range(2)
        ]
    return [round(float(done.stdout), 2) for done in runs]


def main() -> None:
    """Run all cases, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 3), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = [photo(*size) for size in MIX.values()]
    files = []
    for image in images:
        image.save(buffer := io.BytesIO(), "JPEG", quality=90)
        files.append(buffer.getvalue())
    equal = all(torch.equal(ours(image), pillow(image)) for image in images)  # compiled before the clock starts
    levels = [(torch_uint8(image) - pillow(image)).abs().mul(STD).mul(255) for image in images]
    ways: dict[str, Callable[[Image.Image], object]] = {"pillow": pillow, "ours": ours, "torch_uint8": torch_uint8}
    mix = {name: lambda way=way: [way(image) for image in images] for name, way in ways.items()}
    decoded = {name: lambda way=way: [way(decode(file)) for file in files] for name, way in ways.items()}
    seconds = measured(mix, options.rounds, options.repeats)
    with_decode = measured(decoded, 1, options.repeats)
    each = {
        name: ratio(measured({"pillow": lambda i=i: pillow(i), "ours": lambda i=i: ours(i)}, 1, 3), "pillow", "ours")
        for name, i in zip(MIX, images, strict=True)
    }
    speed = {name: round(len(MIX) / median(values), 1) for name, values in seconds.items()}
    line = {
        "name": "tiling", "ours": speed["ours"], "peer": speed["pillow"], "ratio": ratio(seconds, "pillow", "ours"),
        "unit": "images/cpu-second", "peer_name": "Pillow, fp32 tiles as in the original", "equal_pixels": equal,
        "cores": 1, "peer_cores": 1, "torch_uint8": speed["torch_uint8"],
        "torch_uint8_levels": {"mean": round(float(torch.cat([x.flatten() for x in levels]).mean()), 4),
                               "max": round(max(float(x.max()) for x in levels), 2)},
        "decode": {"ours": round(len(MIX) / median(with_decode["ours"]), 1),
                   "peer": round(len(MIX) / median(with_decode["pillow"]), 1),
                   "ratio": ratio(with_decode, "pillow", "ours")},
        "each_ratio": each, "stages": stages(images), "first_call_cpu_seconds": first_call(),
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
