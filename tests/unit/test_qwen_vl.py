"""Qwen2.5-VL and Qwen3-VL without tensors: sizes, preprocessing, positions, chat, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from sophia_mcore.config.schema import Batch
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.work import questions
from sophia_mcore.plan.command import make_plan
from sophia_mcore.plan.cost import picture_flops
from sophia_mcore.plan.memory import picture_of
from sophia_mcore.plan.workload import Assumptions, workload
from sophia_mcore.pretrained.chat import Chat, Message
from sophia_mcore.pretrained.families import image_processor
from sophia_mcore.pretrained.family import IMAGE_PLACE, ImageLimits, ImageSize
from sophia_mcore.pretrained.qwen_vl.processor import PatchGrids, resized
from sophia_mcore.pretrained.released import released_config
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.tensors import parameters
from sophia_mcore.progress import NoProgress
from sophia_mcore.store.layout import Round, RunFolder
from tests.support.configs import make_config
from tests.support.qwen_models import FIXTURES, RELEASES, TINY, config_of, folder_of, needs_fixtures, processor

SEVEN = "Qwen2.5-VL-7B"
FACTORS = {"qwen2_5-vl": 28, "qwen3-vl": 32, "small": 28}


@pytest.mark.parametrize("name", RELEASES)
def test_parameters_are_those_counted_in_public(name: str) -> None:
    spec = ModelSpec.from_config(config_of(name))
    assert sum(parameters(spec).values()) == RELEASES[name][-1]
    assert spec.language.mrope is not None and spec.language.tied_embeddings == RELEASES[name][6]
    assert spec.family is not None and name.startswith(spec.family.name)


@needs_fixtures
def test_sizes_are_those_of_the_configs() -> None:
    known = json.loads((FIXTURES / "real_hparams.json").read_text())
    assert RELEASES.keys() <= known.keys()
    for name, model in ((name, known[name]) for name in RELEASES):
        config = config_of(name)
        text = config.get("text_config", config)
        for mine, theirs in ((text, model["text"]), (config["vision_config"], model["vision"])):
            same = mine.keys() & theirs.keys() - {"max_position_embeddings", "rms_norm_eps", "rope_theta"}
            assert len(same) > 5
            assert {key: mine[key] for key in same} == {key: theirs[key] for key in same}, name


@needs_fixtures
@pytest.mark.parametrize("name", TINY)
def test_positions_are_the_references_bit_by_bit(name: str, tmp_path: Path) -> None:
    config = json.loads((FIXTURES / name / "config.json").read_text())
    images = image_processor(folder_of(tmp_path, config, processor(4, 64, 6400)), ImageLimits())
    held = load_file(FIXTURES / name / "reference.safetensors")
    found = []
    for sample in ("sample0", "sample1", "sample2"):
        grids = [(int(h), int(w)) for _, h, w in held[f"{sample}.image_grid_thw"]]
        sizes = [ImageSize(h * w, h * w // 4, (h, w)) for h, w in grids]
        found.append(images.positions(held[f"{sample}.input_ids"], sizes))
        assert np.array_equal(found[-1], held[f"{sample}.position_ids"])
    assert np.array_equal(np.concatenate(found[:2], axis=1), held["packed.position_ids"])


@needs_fixtures
def test_sizes_of_pictures_are_the_references() -> None:
    limits = {"qwen2_5-vl": (28, 3136, 12845056), "qwen3-vl": (32, 65536, 16777216)}
    limits["small"] = (28, 4 * 28 * 28, 64 * 28 * 28)
    rows = [row for row in json.loads((FIXTURES / "smart_resize.json").read_text()) if row["setting"] in limits]
    assert len(rows) >= 156
    for row in rows:
        arguments = (row["height"], row["width"], *limits[row["setting"]])
        if row["resized"] is None:
            with pytest.raises(UsageError, match="more than 200 times"):
                resized(*arguments)
        else:
            assert list(resized(*arguments)) == row["resized"], row


def test_a_too_narrow_picture_is_found_when_questions_are_checked(tmp_path: Path) -> None:
    policy = folder_of(tmp_path / "policy", config_of(SEVEN), processor(14, 3136, 12845056))
    for name, size in (("square", (40, 40)), ("line", (201, 1))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    rows = [{"id": name, "question": "?", "answer": "1", "image": f"{name}.png"} for name in ("square", "line")]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "path": str(tmp_path / "q.jsonl")}
    config = make_config(tmp_path / "run", policy, data={"questions": [source]})
    expected = r"row 1 \(id 'line'\): image too narrow: 201 x 1 pixels, .*more than 200 times the other \["
    with pytest.raises(SophiaError, match=expected):
        questions(Round(config, RunFolder(tmp_path / "run"), 0), NoProgress())
    missing = make_config(tmp_path / "other", tmp_path / "endpoint", data={"questions": [source]})
    questions(Round(missing, RunFolder(tmp_path / "other"), 0), NoProgress())  # the policy's limits are not known


@needs_fixtures
def test_pixels_are_the_references_bit_by_bit() -> None:
    entries = [e for e in json.loads((FIXTURES / "pixels" / "pixels.json").read_text()) if e["alpha"] != "white"]
    assert len(entries) >= 12
    held = load_file(FIXTURES / "pixels" / "pixels.safetensors")
    for entry in entries:
        images = PatchGrids(
            patch=entry["patch_size"], merge=2, min_pixels=entry["min_pixels"], max_pixels=entry["max_pixels"],
            mean=tuple(entry["mean"]), std=tuple(entry["std"]), image_token_id=1, video_token_id=2,
        )  # fmt: skip
        picture = Image.open(FIXTURES / "pixels" / entry["image"]).convert("RGB")
        found = images.pixels(picture)
        grid = (1, *(images.size(*picture.size).grid or ()))
        assert list(grid) == entry["grid_thw"] and len(found) == grid[1] * grid[2]
        assert hashlib.sha256(found.tobytes()).hexdigest() == entry["pixel_values_fp32_sha256"], entry["image"]
        frame = found.reshape(len(found), 3, 2, -1)[:: entry["every"], :, 0]
        assert np.array_equal(frame.reshape(len(frame), -1), held[entry["rows"]].reshape(len(frame), -1))


@needs_fixtures
def test_chats_are_the_references(tmp_path: Path) -> None:
    found = json.loads((FIXTURES / "chat_templates.json").read_text())
    chats = {}
    for name, template in found["templates"].items():
        config = config_of(SEVEN if name.startswith("qwen2_5") else "Qwen3-VL-8B")
        chats[name] = Chat.from_model_dir(folder_of(tmp_path / name, config, processor(14, 1, 2), template))
    for case in found["cases"]:
        chat = chats[case["template"]]
        messages = [Message(role, text.replace("<IMG_CONTEXT>", IMAGE_PLACE)) for role, text in case["messages"]]
        text = chat.render(messages, case["add_generation_prompt"])
        assert text == case["prompt"], case["name"]
        assert chat.expand(text, case["merged_tokens"]) == case["expanded"]
    assert len(found["cases"]) == 39


def broken(name: str, section: str = "", **changes: Any) -> dict[str, Any]:
    config = config_of(name)
    target = config[section] if section else config
    target |= changes
    return config


EIGHT = "Qwen3-VL-8B"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "sliding window": (broken(SEVEN, use_sliding_window=True), "use_sliding_window = True is not supported"),
    "sliding layers": (broken(SEVEN, layer_types=["sliding_attention"]), "holds 'sliding_attention'"),
    "Qwen2-VL": (
        broken(SEVEN, architectures=["Qwen2VLForConditionalGeneration"], model_type="qwen2_vl"),
        "Qwen2-VL is not supported",
    ),
    "Qwen2-VL by type alone": (broken(SEVEN, model_type="qwen2_vl"), "Qwen2-VL is not supported"),
    "mixture of experts": (
        broken(EIGHT, architectures=["Qwen3VLMoeForConditionalGeneration"], model_type="qwen3_vl_moe"),
        "mixture-of-experts models are not supported",
    ),
    "experts inside": (broken(EIGHT, "text_config", num_experts=128), "mixture-of-experts models are not supported"),
    "frames": (broken(SEVEN, "vision_config", temporal_patch_size=4), "temporal_patch_size = 4 is not supported"),
    "window": (broken(SEVEN, "vision_config", window_size=100), "window_size = 100 is not a multiple of"),
    "layer": (broken(SEVEN, "vision_config", fullatt_block_indexes=[7, 32]), "names layers that the tower of 32"),
    "sections": (broken(SEVEN, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 20]}), "does not sum to half"),
    "no sections": (broken(SEVEN, rope_scaling={"type": "mrope"}), "mrope_section is missing in rope_scaling"),
    "rope type": (broken(SEVEN, rope_scaling={"type": "yarn", "mrope_section": [16, 24, 24]}), "rope type"),
    "chunked": (
        broken(EIGHT, "text_config", rope_scaling={"mrope_interleaved": False, "mrope_section": [24, 20, 20]}),
        "mrope_interleaved = False is not this family's",
    ),
    "tied twice": (broken(EIGHT, "text_config", tie_word_embeddings=True), "give both the value that the weights have"),
    "projector": (broken(SEVEN, "vision_config", out_hidden_size=4096), "out_hidden_size = 4096, but"),
    "table": (broken(EIGHT, "vision_config", num_position_embeddings=2300), "is not a square"),
    "order": (broken(EIGHT, "vision_config", deepstack_visual_indexes=[16, 8]), "do not rise"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_variants_are_refused_with_one_line(case: str) -> None:
    config, message = REFUSED[case]
    with pytest.raises(UsageError, match=message) as found:
        ModelSpec.from_config(config)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 16}, "patch_size = 16, but the model's is 14"),
        ({"merge_size": 1}, "merge_size = 1, but the model's is 2"),
        ({"temporal_patch_size": 1}, "temporal_patch_size = 1, but"),
        ({"size": {"shortest_edge": 99999, "longest_edge": 5000}}, "min_pixels = 99999 is above max_pixels = 5000"),
        ({"min_pixels": 99999, "max_pixels": 5000}, "min_pixels = 99999 is above max_pixels = 5000"),
        ({"size": {"height": 3}}, "size.shortest_edge and size.longest_edge"),
        ({"do_resize": False}, "do_resize = false is not supported"),
        ({"rescale_factor": 1.0}, "rescale_factor = 1.0 is not supported, only 0.00392157"),
        ({"resample": 0}, "resample = 0 is not supported, only 3"),
        ({"image_mean": [0.5]}, "image_mean has 1 values, not one for each of 3 colours"),
    ],
)
def test_processors_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, config_of(SEVEN), processor(14, 3136, 12845056) | change)
    with pytest.raises(SophiaError, match=message):
        image_processor(folder, ImageLimits())
    with pytest.raises(SophiaError, match=message) as found:  # `sophia plan` reads it where it is there
        make_plan(make_config(models={"policy": str(folder)}), "h100", 8, Assumptions())
    assert len(str(found.value).splitlines()) == 1


def test_the_narrower_limits_hold(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, config_of(SEVEN), processor(14, 3136, 12845056))
    assert image_processor(folder, ImageLimits()).size(1080, 1920) == ImageSize(10764, 2691, (138, 78))
    few = image_processor(folder, ImageLimits(min_pixels=100, max_pixels=100_000))
    assert (few.vllm_options(), few.size(1080, 1920).tokens) == (
        {"size": {"shortest_edge": 3136, "longest_edge": 100_000}}, 120
    )  # fmt: skip
    with pytest.raises(SophiaError, match="min_pixels = 200000 is above max_pixels = 100000"):
        image_processor(folder, ImageLimits(min_pixels=200_000, max_pixels=100_000))
    with pytest.raises(ValueError, match="min_pixels = 2 is above max_pixels = 1"):
        Batch(min_pixels=2, max_pixels=1)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(SophiaError, match=r"no preprocessor_config\.json"):
        image_processor(folder, ImageLimits())


def test_what_positions_cannot_be_made_of_is_refused(tmp_path: Path) -> None:
    images = image_processor(folder_of(tmp_path, config_of(SEVEN), processor(14, 3136, 12845056)), ImageLimits())
    with pytest.raises(UsageError, match="videos are not supported"):
        images.positions(np.array([1, 151656, 2]), [])
    with pytest.raises(SophiaError, match="2 image tokens, but the images make 4"):
        images.positions(np.array([151655, 151655]), [ImageSize(16, 4, (4, 4))])
    with pytest.raises(SophiaError, match="do not stand together"):
        images.positions(np.array([151655, 5, 151655]), [ImageSize(8, 2, (2, 4))])
    with pytest.raises(UsageError, match="image too narrow: 201 x 1 pixels"):
        images.size(201, 1)


def test_the_planner_counts_pictures_of_any_size() -> None:
    seven, eight = (ModelSpec.from_config(config_of(name)) for name in (SEVEN, EIGHT))
    small, large = picture_of(seven, 100.0), picture_of(seven, 1600.0)
    assert (small.tokens, small.patches, small.pixels) == (100, 400, 400 * 1176)
    assert small.seen == (4 * 400 + 28 * 64) / 32, "4 of 32 layers see the whole picture, the others 64 patches"
    assert picture_of(eight, 100.0).seen == 400
    assert 16 < picture_flops(seven, large) / picture_flops(seven, small) < 20, "windows keep attention nearly linear"
    config = make_config(batch=Batch(max_pixels=1280 * 28 * 28))
    for given, mean in ((None, 640.0), (300.0, 300.0)):
        work = workload(config, seven, Assumptions(image_tokens=given))
        assert work.picture.tokens == pytest.approx(mean, rel=0.1) and work.pictures == 1
        assert work.row().picture == work.picture
        assert any("--image-tokens" in line for line in work.assumed) == (given is None)
    assert work.picture.seen > picture_of(seven, work.picture.tokens).seen, "large pictures weigh more"


def test_the_planner_reads_the_pictures_of_the_data(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "policy", config_of(SEVEN), processor(14, 3136, 12845056))
    for name, size in (("small", (280, 280)), ("large", (1120, 1120)), ("line", (402, 2))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    shown = [["small.png"], ["small.png"], ["large.png", "small.png"], ["line.png"], ["none.png"]]
    rows = [{"id": str(i), "question": "?", "answer": "1", "images": images} for i, images in enumerate(shown)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "path": str(tmp_path / "q.jsonl")}
    config = make_config(tmp_path / "run", folder, data={"questions": [source]})
    work = make_plan(config, "h100", 8, Assumptions()).work
    assert work.picture.tokens == (3 * 100 + 1600) / 4 and work.pictures == 4 / 3
    spec = ModelSpec.from_model_dir(folder)
    assert work.picture.seen > picture_of(spec, work.picture.tokens).seen, "large pictures weigh more"
    assert any("images of 475 tokens, the first 4 images of the data" in line for line in work.assumed)
    small = config.model_copy(update={"batch": Batch(max_pixels=100 * 28 * 28)})
    assert make_plan(small, "h100", 8, Assumptions()).work.picture.tokens == 100, "as the policy sees them"
    given = make_plan(config, "h100", 8, Assumptions(image_tokens=300.0, tiles=2.0)).work
    assert given.picture.tokens == pytest.approx(300, rel=0.1) and given.pictures == 2
    (folder / "preprocessor_config.json").unlink()
    assert make_plan(config, "h100", 8, Assumptions()).work.pictures == 1, "the release's sizes alone"


@pytest.mark.parametrize(
    ("settings", "run", "limits", "tokens"),
    [
        (processor(14, 3136, 12845056), {}, "4 to 16,384", 990),  # those of the release
        (processor(14, 3136, 200_704), {}, "4 to 256", 121.6),
        ({"min_pixels": 3136, "max_pixels": 200_704}, {}, "4 to 256", 121.6),
        (processor(14, 1_568_000, 1_960_000), {}, "2,000 to 2,500", 2156),
        (processor(14, 3136, 200_704), {"max_pixels": 100_352}, "4 to 128", 60.8),  # the narrower of two
        (processor(14, 3136, 200_704), {"max_pixels": 1_000_000}, "4 to 256", 121.6),
        (None, {"max_pixels": 100_352}, "at most 128", 60.8),  # no settings in the folder
    ],
)
def test_the_planner_without_data_keeps_to_the_folders_limits(
    settings: dict[str, Any] | None, run: dict[str, int], limits: str, tokens: int, tmp_path: Path
) -> None:
    whole = processor(14, 1, 2)
    whole.pop("size")
    image = {"size": None} if settings is None else settings
    folder = folder_of(tmp_path, config_of(SEVEN), whole | image)
    if settings is None:
        (folder / "preprocessor_config.json").unlink()
    work = make_plan(make_config(tmp_path, folder, batch=Batch(**run)), "h100", 8, Assumptions()).work
    assert work.picture.tokens == pytest.approx(tokens, rel=0.01)
    assert f"images of {work.picture.tokens:,.0f} tokens, {limits} (--image-tokens)" in work.assumed
    large = make_plan(
        make_config(tmp_path, folder, batch=Batch(**run)), "h100", 8, Assumptions(image_tokens=1e6)
    ).work  # not even when asked for
    most = int(limits.split()[-1].replace(",", ""))
    assert large.picture.tokens == most


def test_the_planner_without_data_keeps_to_a_folders_limit_of_tiles(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(released_config(Path("InternVL3-8B"))))
    settings = json.loads((tmp_path / "config.json").read_text()) | {
        "model_type": "internvl_chat", "dynamic_image_size": True, "max_dynamic_patch": 6,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(settings))
    work = make_plan(make_config(tmp_path / "run", tmp_path), "h100", 8, Assumptions()).work
    assert work.pictures == 3.5 and "3.5 tiles per question (--tiles)" in work.assumed
    fewer = make_config(tmp_path / "run", tmp_path, batch=Batch(max_tiles=2))
    assert make_plan(fewer, "h100", 8, Assumptions()).work.pictures == 1.5
