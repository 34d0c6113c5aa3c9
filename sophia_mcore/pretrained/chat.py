"""Chat templates: messages -> the exact text a model was trained on, and image placeholders -> image tokens.

A directory of the original InternVL layout names one of the original templates in its config.json; that is what its
own ``chat`` uses, so it wins. Any other directory brings a Jinja template, which is run in a sandbox.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.tiling import ImageSpec
from sophia_mcore.store.json_files import read_json

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"

_SHANGHAI = "，".join(
    (
        "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型",
        "英文名叫InternVL, 是一个有用无害的人工智能助手。",
    )
)
_SCHOLAR = "，".join(
    (
        "你是书生·万象",
        "英文名是InternVL",
        "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
    )
)
# name -> default system message, what separates the turns
BUILT_IN = {
    "internvl2_5": (_SCHOLAR, "<|im_end|>\n"),
    "Hermes-2": (_SHANGHAI, "<|im_end|>"),
    "internlm2-chat": (_SHANGHAI, "<|im_end|>"),
}
_PROBE = "sophia probe text"


def plain(text: str) -> str:
    """Text from data as part of a prompt: it cannot ask for an image of its own."""
    return text.replace(IMAGE_CONTEXT, "")


@dataclass(frozen=True, slots=True)
class Message:
    """A turn. Every image stands in ``text`` as one ``<IMG_CONTEXT>``.

    >>> Message("user", "<IMG_CONTEXT>\\nWhat is it?").text
    '<IMG_CONTEXT>\\nWhat is it?'
    """

    role: Literal["system", "user", "assistant"]
    text: str


class Chat:
    """The chat template of one model directory.

    ``tokens_per_tile`` is None for a text-only model, which refuses images.
    """

    def __init__(
        self, render: Callable[[list[Message], bool], str], tokens_per_tile: int | None, where: str = "chat template"
    ) -> None:
        self._render = render
        self.tokens_per_tile = tokens_per_tile
        self._where = where

    @staticmethod
    def from_model_dir(model_dir: Path | str) -> Chat:
        """The template of a Hugging Face directory.

        Raises SophiaError when there is none, or one that cannot be parsed.
        """
        folder = Path(model_dir)
        config = read_json(folder / "config.json")
        if config is None:
            raise SophiaError(f"no config.json in {folder}")
        is_internvl = config.get("model_type") in ("internvl", "internvl_chat")
        tokens = ImageSpec.from_model_dir(folder, 1).tokens_per_tile if is_internvl else None
        name = config.get("template") if config.get("model_type") == "internvl_chat" else None
        if name in BUILT_IN:
            return Chat.built_in(name, tokens, system_message=config.get("system_message"))
        source = _find_template(folder)
        if source is None and is_internvl and name is None:
            return Chat.built_in("internvl2_5", tokens)
        if source is None:
            known = f"; its template {name!r} is none of {', '.join(BUILT_IN)}" if name else ""
            raise SophiaError(f"no chat template in {folder} (chat_template.jinja or tokenizer_config.json){known}")
        return Chat(_JinjaTemplate(source, _special_tokens(folder), str(folder)).render, tokens, str(folder))

    @staticmethod
    def built_in(name: str, tokens_per_tile: int | None, system_message: str | None = None) -> Chat:
        """One of the original InternVL templates; ``system_message`` None means the template's own."""
        default, separator = BUILT_IN[name]
        system = default if system_message is None else system_message

        def render(messages: list[Message], add_generation_prompt: bool) -> str:
            turns = messages if messages and messages[0].role == "system" else [Message("system", system), *messages]
            text = "".join(f"<|im_start|>{turn.role}\n{turn.text}{separator}" for turn in turns)
            return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")

        return Chat(render, tokens_per_tile, name)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Text of a conversation, one ``<IMG_CONTEXT>`` per image as in the messages.

        Raises SophiaError when the template refuses the messages or loses or adds an image.
        """
        text = self._render(list(messages), add_generation_prompt)
        wanted = sum(message.text.count(IMAGE_CONTEXT) for message in messages)
        if text.count(IMAGE_CONTEXT) != wanted:
            found = text.count(IMAGE_CONTEXT)
            raise SophiaError(f"{self._where}: the chat template turned {wanted} image placeholders into {found}")
        return text

    def expand(self, text: str, tiles_per_image: Sequence[int], sample: str = "") -> str:
        """Replace each placeholder by ``<img>``, tokens_per_tile x tiles times ``<IMG_CONTEXT>``, ``</img>``.

        Raises SophiaError naming the sample when placeholders and images differ in number or the model takes no images.
        """
        parts = text.split(IMAGE_CONTEXT)
        of = f"sample {sample}: " if sample else ""
        if len(parts) - 1 != len(tiles_per_image):
            raise SophiaError(
                f"{of}{len(parts) - 1} image placeholders ({IMAGE_CONTEXT}) for {len(tiles_per_image)} images"
            )
        if tiles_per_image and self.tokens_per_tile is None:
            raise SophiaError(f"{of}{self._where} is a text-only model and takes no images")
        images = [
            IMAGE_START + IMAGE_CONTEXT * ((self.tokens_per_tile or 0) * count) + IMAGE_END for count in tiles_per_image
        ]
        return parts[0] + "".join(image + part for image, part in zip(images, parts[1:], strict=True))

    @property
    def end_of_turn(self) -> str:
        """What ends an assistant's turn and is a training target, such as ``<|im_end|>`` (without the newline)."""
        text = self.render([Message("user", "question"), Message("assistant", _PROBE)], add_generation_prompt=False)
        return text.rpartition(_PROBE)[2].strip()


