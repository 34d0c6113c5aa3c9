"""Pictures as encoded files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """The image as a file of the format ``form``."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def plain(width: int, height: int, colour: tuple[int, int, int] | str, form: str = "PNG") -> bytes:
    """A picture of one colour."""
    return encoded(Image.new("RGB", (width, height), colour), form)


def noise(width: int, height: int, seed: int) -> bytes:
    """A PNG whose pixels are independent random colours."""
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)))


def smooth(width: int, height: int, seed: int) -> bytes:
    """A PNG with smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return encoded(Image.fromarray(coarse).resize((width, height)))
