"""Tiles and decoded images, against the references made with the original implementation."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sophia_mcore.data.images import check, decode
from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.families import image_processor
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.pretrained.internvl.tiling import IMAGENET_MEAN, IMAGENET_STD, ImageSpec, tiles, tiles_uint8
from sophia_mcore.pretrained.resize import normalised_bytes

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "internvl"
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"InternVL reference data not found at {FIXTURES}; put it there to check exactness"
)


def spec(tile_size: int = 448, max_tiles: int = 12, **options: Any) -> ImageSpec:
    return ImageSpec(tile_size=tile_size, tokens_per_tile=256, max_tiles=max_tiles, **options)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(values.squeeze())


@needs_fixtures
def test_grids_equal_the_original() -> None:
    entries = json.loads((FIXTURES / "tiling" / "grids.json").read_text())["entries"]
    assert len(entries) == 66
    for entry in entries:
        own = spec(max_tiles=entry["max_num"])
        assert own.grid(*entry["size"]) == (entry["cols"], entry["rows"]), entry
        assert own.tile_count(*entry["size"]) == entry["n_tiles"], entry


@pytest.mark.parametrize(
    ("size", "grid"),
    [((633, 634), (1, 1)), ((634, 634), (2, 2)), ((1, 2), (1, 2)), ((3, 1), (3, 1)), ((10, 1000), (1, 12))],
)
def test_known_grids_and_ties(size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Of two grids of one ratio the larger is taken once the image has more than half its pixels."""
    assert spec().grid(*size) == grid


def test_tiles_are_crops_of_the_bicubic_canvas_row_by_row() -> None:
    image = noise(230, 160)
    canvas = image.resize((3 * 56, 2 * 56), Image.Resampling.BICUBIC)
    boxes = [(56 * x, 56 * y, 56 * x + 56, 56 * y + 56) for y in range(2) for x in range(3)]
    expected = [canvas.crop(box) for box in boxes] + [image.resize((56, 56), Image.Resampling.BICUBIC)]
    found = tiles_uint8(image, spec(56, max_tiles=6))
    assert [tile.transpose(1, 2, 0).tobytes() for tile in found] == [tile.tobytes() for tile in expected]


@needs_fixtures
def test_pixels_equal_the_original_bit_for_bit() -> None:
    from safetensors.numpy import load_file

    references = load_file(FIXTURES / "pixels" / "pixels.safetensors")
    entries = json.loads((FIXTURES / "pixels" / "pixels.json").read_text())["entries"]
    for entry in entries:
        own = spec(entry["image_size"], entry["max_num"])
        image = decode((FIXTURES / "pixels" / entry["file"]).read_bytes())
        hashes = [hashlib.sha256(tile.transpose(1, 2, 0).tobytes()).hexdigest() for tile in tiles_uint8(image, own)]
        assert hashes == entry["tile_sha256_uint8_hwc"], entry["key"]
        pixels = tiles(image, own)
        assert pixels.dtype == np.float32 and pixels.shape[0] == entry["n_tiles"]
        pixels = pixels[:, :, 16::32, 16::32] if entry["key"].endswith("stride32") else pixels
        reference = references[entry["key"]]
        assert np.array_equal(pixels.astype(reference.dtype), reference), entry["key"]  # stored as float16


