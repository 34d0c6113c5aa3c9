"""Cells of raw rows of any source, each brought into one form; what is wrong goes into the row's problems."""

from __future__ import annotations

import ast
import base64
import binascii
import html
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

_TURNS = ("<|im_start|>", "<|im_end|>")
_SHOWN = 80  # characters of a cell in a message
_SHOWN_PATH = 320
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
_DATA_ADDRESS = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_LONGEST_PATH = 4096
_IMAGE_TAG = re.compile(r"<image\s*(\d*)>", re.IGNORECASE)
_LETTER_KEY = re.compile(r"\(?([A-Za-z])[).:]?")


def shown(text: str) -> str:
    """The beginning of a cell, for a message.

    >>> len(shown("x" * 500))
    83
    """
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def shown_path(path: Path) -> str:
    """A path for a message: of a very long one its beginning and its end, where the file's name stands."""
    text = str(path)
    return text if len(text) <= _SHOWN_PATH else f"{text[: _SHOWN_PATH // 4]}...{text[-_SHOWN_PATH // 2 :]}"


def text_of(value: Any) -> str:
    """A cell as text; None and "not a number" are empty."""
    if isinstance(value, (bytes, bytearray, memoryview)):  # a column of bytes in Parquet
        value = bytes(value).decode("utf-8", "surrogateescape")
    return "" if value is None or is_missing(value) else str(value).strip()


def reserved_in(text: str) -> str:
    """What a text contains that no prompt may take from data; "" if nothing.

    >>> reserved_in("Why does <video> end?")
    'contains <video>: videos are not supported'
    """
    if "<" not in text:
        return ""
    lower, (marks, videos) = text.lower(), _reserved()
    mark = next((mark for mark in (*marks, *videos) if mark.lower() in lower), None)
    if mark is None:
        return ""
    return f"contains {mark}" + (": videos are not supported" if mark in videos else ", which is reserved for prompts")


@cache
def _reserved() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What would be read as structure once it stands in a prompt, for images and turns, and for videos."""
    from sophia_mcore.pretrained.families import FAMILIES  # here: slow to import
    from sophia_mcore.pretrained.family import IMAGE_PLACE

    marks = (mark for family in FAMILIES for mark in family.reserved)
    videos = (mark for family in FAMILIES for mark in family.video_tokens)
    return tuple(dict.fromkeys((*marks, *_TURNS, IMAGE_PLACE))), tuple(dict.fromkeys(videos))


def is_missing(value: Any) -> bool:
    """Whether a cell is "not a number", which tables write for a missing value, or is infinite."""
    return isinstance(value, float) and not math.isfinite(value)


def broken_text(text: str) -> bool:
    """Whether the text has half of a surrogate pair, which no file can hold as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def without_surrogates(text: str) -> str:
    """The text with halves of surrogate pairs spelled out."""
    return text.encode("utf-8", "backslashreplace").decode() if broken_text(text) else text


def question_of(value: Any, problems: list[str]) -> str:
    """The question without ``<image>`` tags: images come first, in their order."""
    text = _image_tags_removed(text_of(value))
    if not text:
        problems.append("no question")
    reserved = reserved_in(text)
    if reserved:
        problems.append(f"the question {reserved}")
    return text


def _image_tags_removed(text: str) -> str:
    """Tags before or after the text go; tags inside it become "(image 1)", so that the sentence keeps its sense."""
    for pattern in (r"^(?:\s*<image>)+", r"(?:<image>\s*)+$"):
        rest = re.sub(pattern, "", text).strip()
        if "<image>" not in rest:
            return rest
    numbers = itertools.count(1)
    return re.sub("<image>", lambda _: f"(image {next(numbers)})", text).strip()


def answer_of(value: Any, pattern: re.Pattern[str] | None, problems: list[str]) -> str:
    """The gold answer: the one value of the cell, without tags and workings where there is one reading.

    Read: ``<answer>3</answer>``, ``... #### 3`` (GSM8K), a working with one ``\\boxed{3}``, what ``pattern`` finds.
    A bad row: no value, "not a number", several values, several lines without a box, tags or images that are left.
    """
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if is_missing(value):
        problems.append(f"no answer: the cell is {value}")
        return ""
    if isinstance(value, (list, tuple, Mapping)):
        problems.append(f"the answer is a {type(value).__name__}, not one value")
        return ""
    text = text_of(value)
    match = pattern.search(text) if pattern else None
    text = _final(_unboxed(match.group(1) if match else _plain(text)).strip()).strip()
    if not text or text.lower() == "nan":
        problems.append("no answer")
        return ""
    problems += _answer_problems(text)
    return text


_ENTITY = re.compile(
    r"&(?:lt|gt|le|ge|ne|amp|quot|apos|nbsp|deg|times|divide|minus|plusmn|pi|radic|infin|#\d{1,6}|#x[\da-f]{1,5});",
    re.I,
)
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad\u202a-\u202e]")


