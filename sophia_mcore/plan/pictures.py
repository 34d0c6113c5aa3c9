"""How large the images of the data are, as a policy with pictures of any size sees them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sophia_mcore.benchmarks.rows import read_any
from sophia_mcore.config.schema import Config, Source
from sophia_mcore.data.images import size_of
from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.families import family_of_folder, image_limits, image_processor, size_check
from sophia_mcore.pretrained.family import ImageLimits

_ROWS = 500  # of all sources together; of an image only the head is read


@dataclass(frozen=True, slots=True)
class Pictures:
    """Tokens of each image that was read, and how many rows showed them."""

    tokens: tuple[int, ...]
    rows: int


def pictures_of_data(config: Config, policy: Path) -> Pictures | None:
    """The images of the first rows of the question sources; bad rows and images are left out.

    None where that is not known: pictures of one size, a folder without image settings, data that is not on this
    machine.
    """
    if not (policy / "config.json").is_file():
        return None
    found, size = family_of_folder(policy), None
    with suppress(SophiaError):  # only the sizes of the release are here
        size = size_check(policy, config.batch)
    if found is None or not found[0].tokens_vary or size is None:
        return None
    tokens: list[int] = []
    rows = 0
    here = [source for source in config.data.questions if Path(source.path).exists()]
    for source in here:
        for images in _images(source, _ROWS // len(here)):
            with suppress(SophiaError):
                tokens += [size(*size_of(image, config.data.max_image_pixels)).tokens for image in images]
                rows += 1
    return Pictures(tuple(tokens), rows) if tokens else None


def limits_of(config: Config, policy: Path) -> ImageLimits:
    """The narrower of the run's limits of image sizes and the policy folder's own; the run's where that has none."""
    with suppress(SophiaError):  # a text model, or only the sizes of the release are here
        return image_processor(policy, image_limits(config.batch)).limits
    return image_limits(config.batch)


def _images(source: Source, rows: int) -> list[tuple[bytes | Path, ...]]:
    try:
        return [row.images for row in islice(read_any(source), rows) if not row.problems]
    except (SophiaError, ModuleNotFoundError):  # the check of the questions says what is wrong
        return []
