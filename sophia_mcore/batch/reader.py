"""What turns a sample into numbers: the policy's chat template, tokenizer and image processor, and the run's images."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from sophia_mcore.batch.tokenize import load_tokenizer
from sophia_mcore.data.images import decode
from sophia_mcore.pretrained.chat import Chat
from sophia_mcore.pretrained.families import image_limits, image_processor
from sophia_mcore.pretrained.family import ImageProcessor, ImageSize
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import Round


@dataclass(frozen=True, slots=True)
class Reader:
    """How a policy reads text and images. Images are named by their digest in the store."""

    chat: Chat
    tokenizer: Tokenizer
    image_processor: ImageProcessor
    image_store: ImageStore

    @staticmethod
    def of_round(round_: Round) -> Reader:
        """The reader of the model that the round starts from."""
        return Reader(
            Chat.from_model_dir(round_.policy),
            load_tokenizer(round_.policy),
            image_processor(round_.policy, image_limits(round_.config.batch)),
            ImageStore(round_.run.images),
        )

    def image_size(self, digest: str) -> ImageSize:
        """What the image takes in the model's input; only its width and height are read."""
        with Image.open(io.BytesIO(self.image_store.get(digest))) as image:
            return self.image_processor.size(*image.size)

    def pixels(self, digest: str) -> NDArray[np.float32]:
        """The image's rows of pixels, as the processor makes them."""
        return self.image_processor.pixels(decode(self.image_store.get(digest)))