def _plain(text: str) -> str:
    """Without characters that nobody sees, and with the characters that entities of HTML stand for."""
    return _ENTITY.sub(lambda match: html.unescape(match[0]), _INVISIBLE.sub("", text)).strip()


_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:answer|think|image\s*\d*|img|im_start|im_end|solution|final)\b[^>]*>|</?(?:p|br|div|span|su[bp]|li|[uo]l|strong|em|table|t[drh])(?:\s[^<>]*)?/?>|</[bi]>",
    re.IGNORECASE,
)


_FENCED = re.compile(r"```(?:[a-z]*\n)?\s*(?P<inner>[^`]+?)\s*```")
_LEAD = re.compile(  # "Answer: 7", "The correct answer is 7"
    r"^(?:\*\*)?(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|ans)"
    r"(?:\*\*)?\s*(?:[:：](?:\*\*)?\s*|is\s*:?\s+(?!not\b))(?=\S)",
    re.IGNORECASE,
)


def _final(text: str) -> str:
    """The final answer of a text that holds more than that and marks it in one way."""
    tagged = _ANSWER_TAG.findall(text)
    if tagged:
        text = tagged[-1].strip()
    text = _THOUGHT.sub("", text).strip()
    fenced = _FENCED.fullmatch(text)
    text = fenced["inner"].strip() if fenced else text
    if "####" in text:
        return text.rpartition("####")[2].strip()
    if len(text.split()) > 1 or "\n" in text:
        boxes = set(_boxes(text))
        if len(boxes) == 1:
            return boxes.pop()
    return _unboxed(_LEAD.sub("", text))


def _answer_problems(text: str) -> list[str]:
    tag = _TAG.search(text)
    if tag:
        return [f"the answer contains {tag[0]}"]
    if "\n" in text and "\\begin{" not in text:
        return ["the answer has several lines: name the column of the final answer, or box it as \\boxed{...}"]
    if len(set(_boxes(text))) > 1:
        return ["the answer names several boxed values"]
    reserved = reserved_in(text)
    return [f"the answer {reserved}"] if reserved else []


def _boxes(text: str) -> list[str]:
    """The insides of all ``\\boxed{...}`` with matching braces."""
    found = []
    for start in re.finditer(r"\\boxed\s*\{", text):
        depth, place = 1, start.end()
        while place < len(text) and depth:
            depth += (text[place] == "{") - (text[place] == "}")
            place += 1
        if not depth:
            found.append(text[start.end() : place - 1].strip())
    return found


def _unboxed(text: str) -> str:
    """The inside of ``\\boxed{...}`` when that is all there is."""
    inner = re.fullmatch(r"\s*\$?\s*\\boxed\{(.*)\}\s*\$?\s*", text, re.DOTALL)
    if inner is None:
        return text
    depth = 0
    for character in inner.group(1):
        depth += (character == "{") - (character == "}")
        if depth < 0:  # the first brace closes before the end: two boxes
            return text
    return inner.group(1)


def identifier_of(value: Any, default: str, problems: list[str]) -> str:
    text = text_of(value)
    if any(ord(character) < 32 for character in text):
        problems.append("the id contains a control character")
    return text or default


def options_of(value: Any, problems: list[str]) -> tuple[str, ...]:
    """Texts of the choices, from a list, an object {"A": ...}, or the JSON or Python text of either.

    An object whose keys are letters keeps each text at its letter's place; "" stands for a letter without a text.
    """
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        value = literal(value)
        if value is None:
            problems.append("the options are not valid JSON, nor a Python list")
            return ()
    if isinstance(value, Mapping):
        value = _by_letter(value)
    if isinstance(value, str) and value.count("|"):
        value = _between_bars(value)
    if value is None or is_missing(value) or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, str) or not isinstance(value, Iterable):
        problems.append("the options are not a list")
        return ()
    items = list(value)
    while items and (items[-1] is None or items[-1] == ""):  # tables pad shorter lists
        items.pop()
    for letter, item in zip(itertools.chain(ascii_uppercase, itertools.repeat("?")), items, strict=False):
        if is_missing(item):
            problems.append(f"the options: ({letter}) is {item}")
        elif isinstance(item, (list, tuple, Mapping)):
            problems.append(f"the options: ({letter}) is a {type(item).__name__}, not a text")
        elif reserved := reserved_in(text_of(item)):
            problems.append(f"the options: ({letter}) {reserved}")
    return tuple(text_of(item) for item in items)


def _between_bars(text: str) -> list[str] | str:
    """The parts of "red | green | blue"; the text itself where a bar may be mathematics, as in |x|."""
    parts = [part.strip() for part in text.split("|")]
    return parts if all(parts) and not _MATHEMATICS.search(text) else text


