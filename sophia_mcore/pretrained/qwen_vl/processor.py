"""Images as Qwen's models see them: one picture at about its own size, as a grid of patches; and their positions.

Equal to the original processor (`smart_resize`, Pillow's bicubic, mean and standard deviation in fp32) to the last bit.
Legend: P patches, p side of a patch, m patches per side of a token's square; H x W patches of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.pretrained.family import ImageLimits, ImageSize
from sophia_mcore.pretrained.qwen_vl.spec import FRAMES
from sophia_mcore.pretrained.special_tokens import id_of_token
from sophia_mcore.store.json_files import read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
BICUBIC = 3  # Pillow's number of the filter
LONGEST_RATIO = 200  # of an image's sides


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGrids:
    """How a policy wants its images. Pixels are counted after resizing."""

    patch: int
    merge: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_token_id: int | None
    video_token_id: int | None

    @property
    def limits(self) -> ImageLimits:
        """The limits of pixels."""
        return ImageLimits(min_pixels=self.min_pixels, max_pixels=self.max_pixels)

    @property
    def row_shape(self) -> tuple[int]:
        """A patch in 3 colours and two frames, flat: (colour, frame, row, column)."""
        return (3 * FRAMES * self.patch**2,)

    def size(self, width: int, height: int) -> ImageSize:
        """Patches and tokens of an image of this size."""
        high, wide = resized(height, width, self.patch * self.merge, self.min_pixels, self.max_pixels)
        rows, columns = high // self.patch, wide // self.patch
        return ImageSize(rows * columns, rows * columns // self.merge**2, (rows, columns))

    def pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """[P, 3*2*p*p]; the order of patches is that of tokens, and inside a token's square row by row."""
        import numpy as np  # here: numpy is slow to import

        from sophia_mcore.pretrained.kernels import cut_patches
        from sophia_mcore.pretrained.resize import bicubic, normalised_bytes

        rows, columns = self.size(*image.size).grid or (0, 0)
        picture = bicubic(image, columns * self.patch, rows * self.patch)
        result = np.empty((rows * columns, 3, FRAMES, self.patch, self.patch), np.float32)
        cut_patches(picture, normalised_bytes(self.mean, self.std), self.merge, result)
        return result.reshape(-1, *self.row_shape)

    def positions(self, input_ids: NDArray[np.integer[Any]], sizes: Sequence[ImageSize]) -> NDArray[np.int64]:
        """[3, L] (time, height, width): a text token moves all three on by one; an image's tokens keep the time and
        count rows and columns from there; behind it the text goes on after the longer of its sides.

        Raises UsageError for video tokens, SophiaError for image tokens that the sizes do not explain.
        """
        import numpy as np

        if self.video_token_id is not None and np.any(input_ids == self.video_token_id):
            raise UsageError("the prompt holds video tokens, and videos are not supported")
        starts = np.flatnonzero(input_ids == self.image_token_id)
        if len(starts) != sum(size.tokens for size in sizes):
            raise SophiaError(
                f"{len(starts)} image tokens, but the images make {sum(size.tokens for size in sizes)}"
            )  # fmt: skip
        result = np.empty((3, len(input_ids)), np.int64)
        done = used = following = 0  # tokens and image tokens so far, and the next position
        for size in sizes:
            first = int(starts[used])
            if int(starts[used + size.tokens - 1]) != first + size.tokens - 1:
                raise SophiaError(f"the {size.tokens} tokens of an image do not stand together")
            result[:, done:first] = following + np.arange(first - done)
            following += first - done
            rows, columns = (side // self.merge for side in size.grid or (0, 0))
            own = np.indices((rows, columns)).reshape(2, -1)
            done = first + size.tokens
            result[:, first:done] = following
            result[1:, first:done] += own
            following, used = following + max(rows, columns), used + size.tokens
        result[:, done:] = following + np.arange(len(input_ids) - done)
        return result

    def model_inputs(self, images: Sequence[Image.Image]) -> dict[str, NDArray[Any]]:
        """Patches of all images in order, and each one's frames, rows and columns of patches."""
        import numpy as np

        grids = [self.size(*image.size).grid or (0, 0) for image in images]
        return {
            "pixel_values": np.concatenate([self.pixels(image) for image in images]),
            "image_grid_thw": np.array([(1, *grid) for grid in grids], np.int64),
        }

    def vllm_options(self) -> dict[str, Any]:
        """The limits of pixels."""
        return {"size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}}


def resized(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) in multiples of ``factor``, near the image's own, with between min_pixels and max_pixels.

    A side of less than half a factor rounds to 0, and such an image is enlarged to min_pixels, as transformers does.
    Raises UsageError for an image whose sides differ by more than 200 times.

    >>> resized(1080, 1920, 28, 3136, 12845056)
    (1092, 1932)
    """
    if max(height, width) > LONGEST_RATIO * min(height, width):
        raise UsageError(
            f"image too narrow: {width} x {height} pixels, one side is more than {LONGEST_RATIO} times the other"
        )
    high, wide = (round(side / factor) * factor for side in (height, width))
    if high * wide > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        return max(factor, _down(height / scale, factor)), max(factor, _down(width / scale, factor))
    if high * wide < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * scale / factor) * factor, math.ceil(width * scale / factor) * factor
    return high, wide


def _down(side: float, factor: int) -> int:
    return math.floor(side / factor) * factor


def read(folder: Path, config: Mapping[str, Any], limits: ImageLimits) -> PatchGrids:
    """The settings of a folder; of the run's limits and the folder's, the narrower ones hold.

    Raises UsageError when they contradict each other or the model, KeyError, TypeError or ValueError.
    """
    vision = config["vision_config"]
    patch, merge = int(vision["patch_size"]), int(vision.get("spatial_merge_size", 2))
    file, image = _settings(folder)
    for key, wanted in (("patch_size", patch), ("merge_size", merge), ("temporal_patch_size", FRAMES)):
        if image.get(key, wanted) != wanted:
            raise UsageError(f"{file}: {key} = {image[key]}, but the model's is {wanted}")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if not image.get(key, True):
            raise UsageError(f"{file}: {key} = false is not supported")
    for key, only in (("rescale_factor", 1 / 255), ("resample", BICUBIC)):
        if image.get(key) is not None and not math.isclose(image[key], only):
            raise UsageError(f"{file}: {key} = {image[key]} is not supported, only {only:.6g}")
    for key in ("image_mean", "image_std"):
        if len(image[key]) != 3:
            raise UsageError(f"{file}: {key} has {len(image[key])} values, not one for each of 3 colours")
    smallest, largest = _limits(image)
    smallest = max(smallest, limits.min_pixels or 0)
    largest = min(largest, limits.max_pixels or largest)
    if smallest > largest:
        raise UsageError(f"{file}: min_pixels = {smallest} is above max_pixels = {largest}, with the run's limits")
    return PatchGrids(
        patch=patch,
        merge=merge,
        min_pixels=smallest,
        max_pixels=largest,
        mean=tuple(image["image_mean"]),
        std=tuple(image["image_std"]),
        image_token_id=_token_id(folder, config.get("image_token_id"), IMAGE_PAD),
        video_token_id=_token_id(folder, config.get("video_token_id"), VIDEO_PAD),
    )


def _token_id(folder: Path, stated: int | None, token: str) -> int | None:
    """The id in config.json, or else in the tokenizer's files."""
    return id_of_token(folder, token) if stated is None else stated


def _limits(image: Mapping[str, Any]) -> tuple[int, int]:
    """Smallest and largest number of pixels, by either of the names that processors have for them."""
    size = image.get("size") or {}
    smallest, largest = image.get("min_pixels"), image.get("max_pixels")
    found = (size.get("shortest_edge") if smallest is None else smallest,
             size.get("longest_edge") if largest is None else largest)  # fmt: skip
    if found[0] is None or found[1] is None:
        raise KeyError("size.shortest_edge and size.longest_edge, or min_pixels and max_pixels")
    return int(found[0]), int(found[1])


def _settings(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Settings of the image processor: a file of its own, or (transformers 5) a part of processor_config.json."""
    file = folder / "preprocessor_config.json"
    own = read_json(file)
    if own is not None:
        return file, own
    file = folder / "processor_config.json"
    found = (read_json(file) or {}).get("image_processor")
    if not isinstance(found, Mapping):
        raise UsageError(f"{folder}: no preprocessor_config.json, which says how large images become")
    return file, found
