"""A policy that cannot be trained is refused by the first command that sees its folder, not after hours of sampling."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from sophia_mcore.cli import app
from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.doctor.command import doctor
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.environments import preflight
from sophia_mcore.launch.inputs import policy_images
from sophia_mcore.plan.command import make_plan
from sophia_mcore.plan.layouts import Refusal
from sophia_mcore.plan.workload import Assumptions
from sophia_mcore.pretrained.families import image_processor
from sophia_mcore.pretrained.family import ImageLimits, ImageSize
from sophia_mcore.pretrained.released import released_config
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.convert import convert
from tests.support.qwen_models import config_of, folder_of, processor
from tests.support.tiny_qwen import save_qwen_vl

SEVEN, EIGHT, THREE = "Qwen2.5-VL-7B", "Qwen3-VL-8B", "InternVL3-8B"
GOOD = {SEVEN: processor(14, 3136, 12845056), EIGHT: processor(16, 65536, 16777216)}
ORIGINAL = "which runs code of its own; convert it once: sophia convert policy NEW_FOLDER --to hf"
CODE = "(it brings code of its own in auto_map, which is never run); known: "
RUN = """
[run]
name = "x"
folder = "run"
[models]
policy = "policy"
reasoner = "policy"
[track]
enabled = false
[[data.questions]]
kind = "jsonl"
path = "q.jsonl"
"""
# the release, what differs in its config.json and preprocessor_config.json, further settings, the error
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str]] = {
    "experts": (
        EIGHT, {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe"}, {}, "",
        "policy/config.json: Qwen3-VL: mixture-of-experts models are not supported, only the dense ones",
    ),
    "Qwen2-VL": (
        SEVEN, {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}, {}, "",
        "policy/config.json: Qwen2-VL is not supported (another vision tower); Qwen2.5-VL and Qwen3-VL are",
    ),
    "sliding window": (
        SEVEN, {"use_sliding_window": True}, {}, "",
        "policy/config.json: use_sliding_window = True is not supported, only False",
    ),
    "patch size": (
        SEVEN, {}, {"patch_size": 16}, "",
        "policy/preprocessor_config.json: patch_size = 16, but the model's is 14",
    ),
    "limits": (
        EIGHT, {}, {"size": {"shortest_edge": 99999, "longest_edge": 5000}}, "",
        "policy/preprocessor_config.json: min_pixels = 99999 is above max_pixels = 5000, with the run's limits",
    ),
    "two rotary bases": (
        SEVEN, {"rope_parameters": {"rope_theta": 5e5, "mrope_section": [16, 24, 24]}}, {}, "",
        "policy/config.json: rope_theta is 500000.0 in rope_parameters and 1000000.0 in rope_theta",
    ),
    "two rotary sections": (
        SEVEN, {"rope_parameters": {"mrope_section": [24, 20, 20]}}, {}, "",
        "policy/config.json: mrope_section is [24, 20, 20] in rope_parameters and [16, 24, 24] in rope_scaling",
    ),
    "two rotary types": (
        SEVEN, {"rope_parameters": {"rope_type": "yarn"}}, {}, "",
        "policy/config.json: rope_type is 'yarn' in rope_parameters and 'default' in rope_scaling",
    ),
    "two rotary bases, InternVL": (
        THREE, {"llm_config": {"rope_parameters": {"rope_theta": 5e5}}}, {}, "",
        "policy/config.json: llm_config: rope_theta is 500000.0 in rope_parameters and 1000000.0 in rope_theta",
    ),
    "sliding window, InternVL": (
        THREE, {"llm_config": {"use_sliding_window": True}}, {}, "",
        "policy/config.json: llm_config: use_sliding_window = True is not supported, only False",
    ),
    "code of its own": (
        THREE, {"architectures": ["MiniCPMV"], "auto_map": {"AutoModel": "modeling.MiniCPMV"}}, {}, "",
        f"policy/config.json: architecture 'MiniCPMV' is not known {CODE}",
    ),
    "the patches of a tower": (
        EIGHT, {"vision_config": {"patch_size": 14}}, {}, "",
        "policy/preprocessor_config.json: patch_size = 16, but the model's is 14",
    ),
    "limits with the run's": (
        EIGHT, {}, {}, "[batch]\nmax_pixels = 5000\n",
        "policy/preprocessor_config.json: min_pixels = 65536 is above max_pixels = 5000, with the run's limits",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, size in (("square", (40, 40)), ("line", (402, 2))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    return tmp_path


def original() -> dict[str, Any]:
    """config.json of an InternVL in the layout of its release."""
    return {"model_type": "internvl_chat", **(released_config(Path(THREE)) or {})}


def write(name: str, images: list[str], config: dict[str, Any], image: dict[str, Any], more: str = "") -> None:
    """run.toml, its questions, and the policy's folder, without weights."""
    known = original() if name == THREE else config_of(name)
    nested = {key: known[key] | value for key, value in config.items() if isinstance(known.get(key), dict)}
    folder_of(Path("policy"), known | config | nested, GOOD.get(name, {}) | image)
    rows = [{"id": image, "question": "What?", "answer": "1", "image": f"{image}.png"} for image in images]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("run.toml").write_text(RUN + more)


