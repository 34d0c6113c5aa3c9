"""vLLM, our transformers engine and our Megatron model on tiny Qwen2.5-VL and Qwen3-VL models: the same log-probs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sophia_mcore.config.schema import Parallel
from sophia_mcore.config.schema import TransformersEngine as TransformersConfig
from sophia_mcore.data.images import decode
from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.generate.opening import open_engine
from sophia_mcore.generate.rendering import Renderer
from sophia_mcore.model import lvlm
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.weights.load import load_hf
from tests.parity.conftest import Driver, make_request, running_vllm
from tests.support import layouts
from tests.support.harness import run_layout
from tests.support.pictures import smooth
from tests.support.tiny_qwen import save_qwen_vl


@pytest.fixture(scope="module", params=["2.5", pytest.param("3, tied", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    deep = request.param != "2.5"
    return save_qwen_vl(tmp_path_factory.mktemp("models") / "qwen", deep=deep, seed=4, tied=deep)


@pytest.fixture(scope="module")
def driver(rollout_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with running_vllm(rollout_python, model, tmp_path_factory.mktemp("vllm") / "log") as started:
        yield started


def requests() -> list[Request]:
    """Text only, a small, a long and a large picture, two pictures; greedy and sampled."""
    asked = [
        make_request("What is it?", []),
        make_request("What is it?", [smooth(30, 40, 1)]),
        make_request("Is it 3, 7?", [smooth(301, 41, 2)]),
        make_request("a", [smooth(400, 300, 3)]),
        make_request("first", [smooth(30, 90, 3), smooth(64, 64, 4)]),
    ]
    return asked + [make_request("What", [smooth(70, 64, seed)], seed=seed, temperature=1.0) for seed in (5, 6)]


def trained_logprobs(
    groups: Any, backend: Any, model: Path, done: list[tuple[Request, Completion]]
) -> list[list[float]]:
    """Log-probs of the sampled tokens by the trainer's model, from the trainer's own tokens, pixels and positions."""
    spec, renderer = ModelSpec.from_model_dir(model), Renderer.from_model_dir(model, ImageLimits())
    chunks = lvlm.build(spec, layouts.tiny_config(groups.parallel), groups, backend)
    load_hf(chunks, model, spec, groups)
    images, found = renderer.images, []
    assert images is not None
    for request, completion in done:
        prompt, pictures = renderer.render(request), [decode(image) for image in request.images]
        ids = [*prompt.ids, *completion.token_ids]
        sizes = [images.size(*picture.size) for picture in pictures]
        positions = images.positions(torch.tensor(ids).numpy(), sizes)
        more: dict[str, Any] = {}
        if pictures:
            more = {
                "pixel_values": torch.from_numpy(images.model_inputs(pictures)["pixel_values"]),
                "picture_grids": [size.grid for size in sizes],
                "feature_index": torch.arange(sum(size.tokens for size in sizes)),
            }
        with torch.no_grad():
            logits = chunks[0](torch.tensor([ids]), torch.from_numpy(positions)[:, None], **more)[0]
        rows = torch.log_softmax(logits[len(prompt.ids) - 1 : -1], dim=-1)
        found.append(rows.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0].tolist())
    return found


def test_engines_and_trainer_agree(driver: Driver, model: Path) -> None:
    asked = requests()
    completions = driver.generate(asked)
    engine = open_engine(TransformersConfig(kind="transformers", dtype="float32"), model)
    for ours, theirs in zip(engine.generate(asked[:5]), completions, strict=False):
        assert (ours.text, ours.token_ids, ours.prompt_text) == (theirs.text, theirs.token_ids, theirs.prompt_text)
        assert ours.token_logprobs == pytest.approx(theirs.token_logprobs, abs=2e-4)
    (found,) = run_layout(trained_logprobs, Parallel(), model, list(zip(asked, completions, strict=True)))
    for own, completion in zip(found, completions, strict=True):
        assert own == pytest.approx(completion.token_logprobs, abs=5e-4)
    assert len({completion.token_ids for completion in completions}) == len(completions)
