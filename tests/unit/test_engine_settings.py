"""What vLLM is started with, as data, on a GPU and on a CPU; `sophia doctor CONFIG` shows the former."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import VllmEngine
from sophia_mcore.doctor.engine_settings import gpu_engines
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate import vllm_engine
from sophia_mcore.generate.vllm_arguments import engine_arguments
from tests.support import configs, tiny_models
from tests.support.qwen_models import config_of, folder_of, processor

ROOT = Path(__file__).resolve().parents[2]


def arguments(on_cpu: bool, **settings: Any) -> dict[str, Any]:
    engine = VllmEngine(max_model_length_tokens=4096, **settings)
    return engine_arguments(engine, Path("model"), {"max_patches": 12}, on_cpu=on_cpu)


def test_a_gpu_gets_its_own_settings() -> None:
    found = arguments(False, tensor_parallel=4, gpu_memory_fraction=0.8, max_images_per_prompt=3)
    assert found["tensor_parallel_size"] == 4 and found["gpu_memory_utilization"] == 0.8
    assert found["limit_mm_per_prompt"] == {"image": 3, "video": 0} and found["mm_processor_kwargs"] == {
        "max_patches": 12
    }
    assert found["enforce_eager"] is False and found["enable_prefix_caching"] is True
    assert found["logprobs_mode"] == "processed_logprobs" and found["generation_config"] == "vllm"
    assert not {"kv_cache_memory_bytes", "enable_chunked_prefill", "max_num_batched_tokens"} & found.keys()
    assert arguments(False, kv_cache_mib=512)["kv_cache_memory_bytes"] == 512 << 20


def test_a_cpu_gets_what_it_needs() -> None:
    found = arguments(True)
    assert found["enforce_eager"] is True and found["enable_chunked_prefill"] is False
    assert found["kv_cache_memory_bytes"] == 256 << 20 and found["max_num_batched_tokens"] == 8192
    assert "gpu_memory_utilization" not in found


def test_a_text_model_has_no_images() -> None:
    found = engine_arguments(VllmEngine(), Path("model"), None, on_cpu=False)
    assert not {"limit_mm_per_prompt", "mm_processor_kwargs"} & found.keys()


def test_the_doctor_shows_them(tmp_path: Path) -> None:
    policy = tiny_models.save_internvl(tmp_path / "policy")
    config = configs.make_config(
        tmp_path / "run", policy, policy, captions={"engine": {"kind": "vllm", "max_images_per_prompt": 2}}
    )
    rows = {row.name: row.found for row in gpu_engines(config)}
    assert "limit_mm_per_prompt={'image': 2, 'video': 0}" in rows["captions.engine on a GPU"]
    assert "gpu_memory_utilization=0.9" in rows["reasoning.engine on a GPU"]


def test_the_doctor_says_what_vllm_makes_of_them(tmp_path: Path) -> None:
    """Memory, attention, compilation, sampling: a row each, shared by the engines that it holds for."""
    policy = tiny_models.save_internvl(tmp_path / "policy")
    config = configs.make_config(
        tmp_path / "run", policy, tiny_models.save_qwen2(tmp_path / "reasoner"),
        captions={"engine": {"kind": "vllm", "max_images_per_prompt": 2, "gpu_memory_fraction": 0.5}},
        reasoning={"engine": {"kind": "vllm", "dtype": "float32", "kv_cache_mib": 512, "enforce_eager": True}},
    )  # fmt: skip
    found = {(row.name.removesuffix(" of vLLM on a GPU"), row.found) for row in gpu_engines(config)}
    assert {row for row in found if not row[0].endswith("engine on a GPU")} == {
        ("attention", "vLLM's choice: FlashAttention on Hopper (captions)"),
        ("attention", "vLLM's choice: Triton, as FlashAttention has no float32 (reasoning)"),
        ("compilation", "none (enforce_eager) (reasoning)"),
        ("compilation", "torch.compile and CUDA graphs, vLLM's defaults (captions)"),
        ("memory", "50% of each GPU for weights, cache and activations; images of a prompt: 2 (captions)"),
        ("memory", "512 MiB of cache beside the weights (reasoning)"),
        (
            "sampling",
            "a seed for each request, log-probs as sampled: PyTorch's sampler, FlashInfer's has neither "
            "(captions, reasoning)",
        ),
    }


@pytest.mark.parametrize("name", sorted(path.parent.name for path in ROOT.glob("examples/*/run.toml")))
def test_the_doctor_shows_them_for_every_example(name: str) -> None:
    """Models on the hub that are not here yet, too: only the sizes of their images are not known."""
    config = load_config(ROOT / "examples" / name / "run.toml")
    engines = {"captions": config.captions.engine, "reasoning": config.reasoning.engine}
    rows = {row.name: row.found for row in gpu_engines(config)}
    for phase, engine in engines.items():
        if isinstance(engine, VllmEngine):
            found = rows[f"{phase}.engine on a GPU"]
            assert f"tensor_parallel_size={engine.tensor_parallel}" in found and "enforce_eager" in found
            takes_images = phase == "captions"
            assert engine.max_images_per_prompt is None, "it follows from the questions"
            not_here = "images of a prompt: not known before the questions are here"
            assert (("limit_mm_per_prompt={'image': 1," in found) or (not_here in found)) == takes_images, found


def test_the_doctor_shows_the_stage_s_engine_and_pictures_of_any_size(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "policy", config_of("Qwen2.5-VL-7B"), processor(14, 3136, 12845056))
    config = configs.make_config(
        tmp_path / "run", folder, folder, batch={"max_pixels": 100_352},
        rl={"engine": {"kind": "vllm", "max_images_per_prompt": 1, "tensor_parallel": 2}},
    )  # fmt: skip
    rows = {row.name: row.found for row in gpu_engines(config)}
    assert rows["rl.engine on a GPU"].count("tensor_parallel_size=2") == 1
    assert "mm_processor_kwargs={'size': {'shortest_edge': 3136, 'longest_edge': 100352}}" in rows["rl.engine on a GPU"]
    absent = config.model_copy(update={"models": config.models.model_copy(update={"policy": Path("org/absent")})})
    found = {row.name: row.found for row in gpu_engines(absent)}["rl.engine on a GPU"]
    assert "model=org/absent" in found and "limit_mm_per_prompt={'image': 1, 'video': 0}" in found
    assert found.endswith("sizes of images: not known before the model is here")


def test_more_images_than_the_engine_takes_are_one_line() -> None:
    engine = object.__new__(vllm_engine.VllmEngine)
    prompt = SimpleNamespace(pictures=("a", "b", "c"), text="Compare <IMG_CONTEXT>")
    engine._max_images, engine._digest = 2, "of a loaded model"
    engine._llm = SimpleNamespace(
        reset_prefix_cache=lambda: None, llm_engine=SimpleNamespace(model_config=SimpleNamespace(max_model_len=10))
    )
    engine._renderer = SimpleNamespace(render_all=lambda _: [prompt], check_length=lambda *_: None)  # type: ignore[assignment]
    with pytest.raises(SophiaError, match="a prompt has 3 images, more than the engine's max_images_per_prompt = 2"):
        engine.generate([])
