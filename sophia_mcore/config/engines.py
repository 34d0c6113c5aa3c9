"""Settings of sampling and of the engines that sample: vLLM, an endpoint, transformers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sophia_mcore.config.base import HttpAddress, NonNegative, Positive, Section


class Sampling(Section):
    """How text is sampled."""

    temperature: NonNegative = 1.0  # [C]; 0 is greedy
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # [C]
    max_tokens: PositiveInt = 32_768  # [P]


class VllmEngine(Section):
    """vLLM in process, in the rollout environment."""

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    tensor_parallel: PositiveInt = 1
    max_model_length_tokens: PositiveInt | None = None
    max_sequences: PositiveInt = 256
    max_images_per_prompt: PositiveInt | None = None
    gpu_memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    kv_cache_mib: PositiveInt | None = None  # fixed size instead of a fraction (needed on CPU)
    enforce_eager: bool = False  # no compilation (CPU: always eager)
    threads: PositiveInt | None = None  # of vLLM's CPU build; none: one for each core
    across_units: bool = True  # sample the next work unit while the longest answers of one are running

    @property
    def gpus(self) -> int:
        """GPUs that one engine takes, where there are any."""
        return self.tensor_parallel


class OpenAIEngine(Section):
    """Any OpenAI-compatible endpoint, such as a hosted reasoner."""

    kind: Literal["openai"]
    base_url: HttpAddress = "http://127.0.0.1:8000/v1"
    model_name: str
    api_key_variable: str = "OPENAI_API_KEY"  # name of the environment variable that holds the key
    timeout_seconds: Positive = 600.0
    max_retries: int = Field(default=5, ge=0)
    concurrency: PositiveInt = 64
    across_units: bool = True  # as for vllm

    @property
    def gpus(self) -> int:
        """0, as its model is elsewhere."""
        return 0


class TransformersEngine(Section):
    """Plain transformers generate, for machines where vLLM cannot be installed."""

    kind: Literal["transformers"]
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_sequences: PositiveInt = 32

    @property
    def gpus(self) -> int:
        """1, as it has no tensor parallelism."""
        return 1


UNCOUNTED_IMAGES = 8  # of prompts that the user's own functions make: environments, and rewards that ask helpers


def with_images(engine: Engine, most: int) -> Engine:
    """``engine`` for prompts of at most ``most`` images, if it is vLLM and its settings name no number."""
    if not isinstance(engine, VllmEngine) or engine.max_images_per_prompt is not None:
        return engine
    return engine.model_copy(update={"max_images_per_prompt": max(1, most)})


def too_many_images(engine: Engine, images: int) -> str:
    """Why the engine refuses a prompt of so many images, "" if it takes them."""
    if not isinstance(engine, VllmEngine):
        return ""
    most = engine.max_images_per_prompt or UNCOUNTED_IMAGES
    return f"a prompt of {images} images, where max_images_per_prompt = {most}" if images > most else ""


Engine = Annotated[VllmEngine | OpenAIEngine | TransformersEngine, Field(discriminator="kind")]
