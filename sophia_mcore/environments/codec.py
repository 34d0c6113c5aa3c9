"""Values to JSON and back, for the processes that run functions of a user's own. What does not fit has one line."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from PIL import Image

from sophia_mcore.environments.types import Ask, Episode, Reply, Step, Target, Turn, Weight
from sophia_mcore.pretrained.family import Message
from sophia_mcore.records import Question

MOST_STATE_CHARACTERS = 1_000_000  # of an environment's state as JSON; it is passed on with every turn
_MOST_PIXELS = 100_000_000
_ROLES = ("system", "user", "assistant")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class BadValueError(ValueError):
    """A function returned something else than it should."""


def without_addresses(text: str) -> str:
    """The text without places in memory, which differ from one process to the next."""
    return _ADDRESS.sub("", text)


def shown(value: Any) -> str:
    """A value in a message: short, on one line, the same in every process."""
    text = without_addresses(" ".join(repr(value).split()))
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain(value: Any, what: str) -> Any:
    """``value`` as JSON knows it; tuples become lists. Raises BadValueError for anything that JSON would lose."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadValueError(f"{what} is not JSON: it holds {value}")
        return float(value)
    if isinstance(value, (list, tuple)):
        return [plain(item, what) for item in value]
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise BadValueError(f"{what} is not JSON: the key {shown(wrong)} is no text")
        return {key: plain(item, what) for key, item in value.items()}
    raise BadValueError(f"{what} is not JSON: it holds a {type(value).__name__} ({shown(value)})")


def number(value: Any, what: str) -> float:
    """A finite number. Raises BadValueError."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        value = value.item()
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, (int, float)):
        raise BadValueError(f"{what} must be a number, not {shown(value)}")
    if not math.isfinite(value):
        raise BadValueError(f"{what} is {value}")
    return float(value)


def score(value: Any, turns: int) -> float | list[float] | None:
    """What a reward says of one episode: a number, one per turn of the policy, or None. Raises BadValueError."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        if len(value) != turns:
            raise BadValueError(f"returned {len(value)} numbers for {turns} turns of the policy")
        return [number(one, "an element of what it returned") for one in value]
    return number(value, "what it returned")


def group_scores(value: Any, episodes: int) -> list[float | None]:
    """What a reward says of a whole group. Raises BadValueError."""
    values = _items(value, "a list with a number for each episode")
    if len(values) != episodes:
        raise BadValueError(f"returned {len(values)} numbers for {episodes} episodes")
    return [None if one is None else number(one, "an element of what it returned") for one in values]


def _items(value: Any, wanted: str) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise BadValueError(f"must return {wanted}, not {shown(value)}")
    return list(value)


# ---- messages and images


def messages_json(messages: Sequence[Message]) -> list[list[str]]:
    """[[role, text], ...]."""
    return [[message.role, message.text] for message in messages]


def messages_of(value: Sequence[Sequence[str]]) -> tuple[Message, ...]:
    """As ``messages_json`` gave them."""
    return tuple(Message(role, text) for role, text in value)  # type: ignore[arg-type]


def _checked_messages(value: Any, what: str) -> list[list[str]]:
    found = _items(value, what)
    if not found:
        raise BadValueError(f"{what}: there is no message")
    for message in found:
        if not isinstance(message, Message):
            raise BadValueError(f"{what}: {shown(message)} is not a Message(role, text)")
        if message.role not in _ROLES:
            raise BadValueError(f"{what}: the role {shown(message.role)} is none of {', '.join(_ROLES)}")
        _checked_text(message.text, f"{what}: the text of a message")
    return messages_json(found)


def _checked_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadValueError(f"{what} is {shown(value)}, which is no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadValueError(f"{what} holds half a character, which no model can read ({shown(value)})") from None
    return value


def bytes_json(images: Sequence[bytes]) -> list[str]:
    """Base64."""
    return [base64.b64encode(image).decode() for image in images]


def bytes_of(value: Sequence[str]) -> tuple[bytes, ...]:
    """As ``bytes_json`` gave them."""
    return tuple(base64.b64decode(image) for image in value)


def _checked_images(value: Any) -> list[str]:
    for index, image in enumerate(_items(value, "images as a tuple of bytes")):
        if not isinstance(image, bytes):
            raise BadValueError(f"image {index} of what it asks is not bytes ({shown(image)})")
        try:
            with Image.open(io.BytesIO(image)) as opened:
                if opened.width * opened.height > _MOST_PIXELS:
                    raise BadValueError(
                        f"image {index} of what it asks is too large ({opened.width} x {opened.height})"
                    )
                opened.load()
        except BadValueError:
            raise
        except Exception as error:  # whatever Pillow raises
            raise BadValueError(f"image {index} of what it asks is not an image ({type(error).__name__})") from None
    return bytes_json(value)


# ---- the types


def question_json(question: Question) -> dict[str, Any]:
    """All fields."""
    return asdict(question)


def question_of(value: Mapping[str, Any]) -> Question:
    """As ``question_json`` gave it."""
    fields_of: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in value.items()}
    return Question(**fields_of)


def episode_json(episode: Episode) -> dict[str, Any]:
    """All fields."""
    rest = {one.name: getattr(episode, one.name) for one in fields(Episode) if one.name != "turns"}
    turns = [
        {one.name: getattr(turn, one.name) for one in fields(Turn)} | {"messages": messages_json(turn.messages)}
        for turn in episode.turns
    ]
    return rest | {"turns": turns}


