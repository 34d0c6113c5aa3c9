"""What a family of vision-language models says about itself: the interface that generic code asks.

A family is a folder beside this file (`internvl`), one row of `families.FAMILIES`, and its vision tower in
`model.vision`. Nothing outside these asks for a family's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sophia_mcore.pretrained.fields import Fields
from sophia_mcore.pretrained.language import LanguageSpec
from sophia_mcore.pretrained.table import Table

Layout = Literal["hf", "hf-custom"]  # transformers' own, or the original release's


@dataclass(frozen=True, slots=True)
class Message:
    """A turn. Every image stands in ``text`` as one ``<IMG_CONTEXT>``, whatever the family's own image token is.

    >>> Message("user", "<IMG_CONTEXT>\\nWhat is it?").text
    '<IMG_CONTEXT>\\nWhat is it?'
    """

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What one picture (or the mean of many) costs tower and projector; for planning."""

    pixels: float  # numbers
    patches: float  # positions in the tower
    seen: float  # patches that a patch attends to, mean over positions and layers
    tokens: float  # image tokens


Render = Callable[[list[Message], bool], str]  # (messages, add_generation_prompt) -> text
Spelling = tuple[tuple[str, str], ...]  # (prefix in the tables, prefix in the files); () is the tables' own


@dataclass(frozen=True, slots=True)
class ImageSize:
    """What an image becomes: rows of pixels for the vision tower, and tokens of the text.

    The tower sees pictures: every row of pixels is one of its own (a tile), or (with a ``grid``) all rows of the image
    together are one, as a grid of patches.
    """

    rows: int
    tokens: int
    grid: tuple[int, int] | None = None  # rows and columns of patches

    @property
    def pictures(self) -> int:
        """Pictures that the tower sees."""
        return self.rows if self.grid is None else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """How large images may become, as the run's configuration says; a family reads what applies to it."""

    max_tiles: int = 12
    min_pixels: int | None = None  # None: the checkpoint's own
    max_pixels: int | None = None


class ImageProcessor(Protocol):
    """How a policy wants its images. An image is some rows of pixels, all rows have the same shape."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row of pixels, such as (3, 448, 448)."""

    def size(self, width: int, height: int) -> ImageSize:
        """What an image of this size (pixels) becomes, found without touching a pixel."""

    def pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """An RGB image as normalised rows [rows, *row_shape]."""

    def positions(self, input_ids: NDArray[np.integer[Any]], sizes: Sequence[ImageSize]) -> NDArray[np.int64]:
        """Rotary positions of a sequence with images of these sizes: [L], or [3, L] with one row per axis (M-RoPE).

        Raises SophiaError for tokens that the family does not have.
        """

    def model_inputs(self, images: Sequence[Image.Image]) -> Mapping[str, NDArray[Any]]:
        """What transformers' model takes beside input_ids for these images."""

    def vllm_options(self) -> Mapping[str, Any]:
        """Settings of vLLM's image processor (`mm_processor_kwargs`) that make it do the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a configuration holds. Tower and projector are the family's own dataclasses."""

    vision: Any
    projector: Any
    language: LanguageSpec
    image_token_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family. Functions take what stands in the model folder."""

    name: str  # for people
    model_types: Mapping[str, Layout]  # config.json's model_type
    architectures: Mapping[str, Layout]  # config.json's architectures
    parse: Callable[[Fields, Layout], Parts]  # raises UsageError for what the implementation does not have
    image_token: str  # the token whose embedding a feature replaces; a rendered prompt has one per image
    image_text: Callable[[int], str]  # number of tokens -> what stands in the prompt for an image
    # chat templates that config.json may name: system message (None: the template's own) -> how messages are rendered
    templates: Mapping[str, Callable[[str | None], Render]]
    default_template: str | None  # for a folder that has and names none
    # (folder, config.json, the run's limits)
    image_processor: Callable[[Path, Mapping[str, Any], ImageLimits], ImageProcessor]
    vision_type: type  # of Parts.vision: what tells that a parsed model is of this family
    tables: Callable[[], tuple[Table, ...]]  # weights of tower and projector
    symbols: Callable[[Any, Any], Mapping[str, int]]  # (vision, projector) -> values of the tables' symbols
    language_prefix: str  # before the language model's names in the weights
    spellings: tuple[Spelling, ...]  # how releases of layout "hf" spell the tables' names; the first is what we write
    # (JSON files of a folder by name, what they describe, the other layout) -> the files that differ there
    translate: Callable[[Mapping[str, Mapping[str, Any]], Parts, Layout], Mapping[str, dict[str, Any]]]
    hf_image_processor: str  # "module:class" of transformers, whose `resize` must be Pillow's in vLLM's process
    # (vision, projector, image tokens of a picture; None: the family's tiles have one size) -> its cost
    picture: Callable[[Any, Any, float | None], Picture]
    levels: Callable[[Any], int]  # vision -> features of an image token: 1, and one for each DeepStack layer
    tokens_vary: bool  # pictures have a size of their own
    tower_kept: Callable[[Any, int], float]  # (vision, bytes of an element) -> kept per position by a trained layer
    unquantized: tuple[str, ...]  # patterns of module names of tower and projector, for quantizers
    refused: Mapping[str, str] = field(default_factory=dict)  # a relative's model_type or architecture -> why not
