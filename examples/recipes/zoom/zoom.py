"""A tool that returns an image: the board is too small to read, `crop third` shows one cell (compare OpenThinkIMG)."""

from __future__ import annotations

import io
import re
from typing import Any

from PIL import Image

from sophia_mcore.environments import Ask, Message, Question, Reply, Step

CELLS = ("first", "second", "third", "fourth")
_CALL = re.compile(rf"\bcrop ({'|'.join(CELLS)})\b")


def start(question: Question, images: tuple[bytes, ...], seed: int, *, pixels: int = 8) -> Step:
    """The question and the board, reduced to ``pixels`` x ``pixels``."""
    board = _resized(images[0], None, pixels)
    return Step({"said": [], "question": question.question}, Ask.user(question.question, (board,)))


def step(
    state: dict[str, Any], reply: Reply, images: tuple[bytes, ...], *, pixels: int = 8, noise: bool = False
) -> Step:
    """A call of the tool is answered with the cell in its full size; anything else is the answer.

    ``noise``: the control, in which the tool shows a grey cell whatever is asked.
    """
    call = _CALL.search(reply.text)
    if call is None:
        return Step(state, None, {"crops": 0.0})
    said = [*state["said"], [reply.text, call[1]]]
    messages, shown = [Message("user", f"<image>\n{state['question']}")], [_resized(images[0], None, pixels)]
    for text, cell in said:
        messages += [Message("assistant", text), Message("user", f"<image>\nThis is {cell}.")]
        shown.append(_grey() if noise else _resized(images[0], CELLS.index(cell), 32))
    return Step({**state, "said": said}, Ask(messages=tuple(messages), images=tuple(shown)), {"crops": 1.0})


def _resized(data: bytes, cell: int | None, pixels: int) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        board = picture.convert("RGB")
    if cell is not None:
        width, height = board.width // 2, board.height // 2
        row, column = divmod(cell, 2)
        board = board.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
    return _png(board.resize((pixels, pixels), Image.Resampling.BILINEAR).resize((32, 32), Image.Resampling.NEAREST))


def _grey() -> bytes:
    return _png(Image.new("RGB", (32, 32), (128, 128, 128)))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
