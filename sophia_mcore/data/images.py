"""Image files of any make as RGB pictures, with clear errors instead of surprises."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sophia_mcore.errors import SophiaError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RefuseSize = Callable[[int, int], object]  # raises SophiaError for a width and height that a model cannot take

# Pillow would run an external program for some others (EPS); these are decoded in this process.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error, MemoryError)

_EMPTY = "image is empty (0 bytes)"

Image.MAX_IMAGE_PIXELS = None  # our own limit decides, before an image is decoded


def decode(data: bytes) -> Image.Image:
    """The image as RGB, uint8: the first frame of an animation, transparency dropped and not blended, no EXIF rotation.

    This is what the original InternVL does (``convert("RGB")``), except for 16-bit grey, which there saturates to white
    and is scaled to 8 bits here, and for float pixels within [0, 1], which there become black.
    Raises SophiaError for a file that is empty, truncated, damaged or of another format.
    """
    image = _open(data)
    try:
        image.load()
        return _to_rgb(image)
    except _READ_ERRORS as error:
        raise SophiaError(_unreadable(len(data), error)) from error


def check(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height after reading the whole file once, as cheaply as its format allows.

    Raises SophiaError saying what is wrong: too many pixels (found before decoding), truncated, damaged, unknown.
    """
    image = _open(data)
    width, height = _allowed(image, max_pixels)
    try:
        image.draft("L", (max(1, width // 8), max(1, height // 8)))  # JPEG: all data is read, an eighth is computed
        image.load()
    except _READ_ERRORS as error:
        raise SophiaError(_unreadable(len(data), error)) from error
    return width, height


def size_of(image: bytes | Path, max_pixels: int) -> tuple[int, int]:
    """Width and height. Only the head of the file is read. Raises SophiaError as `check` does for what the head shows,
    and for a file that cannot be opened."""
    if isinstance(image, bytes):
        return _allowed(_open(image), max_pixels)
    try:
        with open(image, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise SophiaError(_EMPTY)
            try:
                return _allowed(Image.open(file, formats=FORMATS), max_pixels)
            except _READ_ERRORS as error:
                raise SophiaError(_unreadable(size, error)) from error
    except FileNotFoundError:
        raise SophiaError("image missing") from None
    except IsADirectoryError:
        raise SophiaError("image unreadable: it is a folder") from None
    except OSError as error:
        raise SophiaError(f"image unreadable: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise SophiaError(f"image unreadable: {error}") from None


def _allowed(image: Image.Image, max_pixels: int) -> tuple[int, int]:
    width, height = image.size
    if width * height > max_pixels:
        raise SophiaError(f"image too large: {width} x {height} = {width * height} pixels, allowed {max_pixels}")
    return width, height


def _open(data: bytes) -> Image.Image:
    if not data:
        raise SophiaError(_EMPTY)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except _READ_ERRORS as error:
        raise SophiaError(_unreadable(len(data), error)) from error


def _unreadable(size: int, error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        text = f"not an image in a known format ({', '.join(FORMATS)}), or its beginning is damaged"
    return f"image unreadable: {text} ({size} bytes)"


def _to_rgb(image: Image.Image) -> Image.Image:
    import numpy as np  # here, because commands that look at no picture start without it

    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        if image.mode != "I" or grey.max(initial=0) > 255:
            grey = grey >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_bytes_of_floats(np.asarray(image, np.float32))).convert("RGB")
    return image.convert("RGB")


def _bytes_of_floats(grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Float pixels as uint8: those of an image within [0, 1] are scaled by 255, others are clipped to [0, 255].

    Raises ValueError for pixels that are not finite.
    """
    import numpy as np

    if not np.isfinite(grey).all():
        raise ValueError("it has pixels that are not finite")
    scale = 255.0 if grey.min(initial=0) >= 0 and grey.max(initial=0) <= 1 else 1.0
    return np.rint(grey * scale).clip(0, 255).astype(np.uint8)
