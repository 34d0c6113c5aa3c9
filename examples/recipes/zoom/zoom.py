"""A tool that returns an image: the board is too small to read, `crop third` shows that cell (compare OpenThinkIMG)."""

from __future__ import annotations

import hashlib
import io
import re
from typing import Any

import numpy as np
from PIL import Image

from sophia_mcore.environments import Ask, Question, Reply, Step

CELLS = ("first", "second", "third", "fourth")
_CALL = re.compile(rf"crop ({'|'.join(CELLS)})")


def start(question: Question, images: tuple[bytes, ...], seed: int, *, pixels: int = 4) -> Step:
    """The question and the board, reduced to ``pixels`` x ``pixels``."""
    text = question.question
    return Step({"question": text, "cells": []}, Ask.user(prompt(text, 1), (small(images[0], pixels),)))


def step(
    state: dict[str, Any], reply: Reply, images: tuple[bytes, ...], *, pixels: int = 4, tool: str = "crop"
) -> Step:
    """A reply that is a call is answered with a further image; anything else is the answer.

    ``tool``: "crop"; or a control, "noise" (what is shown says nothing about the board) or "none" (nothing is called).
    The step names ``calls`` (1 for a call) and ``fits`` (1 for the call of a cell that the question names).
    """
    call = _CALL.fullmatch(reply.text.strip())
    if call is None or tool == "none":
        return Step(state)
    cells = [*state["cells"], call[1]]
    show = noise if tool == "noise" else crop
    shown = (small(images[0], pixels), *(show(images[0], CELLS.index(cell)) for cell in cells))
    rewards = {"calls": 1.0, "fits": float(call[1] in state["question"])}
    return Step({**state, "cells": cells}, Ask.user(prompt(state["question"], len(shown)), shown), rewards)


def prompt(question: str, images: int) -> str:
    """The whole prompt: all images so far, then the question."""
    return "<image>\n" * images + question


def small(data: bytes, pixels: int = 4) -> bytes:
    """The board reduced to ``pixels`` x ``pixels`` and shown in its old size."""
    board = _open(data)
    return _png(board.resize((pixels, pixels), Image.Resampling.BOX).resize(board.size, Image.Resampling.NEAREST))


def crop(data: bytes, cell: int) -> bytes:
    """One cell as it is, at its place; the rest is black."""
    board = _open(data)
    shown, box = Image.new("RGB", board.size), _box(board, cell)
    shown.paste(board.crop(box), box)
    return _png(shown)


def noise(data: bytes, cell: int) -> bytes:
    """As ``crop``, with grey values drawn at random in the cell: the same ones for the same board."""
    board = _open(data)
    left, top, right, bottom = box = _box(board, cell)
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    grey = np.random.default_rng(seed).integers(0, 256, (bottom - top, right - left), dtype=np.uint8)
    shown = Image.new("RGB", board.size)
    shown.paste(Image.fromarray(grey).convert("RGB"), box)
    return _png(shown)


def _box(board: Image.Image, cell: int) -> tuple[int, int, int, int]:
    width, height = board.width // 2, board.height // 2
    row, column = divmod(cell, 2)
    return (column * width, row * height, (column + 1) * width, (row + 1) * height)


def _open(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB")


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
