"""Pictures inside a page, at their full size where the page has room for them."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

ALL_BYTES = 40_000_000  # of all pictures of a page; base64 makes a third more of it
SMALL = 64  # up to this side a picture is PNG, pixel by pixel
_QUALITY = 88
_LEAST_SIDE = 160
_BYTES_PER_PIXEL = 0.35  # of a JPEG, roughly; where more is needed the picture is made smaller once more


def allowance(pictures: int) -> int:
    """Bytes that each of so many pictures may take."""
    return ALL_BYTES // max(1, pictures)


def picture(data: bytes, most: int) -> tuple[str, str]:
    """A stored image as a data URL of about ``most`` bytes, and its original size ("" where it is shown whole).

    The image is always written anew, without what else its file holds (place, camera, comments). Raises SophiaError
    for one that cannot be read.
    """
    from sophia_mcore.data.images import decode

    image = decode(data)
    width, height = image.size
    if max(width, height) <= SMALL:
        return _url("png", _encoded(image, "PNG")), ""
    if width * height * 3 <= 8 * most:  # worth trying: drawings and screenshots stay exact
        exact = _encoded(image, "PNG")
        if len(exact) <= most:
            return _url("png", exact), ""
    longest = max(width, height)
    side = min(longest, max(_LEAST_SIDE, round(longest * math.sqrt(most / (_BYTES_PER_PIXEL * width * height)))))
    for _ in range(3):
        made = _encoded(_fitted(image, side), "JPEG")
        if len(made) <= most or side <= _LEAST_SIDE:
            break
        side = max(_LEAST_SIDE, round(0.95 * side * math.sqrt(most / len(made))))
    return _url("jpeg", made), f"{width} x {height}" if side < longest else ""


def _fitted(image: Any, side: int) -> Any:
    if max(image.size) <= side:
        return image
    smaller = image.copy()
    smaller.thumbnail((side, side))
    return smaller


def _encoded(image: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "PNG":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
