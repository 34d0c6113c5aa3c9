"""Tiny Qwen2.5-VL and Qwen3-VL models and their rows, for `layouts.train`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch

from sophia_mcore.pretrained.family import ImageSize
from sophia_mcore.pretrained.language import LanguageSpec, MRope
from sophia_mcore.pretrained.qwen_vl.processor import PatchGrids
from sophia_mcore.pretrained.qwen_vl.spec import DeepVisionSpec, ProjectorSpec, WindowVisionSpec
from sophia_mcore.pretrained.spec import ModelSpec
from tests.support.layouts import IMAGE_TOKEN, LENGTH, VOCABULARY, Row

GRIDS = ((4, 8), (6, 2), (2, 2))  # of patches: 8, 3 and 1 tokens
PROCESSOR = PatchGrids(
    patch=4, merge=2, min_pixels=64, max_pixels=6400, mean=(0.5,) * 3, std=(0.5,) * 3, image_token_id=IMAGE_TOKEN,
    video_token_id=None,
)  # fmt: skip


def tiny_spec(deep: bool, tied: bool, layers: int = 4) -> ModelSpec:
    """Qwen3-VL (``deep``) with two DeepStack layers, or Qwen2.5-VL with windows of one and a half pictures."""
    tower: dict[str, Any] = {
        "hidden_size": 40, "num_layers": 3, "num_attention_heads": 5, "intermediate_size": 48, "patch_size": 4,
        "num_channels": 3, "merge": 2,
    }  # fmt: skip
    vision = (
        DeepVisionSpec(**tower, positions_side=5, deepstack=(0, 2))
        if deep
        else WindowVisionSpec(**tower, window=2, full_layers=(1,))
    )
    language = LanguageSpec(
        family="qwen3" if deep else "qwen2", num_layers=layers, hidden_size=48, intermediate_size=64,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=VOCABULARY, norm_eps=1e-6, rope_theta=1e3,
        max_positions=4096, qkv_bias=not deep, qk_norm=deep, tied_embeddings=tied,
        mrope=MRope(sections=(4, 2, 2) if deep else (2, 3, 3), interleaved=deep),
    )  # fmt: skip
    projector = ProjectorSpec(width=40, input_size=160, output_size=48, deep=2 if deep else 0, layer_norm=deep)
    return ModelSpec(vision=vision, projector=projector, language=language, layout="hf", image_token_id=IMAGE_TOKEN)


def rows(count: int, packed: bool = True, seed: int = 0) -> list[Row]:
    """Rows with three sequences: an image across the context-parallel cut, text only, that image again and two more.

    The last row is text only.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        ids = torch.randint(0, IMAGE_TOKEN, (1, LENGTH), generator=generator)
        boundaries = [0, 24, 32, 64] if packed else [0, LENGTH]
        images = [] if number == count - 1 else [(4, 0), (34, 0), (44, 1), (49, 2)]  # (place, picture)
        pictures = GRIDS if images else ()
        starts = np.cumsum([0, *(h * w // 4 for h, w in pictures)])
        index = [torch.arange(starts[which], starts[which + 1]) for _, which in images]
        for (place, _), own in zip(images, index, strict=True):
            ids[0, place : place + len(own)] = IMAGE_TOKEN
        targets = torch.where(ids.roll(-1, 1) == IMAGE_TOKEN, -100, ids.roll(-1, 1))
        targets[0, torch.randperm(LENGTH, generator=generator)[:20]] = -100
        positions = []
        for start, end in pairwise(boundaries):
            targets[0, end - 1] = -100
            shown = [pictures[which] for place, which in images if start <= place < end]
            sizes = [ImageSize(h * w, h * w // 4, (h, w)) for h, w in shown]
            positions.append(PROCESSOR.positions(ids[0, start:end].numpy(), sizes))
        made.append(
            Row(
                ids,
                targets,
                torch.rand(1, LENGTH, generator=generator) * (targets >= 0),
                boundaries,
                torch.randn(sum(h * w for h, w in pictures), 96, generator=generator),
                torch.cat([torch.zeros(0, dtype=torch.long), *index]),
                packed,
                torch.from_numpy(np.concatenate(positions, axis=1))[:, None],
                list(pictures),
            )
        )
    return made
