"""vLLM in this process. Import it only in a process that ``vllm_cpu.prepare_process`` has prepared."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sophia_mcore.config.engines import UNCOUNTED_IMAGES
from sophia_mcore.config.engines import VllmEngine as VllmConfig
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate import vllm_cpu
from sophia_mcore.generate.engine import Completion, Cut, Key, OnDone, OnStep, Request, no_op, no_step
from sophia_mcore.generate.pixels import resize_with_pillow
from sophia_mcore.generate.rendering import Prompt, Renderer
from sophia_mcore.generate.vllm_arguments import engine_arguments
from sophia_mcore.pretrained.complete import check_model_dir
from sophia_mcore.pretrained.families import check_engine_layout
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.rl.versions import verify_version
from sophia_mcore.store.json_files import require_json
from sophia_mcore.store.lineage import model_digest

_CHATTY = ("vllm.v1.worker.cpu_worker", "vllm.v1.core.block_pool")  # a line per image or per unit, saying nothing
_ASK_SECONDS = 1.0  # a stream with free places asks for further requests so often, and whenever one has ended


def open_vllm(
    config: VllmConfig, model_dir: Path, limits: ImageLimits, *, digest: str | None = None, sleeps: bool = False
) -> VllmEngine:
    """Start vLLM on a checked model directory. Raises SophiaError when vLLM refuses it.

    ``digest``: the directory is the published version that it names, which is verified. ``sleeps``: the engine may be
    put to sleep; on a CPU there is no device memory to give back.
    """
    if digest is not None:
        verify_version(model_dir, digest)
    check_engine_layout(model_dir)
    vllm_cpu.prepare_process(config.threads)
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
        on_cpu = vllm_cpu.is_cpu_build()
        given = engine_arguments(config, model_dir, options, on_cpu=on_cpu)
        llm = LLM(**given, enable_sleep_mode=sleeps and not on_cpu)
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and "validation error" not in line]
        line = lines[0] if lines else type(error).__name__
        raise SophiaError(f"vLLM cannot load {model_dir}: {line}") from error
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    return VllmEngine(llm, renderer, limits, digest or model_digest(model_dir), config, sleeps=sleeps)


def _look_at_models_here(model_dir: Path) -> None:
    """Inspect the classes of the model's architectures in this process.

    vLLM does it in a process of its own, so that CUDA is not initialised. On a CPU that only imports everything twice
    (8 s for each architecture, the first time on a machine)."""
    from vllm import ModelRegistry

    for name in require_json(model_dir / "config.json").get("architectures") or ():
        known = ModelRegistry.models.get(name)
        if known is not None:
            ModelRegistry.register_model(name, known.load_model_cls())


class VllmEngine:
    """Implements ``engine.LivingEngine`` and ``engine.Streaming``. Made by ``open_vllm``."""

    def __init__(
        self,
        llm: Any,
        renderer: Renderer,
        limits: ImageLimits,
        digest: str,
        config: VllmConfig,
        *,
        sleeps: bool = False,
    ) -> None:
        self._llm = llm
        self._max_images = config.max_images_per_prompt or UNCOUNTED_IMAGES
        self._renderer = renderer
        self._limits = limits
        self._digest = digest  # "": no whole model is loaded
        self._places = config.max_sequences
        self._across_units = config.across_units
        self._sleeps = sleeps and not vllm_cpu.is_cpu_build()
        self._asleep = False

    @property
    def model_digest(self) -> str:
        return self._digest

    def generate(
        self, requests: Sequence[Request], on_done: OnDone | None = None, on_step: OnStep | None = None
    ) -> list[Completion]:
        """See ``Engine.generate``. The prefix cache starts empty, so that results do not depend on earlier calls:
        a cached prefix changes the shapes of the products and with them the last bits of the log-probs."""
        self._require_model()
        self._llm.reset_prefix_cache()
        prompts = self._prompts(requests)
        order = {identifier: index for index, identifier in enumerate(self._add(prompts, requests))}
        found: dict[int, Completion] = {}
        with self._none_left_over(order):
            while len(found) < len(requests):
                ended, _ = self._step(on_step or no_step)
                for output in ended:
                    index = order[output.request_id]
                    found[index] = self._completion(prompts[index], output)
                if ended:
                    (on_done or no_op)(len(ended))
        return [found[index] for index in range(len(requests))]

    @property
    def across_units(self) -> bool:
        return self._across_units

    @property
    def cuts(self) -> bool:
        return True

    def stream(
        self, more: Callable[[int], Sequence[tuple[Key, Request]]], on_step: OnStep, cut: Cut[Key] | None = None
    ) -> Iterator[tuple[Key, Completion]]:
        """See ``Streaming.stream``."""
        self._require_model()
        self._llm.reset_prefix_cache()
        running: dict[str, tuple[Key, Prompt]] = {}
        names_of: dict[Key, str] = {}
        asked = -_ASK_SECONDS
        wanted = True
        with self._none_left_over(running):
            while True:
                if wanted or not running or time.monotonic() - asked >= _ASK_SECONDS:
                    while (places := self._places - len(running)) > 0 and (further := more(places)):
                        prompts = self._prompts([request for _, request in further])
                        names = self._add(prompts, [request for _, request in further])
                        for name, prompt, (key, _) in zip(names, prompts, further, strict=True):
                            running[name] = key, prompt
                            names_of[key] = name
                    asked = time.monotonic()
                if not running:
                    return
                ended, wanted = self._step(on_step)
                for output in ended:
                    key, prompt = running.pop(output.request_id)
                    del names_of[key]
                    wanted = True
                    yield key, self._completion(prompt, output)
                if cut is not None and (given_up := cut(lambda key: self._tokens_so_far(names_of[key]))):
                    names = [names_of.pop(key) for key in given_up]
                    self._llm.llm_engine.abort_request(names)
                    for name in names:
                        del running[name]
                    wanted = True

    def reload(self, model_dir: Path) -> None:
        """See ``Engine.reload``. Weights are replaced in place; caches computed with the old ones are emptied."""
        self._replace_weights(model_dir)
        self._digest = model_digest(model_dir)

    def load(self, model_dir: Path, digest: str) -> None:
        """See ``LivingEngine.load``. Its files are read once to verify them and once by vLLM."""
        verify_version(model_dir, digest)
        self._replace_weights(model_dir)
        self._digest = digest

    def _replace_weights(self, model_dir: Path) -> None:
        check_model_dir(model_dir)
        renderer = Renderer.from_model_dir(model_dir, self._limits)
        self._digest = ""  # until all is done: a failure on the way leaves a mixture of two models
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model_dir)})
        if self._asleep:  # only now, so that old weights, new ones and the cache need not fit together
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()
        self._renderer = renderer

    def sleep(self) -> bool:
        """See ``LivingEngine.sleep``. Weights are dropped, not copied to the host: the next ones come from a folder."""
        if not self._sleeps:
            return False
        if not self._asleep:
            self._llm.sleep(level=2)
            self._asleep, self._digest = True, ""
        return True

    def close(self) -> None:
        """Drop the engine; its process pool (GPU only) ends with it."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()

    def _require_model(self) -> None:
        if not self._digest:  # vLLM would wait for ever when asleep
            raise SophiaError("the engine sleeps or has failed to load a model: load one before it samples")

    def _prompts(self, requests: Sequence[Request]) -> list[Prompt]:
        prompts = self._renderer.render_all(requests)
        longest = self._llm.llm_engine.model_config.max_model_len
        for prompt in prompts:
            self._renderer.check_length(prompt, longest)
            if len(prompt.pictures) > self._max_images:
                raise SophiaError(
                    f"a prompt has {len(prompt.pictures)} images, more than the engine's max_images_per_prompt = "
                    f"{self._max_images}: raise it ({prompt.text[:80]!r})"
                )
        return prompts

    def _add(self, prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[str]:
        """Queue requests; returns the names that their outputs have (vLLM adds a random part to its own)."""
        if not requests:
            return []
        names = self._llm.enqueue(
            [_as_vllm(prompt) for prompt in prompts],
            [self._sampling(request) for request in requests],
            use_tqdm=False,
        )
        return [name.partition("-")[0] for name in names]

    @contextmanager
    def _none_left_over(self, names: Mapping[str, Any]) -> Iterator[None]:
        """Take back the requests ``names`` when something goes wrong: they must not appear in the next call."""
        try:
            yield
        except BaseException:
            self._llm.llm_engine.abort_request(list(names))
            raise

    def _step(self, on_step: OnStep) -> tuple[list[Any], bool]:
        """One token for every running request: the outputs of those that have ended, and what ``on_step`` says."""
        outputs = [output for output in self._llm.llm_engine.step() if output.finished]
        return outputs, on_step() is True

    def _tokens_so_far(self, name: str) -> int:
        """What a running request has sampled; 0 while it waits for a place."""
        known = self._llm.llm_engine.output_processor
        return sum(known.request_states[own].detokenizer.num_output_tokens() for own in known.external_req_ids[name])

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p if request.sampling.temperature > 0 else 1.0,
            max_tokens=request.sampling.max_tokens,
            seed=request.seed,
            stop_token_ids=list(self._renderer.stop_ids),
            logit_bias=dict.fromkeys(self._renderer.image_token_ids, -100.0) if request.no_image_tokens else None,
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
            text=self._renderer.answer(prompt.opened, ids),
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
