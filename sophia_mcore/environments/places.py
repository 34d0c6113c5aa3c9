"""From an Ask as an environment writes it to the prompt that a model reads."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from sophia_mcore.environments.codec import BadValueError
from sophia_mcore.environments.types import IMAGE, POLICY, Ask
from sophia_mcore.pretrained.chat import IMAGE_PLACE, plain, user_text
from sophia_mcore.pretrained.family import Message


def require_helper(to: str, helpers: Sequence[str]) -> None:
    """Raise BadValueError, with the nearest name, when an ask is to nobody."""
    if to in helpers:
        return
    near = difflib.get_close_matches(to, helpers, n=1, cutoff=0.5)
    there = f"there are {', '.join(helpers)}" if helpers else "there is none"
    hint = f"did you mean {near[0]!r}?" if near else there
    raise BadValueError(f"asks {to!r}, which is none of [helpers] ({hint})")


def placed(ask: Ask, system: str = "") -> Ask:
    """The ask with every image at its place, and ``system`` in front where the policy has no system message.

    Text cannot ask for an image of its own. Raises BadValueError where places and images differ in number.
    """
    messages = [Message(message.role, plain(message.text)) for message in ask.messages]
    places = sum(message.text.count(IMAGE) for message in messages if message.role != "assistant")
    if places == len(ask.images):
        messages = [_filled(message) for message in messages]
    elif places and ask.images:
        raise BadValueError(f"asks with {len(ask.images)} images and {places} places {IMAGE} for them")
    elif ask.images:
        first = next((index for index, message in enumerate(messages) if message.role == "user"), None)
        if first is None:
            raise BadValueError("asks with images, but without a user message to put them into")
        messages[first] = Message("user", user_text(messages[first].text, len(ask.images)))
    if ask.to == POLICY and system and messages[0].role != "system":
        messages.insert(0, Message("system", system))
    if messages[0].role == "system" and not messages[0].text and len(messages) > 1:
        del messages[0]  # without any
    return replace(ask, messages=tuple(messages))


def _filled(message: Message) -> Message:
    if message.role == "assistant":
        return message
    return Message(message.role, message.text.replace(IMAGE, IMAGE_PLACE))
