"""InternVL3.5's assembly (Qwen3) has no tensors of the original code: transformers' native model is its reference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401  (imported once, for all forked ranks)
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLConfig, InternVLForConditionalGeneration

from checkpoints_tools.parity import check
from sophia_mcore.config.schema import Parallel
from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.convert import convert

IMAGE_TOKEN, VOCABULARY = 201, 211
TOLERANCE = 1e-5
TOWERS: dict[str, dict[str, Any]] = {
    "8b": {"num_attention_heads": 4, "attention_bias": True, "use_qk_norm": False, "norm_type": "layer_norm"},
    "38b": {"num_attention_heads": 5, "attention_bias": False, "use_qk_norm": True, "norm_type": "rms_norm"},
}
LAYOUTS = {
    "one rank": Parallel(),
    "tp2 sp pp2": Parallel(tensor=2, pipeline=2, sequence_parallel=True),
    "tp2 cp2": Parallel(tensor=2, context=2),
}


def random_model(tower: str) -> InternVLForConditionalGeneration:
    """Every parameter random and none trivial; a head's size is not the width over the heads, as in Qwen3-32B."""
    vision = {"hidden_size": 40, "num_hidden_layers": 2, "intermediate_size": 72, "image_size": [28, 28],
              "patch_size": [7, 7], "layer_norm_eps": 1e-6, **TOWERS[tower]}  # fmt: skip
    text = {"model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "head_dim": 16,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}  # fmt: skip
    config = InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN, image_seq_length=4, downsample_ratio=0.5,
        tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = InternVLForConditionalGeneration(config).float().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.dim() == 1 else 0.15))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model


def samples() -> list[tuple[torch.Tensor, torch.Tensor, slice]]:
    """One tile, two tiles, text only: ids, labels (unshifted), tiles."""
    generator, made, used = torch.Generator().manual_seed(3), [], 0
    for length, tiles in ((19, 1), (27, 2), (14, 0)):
        ids = torch.randint(0, IMAGE_TOKEN, (length,), generator=generator)
        ids[3 : 3 + 4 * tiles] = IMAGE_TOKEN
        labels = ids.clone()
        labels[: 4 + 4 * tiles] = -100
        made.append((ids, labels, slice(used, used + tiles)))
        used += tiles
    return made


def reference(folder: Path, tower: str) -> Path:
    """The model in folder/model and its reference file: outputs, and every gradient under the original's names."""
    model = random_model(tower)
    model.save_pretrained(folder / "model")
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(5))
    tensors = {
        "pixel_values": pixels,
        "vit.last_hidden_state": model.model.vision_tower(pixels).last_hidden_state,
    }
    losses, count = [], 0
    for number, (ids, labels, tiles) in enumerate(samples()):
        images = {"pixel_values": pixels[tiles]} if tiles.stop > tiles.start else {}
        logits = model(input_ids=ids[None], **images).logits[0]
        tensors |= {f"sample{number}.{n}": v for n, v in (("input_ids", ids), ("labels", labels), ("logits", logits))}
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum"))
        count += int((labels[1:] >= 0).sum())
    tensors["batch.loss"] = sum(losses) / count
    tensors["batch.loss"].backward()
    gradients = copy.deepcopy(model)
    for mine, parameter in zip(gradients.parameters(), model.parameters(), strict=True):
        mine.data = parameter.grad
    gradients.save_pretrained(folder / "gradients")  # the converter knows both layouts' names and cuts
    convert(Conversion(folder / "gradients", folder / "original", "hf-custom"))
    (weights,) = (folder / "original").glob("*.safetensors")
    tensors |= {f"grad.{name}": value for name, value in load_file(weights).items()}
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, folder / "reference.safetensors")
    return folder


@pytest.fixture(scope="module", params=TOWERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return reference(tmp_path_factory.mktemp(f"qwen3-{request.param}"), request.param)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_transformers(made: Path, layout: str) -> None:
    result = check(made / "model", made / "reference.safetensors", LAYOUTS[layout])
    assert {"vit.last_hidden_state", "batch.loss", *(f"sample{i}.logits" for i in range(3))} <= result["outputs"].keys()
    assert len(result["gradients"]) > 50 and any("k_norm" in name for name in result["gradients"])
    print(layout, max(result["outputs"].values()), max(result["gradients"].values()))
    assert result["max"] <= TOLERANCE, {
        name: error for kind in ("outputs", "gradients") for name, error in result[kind].items() if error > TOLERANCE
    }
