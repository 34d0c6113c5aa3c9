"""Chat templates: turn messages into the exact text that a model was trained on, and image placeholders into tokens.

The config.json of a folder in an original release's layout may name one of its family's templates. The release's code
uses it, so it has precedence. Other folders have a Jinja template, which is run in a sandbox.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.families import FAMILIES, config_of, family_of
from sophia_mcore.pretrained.family import IMAGE_PLACE, Family, Message, Render
from sophia_mcore.records import END_OF_THOUGHT, THOUGHT
from sophia_mcore.store.json_files import read_json

_PROBE = "sophia probe text"

__all__ = ["IMAGE_PLACE", "Chat", "Message", "plain", "user_text"]


def plain(text: str) -> str:
    """Text from data or models without image placeholders of any family, so that it cannot refer to an image."""
    marks = (IMAGE_PLACE, *dict.fromkeys(family.image_token for family in FAMILIES))
    while any(mark in text for mark in marks):  # what is left around one may be another
        for mark in marks:
            text = text.replace(mark, "")
    return text


def user_text(question: str, images: int) -> str:
    r"""The user's message: first the images, then the question. "<image>" in the question places the images itself.

    >>> user_text("Sum?", 1), user_text("Same?", 2), user_text("Is <image> older than <image>?", 2)
    ('<|image place|>\nSum?', 'Image-1: <|image place|>\nImage-2: <|image place|>\nSame?', 'Is <|image place|> older than <|image place|>?')
    """  # noqa: E501
    if images and question.count("<image>") == images:
        return question.replace("<image>", IMAGE_PLACE)
    if images <= 1:
        return IMAGE_PLACE * images + "\n" * images + question
    return "".join(f"Image-{i + 1}: {IMAGE_PLACE}\n" for i in range(images)) + question


class Chat:
    """The chat template of a model folder. ``family`` None: a text-only model, which refuses images."""

    def __init__(self, render: Render, family: Family | None, where: str = "chat template") -> None:
        self._render = render
        self._family = family
        self._where = where
        self.image_token = IMAGE_PLACE if family is None else family.image_token
        self._opened_after = lru_cache(maxsize=64)(self._find_opened)

    @staticmethod
    def from_model_dir(model_dir: Path | str) -> Chat:
        """Load the template of a Hugging Face folder. Raises SophiaError if it is missing or cannot be parsed."""
        folder = Path(model_dir)
        config = config_of(folder)
        family, layout = family_of(config) or (None, None)
        templates = family.templates if family else {}
        name = config.get("template") if layout == "hf-custom" else None
        if isinstance(name, str) and name in templates:
            return Chat(templates[name](config.get("system_message")), family, name)
        source = _find_template(folder)
        default = family.default_template if family else None
        if source is None and default is not None and name is None:
            return Chat(templates[default](None), family, default)
        if source is None:
            known = f"; its template {name!r} is none of {', '.join(templates)}" if name else ""
            raise SophiaError(f"no chat template in {folder} (chat_template.jinja or tokenizer_config.json){known}")
        template = _JinjaTemplate(source, _special_tokens(folder), family, str(folder))
        return Chat(template.render, family, str(folder))

    @staticmethod
    def built_in(name: str, system_message: str | None = None) -> Chat:
        """A family's built-in template, by name. ``system_message`` None: the template's default."""
        family = next(family for family in FAMILIES if name in family.templates)
        return Chat(family.templates[name](system_message), family, name)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, with one image token per image.

        Raises SophiaError if the template refuses the messages, or if it loses or adds an image.
        """
        text = self._render(list(messages), add_generation_prompt)
        wanted = sum(message.text.count(IMAGE_PLACE) for message in messages)
        found = text.count(self.image_token)
        if found != wanted:
            raise SophiaError(f"{self._where}: the chat template turned {wanted} image placeholders into {found}")
        return text

    def expand(self, text: str, tokens_per_image: Sequence[int], sample: str = "") -> str:
        """Replace the image token of each image by the text of an image with ``tokens_per_image`` tokens.

        Raises SophiaError, naming the sample, if the numbers of image tokens and images differ, or if the model takes
        no images.
        """
        parts = text.split(self.image_token)
        of = f"sample {sample}: " if sample else ""
        if len(parts) - 1 != len(tokens_per_image):
            raise SophiaError(
                f"{of}{len(parts) - 1} image placeholders ({self.image_token}) for {len(tokens_per_image)} images"
            )
        if self._family is None:
            if tokens_per_image:
                raise SophiaError(f"{of}{self._where} is a text-only model and takes no images")
            return text
        images = [self._family.image_text(count) for count in tokens_per_image]
        return parts[0] + "".join(image + part for image, part in zip(images, parts[1:], strict=True))

    def opened_thought(self, messages: Sequence[Message], prompt: str) -> str:
        """The opened thought ("<think>" and what follows it) with which the template ends ``prompt``; "" if none.

        The templates of DeepSeek-R1 and QwQ open the thought, so that the sampled tokens only close it. To tell the
        template's tag from a tag in a message, this renders the template with another last message.
        """
        if THOUGHT not in prompt or not messages:
            return ""
        opened = self._opened_after((*messages[:-1], Message(messages[-1].role, _PROBE)))
        return opened if prompt.endswith(opened) else ""

    def _find_opened(self, messages: tuple[Message, ...]) -> str:
        tail = self.render(messages, add_generation_prompt=True).rpartition(_PROBE)[2]
        start = tail.rfind(THOUGHT)
        return "" if start < 0 or END_OF_THOUGHT in tail[start:] else tail[start:]

    @property
    def end_of_turn(self) -> str:
        """The text that ends an assistant's turn, such as ``<|im_end|>`` (no newline). It is a training target."""
        text = self.render([Message("user", "question"), Message("assistant", _PROBE)], add_generation_prompt=False)
        return text.rpartition(_PROBE)[2].strip()