_MATHEMATICS = re.compile(r"[(\[{][^)\]}]*\||\\|[<>=∈]")


def _by_letter(options: Mapping[Any, Any]) -> list[Any]:
    """Values of an object by its keys' letters; in its own order where they are no letters."""
    keys = {key: _LETTER_KEY.fullmatch(str(key).strip()) for key in options}
    letters = {key: ascii_uppercase.index(match[1].upper()) for key, match in keys.items() if match}
    if len(letters) < len(keys) or len(set(letters.values())) < len(letters):
        return [item for item in options.values() if item is not None]  # Arrow fills absent keys with None
    placed: list[Any] = [""] * (max(letters.values(), default=-1) + 1)
    for key, item in options.items():
        placed[letters[key]] = "" if item is None else item
    return placed


def literal(text: str) -> Any:
    """The list or object that a cell spells, as JSON or as Python text; None where it spells neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(value, (list, tuple, dict)):
            return value
    return None


def image_tag_problems(texts: Iterable[str], images: int) -> list[str]:
    """What is wrong with the image tags of a question and its options: a tag that names an image that is missing.

    >>> image_tag_problems(["Compare <image 1> and <image 2>."], 1)
    ['the question names <image 2>, but the row has 1 image']
    """
    numbers = [tag[1] for text in texts for tag in _IMAGE_TAG.finditer(text)]
    highest = max((int(number) for number in numbers if number), default=0)
    plain = sum(not number for number in numbers)
    have = f"the row has {images} image{'s' * (images != 1)}"
    if highest > images:
        return [f"the question names <image {highest}>, but {have}"]
    if plain > images:
        return [f"the question has {plain} <image> tags, but {have}"]
    return []


def images_of(value: Any, folder: Path | None, problems: list[str]) -> Iterable[bytes | Path]:
    """Bytes, {"bytes", "path"} as `datasets` stores them, paths, base64, Pillow images, or lists of these."""
    if value is None or is_missing(value):
        return
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from images_of(item, folder, problems)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        yield bytes(value)
    elif isinstance(value, Mapping) and isinstance(value.get("bytes"), (bytes, bytearray, memoryview)):
        yield bytes(value["bytes"])
    elif isinstance(value, Mapping) and isinstance(value.get("bytes"), str):
        data = _base64_image(value["bytes"].strip(), announced=True)
        if data is None:
            problems.append(f"image unreadable: its bytes are text, and not base64: {shown(value['bytes'])}")
        else:
            yield data
    elif isinstance(value, Mapping) and value.get("path"):
        yield from _path(str(value["path"]), folder, problems)
    elif isinstance(value, str) and value.strip():
        yield from _named_image(value.strip(), folder, problems)
    elif isinstance(value, Path):
        yield from _path(str(value), folder, problems)
    elif hasattr(value, "save") and hasattr(value, "mode"):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        yield buffer.getvalue()
    elif isinstance(value, Mapping) or not isinstance(value, (str, Path)):
        problems.append(f"image unreadable: a {type(value).__name__} is neither bytes nor a path")


def _named_image(text: str, folder: Path | None, problems: list[str]) -> Iterable[bytes | Path]:
    """A path, base64 text, or the JSON or Python text of a list of these (in a cell of a table)."""
    if text[0] == "[" and text[-1] == "]":
        items = literal(text)
        if items is not None:
            yield from images_of(items, folder, problems)
            return
    address = _DATA_ADDRESS.match(text)
    data = _base64_image(text[address.end() :] if address else text, bool(address))
    if data is not None:
        yield data
    elif address or len(text) > _LONGEST_PATH:
        problems.append(f"image unreadable: {len(text):,} characters are neither a path nor base64: {shown(text)}")
    else:
        yield from _path(text, folder, problems)


def _base64_image(text: str, announced: bool) -> bytes | None:
    """The bytes of an image file in base64; None if the text is something else."""
    if not announced and not _BASE64.fullmatch(text):
        return None
    try:
        if not announced and not base64.b64decode(text[:16]).startswith(_SIGNATURES):
            return None
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if data.startswith(_SIGNATURES) else None


def _path(text: str, folder: Path | None, problems: list[str]) -> Iterable[Path]:
    """A path below ``folder``. Data may not name files elsewhere; links that the user put there may point anywhere."""
    if re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        problems.append(f"image is an address, not a file: {shown(text)}; download the images first")
    elif folder is None:
        problems.append(f"image path {shown(text)}: set images_folder of the source")
    else:
        base = os.path.abspath(folder)
        if "\\" in text and not os.path.exists(os.path.join(base, text)):  # as Windows writes paths
            text = text.replace("\\", "/")
        path = os.path.normpath(os.path.join(base, text))
        if path != base and os.path.commonpath([base, path]) == base:
            yield Path(path)
        else:
            problems.append(f"image path {shown(text)} leads out of {folder}")
