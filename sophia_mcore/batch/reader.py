"""Everything needed to turn a sample into tensors: chat template, tokenizer, image processor and the run's images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from sophia_mcore.batch.tokenize import load_tokenizer
from sophia_mcore.config.schema import Config
from sophia_mcore.data.images import decode
from sophia_mcore.pretrained.chat import Chat
from sophia_mcore.pretrained.families import image_limits, image_processor
from sophia_mcore.pretrained.family import ImageProcessor, ImageSize
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import Round, RunFolder


def longest_sample(config: Config) -> int:
    """The largest number of tokens of a sample, prompt and response together, in the configuration's layout."""
    multiple = config.parallel.sequence_multiple
    return config.batch.sequence_length_tokens // multiple * multiple


@dataclass(frozen=True, slots=True)
class Reader:
    """A policy's chat template, tokenizer and image processor, and the image store of a run."""

    chat: Chat
    tokenizer: Tokenizer
    image_processor: ImageProcessor
    image_store: ImageStore

    @staticmethod
    def of_round(round_: Round) -> Reader:
        """The reader of the model that the round starts from. Raises SophiaError when its files cannot be read."""
        return Reader.of_model(round_.policy, round_.config, round_.run)

    @staticmethod
    def of_model(model: Path, config: Config, run: RunFolder) -> Reader:
        """The reader of the model in a folder, with the run's images. Raises SophiaError like ``of_round``."""
        return Reader(
            Chat.from_model_dir(model),
            load_tokenizer(model),
            image_processor(model, image_limits(config.batch)),
            ImageStore(run.images),
        )

    def image_size(self, digest: str) -> ImageSize:
        """Rows of pixels and tokens that the image takes. Only its width and height are read."""
        with Image.open(io.BytesIO(self.image_store.get(digest))) as image:
            return self.image_processor.size(*image.size)

    def pixels(self, digest: str) -> NDArray[np.float32]:
        """The image's rows of pixels [t, *row_shape] fp32, made by the image processor."""
        return self.image_processor.pixels(decode(self.image_store.get(digest)))
