"""Requests as the model's own tokens, by the template, tokenizer and image processor that the trainer uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from sophia_mcore.batch.tokenize import load_tokenizer, without_special_tokens
from sophia_mcore.data.images import decode
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.pretrained.chat import Chat, Message
from sophia_mcore.pretrained.complete import stop_token_ids
from sophia_mcore.pretrained.families import family_of_folder, image_processor
from sophia_mcore.pretrained.family import Family, ImageLimits, ImageProcessor
from sophia_mcore.records import END_OF_THOUGHT, THOUGHT


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered request: ``short_ids`` hold one image token per image, ``ids`` what the model finally reads.

    Both end with the request's ``continue_ids``, ``text`` does not.
    """

    text: str  # with one image token per image
    short_ids: list[int]
    ids: list[int]
    pictures: tuple[Image.Image, ...]
    opened: str = ""  # the end of the text where the template begins the answer, such as "<think>\n"
    positions: NDArray[np.int64] | None = None  # of `ids`, [L] or [3, L]; None: a text-only model


class Renderer:
    """The prompt side of one model directory: chat template, tokenizer.json, image processor, end tokens."""

    def __init__(
        self, chat: Chat, tokenizer: Tokenizer, images: tuple[Family, ImageProcessor] | None, stop_ids: tuple[int, ...],
        where: str,
    ) -> None:  # fmt: skip
        self.chat = chat
        self.tokenizer = tokenizer
        # None: a text-only model
        self.family: Family | None = images[0] if images else None
        self.images: ImageProcessor | None = images[1] if images else None
        self.stop_ids = stop_ids
        self.image_token_ids: tuple[int, ...] = ()  # what ``Request.no_image_tokens`` keeps from being sampled
        if self.family is not None and (token := tokenizer.token_to_id(self.family.image_token)) is not None:
            self.image_token_ids = (token,)
        self._where = where
        added = tokenizer.get_added_tokens_decoder()
        self._hidden = {
            i for i, token in added.items() if token.special and token.content not in (THOUGHT, END_OF_THOUGHT)
        }
        special = {added[i].content for i in self._hidden} | ({chat.image_token} if self.family else set())
        self._special = sorted(special, key=len)
        self._decode_image = lru_cache(maxsize=256)(decode)

    @staticmethod
    def from_model_dir(model_dir: Path, limits: ImageLimits) -> Renderer:
        """Raises SophiaError when the directory lacks a tokenizer, a template or an end token."""
        tokenizer = load_tokenizer(model_dir)
        chat = Chat.from_model_dir(model_dir)
        stop_ids = stop_token_ids(model_dir, tokenizer.get_vocab(), _end_of_turn(chat, tokenizer))
        if not stop_ids:
            raise SophiaError(f"{model_dir}: no end token (eos_token_id in generation_config.json): answers never end")
        found = family_of_folder(model_dir)
        images = None if found is None else (found[0], image_processor(model_dir, limits))
        return Renderer(chat, tokenizer, images, stop_ids, str(model_dir))

    def render_all(self, requests: Sequence[Request]) -> list[Prompt]:
        """Prompts in order; the many requests that share messages and images are rendered once. Raises like render."""
        seen: dict[tuple[object, ...], Prompt] = {}
        for request in requests:
            key = (request.messages, request.images)
            if key not in seen:
                seen[key] = self.render(request)
        return [_continued(seen[request.messages, request.images], request.continue_ids) for request in requests]

    def render(self, request: Request) -> Prompt:
        """Text and token ids of a request, without ``continue_ids``.

        Raises SophiaError for images that do not match their placeholders.
        """
        if request.images and self.images is None:
            raise SophiaError(f"{self._where} is a text-only model and takes no images")
        messages = [Message(message.role, self.without_special_tokens(message.text)) for message in request.messages]
        text = self.chat.render(messages, add_generation_prompt=True)
        pictures = tuple(self._decode_image(image) for image in request.images)
        sizes = [self.images.size(*picture.size) for picture in pictures] if self.images else []
        expanded = self.chat.expand(text, [size.tokens for size in sizes])
        short_ids = self.tokenizer.encode(text).ids
        ids = self.tokenizer.encode(expanded).ids if pictures else short_ids
        positions = self.images.positions(np.array(ids), sizes) if self.images else None
        return Prompt(text, short_ids, ids, pictures, self.chat.opened_thought(messages, text), positions)

    def without_special_tokens(self, text: str) -> str:
        """`batch.tokenize.without_special_tokens` with the special tokens of this model. Places of images stay."""
        return without_special_tokens(text, self._special)

    def answer(self, opened: str, token_ids: Sequence[int]) -> str:
        """The answer's text: what the template began it with (``Prompt.opened``), then what was sampled.

        A model that opens its thought once more says it twice; the text says it once.
        """
        text = self.decode(token_ids)
        return text if text.lstrip().startswith(THOUGHT) else opened + text

    def whole_answer(self, request: Request, completion: Completion) -> str:
        """The answer's text with what the request had it begin with (``continue_ids``): so it is graded everywhere."""
        if not request.continue_ids:
            return completion.text
        return self.answer(completion.opened, (*request.continue_ids, *completion.token_ids))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of sampled tokens without special ones (the end token is one); <think> tags stay."""
        stop = set(self.stop_ids)
        visible = [token for token in token_ids if token not in self._hidden and token not in stop]
        return self.tokenizer.decode(visible, skip_special_tokens=False)

    def check_length(self, prompt: Prompt, longest: int) -> None:
        """Raise SophiaError when the prompt leaves no room for one token."""
        if len(prompt.ids) >= longest:
            raise SophiaError(
                f"{self._where}: a prompt of {len(prompt.ids)} tokens does not fit into {longest} "
                f"(max_model_length_tokens): {prompt.text[:80]!r}..."
            )


def _end_of_turn(chat: Chat, tokenizer: Tokenizer) -> str:
    """The special token with which the chat template ends an answer, "" where it does not end one."""
    try:
        ids = tokenizer.encode(chat.end_of_turn, add_special_tokens=False).ids
    except SophiaError:  # a template that takes no such conversation
        return ""
    added = tokenizer.get_added_tokens_decoder()
    return added[ids[0]].content if ids and ids[0] in added else ""


def _continued(prompt: Prompt, ids: tuple[int, ...]) -> Prompt:
    return replace(prompt, short_ids=[*prompt.short_ids, *ids], ids=[*prompt.ids, *ids]) if ids else prompt
