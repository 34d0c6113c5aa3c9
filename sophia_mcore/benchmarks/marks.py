"""Marks "<image1>" in a question whose images are merged into one: panels of a collage are labelled with them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MARK = re.compile(r"<image(\d+)>")
_ALONE = re.compile(  # not a word of a sentence: a line of its own, behind a sentence, at the end
    r"(?:^|(?<=[.?!:\n]))\s*<image1>(?!\s*[a-z,.;:=+])|\n[ \t]*<image1>[ \t]*(?=\n)|\s*<image1>\s*\Z"
)


def highest_mark(texts: Iterable[str]) -> int:
    """The highest k of all "<imagek>" in the texts; 0 without any."""
    return max((int(mark) for text in texts for mark in _MARK.findall(text)), default=0)


def settled(text: str, highest: int, images: int) -> str:
    r"""The text with the places of its images, or with readable labels where one image holds them all.

    A label is never an image's place. A sole "<image1>" beside the sentences says nothing and is left out.

    >>> settled("Anna has <image1>. Eva got <image2>.", 2, 1), settled("Anna has <image1>. Eva got <image2>.", 2, 2)
    ('Anna has image 1. Eva got image 2.', 'Anna has <image 1>. Eva got <image 2>.')
    >>> settled("Which is red?\n<image1>", 1, 1), settled("It is 25+<image1>\nHow much?", 1, 1)
    ('Which is red?', 'It is 25+image 1\nHow much?')
    """
    if 1 < highest <= images:
        return _MARK.sub(r"<image \1>", text)
    if highest == 1:
        text = _ALONE.sub("", text)

    def label(mark: re.Match[str]) -> str:
        before, after = text[: mark.start()][-1:], text[mark.end() :][:1]
        joined = before.isalnum() or before == ">"
        return f"{' ' if joined else ''}image {mark[1]}{' ' if after.isalnum() else ''}"

    return _MARK.sub(label, text)