@pytest.mark.parametrize("case", REFUSED)
def test_the_first_commands_refuse_it_in_one_line(case: str) -> None:
    name, config, image, more, line = REFUSED[case]
    write(name, ["square"], config, image, more)
    for arguments in (["check"], ["run", "--only", "questions"], ["run"], ["plan", "--gpus", "8"]):
        done = CliRunner().invoke(app, [arguments[0], "run.toml", *arguments[1:]])
        assert isinstance(done.exception, UsageError) and str(done.exception).startswith(line), arguments
        assert len(str(done.exception).splitlines()) == 1 and (str(done.exception) == line or case == "code of its own")
        assert not done.output and not Path("run/questions.parquet").exists()
    with pytest.raises(SophiaError) as found:
        doctor(load_config(Path("run.toml")), Console(file=io.StringIO(), width=160))
    assert f"models.policy: {line}" in str(found.value)
    if "preprocessor" not in line:  # a conversion looks at the configuration before the weights
        with pytest.raises(UsageError) as refused:
            convert(Conversion(Path("policy"), Path("out"), "megatron"))
        assert str(refused.value).startswith(line) and not Path("out").exists()


def test_an_original_layout_is_told_before_anything_is_sampled() -> None:
    write(THREE, ["square"], {}, {})
    line = f"policy has the original InternVL layout, {ORIGINAL}"
    for arguments in (["check"], ["run", "--only", "questions"]):
        done = CliRunner().invoke(app, [arguments[0], "run.toml", *arguments[1:]])
        assert isinstance(done.exception, SophiaError) and str(done.exception) == line, arguments
    with pytest.raises(SophiaError) as found:
        doctor(load_config(Path("run.toml")), Console(file=io.StringIO(), width=160))
    assert f"models.policy: {line}" in str(found.value)
    with pytest.raises(SophiaError, match="original InternVL layout"):
        preflight_layout(load_config(Path("run.toml")))
    # an endpoint samples, and the trainer reads both layouts
    answers = 'engine={kind="openai", base_url="http://localhost:1/v1", model_name="m"}'
    sets = [word for part in ("captions", "reasoning") for word in ("--set", f"{part}.{answers}")]
    done = CliRunner().invoke(app, ["check", "run.toml", *sets])
    assert done.exit_code == 0, done.exception
    # but the model before training is evaluated by an engine of the run's own
    with Path("run.toml").open("a") as toml:
        toml.write('[[evaluate.questions]]\nkind = "jsonl"\npath = "q.jsonl"\n')
    done = CliRunner().invoke(app, ["check", "run.toml", *sets])
    assert isinstance(done.exception, SophiaError) and str(done.exception) == line
    for more in ("evaluate.evaluate_base=false", f"evaluate.{answers}"):
        done = CliRunner().invoke(app, ["check", "run.toml", *sets, "--set", more])
        assert done.exit_code == 0, done.exception