class _JinjaTemplate:
    """A model directory's own template. It may want a message's content as a string or as a list of parts."""

    def __init__(self, source: str, special_tokens: dict[str, str], where: str) -> None:
        self._where = where
        self._variables = special_tokens | {"tools": None, "documents": None}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise SophiaError(f"{where}: the chat template cannot be parsed: {error}") from error
        self._takes_strings = self._probe_strings()
        self._image_adds_newline = False if self._takes_strings else self._probe_newline()

    def render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        content = (lambda text: text) if self._takes_strings else self._parts
        plain = [{"role": message.role, "content": content(message.text)} for message in messages]
        try:
            return self._run(plain, add_generation_prompt)
        except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
            raise SophiaError(f"{self._where}: the chat template refused the messages: {error}") from error

    def _run(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **self._variables)

    def _probe_strings(self) -> bool:
        try:
            return self._run([{"role": "user", "content": _PROBE}], False).count(_PROBE) == 1
        except (jinja2.TemplateError, TypeError, KeyError, ValueError):
            return False

    def _probe_newline(self) -> bool:
        parts = [{"type": "image"}, {"type": "text", "text": _PROBE}]
        try:
            return f"{IMAGE_CONTEXT}\n{_PROBE}" in self._run([{"role": "user", "content": parts}], False)
        except (jinja2.TemplateError, TypeError, KeyError, ValueError):
            return False

    def _parts(self, text: str) -> list[dict[str, str]]:
        pieces = text.split(IMAGE_CONTEXT)
        parts: list[dict[str, str]] = [{"type": "text", "text": pieces[0]}] if pieces[0] else []
        for piece in pieces[1:]:
            parts.append({"type": "image"})
            piece = piece.removeprefix("\n") if self._image_adds_newline else piece
            if piece:
                parts.append({"type": "text", "text": piece})
        return parts


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's words in some templates; here it changes nothing."""

    tags = frozenset(("generation",))  # type: ignore[assignment]

    def parse(self, parser: Any) -> Any:
        parser.stream.skip(1)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """The settings and helpers that templates on the hub rely on."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _find_template(folder: Path) -> str | None:
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise SophiaError(f"cannot read {folder / 'chat_template.jinja'}: {error}") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = (read_json(folder / name) or {}).get("chat_template")
        if isinstance(found, list):  # several named templates
            found = {item.get("name"): item.get("template") for item in found}.get("default")
        if isinstance(found, str):
            return found
    return None


def _special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token and so on, as templates see them."""
    both = (read_json(folder / "special_tokens_map.json") or {}) | (read_json(folder / "tokenizer_config.json") or {})
    tokens = {key: value for key, value in both.items() if key.endswith("_token")}
    contents = {key: value.get("content") if isinstance(value, dict) else value for key, value in tokens.items()}
    return {key: value for key, value in contents.items() if isinstance(value, str)}