def episode_of(value: Mapping[str, Any]) -> Episode:
    """As ``episode_json`` gave it."""
    turns = tuple(
        Turn(**{**turn, "messages": messages_of(turn["messages"]), "images": tuple(turn["images"])})
        for turn in value["turns"]
    )
    return Episode(**{**value, "turns": turns})


def reply_of(value: Mapping[str, Any]) -> Reply:
    """From its two fields."""
    return Reply(value["text"], value["finish_reason"])


def step_json(value: Any) -> dict[str, Any]:
    """A checked ``Step``. Raises BadValueError."""
    if not isinstance(value, Step):
        raise BadValueError(f"must return a Step(state, ask, rewards), not {shown(value)}")
    rewards = {
        name: number(one, f"reward {name!r}") for name, one in plain_mapping(value.rewards, "Step.rewards").items()
    }
    return {
        "state": _state(value.state),
        "ask": None if value.ask is None else ask_json(value.ask),
        "rewards": rewards,
    }


def _state(value: Any) -> Any:
    try:
        state = plain(value, "the state")
        characters = len(json.dumps(state))
    except RecursionError:
        raise BadValueError("the state is not JSON: it holds itself, or is nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits; BadValueError is one too
        raise error if isinstance(error, BadValueError) else BadValueError(f"the state is not JSON: {error}") from None
    if characters > MOST_STATE_CHARACTERS:
        raise BadValueError(
            f"the state is {characters:,} characters of JSON, and {MOST_STATE_CHARACTERS:,} are the most: it is passed "
            "on with every turn; keep what can be made again (images, tables) out of it"
        )
    return state


def plain_mapping(value: Any, what: str) -> Mapping[str, Any]:
    """A mapping with text keys. Raises BadValueError."""
    if not isinstance(value, Mapping) or any(not isinstance(name, str) for name in value):
        raise BadValueError(f"{what} must be a table of numbers by name, not {shown(value)}")
    return value


def ask_json(value: Any) -> dict[str, Any]:
    """A checked ``Ask``. Raises BadValueError."""
    if not isinstance(value, Ask):
        raise BadValueError(f"asks with {shown(value)}, which is not an Ask")
    _checked_text(value.to, "Ask.to")
    _checked_text(value.prefill, "Ask.prefill")
    most = value.max_tokens
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise BadValueError(f"Ask.max_tokens must be a whole number above 0, not {shown(most)}")
    messages = _checked_messages(value.messages, "Ask.messages")
    images = _checked_images(value.images)
    return {
        "messages": messages,
        "images": images,
        "to": value.to,
        "prefill": value.prefill,
        "max_tokens": most,
    }


def images_of(episode: Episode, question: Question) -> set[str]:
    """Digests of all images of the question and of what the episode's prompts show."""
    return {*question.images, *(image for turn in episode.turns for image in turn.images)}


def ask_of(value: Mapping[str, Any]) -> Ask:
    """As ``ask_json`` gave it."""
    return Ask(**{**value, "messages": messages_of(value["messages"]), "images": bytes_of(value["images"])})


def weights_json(value: Any, turns: Sequence[int]) -> list[list[list[float]]]:
    """What weighing says of a group: [advantage, kl] of each policy turn of each episode. Raises BadValueError."""
    rows = _items(value, "a list with the weights of each episode's turns")
    if len(rows) != len(turns):
        raise BadValueError(f"returned weights of {len(rows)} episodes for {len(turns)}")
    found = []
    for row, count in zip(rows, turns, strict=True):
        if isinstance(row, Weight):
            raise BadValueError("must return a list of weights for each episode, one per turn, not one Weight")
        weights = _items(row, "a list of weights for each episode, one per turn")
        if len(weights) != count:
            raise BadValueError(f"returned {len(weights)} weights for {count} turns of the policy")
        found.append([_weight(weight) for weight in weights])
    return found


def _weight(value: Any) -> list[float]:
    if not isinstance(value, Weight):
        return [number(value, "a weight"), 0.0]
    kl = number(value.kl, "Weight.kl")
    if kl < 0.0:
        raise BadValueError(f"Weight.kl is {kl}: it cannot be negative")
    return [number(value.advantage, "Weight.advantage"), kl]


def targets_json(value: Any, seen: Container[str]) -> list[dict[str, Any]]:
    """What relabelling gives for an episode; ``seen``: what ``images_of`` gives for it. Raises BadValueError."""
    found = []
    for target in [] if value is None else _items(value, "targets"):
        if not isinstance(target, Target):
            raise BadValueError(f"gave {shown(target)}, which is not a Target")
        pieces = _items(target.pieces, "pieces")
        for piece in pieces:
            if not (isinstance(piece, (tuple, list)) and len(piece) == 2 and isinstance(piece[1], bool)):
                raise BadValueError(f"Target.pieces holds {shown(piece)}, which is not (text, True or False)")
            _checked_text(piece[0], "the text of a piece")
        if not any(learned and text for text, learned in pieces):
            raise BadValueError("a Target has nothing that is learned")
        images = _items(target.images, "digests as Target.images")
        strange = next((image for image in images if not isinstance(image, str) or image not in seen), None)
        if strange is not None:
            raise BadValueError(f"Target.images holds {shown(strange)}, which is in images of no turn")
        weight = number(target.weight, "Target.weight")
        if weight < 0.0:
            raise BadValueError(f"Target.weight is {weight}: it cannot be negative; leave the target out")
        found.append(
            {
                "messages": _checked_messages(target.messages, "Target.messages"),
                "pieces": [[text, learned] for text, learned in pieces],
                "images": images,
                "weight": weight,
            }
        )
    return found
