"""What vLLM is started with, as data: the same function for a run and for `sophia doctor`, on a CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sophia_mcore.config.engines import UNCOUNTED_IMAGES, VllmEngine
from sophia_mcore.pretrained.families import language_sections
from sophia_mcore.store.json_files import require_json

_CPU_BATCH_TOKENS = 8192
_CPU_CACHE_MIB = 256  # vLLM's own default on CPU is 4 GiB, too much beside a trainer


def engine_arguments(
    config: VllmEngine, model_dir: Path, image_options: Mapping[str, Any] | None, *, on_cpu: bool
) -> dict[str, Any]:
    """Keyword arguments of vllm.LLM. ``image_options``: of the image processor; None for a model without images."""
    arguments: dict[str, Any] = {
        "model": str(model_dir),
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel,
        "max_model_len": config.max_model_length_tokens,
        "max_num_seqs": config.max_sequences,
        "enforce_eager": config.enforce_eager or on_cpu,
        "logprobs_mode": "processed_logprobs",  # under the distribution that was sampled from
        "generation_config": "vllm",  # sampling settings come from the request alone
        "seed": 0,
        "disable_log_stats": True,
        "enable_prefix_caching": True,  # the K captions of an image, and N trajectories of a caption, share a prompt
    }
    cache_mib = config.kv_cache_mib or (_CPU_CACHE_MIB if on_cpu else None)
    if cache_mib is not None:
        arguments["kv_cache_memory_bytes"] = cache_mib << 20
    else:
        arguments["gpu_memory_utilization"] = config.gpu_memory_fraction
    if on_cpu:
        # A prompt cut into chunks needs random generators that can be set back, which the CPU's cannot.
        length = config.max_model_length_tokens or _longest_position(model_dir)
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(_CPU_BATCH_TOKENS, length)
    if image_options is not None:
        # without a number of images vLLM keeps memory for many more than a prompt has, each with all its tiles
        most = config.max_images_per_prompt or UNCOUNTED_IMAGES
        arguments["limit_mm_per_prompt"] = {"image": most, "video": 0}
        arguments["mm_processor_kwargs"] = dict(image_options)
    return arguments


def gpu_subjects(arguments: Mapping[str, Any]) -> dict[str, str]:
    """What vLLM makes of ``engine_arguments`` on a GPU, by subject. Read in vLLM 0.32.0 and not seen on a GPU.

    tests/parity/test_vllm_gpu_settings.py asks the installed vLLM for the same facts.
    """
    images = arguments.get("limit_mm_per_prompt", {}).get("image")
    shown = f"; images of a prompt: {images}" if images else ""
    cache = arguments.get("kv_cache_memory_bytes")
    share = f"{arguments.get('gpu_memory_utilization', 0):.0%} of each GPU for weights, cache and activations"
    short = arguments["dtype"] == "float32"
    eager = arguments["enforce_eager"]
    return {
        "memory": (f"{cache >> 20} MiB of cache beside the weights" if cache else share) + shown,
        "attention": "vLLM's choice: "
        + ("Triton, as FlashAttention has no float32" if short else "FlashAttention on Hopper"),
        "compilation": "none (enforce_eager)" if eager else "torch.compile and CUDA graphs, vLLM's defaults",
        "sampling": "a seed for each request, log-probs as sampled: PyTorch's sampler, FlashInfer's has neither",
    }


def _longest_position(model_dir: Path) -> int:
    config = require_json(model_dir / "config.json")
    found = (part.get("max_position_embeddings") for part in (*language_sections(config), config))
    return int(next((positions for positions in found if positions), 0))