class _JinjaTemplate:
    """A Jinja template of a model folder. It may take the content of a message as a string or as a list of parts."""

    def __init__(self, source: str, special_tokens: dict[str, str], family: Family | None, where: str) -> None:
        self._where = where
        self._image_token = family.image_token if family else IMAGE_PLACE
        self._variables = special_tokens | {"tools": None, "documents": None}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise SophiaError(f"{where}: the chat template cannot be parsed: {error}") from error
        self._takes_strings = (family is None or family.text_has_image_token) and self._probe_strings()
        self._image_adds_newline = False if self._takes_strings else self._probe_newline()

    def render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        content = self._text if self._takes_strings else self._parts
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
            return f"{self._image_token}\n{_PROBE}" in self._run([{"role": "user", "content": parts}], False)
        except (jinja2.TemplateError, TypeError, KeyError, ValueError):
            return False

    def _text(self, text: str) -> str:
        return text.replace(IMAGE_PLACE, self._image_token)

    def _parts(self, text: str) -> list[dict[str, str]]:
        pieces = text.split(IMAGE_PLACE)
        parts: list[dict[str, str]] = [{"type": "text", "text": pieces[0]}] if pieces[0] else []
        for piece in pieces[1:]:
            parts.append({"type": "image"})
            piece = piece.removeprefix("\n") if self._image_adds_newline else piece
            if piece:
                parts.append({"type": "text", "text": piece})
        return parts


class _Generation(jinja2.ext.Extension):
    """Ignores the tag ``{% generation %}``, with which some templates mark the assistant's text."""

    tags = frozenset(("generation",))  # type: ignore[assignment]

    def parse(self, parser: Any) -> Any:
        parser.stream.skip(1)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """A sandbox with the settings and functions that templates on the hub need."""
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
    """Variables such as bos_token and eos_token for templates."""
    both = (read_json(folder / "special_tokens_map.json") or {}) | (read_json(folder / "tokenizer_config.json") or {})
    tokens = {key: value for key, value in both.items() if key.endswith("_token")}
    contents = {key: value.get("content") if isinstance(value, dict) else value for key, value in tokens.items()}
    return {key: value for key, value in contents.items() if isinstance(value, str)}
