"""vLLM in this process. Import it only in a process that ``vllm_cpu.prepare_process`` has prepared."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import VllmEngine as VllmConfig
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate import vllm_cpu
from sophia_mcore.generate.engine import Completion, OnDone, Request, nothing
from sophia_mcore.generate.pixels import resize_with_pillow
from sophia_mcore.generate.rendering import Prompt, Renderer
from sophia_mcore.generate.vllm_arguments import engine_arguments
from sophia_mcore.pretrained.complete import check_model_dir
from sophia_mcore.pretrained.families import check_engine_layout
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.store.json_files import require_json
from sophia_mcore.store.lineage import model_digest

_CHATTY = ("vllm.v1.worker.cpu_worker", "vllm.v1.core.block_pool")  # a line per image or per unit, saying nothing


def open_vllm(config: VllmConfig, model_dir: Path, limits: ImageLimits) -> VllmEngine:
    """Start vLLM on a checked model directory. Raises SophiaError when vLLM refuses it."""
    check_engine_layout(model_dir)
    vllm_cpu.prepare_process()
    try:
        from vllm import LLM
    except ImportError as error:
        raise SophiaError(f"vLLM cannot be imported in this environment ({error}); 'make env' makes one") from None
    renderer = Renderer.from_model_dir(model_dir, limits)
    if renderer.family is not None:
        resize_with_pillow(renderer.family.hf_image_processor)
    if vllm_cpu.is_cpu_build():
        _look_at_models_here(model_dir)
    try:
        options = None if renderer.images is None else renderer.images.vllm_options()
        llm = LLM(**engine_arguments(config, model_dir, options, on_cpu=vllm_cpu.is_cpu_build()))
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and "validation error" not in line]
        line = lines[0] if lines else type(error).__name__
        raise SophiaError(f"vLLM cannot load {model_dir}: {line}") from error
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    return VllmEngine(llm, renderer, model_dir, limits, config.max_images_per_prompt)


def _look_at_models_here(model_dir: Path) -> None:
    """vLLM looks at an architecture's class in a process of its own, lest CUDA be initialised; on a CPU that is only
    a second import of everything (8 s for each architecture, the first time on a machine)."""
    from vllm import ModelRegistry

    for name in require_json(model_dir / "config.json").get("architectures") or ():
        known = ModelRegistry.models.get(name)
        if known is not None:
            ModelRegistry.register_model(name, known.load_model_cls())


class VllmEngine:
    """Implements ``engine.Engine``. Made by ``open_vllm``."""

    def __init__(
        self, llm: Any, renderer: Renderer, model_dir: Path, limits: ImageLimits, max_images: int
    ) -> None:  # fmt: skip
        self._llm = llm
        self._max_images = max_images
        self._renderer = renderer
        self._limits = limits
        self._digest = model_digest(model_dir)

    @property
    def model_digest(self) -> str:
        return self._digest

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """See ``Engine.generate``. The prefix cache starts empty, so that results do not depend on earlier calls:
        a cached prefix changes the shapes of the products and with them the last bits of the log-probs."""
        self._llm.reset_prefix_cache()
        prompts = self._renderer.render_all(requests)
        longest = self._llm.llm_engine.model_config.max_model_len
        for prompt in prompts:
            self._renderer.check_length(prompt, longest)
            if len(prompt.pictures) > self._max_images:
                raise SophiaError(
                    f"a prompt has {len(prompt.pictures)} images, more than the engine's max_images_per_prompt = "
                    f"{self._max_images}: raise it ({prompt.text[:80]!r})"
                )
        outputs = self._llm.generate(
            [_as_vllm(prompt) for prompt in prompts],
            [self._sampling(request) for request in requests],
            use_tqdm=_bar_factory(on_done or nothing),
        )
        return [self._completion(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]

    def reload(self, model_dir: Path) -> None:
        """See ``Engine.reload``. Weights are replaced in place; caches computed with the old ones are emptied."""
        check_model_dir(model_dir)
        renderer = Renderer.from_model_dir(model_dir, self._limits)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model_dir)})
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()
        self._renderer = renderer
        self._digest = model_digest(model_dir)

    def close(self) -> None:
        """Drop the engine; its process pool (GPU only) ends with it."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p if request.sampling.temperature > 0 else 1.0,
            max_tokens=request.sampling.max_tokens,
            seed=request.seed,
            stop_token_ids=list(self._renderer.stop_ids),
            logprobs=0,  # of the sampled token only
            detokenize=False,  # tokenizer.json decodes; vLLM may have chosen another tokenizer class
        )

    def _completion(self, prompt: Prompt, output: Any) -> Completion:
        if list(output.prompt_token_ids) != prompt.ids:
            raise SophiaError(
                f"vLLM reads another prompt ({len(output.prompt_token_ids)} tokens) than the trainer "
                f"({len(prompt.ids)} tokens) for {prompt.text[:80]!r}: their image or chat settings differ"
            )
        sampled = output.outputs[0]
        ids = tuple(sampled.token_ids)
        return Completion(
            text=self._renderer.answer(prompt, ids),
            token_ids=ids,
            token_logprobs=tuple(entry[token].logprob for token, entry in zip(ids, sampled.logprobs, strict=True)),
            finish_reason="stop" if sampled.finish_reason == "stop" else "length",
            prompt_text=prompt.text,
            opened=prompt.opened,
        )


def _as_vllm(prompt: Prompt) -> dict[str, Any]:
    """Token ids, so that vLLM's own tokenizer has no say; it expands each image token and processes the picture."""
    if not prompt.pictures:
        return {"prompt_token_ids": prompt.short_ids}
    return {"prompt_token_ids": prompt.short_ids, "multi_modal_data": {"image": list(prompt.pictures)}}


class _Bar:
    """What vLLM calls instead of a tqdm bar."""

    def __init__(self, on_done: OnDone) -> None:
        self.n = 0
        self.postfix = ""
        self._on_done = on_done
        self._start = time.monotonic()

    @property
    def format_dict(self) -> dict[str, float]:
        return {"elapsed": max(time.monotonic() - self._start, 1e-9)}

    def update(self, count: int) -> None:
        self.n += count
        self._on_done(count)

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass


def _bar_factory(on_done: OnDone) -> Any:
    def make(iterable: Iterable[Any] | None = None, **_: Any) -> Any:
        return _Bar(on_done) if iterable is None else iterable  # vLLM also wraps the list of prompts

    return make