def test_normalisation_equals_torch_in_float32() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1)
    mean, std = (torch.tensor(values, dtype=torch.float32)[:, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    reference = pixels.float().div(255).sub(mean).div(std)
    assert np.array_equal(normalised_bytes(IMAGENET_MEAN, IMAGENET_STD), reference.numpy())


@pytest.mark.parametrize(("size", "count"), [((1, 1), 1), ((10_000, 20), 13), ((20, 10_000), 13), ((1, 2), 3)])
def test_extreme_sizes(size: tuple[int, int], count: int) -> None:
    pixels = tiles(Image.new("RGB", size, (255, 0, 0)), spec(56))
    assert pixels.shape == (count, 3, 56, 56)
    assert np.allclose(pixels[:, 0], (1 - 0.485) / 0.229) and np.isfinite(pixels).all()


def test_limits_of_the_grid() -> None:
    assert spec(max_tiles=1).tile_count(4000, 300) == 1
    assert spec(max_tiles=12, use_thumbnail=False).tile_count(4000, 300) == 12
    assert spec(max_tiles=12, min_tiles=4).grid(448, 448) == (2, 2)


NATIVE = {
    "model_type": "internvl",
    "downsample_ratio": 0.5,
    "image_seq_length": 256,
    "vision_config": {"image_size": [448, 448], "patch_size": [14, 14]},
}
CUSTOM = {
    "model_type": "internvl_chat",
    "force_image_size": 448,
    "dynamic_image_size": True,
    "max_dynamic_patch": 6,
    "use_thumbnail": True,
    "downsample_ratio": 0.5,
    "vision_config": {"image_size": 336, "patch_size": 14},
}


def model_dir(folder: Path, config: dict[str, Any], **files: dict[str, Any]) -> Path:
    for name, content in ({"config": config} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_native_layout(tmp_path: Path) -> None:
    processor = {
        "crop_to_patches": False,  # transformers' processor cuts all the same
        "max_patches": 8,
        "size": {"height": 448, "width": 448},
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
    }
    expected = ImageSpec(448, 256, 8, 1, True, (0.5,) * 3, (0.25,) * 3)
    assert image_processor(model_dir(tmp_path, NATIVE, preprocessor_config=processor), ImageLimits()) == expected
    (tmp_path / "preprocessor_config.json").unlink()
    nested = model_dir(tmp_path, NATIVE, processor_config={"image_processor": processor})  # as transformers 5 saves it
    assert image_processor(nested, ImageLimits()) == expected
    assert image_processor(nested, ImageLimits(max_tiles=4)).max_tiles == 4


def test_custom_layout(tmp_path: Path) -> None:
    assert image_processor(model_dir(tmp_path, CUSTOM), ImageLimits()) == ImageSpec(448, 256, 6)
    static = image_processor(model_dir(tmp_path, CUSTOM | {"dynamic_image_size": False}), ImageLimits())
    assert static.tile_count(4000, 300) == 1


@needs_fixtures
@pytest.mark.parametrize("name", ["internvl3-8b", "internvl3-8b-hf", "internvl2_5-38b", "internvl2_5-38b-hf"])
def test_fixture_directories(name: str) -> None:
    assert image_processor(FIXTURES / name, ImageLimits()) == ImageSpec(tile_size=56, tokens_per_tile=4, max_tiles=12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen2"}, "'qwen2' takes no images; those that do: internvl, internvl_chat"),
        (NATIVE | {"image_seq_length": 64}, "image_seq_length is 64"),
        (NATIVE | {"vision_config": {"image_size": [448, 336], "patch_size": 14}}, "not square"),
        (NATIVE | {"vision_config": {"image_size": 450, "patch_size": 28}, "downsample_ratio": 0.3}, "no whole token"),
        (CUSTOM | {"pad2square": True}, "pad2square"),
        ({"model_type": "internvl_chat"}, "vision_config"),
    ],
)
def test_contradictory_configurations(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(SophiaError, match=message):
        image_processor(model_dir(tmp_path, config), ImageLimits())


def test_no_or_broken_configuration(tmp_path: Path) -> None:
    with pytest.raises(SophiaError, match=r"no config\.json"):
        image_processor(tmp_path, ImageLimits())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SophiaError, match=r"config\.json: damaged JSON"):
        image_processor(tmp_path, ImageLimits())


def test_modes_become_rgb() -> None:
    base = noise(20, 10)
    for mode in ("RGB", "L", "1", "P", "CMYK", "LA", "RGBA", "YCbCr"):
        form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
        image = decode(encoded(base.convert(mode), form))
        assert image.mode == "RGB" and image.size == (20, 10)


def test_transparency_is_dropped_not_blended() -> None:
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert decode(encoded(image)).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_saturated(form: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = decode(encoded(Image.fromarray(ramp), form))
    assert np.array_equal(np.asarray(image)[..., 0], ramp >> 8)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    check(data, 100)
    assert decode(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_refused(form: str) -> None:
    data = encoded(noise(64, 64), form)
    assert check(data, 10_000) == (64, 64)
    for keep in (len(data) // 2, len(data) // 4, 10):
        for function in (decode, lambda data: check(data, 10_000)):
            with pytest.raises(SophiaError, match="image unreadable") as caught:
                function(data[:keep])
            assert "\n" not in str(caught.value)


def test_other_formats_and_nothing_are_refused() -> None:
    with pytest.raises(SophiaError, match=r"empty \(0 bytes\)"):
        decode(b"")
    with pytest.raises(SophiaError, match="not an image in a known format"):
        decode(b"<html>not found</html>")
    with pytest.raises(SophiaError, match="not an image in a known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")  # would start Ghostscript


def test_bombs_are_refused_before_they_are_decoded() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(SophiaError, match="image too large: 20000 x 20000"):
        check(bomb, 100_000_000)
    with pytest.raises(SophiaError, match="300 x 200 = 60000 pixels, allowed 59999"):
        check(encoded(Image.new("RGB", (300, 200))), 59_999)
