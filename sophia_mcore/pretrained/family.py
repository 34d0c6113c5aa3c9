"""The interface of a family of vision-language models, which generic code uses.

A family is a folder beside this file (such as `internvl`), a row of `families.FAMILIES`, and a vision tower in
`model.vision`. No other code uses the name of a family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sophia_mcore.pretrained.fields import Fields
from sophia_mcore.pretrained.language import LanguageSpec
from sophia_mcore.pretrained.table import Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

Layout = Literal["hf", "hf-custom"]  # the layout of transformers, or of the original release
IMAGE_PLACE = "<|image place|>"  # an image in the text of a message; no tokenizer has it


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a conversation. Each image is one `IMAGE_PLACE` in ``text``, for every family.

    >>> Message("user", f"{IMAGE_PLACE}\\nWhat is it?").text
    '<|image place|>\\nWhat is it?'
    """

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Sizes of one picture (or means over many) that decide the cost of tower and projector; for planning."""

    pixels: float  # pixel values
    patches: float  # positions in the tower
    seen: float  # patches that a patch attends to, mean over positions and layers
    tokens: float  # image tokens
    rows: float  # rows of pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What an image of unknown size is assumed to be, for planning."""

    pictures: float  # mean number of pictures of an image
    fewest: int  # tokens of a picture
    most: int


class TowerSizes(Protocol):
    """The sizes that every vision tower has. All else of a tower's spec is the family's own."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...


class ProjectorSizes(Protocol):
    """The sizes that every projector has."""

    @property
    def input_size(self) -> int: ...
    @property
    def output_size(self) -> int: ...


Render = Callable[[list[Message], bool], str]  # (messages, add_generation_prompt) -> text
Spelling = tuple[tuple[str, str], ...]  # (prefix in the tables, prefix in the files); (): the same in both


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Size of a processed image: rows of pixels for the vision tower, and tokens in the text.

    The tower processes pictures. Without a ``grid`` every row of pixels is a picture (a tile). With a ``grid`` all rows
    of the image together are one picture, and each row is a patch.
    """

    rows: int
    tokens: int
    grid: tuple[int, int] | None = None  # rows and columns of patches

    @property
    def pictures(self) -> int:
        """Number of pictures that the tower processes."""
        return self.rows if self.grid is None else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Limits of image sizes from the run's configuration. A family uses those that apply to it."""

    max_tiles: int = 12
    min_pixels: int | None = None  # None: that of the checkpoint
    max_pixels: int | None = None


class ImageProcessor(Protocol):
    """Turns images into the inputs of a policy. An image becomes rows of pixels, which all have the same shape."""

    @property
    def limits(self) -> ImageLimits:
        """The narrower of the run's and the folder's limits."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row of pixels, such as (3, 448, 448)."""

    def size(self, width: int, height: int) -> ImageSize:
        """Rows and tokens of an image of this size (pixels), without processing the image."""

    def pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """An RGB image as normalised rows [rows, *row_shape]."""

    def positions(self, input_ids: NDArray[np.integer[Any]], sizes: Sequence[ImageSize]) -> NDArray[np.int64]:
        """Rotary positions of a sequence with images of these sizes: [L], or [3, L] with one row per axis (M-RoPE).

        Raises SophiaError for tokens that the family does not support.
        """

    def model_inputs(self, images: Sequence[Image.Image]) -> Mapping[str, NDArray[Any]]:
        """Inputs of transformers' model for these images, in addition to input_ids."""

    def vllm_options(self) -> Mapping[str, Any]:
        """Settings (`mm_processor_kwargs`) with which vLLM's image processor gives the same result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a model's configuration. ``vision`` and ``projector`` are dataclasses of the family."""

    vision: Any
    projector: Any
    language: LanguageSpec
    image_token_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of models. Its functions take the content of files in a model folder."""

    name: str  # for messages
    model_types: Mapping[str, Layout]  # config.json's model_type
    architectures: Mapping[str, Layout]  # config.json's architectures
    language_sections: tuple[str, ...]  # of config.json, in which the language model's settings may be
    parse: Callable[[Fields, Layout], Parts]  # raises UsageError for unsupported settings
    image_token: str  # the token whose embedding an image feature replaces; a rendered prompt has one per image
    image_text: Callable[[int], str]  # number of tokens -> text of an image in the prompt
    reserved: tuple[str, ...]  # tokens around and of images, which text of data may not contain
    video_tokens: tuple[str, ...]  # the same of videos
    # a chat template that takes texts keeps the image token in them; False: it writes the token for parts only
    text_has_image_token: bool
    # chat templates that config.json may name: system message (None: the default) -> function that renders messages
    templates: Mapping[str, Callable[[str | None], Render]]
    default_template: str | None  # for a folder that neither has nor names a template
    # (folder, config.json, the run's limits)
    image_processor: Callable[[Path, Mapping[str, Any], ImageLimits], ImageProcessor]
    vision_type: type  # type of Parts.vision, by which the family of a parsed model is found
    tables: Callable[[], tuple[Table, ...]]  # weights of tower and projector
    symbols: Callable[[Any, Any], Mapping[str, int]]  # (vision, projector) -> values of the tables' symbols
    language_prefix: str  # prefix of the language model's names in the weights
    spellings: tuple[Spelling, ...]  # names in releases of layout "hf"; we write those of the first spelling
    # (JSON files of a folder by name, parsed configuration, the other layout) -> the files that differ in that layout
    translate: Callable[[Mapping[str, Mapping[str, Any]], Parts, Layout], Mapping[str, dict[str, Any]]]
    hf_image_processor: str  # "module:class" of transformers; in vLLM's process its `resize` must use Pillow
    # (vision, projector, image tokens of a picture; None: all tiles have the same size) -> sizes of the picture
    picture: Callable[[Any, Any, float | None], Picture]
    picture_name: str  # what the tower sees at once, such as "tiles", for messages
    rows_at_once: int  # rows of pixels that a frozen tower encodes together
    shown: Callable[[Any, Any, ImageLimits], Shown]  # (vision, projector, limits) -> what an image is assumed to be
    levels: Callable[[Any], int]  # vision -> features of an image token: 1 + number of DeepStack layers
    tokens_vary: bool  # pictures have different numbers of tokens
    tower_kept: Callable[[Any, int], float]  # (vision, bytes of a value) -> bytes kept per position by a trained layer
    unquantized: tuple[str, ...]  # patterns of module names of tower and projector, for quantizers
    refused: Mapping[str, str] = field(default_factory=dict)  # model_type or architecture -> why it is not supported
