"""Training samples from kept trajectories and from mixtures, which are the user's further data in JSON Lines files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Mixture
from sophia_mcore.data.cells import broken_text
from sophia_mcore.data.images import check, size_of
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.records import END_OF_THOUGHT, THOUGHT, Kept
from sophia_mcore.store.json_lines import read_json_lines

KEPT_SOURCE = "kept"
# The kind of a sample. STORED: written by another model (off-policy). FRESH: written by the policy. SUPERVISED: further
# data, whose loss is always plain NLL. AUXILIARY: plain NLL with its own denominator.
STORED, FRESH, SUPERVISED, AUXILIARY = 0, 1, 2, 3
IGNORE = -100  # the ignored label, for positions without a target: log-prob 0, no gradient, no computation
_THINKING = re.compile(f"{THOUGHT}.*?{END_OF_THOUGHT}", re.DOTALL)
_FIELDS = {"id": str, "question": str, "response": str, "images": list, "system": str}
_OPTIONAL = ("images", "system")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One (system prompt, images, question) -> response pair.

    Example: id "train-17.3f2a9c0d1e2f3a4b.k2.n5", source "kept", images ("3f2a...",), weight 1.0 (the reward of eq. 6).
    """

    id: str
    source: str
    images: tuple[str, ...]  # digests in the image store, in order
    system: str | None  # None: the chat template's default
    question: str
    response: str
    weight: float = 1.0  # reward or advantage; the objective multiplies the response's terms by it
    kind: int = STORED  # or FRESH, SUPERVISED, AUXILIARY
    complete: bool = True  # False: cut off by the token limit, so that no end token follows
    response_ids: tuple[int, ...] | None = None  # sampled tokens with end token, if they fit the policy's tokenizer
    opened: str = ""  # beginning of the response that a chat template wrote; it comes before ``response_ids``


def system_prompt(response: str, long_thinking: str, default: str | None) -> str | None:
    """The long-thinking prompt iff the response holds <think>...</think>, else the default (method.md section 3).

    >>> system_prompt("<think>2+3</think>5", "Think first.", None)
    'Think first.'
    """
    return long_thinking if _THINKING.search(response) else default


def from_kept(kept: Iterable[Kept], *, long_thinking: str, default_system: str | None) -> list[Sample]:
    """One sample of weight 1 per kept trajectory. The caption is not part of the sample."""
    return [
        Sample(
            id=row.trajectory_id,
            source=KEPT_SOURCE,
            images=row.images,
            system=system_prompt(row.response, long_thinking, default_system),
            question=row.question,
            response=row.response,
        )
        for row in kept
    ]


def image_digests(images: Iterable[bytes]) -> list[str]:
    """sha256 of each image's bytes, as `ImageStore.add_many` returns them, but without storing the images."""
    return [hashlib.sha256(image).hexdigest() for image in images]


def from_mixture(
    mixture: Mixture,
    add_images: Callable[[Iterable[bytes]], list[str]],
    *,
    long_thinking: str,
    default_system: str | None,
    max_image_pixels: int = 100_000_000,
) -> list[Sample]:
    """Samples of weight 1 from JSON lines {"id", "question", "response"[, "images": [paths]][, "system"]}.

    All images are passed to `add_images` in one call: `ImageStore.add_many` on one process, `image_digests` on the
    others. Raises UsageError with file and line for a line that is not JSON, a field that is missing or of the wrong
    type, an id that appears twice, an image that cannot be read, and a file without lines.
    """
    rows = _mixture_samples(mixture.path)
    digests = iter(add_images(_mixture_images(mixture, rows, max_image_pixels)))
    return [
        Sample(
            id=f"{mixture.name}:{row['id']}",
            source=mixture.name,
            images=tuple(next(digests) for _ in row.get("images") or ()),
            system=row.get("system") or system_prompt(row["response"], long_thinking, default_system),
            question=row["question"],
            response=row["response"],
            kind=SUPERVISED,
        )
        for _, row in rows
    ]


def check_mixture(mixture: Mixture, max_image_pixels: int = 100_000_000) -> int:
    """Number of samples in a mixture. Raises UsageError like `from_mixture`. Reads only the headers of the images."""
    rows = _mixture_samples(mixture.path)
    seen: set[str] = set()
    for line, row in rows:
        for image in row.get("images") or ():
            if image not in seen:
                seen.add(image)
                try:
                    size_of(_image_path(mixture, image), max_image_pixels)
                except SophiaError as error:
                    raise UsageError(f"{mixture.path}, line {line}: {image}: {error}") from None
    return len(rows)


def _image_path(mixture: Mixture, image: str) -> Path:
    return (mixture.images_folder or mixture.path.parent) / image


def _mixture_samples(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, fields) of all lines. Raises UsageError for a bad line or an id that appears twice."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"{path}: a pipe or device; a file is needed, because it is read more than once")
    rows = list(_mixture_rows(path))
    if not rows:
        raise UsageError(f"{path}: no samples in it")
    seen: set[str] = set()
    for line, row in rows:
        if row["id"] in seen:
            raise UsageError(f"{path}, line {line}: id {row['id']!r} occurs twice")
        seen.add(row["id"])
    return rows


def _mixture_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        for number, row in read_json_lines(path):
            problem = row if isinstance(row, str) else _row_problem(row)
            if isinstance(row, str) or problem:
                raise UsageError(f"{path}, line {number}: {problem}")
            yield number, row
    except UsageError:
        raise
    except SophiaError as error:
        raise UsageError(str(error)) from None


def _row_problem(row: dict[str, Any]) -> str:
    """What is wrong with a line of a mixture; "" if it is valid."""
    for field, kind in _FIELDS.items():
        if field in _OPTIONAL and row.get(field) is None:
            continue
        if not isinstance(row.get(field), kind):
            return f"{field!r} is missing or not a {kind.__name__}"
        if isinstance(row[field], str) and broken_text(row[field]):
            return f"{field!r} contains half of a surrogate pair (a damaged emoji, perhaps)"
    if not all(isinstance(image, str) for image in row.get("images") or ()):
        return "'images' holds something that is not a path"
    before, closed, _ = row["response"].partition(END_OF_THOUGHT)
    if closed and THOUGHT not in before:
        return f"'response' has {END_OF_THOUGHT} without {THOUGHT} before it: put {THOUGHT} where the thought begins"
    return ""


def _mixture_images(mixture: Mixture, rows: list[tuple[int, dict[str, Any]]], max_pixels: int) -> Iterator[bytes]:
    path = mixture.path
    for line, row in rows:
        for image in row.get("images") or ():
            try:
                data = _image_path(mixture, image).read_bytes()
                check(data, max_pixels)
            except OSError as error:
                raise UsageError(f"{path}, line {line}: image {image} cannot be read ({error.strerror})") from None
            except SophiaError as error:
                raise UsageError(f"{path}, line {line}: {image}: {error}") from None
            yield data


def require_some(samples: list[Sample], where: str) -> list[Sample]:
    """Return the samples. Raises SophiaError if there are none or all weights are zero: nothing could be learned."""
    if not samples:
        raise SophiaError(f"{where}: no sample to train on")
    if all(sample.weight == 0.0 for sample in samples):
        raise SophiaError(f"{where}: the weights of all {len(samples)} samples are zero, nothing can be learned")
    return samples
