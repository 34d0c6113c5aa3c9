"""A tiny Qwen2.5-VL that reads boards, made from the shipped policy; `qwen.toml` trains it. A minute on one core.

    python examples/digits/make_qwen.py [--out runs/digits/base/qwen] [--steps 300] [--seed 0]

The language model is the shipped policy's; only its image tokens get Qwen's names. The tower is new and learns what
stage V of make_base_models.py teaches: the token of a cell lies at the sum of the language model's embeddings of the
cell's name and its digit. It has no table of positions, so it finds out where a cell is by rotary angles alone.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from teach import Schedule, Words, teach
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import InternVLForConditionalGeneration, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from vocabulary import CHAT_TEMPLATE, IMAGE_TOKENS
from world import CELL_PIXELS, Board, draw, random_board

BASE = Path(__file__).parent / "base" / "policy"
START, END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
RENAMED = {**dict(zip(IMAGE_TOKENS.values(), (START, END, IMAGE), strict=True)), "<video>": VIDEO}
PATCH, MERGE, SIDE = CELL_PIXELS // 2, 2, 2 * CELL_PIXELS  # one token per cell


def qwen_config(old: dict[str, Any], tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
    """The policy's language model with three position axes; a tower of three layers, the middle one in windows."""
    text = {key: value for key, value in old["text_config"].items() if key not in ("architectures", "model_type")}
    text["rope_parameters"] |= {"mrope_section": [6, 5, 5]}
    vision = {
        "depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "patch_size": PATCH,
        "spatial_merge_size": MERGE, "window_size": PATCH * MERGE, "fullatt_block_indexes": [0, 2],
        "out_hidden_size": text["hidden_size"], "initializer_range": 0.05,
    }  # fmt: skip
    names = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
    ids = {key: tokenizer.token_to_id(name) for key, name in {**names, "vision_end_token_id": END}.items()}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


def patches(boards: Sequence[Board], rng: random.Random) -> tuple[Tensor, Tensor]:
    """(rows [boards x 16, 3 x 2 x 8 x 8] in -1..1, grids [boards, 3]); the four patches of a cell stand together."""
    pixels = torch.stack([torch.from_numpy(draw(board, rng)) for board in boards]).float() / 127.5 - 1.0
    cells, side = SIDE // PATCH // MERGE, SIDE // PATCH
    parts = pixels.reshape(-1, cells, MERGE, PATCH, cells, MERGE, PATCH, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    rows = parts.reshape(-1, 3, 1, PATCH, PATCH).expand(-1, -1, 2, -1, -1)  # a still picture is two equal frames
    return rows.reshape(len(boards) * side**2, -1), torch.tensor([[1, side, side]]).expand(len(boards), -1)


def distances(model: Qwen2_5_VLForConditionalGeneration, words: Words, boards: Sequence[Board], rng: Any) -> Tensor:
    """Squared distances of every cell's feature to the ten digits' targets: [boards, 4, 10]."""
    embedding = model.get_input_embeddings().weight.detach()
    targets = embedding[words.digits] + embedding[words.names][:, None]
    features = model.model.visual(*patches(boards, rng)).pooler_output
    return (features.view(len(boards), 4, 1, -1) - targets).square().sum(-1)


def digits_of(boards: Sequence[Board]) -> Tensor:
    """[boards, 4]."""
    return torch.tensor([board.digits for board in boards])


def make(steps: int, seed: int, report: Callable[[int, str], None]) -> tuple[Any, Tokenizer, float]:
    """The model, its tokenizer, and the share of cells that it reads on unseen scans."""
    content = (BASE / "tokenizer.json").read_text(encoding="utf-8")
    for old, new in RENAMED.items():
        content = content.replace(json.dumps(old), json.dumps(new))
    tokenizer = Tokenizer.from_str(content)
    torch.manual_seed(seed)
    policy = InternVLForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32)
    config = qwen_config(json.loads((BASE / "config.json").read_text()), tokenizer)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.model.language_model.load_state_dict(policy.model.language_model.state_dict())
    model.lm_head.load_state_dict(policy.lm_head.state_dict())
    model.requires_grad_(False)
    model.model.visual.requires_grad_(True)
    words, rng = Words(tokenizer), random.Random(f"Q{seed}")
    schedule = Schedule(steps=steps, rows=32, muon=0.01, adamw=3e-3)

    def loss(_: float) -> Tensor:
        boards = [random_board("base", rng) for _ in range(schedule.rows)]
        squares, digits = distances(model, words, boards, rng), digits_of(boards)
        right = squares.gather(-1, digits[..., None])
        return F.cross_entropy(-squares.flatten(0, 1), digits.flatten()) + right.mean()

    teach(model, schedule, loss, report)
    boards = [random_board("validation", rng) for _ in range(100)]
    with torch.no_grad():
        found = distances(model, words, boards, rng).argmin(-1)
    return model, tokenizer, (found == digits_of(boards)).float().mean().item()


def save(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a directory that transformers, vLLM and this project load."""
    folder.mkdir(parents=True)
    shutil.copy2(BASE / "generation_config.json", folder)
    model.generation_config = model.generation_config.from_pretrained(folder)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = CHAT_TEMPLATE.replace("<IMG_CONTEXT>\n", START + IMAGE + END)  # the newline is the question's
    settings = json.loads((BASE / "tokenizer_config.json").read_text()) | {"chat_template": template}
    settings["extra_special_tokens"] = {"image_token": IMAGE, "video_token": VIDEO}
    image = {
        "size": {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}, "patch_size": PATCH, "merge_size": MERGE,
        "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_convert_rgb": True,
        "processor_class": "Qwen2_5_VLProcessor",
    }  # fmt: skip
    files = {
        "tokenizer_config": settings,
        "preprocessor_config": image | {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config": image | {"video_processor_type": "Qwen2VLVideoProcessor"},
    }
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def main() -> None:
    """Make the model unless it is there."""
    parser = argparse.ArgumentParser(description="Make the tiny Qwen2.5-VL of the digits example.")
    parser.add_argument("--out", type=Path, default=Path("runs/digits/base/qwen"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=0.9, help="share of unseen digits that it must read")
    options = parser.parse_args()
    if options.out.exists():
        print(f"{options.out}: there already")
        return
    torch.set_num_threads(1)
    model, tokenizer, share = make(options.steps, options.seed, lambda _, note: note and print(note, flush=True))
    if share < options.least:
        reads = f"the tower reads {share:.1%} of the digits, fewer than {options.least:.0%}"
        raise SystemExit(f"error: {reads}: give it more --steps or another --seed")
    partial = options.out.with_name(f".partial-{options.out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    save(model, tokenizer, partial)
    partial.replace(options.out)
    print(f"{options.out}: the tower reads {share:.1%} of the digits on unseen scans")


if __name__ == "__main__":
    main()
