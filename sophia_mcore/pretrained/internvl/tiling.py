"""InternVL's dynamic tiling: an image becomes 1 to max_tiles square tiles and, if there are several, a thumbnail.

The result is bit-equal to that of the original ``dynamic_preprocess`` and its transform (Pillow's bicubic, ImageNet's
mean and standard deviation).
Shapes: T tiles, S tile size in pixels, 3 colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.family import ImageLimits, ImageSize
from sophia_mcore.store.json_files import read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The image settings of a policy; implements `family.ImageProcessor`.

    >>> ImageSpec(tile_size=448, tokens_per_tile=256, max_tiles=12).grid(896, 448)
    (2, 1)
    """

    tile_size: int  # S, pixels
    tokens_per_tile: int
    max_tiles: int = 12
    min_tiles: int = 1
    use_thumbnail: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def limits(self) -> ImageLimits:
        """The limit of tiles."""
        return ImageLimits(max_tiles=self.max_tiles)

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Colours, rows and columns of a tile."""
        return 3, self.tile_size, self.tile_size

    def size(self, width: int, height: int) -> ImageSize:
        """Tiles and tokens of an image of this size."""
        count = self.tile_count(width, height)
        return ImageSize(count, count * self.tokens_per_tile)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Normalised tiles [T, 3, S, S]."""
        return tiles(image, self)

    def positions(self, input_ids: NDArray[np.integer[Any]], sizes: Sequence[ImageSize]) -> NDArray[np.int64]:
        """Positions 0, 1, 2, ... [L]. Image tokens are counted like other tokens."""
        import numpy as np  # here: numpy is slow to import

        return np.arange(len(input_ids))

    def model_inputs(self, images: Sequence[Image.Image]) -> dict[str, np.ndarray]:
        """{"pixel_values": tiles of all images in order}, as transformers' model takes them."""
        import numpy as np

        return {"pixel_values": np.concatenate([tiles(image, self) for image in images])}

    def vllm_options(self) -> dict[str, int]:
        """The limit of tiles, under vLLM's name."""
        return {"max_patches": self.max_tiles}

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(columns, rows) of tiles for an image of this size (pixels)."""
        return best_grid(width, height, self.tile_size, self.min_tiles, self.max_tiles)

    def tile_count(self, width: int, height: int) -> int:
        """Number of tiles with the thumbnail, without processing the image."""
        columns, rows = self.grid(width, height)
        return columns * rows + (self.use_thumbnail and columns * rows > 1)


def read(folder: Path, config: Mapping[str, Any], limits: ImageLimits) -> ImageSpec:
    """Read the image settings of a folder in either layout. The lower of the checkpoint's and the run's limit is used.

    Raises SophiaError, KeyError, TypeError or ValueError when settings are missing or contradict each other.
    """
    spec = _custom_spec if config.get("model_type") == "internvl_chat" else _native_spec
    return spec(folder, config, limits.max_tiles)


def _native_spec(folder: Path, config: Mapping[str, Any], max_tiles: int) -> ImageSpec:
    """Settings of layout hf. transformers' InternVLProcessor always makes tiles and ignores ``crop_to_patches``."""
    image = _image_processor(folder)
    vision = config["vision_config"]
    size = _side(image.get("size") or vision.get("image_size", 448))
    tokens = _tokens(size, _side(vision.get("patch_size", 14)), config.get("downsample_ratio", 0.5))
    stated = config.get("image_seq_length", tokens)
    if stated != tokens:
        raise SophiaError(f"{folder}: image_seq_length is {stated}, but tiles of {size} pixels make {tokens} tokens")
    return ImageSpec(
        tile_size=size,
        tokens_per_tile=tokens,
        max_tiles=min(max_tiles, int(image.get("max_patches", 12))),
        min_tiles=int(image.get("min_patches", 1)),
        mean=tuple(image.get("image_mean", IMAGENET_MEAN)),
        std=tuple(image.get("image_std", IMAGENET_STD)),
    )


def _custom_spec(folder: Path, config: Mapping[str, Any], max_tiles: int) -> ImageSpec:
    if config.get("pad2square"):
        raise SophiaError(f"{folder / 'config.json'}: pad2square = true is not supported")
    image = _image_processor(folder)
    vision = config["vision_config"]
    size = _side(config.get("force_image_size") or vision["image_size"])
    dynamic = config.get("dynamic_image_size", False)
    return ImageSpec(
        tile_size=size,
        tokens_per_tile=_tokens(size, _side(vision["patch_size"]), config.get("downsample_ratio", 0.5)),
        max_tiles=min(max_tiles, int(config.get("max_dynamic_patch", 12))) if dynamic else 1,
        min_tiles=int(config.get("min_dynamic_patch", 1)) if dynamic else 1,
        use_thumbnail=bool(dynamic and config.get("use_thumbnail", False)),
        mean=tuple(image.get("image_mean", IMAGENET_MEAN)),
        std=tuple(image.get("image_std", IMAGENET_STD)),
    )


def _image_processor(folder: Path) -> dict[str, Any]:
    """Settings of the image processor, from its own file or (transformers 5) from processor_config.json."""
    own = read_json(folder / "preprocessor_config.json")
    if own is not None:
        return own
    return (read_json(folder / "processor_config.json") or {}).get("image_processor") or {}


def _side(value: Any) -> int:
    """Side of a square that is given as a number, a pair or {"height", "width"}."""
    if isinstance(value, dict):
        value = [value["height"], value["width"]] if "height" in value else [value["shortest_edge"]]
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1:
        raise ValueError(f"not square: {value}")
    return int(sides.pop())


def _tokens(size: int, patch: int, downsample: float) -> int:
    side = size // patch * downsample
    if side != int(side) or side < 1:
        raise ValueError(f"tile of {size} pixels, patch {patch}, downsample_ratio {downsample}: no whole token grid")
    return int(side) ** 2


@cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def best_grid(width: int, height: int, tile_size: int, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows) whose ratio is nearest to the image's. Of several, the largest that has at most twice the
    image's pixels."""
    ratio, area = width / height, width * height
    best, best_difference = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        difference = abs(ratio - columns / rows)
        if difference < best_difference:
            best, best_difference = (columns, rows), difference
        elif difference == best_difference and area > 0.5 * tile_size * tile_size * columns * rows:
            best = (columns, rows)
    return best


def tiles(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """Normalised tiles [T, 3, S, S] float32 of an RGB image: row by row, the thumbnail last if there are several."""
    from sophia_mcore.pretrained.resize import normalised_bytes  # here: numpy and numba are slow to import

    return _cut(image, spec, normalised_bytes(spec.mean, spec.std))


def tiles_uint8(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """Tiles [T, 3, S, S] uint8 before normalisation: a quarter of the memory."""
    import numpy as np

    return _cut(image, spec, np.tile(np.arange(256, dtype=np.uint8), (3, 1)))


def _cut(image: Image.Image, spec: ImageSpec, table: np.ndarray) -> np.ndarray:
    """Tiles [T, 3, S, S] whose bytes are replaced by the values of ``table`` [3, 256] for each colour."""
    import numpy as np

    from sophia_mcore.pretrained.kernels import cut_tiles
    from sophia_mcore.pretrained.resize import bicubic

    size = spec.tile_size
    columns, rows = spec.grid(*image.size)
    result = np.empty((spec.tile_count(*image.size), 3, size, size), table.dtype)
    cut_tiles(bicubic(image, size * columns, size * rows), table, result[: rows * columns])
    if len(result) > rows * columns:
        cut_tiles(bicubic(image, size, size), table, result[-1:])
    return result
