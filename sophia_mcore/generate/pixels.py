"""vLLM resizes images with transformers' torchvision resize; the trainer (and the original) with Pillow's.

The two differ by one grey level here and there, enough to move log-probs in the third digit. So that policy and trainer
see the same pixels, the resize of the family's image processor is replaced in the process that feeds vLLM.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from PIL import Image


def resize_with_pillow(image_processor: str) -> None:
    """Let transformers' image processor "module:class" resize as the trainer does, from now on in this process."""
    module, _, name = image_processor.partition(":")
    getattr(importlib.import_module(module), name).resize = _resize


def _resize(self: Any, image: Any, size: Any, *_: Any, **__: Any) -> Any:
    """uint8 tensor [..., 3, H, W] -> [..., 3, size.height, size.width], bicubic."""
    import torch

    if tuple(image.shape[-2:]) == (size.height, size.width):
        return image
    planes = image.reshape(-1, *image.shape[-3:]).permute(0, 2, 3, 1).cpu().numpy()
    resized = np.stack([np.asarray(Image.fromarray(row).resize((size.width, size.height))) for row in planes])
    result = torch.from_numpy(resized).permute(0, 3, 1, 2)
    return result.reshape(*image.shape[:-2], size.height, size.width)
