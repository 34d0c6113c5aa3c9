"""Prompts of benchmarks: templates are data (benchmarks.toml), texts of questions are only ever values in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

Image = TypeVar("Image")
_MARK = re.compile(r"<image (\d+)>")


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    import jinja2.sandbox  # here: slow to import

    return jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.Undefined, keep_trailing_newline=True)


@cache
def _template(text: str) -> Template:
    """A template is compiled once: it takes as long as reading ten questions."""
    return _environment().from_string(text)


def render(template: str, values: Mapping[str, Any], images: int, images_last: bool) -> str:
    """The prompt of one question. ``images_last``: images that the text does not place follow it."""
    text = _template(template).render(values)
    marks = {int(mark) for mark in _MARK.findall(text)}
    missing = [number for number in range(1, images + 1) if number not in marks]
    if images_last and missing:
        text += "\n" + "".join(f"<image {number}>" for number in missing)
    return text


def place(prompt: str, images: Sequence[Image]) -> tuple[str, tuple[Image, ...]]:
    """The user's message with one image placeholder per image shown, and the images in the order of their places.

    An image that the prompt names twice is shown twice; one that it does not name comes first.

    >>> place("Is <image 2> like <image 1>?", ("a", "b"))
    ('Is <|image place|> like <|image place|>?', ('b', 'a'))
    >>> place("Which is it?", ("a",))
    ('<|image place|>\\nWhich is it?', ('a',))
    """
    from sophia_mcore.pretrained.chat import IMAGE_PLACE, plain, user_text  # here: jinja2 is slow to import

    text = plain(prompt)
    shown = [int(mark) - 1 for mark in _MARK.findall(text) if 0 < int(mark) <= len(images)]
    before = [number for number in range(len(images)) if number not in shown]

    def put(mark: re.Match[str]) -> str:
        return IMAGE_PLACE if 0 < int(mark[1]) <= len(images) else mark[0]

    placed = _MARK.sub(put, text).replace("<image>", "(image)")
    head = user_text("", len(before)) if before else ""
    return head + placed, tuple(images[number] for number in [*before, *shown])