@pytest.mark.parametrize("name", [SEVEN, EIGHT, THREE])
def test_the_image_token_is_found_in_the_tokenizer_or_asked_for(name: str) -> None:
    write(name, ["square"], {"image_token_id": None, "video_token_id": None}, {})
    config = load_config(Path("run.toml"))
    tokens = Path("policy/tokenizer_config.json")
    for content in ("<|other|>", "<|image_pad|>" if name != THREE else "<IMG_CONTEXT>"):
        tokens.write_text(json.dumps({"added_tokens_decoder": {"7": {"content": content}}}))
        if content == "<|other|>":
            with pytest.raises(UsageError) as found:
                policy_images(config)
            assert str(found.value).startswith(
                "policy/config.json: the id of the image token is missing, and no tokenizer file of the folder has <"
            )
            with pytest.raises(UsageError, match="the id of the image token is missing"):
                preflight_layout(config)
    assert ModelSpec.from_model_dir(Path("policy")).image_token_id == 7
    if name != THREE:
        images = image_processor(Path("policy"), ImageLimits())
        assert images.positions(np.array([1, 7, 2]), [ImageSize(4, 1, (2, 2))]).shape == (3, 3)
        tokens.write_text(json.dumps({"added_tokens_decoder": {"8": {"content": "<|video_pad|>"}}}))
        with pytest.raises(UsageError, match="videos are not supported"):
            image_processor(Path("policy"), ImageLimits()).positions(np.array([1, 8]), [])


@pytest.mark.parametrize("name", [SEVEN, EIGHT])
def test_an_image_token_that_is_another_in_the_tokenizer_is_refused(name: str) -> None:
    write(name, ["square"], {"image_token_id": 6}, {})
    tokens = {"added_tokens_decoder": {"7": {"content": "<|image_pad|>"}}}
    Path("policy/tokenizer_config.json").write_text(json.dumps(tokens))
    for refuse in (policy_images, preflight_layout):
        with pytest.raises(UsageError) as found:
            refuse(load_config(Path("run.toml")))
        assert str(found.value) == (
            "policy/config.json: the id of the image token is 6, but that of <|image_pad|> in the tokenizer is 7"
        )


