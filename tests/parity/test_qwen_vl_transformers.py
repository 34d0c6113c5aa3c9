"""Qwen2.5-VL and Qwen3-VL against references that transformers makes here: what needs no file from elsewhere.

Eight layers, so that interleaved pipeline stages have two layers in their first part, which DeepStack needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401  (imported once, for all forked ranks)
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from checkpoints_tools.parity import Setup, check
from sophia_mcore.config.schema import Parallel
from sophia_mcore.errors import UsageError
from sophia_mcore.pretrained.family import ImageSize
from sophia_mcore.pretrained.qwen_vl.processor import PatchGrids

IMAGE, VIDEO, VOCABULARY, LAYERS = 201, 202, 211, 8
GRIDS = ((4, 6), (2, 8), (6, 2))  # of patches: 6, 4 and 3 tokens
SHOWN = ((0,), (1, 2), ())  # pictures of the three samples
IMAGES = PatchGrids(
    patch=4, merge=2, min_pixels=64, max_pixels=6400, mean=(0.5,) * 3, std=(0.5,) * 3, image_token_id=IMAGE,
    video_token_id=VIDEO,
)  # fmt: skip
STAGES = Parallel(pipeline=2, virtual_pipeline=2)
TOLERANCE = 1e-5  # measured: 6.5e-6


def random_model(deep: bool) -> Any:
    """Qwen3-VL (``deep``) with tied embeddings, or Qwen2.5-VL; every parameter random and none trivial."""
    rope = {"rope_type": "default", "rope_theta": 1e3, "mrope_section": [4, 2, 2] if deep else [2, 3, 3]}
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": deep,
        "rope_parameters": rope | ({"mrope_interleaved": True} if deep else {}),
    }  # fmt: skip
    vision = {"depth": 3, "hidden_size": 40, "num_heads": 5, "intermediate_size": 56, "patch_size": 4,
              "out_hidden_size": 64}  # fmt: skip
    ids: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": VIDEO, "tie_word_embeddings": deep}
    if deep:
        vision |= {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]}
        config: Any = Qwen3VLConfig(text_config=text | {"head_dim": 16}, vision_config=vision, **ids)
    else:
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    config._attn_implementation = "eager"
    made: Any = Qwen3VLForConditionalGeneration if deep else Qwen2_5_VLForConditionalGeneration
    model = made(config).float().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.dim() == 1 else 0.15))
            if ("norm" in name or "ln_q" in name) and name.endswith("weight"):
                parameter.add_(1.0)
    return model


def samples() -> list[tuple[Tensor, Tensor, Tensor]]:
    """One picture, two pictures, text only: ids, labels (unshifted), positions."""
    generator, made = torch.Generator().manual_seed(3), []
    for length, shown in zip((19, 27, 14), SHOWN, strict=True):
        ids, start = torch.randint(0, IMAGE, (length,), generator=generator), 3
        sizes = [ImageSize(h * w, h * w // 4, (h, w)) for h, w in (GRIDS[picture] for picture in shown)]
        for size in sizes:
            ids[start : start + size.tokens] = IMAGE
            start += size.tokens + 2
        labels = ids.clone()
        labels[: start + 1] = -100
        made.append((ids, labels, torch.from_numpy(IMAGES.positions(ids.numpy(), sizes))))
    return made


@pytest.fixture(scope="module", params=["Qwen2.5-VL", "Qwen3-VL"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in folder/model and its reference file."""
    torch.set_num_threads(1)
    folder, model = tmp_path_factory.mktemp("qwen") / request.param, random_model(request.param == "Qwen3-VL")
    model.save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(5)
    pixels = [torch.randn(h * w, IMAGES.row_shape[0], generator=generator) for h, w in GRIDS]
    grids = torch.tensor([(1, h, w) for h, w in GRIDS])
    tensors = {"pixel_values": torch.cat(pixels), "image_grid_thw": grids}
    losses, count = [], 0
    for number, (ids, labels, positions) in enumerate(samples()):
        own = list(SHOWN[number])
        images = {"pixel_values": torch.cat([pixels[n] for n in own]), "image_grid_thw": grids[own]} if own else {}
        logits = model(input_ids=ids[None], position_ids=positions[:, None], **images).logits[0]
        found = {"input_ids": ids, "labels": labels, "position_ids": positions, "logits": logits}
        tensors |= {f"sample{number}.{name}": value for name, value in found.items()}
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum"))
        count += int((labels[1:] >= 0).sum())
    tensors["batch.loss"] = sum(losses) / count
    tensors["batch.loss"].backward()
    tensors |= {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()}
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, folder / "reference.safetensors")
    return folder


CASES = {
    "one rank": (Parallel(), Setup()),
    "tp2 sp cp2": (Parallel(tensor=2, context=2, sequence_parallel=True), Setup()),
    "vpp": (STAGES, Setup()),
    "vpp unpacked, full recompute": (STAGES, Setup(packed=False, recompute="full")),
    "vpp tp2 sp": (STAGES.model_copy(update={"tensor": 2, "sequence_parallel": True}), Setup()),
    "pp uneven dp2": (Parallel(pipeline=2, layers_on_first_stage=3), Setup(data=2)),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(made: Path, case: str) -> None:
    layout, setup = CASES[case]
    result = check(made / "model", made / "reference.safetensors", layout, setup)
    assert {"batch.loss", *(f"sample{number}.logits" for number in range(3))} <= result["outputs"].keys()
    deep = made.name == "Qwen3-VL"
    assert sum("deepstack" in name for name in result["gradients"]) == (2 * 6 if deep else 0)
    print(f"{made.name}, {case}: {max(result['outputs'].values()):.1e}, {max(result['gradients'].values()):.1e}")
    assert result["max"] <= TOLERANCE, {
        name: error for kind in ("outputs", "gradients") for name, error in result[kind].items() if error > TOLERANCE
    }


def test_parts_of_one_layer_are_for_models_without_deepstack(made: Path) -> None:
    arguments = (made / "model", made / "reference.safetensors", Parallel(pipeline=2, virtual_pipeline=4))
    if made.name == "Qwen2.5-VL":
        assert check(*arguments)["max"] <= TOLERANCE
        return
    with pytest.raises(UsageError, match="has 1 language layers, but the model adds image features to the first 2"):
        check(*arguments)
