"""Plain transformers, for machines where vLLM cannot be installed. Slow, but the same prompts and greedy tokens.

Shapes: B rows of one batch, V vocabulary, C prompt tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sophia_mcore.config.schema import TransformersEngine as TransformersConfig
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Completion, OnDone, Request, no_op
from sophia_mcore.generate.rendering import Prompt, Renderer
from sophia_mcore.pretrained.complete import check_model_dir
from sophia_mcore.pretrained.families import check_engine_layout, family_of_folder
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.store.lineage import model_digest

_DEFAULT_LONGEST = 32_768  # tokens, where the model's config names no limit


def _load(model_dir: Path, dtype: str, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    check_engine_layout(model_dir)
    loader = AutoModelForCausalLM if family_of_folder(model_dir) is None else AutoModelForImageTextToText
    wanted = "auto" if dtype == "auto" else getattr(torch, dtype)
    try:
        model: Any = loader.from_pretrained(model_dir, dtype=wanted, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise SophiaError(f"transformers cannot load {model_dir}: {line}") from error
    return model.to(device).eval()


class TransformersEngine:
    """Implements ``engine.Engine`` on a checked model directory, on the GPU when there is one."""

    def __init__(self, config: TransformersConfig, model_dir: Path, limits: ImageLimits) -> None:
        self._config = config
        self._limits = limits
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._open(model_dir)

    def _open(self, model_dir: Path) -> None:
        self._renderer = Renderer.from_model_dir(model_dir, self._limits)
        self._model = _load(model_dir, self._config.dtype, self._device)
        self._digest = model_digest(model_dir)
        text_config = self._model.config.get_text_config()
        self._longest = getattr(text_config, "max_position_embeddings", None) or _DEFAULT_LONGEST

    @property
    def model_digest(self) -> str:
        return self._digest

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """See ``Engine.generate``. Prompts of equal length share a batch, so nothing is padded."""
        prompts = self._renderer.render_all(requests)
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            self._renderer.check_length(prompt, self._longest)
            by_shape[len(prompt.ids), requests[index].sampling.max_tokens].append(index)
        results: dict[int, Completion] = {}
        for indices in by_shape.values():
            for start in range(0, len(indices), self._config.max_sequences):
                chosen = indices[start : start + self._config.max_sequences]
                rows = self._sample([prompts[i] for i in chosen], [requests[i] for i in chosen])
                results.update(zip(chosen, rows, strict=True))
                (on_done or no_op)(len(chosen))
        return [results[index] for index in range(len(requests))]

    def reload(self, model_dir: Path) -> None:
        """See ``Engine.reload``."""
        check_model_dir(model_dir)
        self._open(model_dir)

    def close(self) -> None:
        """Drop the model."""
        self._model = None

    @torch.inference_mode()
    def _sample(self, prompts: Sequence[Prompt], requests: Sequence[Request]) -> list[Completion]:
        """One batch [B] of prompts of equal length C, token by token with a key-value cache."""
        stop = set(self._renderer.stop_ids)
        images = self._renderer.image_token_ids
        rows = [_Row(request, stop, images if request.no_image_tokens else (), self._device) for request in requests]
        inputs: dict[str, Any] = {"input_ids": torch.tensor([p.ids for p in prompts], device=self._device)}  # [B, C]
        inputs |= self._image_inputs(prompts) | self._positions(prompts)
        budget = min(requests[0].sampling.max_tokens, self._longest - len(prompts[0].ids))
        cache = None
        for _ in range(budget):
            output = self._model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            logits_BV = output.logits[:, -1].float()
            tokens = [row.step(logits_V) for row, logits_V in zip(rows, logits_BV, strict=True)]
            if all(row.finished for row in rows):
                break
            positions = inputs.get("position_ids")
            inputs = {"input_ids": torch.tensor(tokens, device=self._device)[:, None]}
            if positions is not None:  # text goes on behind the largest, on all axes
                inputs["position_ids"] = (positions.amax(dim=(0, 2), keepdim=True) + 1).expand(3, -1, 1)
        return [
            Completion(
                text=self._renderer.answer(prompt.opened, row.token_ids),
                token_ids=tuple(row.token_ids),
                token_logprobs=tuple(row.logprobs),
                finish_reason="stop" if row.finished else "length",
                prompt_text=prompt.text,
                opened=prompt.opened,
            )
            for row, prompt in zip(rows, prompts, strict=True)
        ]

    def _positions(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """[3, B, C] where positions have three axes: transformers makes one axis of them unless it is told more."""
        found = [prompt.positions for prompt in prompts if prompt.positions is not None and prompt.positions.ndim == 2]
        if not found:
            return {}
        return {"position_ids": torch.stack([torch.from_numpy(own) for own in found], dim=1).to(self._device)}

    def _image_inputs(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """What the model takes for the images of all prompts in order; pixels in the model's dtype."""
        processor = self._renderer.images
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        if processor is None or not pictures:
            return {}
        found = {name: torch.from_numpy(array) for name, array in processor.model_inputs(pictures).items()}
        return {
            name: tensor.to(self._device, self._model.dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in found.items()
        }


class _Row:
    """One sequence of a batch: its own random numbers, its tokens so far."""

    def __init__(self, request: Request, stop: set[int], forbidden: Sequence[int], device: torch.device) -> None:
        self._sampling = request.sampling
        self._forbidden = list(forbidden)
        self._stop = stop
        self._generator = torch.Generator(device).manual_seed(request.seed)
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.finished = False

    def step(self, logits_V: torch.Tensor) -> int:
        """Choose the next token; a finished row goes on with anything, unrecorded."""
        if self.finished:
            return 0
        if self._forbidden:
            logits_V[self._forbidden] = float("-inf")
        logprobs_V = sampling_logprobs(logits_V, self._sampling.temperature, self._sampling.top_p)
        if self._sampling.temperature == 0.0:
            token = int(logprobs_V.argmax())
        else:
            token = int(torch.multinomial(logprobs_V.exp(), 1, generator=self._generator))
        self.token_ids.append(token)
        self.logprobs.append(float(logprobs_V[token]))
        self.finished = token in self._stop
        return token


def sampling_logprobs(logits_V: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Log-probs [V] of the distribution that is sampled from: softmax at ``temperature``, cut to the top-p nucleus.

    Temperature 0 gives the plain log-softmax. The nucleus is the smallest set of most probable tokens that holds
    ``top_p``; outside it the value is -inf.
    """
    logprobs_V = torch.log_softmax(logits_V / temperature if temperature > 0 else logits_V, dim=-1)
    if temperature == 0.0 or top_p >= 1.0:
        return logprobs_V
    sorted_V, order_V = logprobs_V.sort(descending=True)
    before_V = sorted_V.exp().cumsum(0) - sorted_V.exp()  # probability of all more probable tokens
    outside = order_V[before_V >= top_p]
    return torch.log_softmax(logprobs_V.index_fill(0, outside, float("-inf")), dim=-1)