# the release, [parallel] and other settings, the error
LAYOUTS: dict[str, tuple[str, str, str]] = {
    "heads": (
        SEVEN, "[parallel]\ntensor = 3",
        "parallel.tensor = 3 does not divide 28 attention heads; 1, 2, 4, 7, 14, 28 do",
    ),
    "key-value heads": (
        SEVEN, "[parallel]\ntensor = 14",
        "parallel.tensor = 14 fits no even share of 4 key-value heads; 1, 2, 4, 28 do",
    ),
    "more stages than layers": (
        SEVEN, "[parallel]\npipeline = 32",
        "28 language layers do not fit parallel.pipeline = 32; 1, 2, 4, 7, 14, 28 do evenly",
    ),
    "virtual stages": (
        SEVEN, "[parallel]\npipeline = 4\nvirtual_pipeline = 2",
        "parallel.virtual_pipeline = 2 does not divide a stage of 7 language layers",
    ),
    "virtual stages alone": (
        SEVEN, "[parallel]\nvirtual_pipeline = 2", "parallel.virtual_pipeline needs parallel.pipeline > 1",
    ),
    "slices of a row": (
        SEVEN, "[parallel]\ncontext = 8\n[batch]\nsequence_length_tokens = 4100",
        "batch.sequence_length_tokens = 4100 is not a multiple of 16, which parallel.context = 8 need; nearest: 4096",
    ),
    "rows for FP8": (
        SEVEN, "[batch]\nsequence_length_tokens = 4104\n[fp8]\nrecipe = \"blockwise\"",
        "batch.sequence_length_tokens = 4104 is not a multiple of 16, which parallel.context = 1, FP8 need; "
        "nearest: 4096",
    ),
    "deep features": (
        EIGHT, "[parallel]\npipeline = 18",
        "the first pipeline stage (or its first virtual chunk) has 2 language layers, but the model adds image "
        "features to the first 3: set parallel.layers_on_first_stage higher or use fewer stages",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_that_cannot_work_is_told_before_anything_is_sampled(case: str) -> None:
    name, more, line = LAYOUTS[case]
    write(name, ["square"], {}, {}, more)
    done = CliRunner().invoke(app, ["check", "run.toml"])
    assert isinstance(done.exception, UsageError) and str(done.exception) == line and not done.output
    with pytest.raises(SophiaError) as found:
        doctor(load_config(Path("run.toml")), Console(file=io.StringIO(), width=160))
    assert f"layout: {line}; " in str(found.value)
    config = load_config(Path("run.toml"))
    try:  # the planner looks for another layout, and says it of the file's own
        own = make_plan(config, "h100", 8, Assumptions()).own
        assert isinstance(own, Refusal) and (own.reason == line or "are not a multiple of its" in own.reason)
    except SophiaError as error:
        assert case == "rows for FP8" and line in str(error), "no layout helps"
    with pytest.raises(UsageError) as refused:  # the same of `sophia run` and `sophia submit`
        preflight_layout(config)
    assert str(refused.value) == line


def preflight_layout(config: Config) -> None:
    """`launch.environments.preflight`, as if the weights were here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sophia_mcore.pretrained.complete.check_model_dir", lambda folder: None)
        preflight(Round(config, RunFolder(config.run.folder), 0))


def test_a_released_model_needs_no_folder_for_that() -> None:
    write(SEVEN, ["square"], {}, {}, "[parallel]\ntensor = 3\n")
    Path("run.toml").write_text(
        Path("run.toml").read_text().replace('policy = "policy"', f'policy = "Qwen/{SEVEN}-Instruct"')
    )
    done = CliRunner().invoke(app, ["check", "run.toml"])
    assert isinstance(done.exception, UsageError) and "tensor = 3 does not divide 28 attention" in str(done.exception)


@pytest.mark.parametrize("name", GOOD)
def test_check_shows_which_image_is_too_narrow(name: str) -> None:
    write(name, ["square", "line"], {}, {})
    done = CliRunner().invoke(app, ["check", "run.toml"])
    assert done.exit_code == 0 and "all 2 rows, 1 of them bad" in done.output
    assert "#   row 1 (line) is bad: image too narrow: 402 x 2 pixels" in done.output


def test_what_is_only_evaluated_is_not_refused() -> None:
    write(SEVEN, ["square"], {"use_sliding_window": True}, {})
    text = Path("run.toml").read_text().replace("[[data.questions]]", "[[evaluate.questions]]")
    Path("run.toml").write_text(text.replace('reasoner = "policy"\n', ""))
    done = CliRunner().invoke(app, ["check", "run.toml", "--set", "evaluate.only=true"])
    assert done.exit_code == 0, done.exception


def test_a_conversion_looks_at_the_processor_that_goes_along(tmp_path: Path) -> None:
    folder, out = save_qwen_vl(tmp_path / "model"), tmp_path / "out"
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"patch_size": 16}))
    with pytest.raises(UsageError) as found:
        convert(Conversion(folder, out, "hf-custom"))
    assert str(found.value) == f"{folder}: Qwen2.5-VL has only one layout, hf; nearest: --to hf"
    with pytest.raises(SophiaError, match="patch_size = 16, but the model's is 14"):
        convert(Conversion(folder, out, "megatron"))
    assert not out.exists()
    file.unlink()
    convert(Conversion(folder, out, "megatron"))  # there is nothing to contradict
    assert (out / "config.json").is_file()
