"""What a training exports, in the running vLLM: its tokens and log-probs are transformers' and the trainer's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sophia_mcore.generate.captions import ask_captions, describe_prompt
from sophia_mcore.records import Caption, Kept
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import Round
from sophia_mcore.store.shards import read_shard, write_shard
from sophia_mcore.train.checkpoint_folder import newest_checkpoint
from sophia_mcore.weights.export import export_hf
from tests.parity.conftest import Driver, make_request
from tests.parity.test_vllm_engine import MAX_TILES, Reference
from tests.support import train_world
from tests.support.harness import run
from tests.support.pictures import smooth

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def exported(tiny_internvl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of training on 2 x 2 ranks, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("trained")
    layout = {"parallel": {"tensor": 2, "pipeline": 2}, "train": {"steps": 3, "save_every_steps": 3}}
    config, trained = train_world.make_run(folder / "run", tiny_internvl, **layout)
    assert run(train_world.train, 4, config, trained) == [True] * 4
    export_hf(newest_checkpoint(trained.round(0).checkpoints), tiny_internvl, folder / "model")
    return folder / "model"


def test_exports_speak_alike_everywhere(vllm: Driver, tiny_internvl: Path, exported: Path, tmp_path: Path) -> None:
    requests = [
        make_request("What is it?", []),
        make_request("Is it 3, 7?", [smooth(97, 41, 2)]),
        make_request("first", [smooth(30, 90, 3), smooth(64, 64, 4)]),
    ]
    before = vllm.generate(requests)
    prompt = tmp_path / "describe.txt"
    prompt.write_text("Describe it.")
    captions = {"per_image": 2, "sampling": {"max_tokens": 12}, "prompt_file": prompt}
    one = {"steps": 1, "save_every_steps": 9}
    tiles = {"max_tiles": MAX_TILES}
    config, following = train_world.make_run(tmp_path / "run", exported, captions=captions, train=one, batch=tiles)
    round = Round(config, following, 0)
    try:
        vllm.ask(reload=str(exported))
        after = vllm.generate(requests)
        rows = []
        for images in sorted({row.images for row in read_shard(following.round(0).kept_file, Kept) if row.images}):
            asked = ask_captions(round, describe_prompt(config), images, ImageStore(following.images))
            completions = vllm.generate([one.request for one in asked])
            rows += [one.record(done, "digest") for one, done in zip(asked, completions, strict=True)]
    finally:
        vllm.ask(reload=str(tiny_internvl))
    assert after != before  # it has learned something
    reference, gaps = Reference(exported), []
    for request, done in zip(requests, after, strict=True):
        assert list(done.token_ids) == reference.greedy(request)
        wanted = reference.logprobs(request, done.token_ids)
        gaps += [abs(ours - theirs) for ours, theirs in zip(done.token_logprobs, wanted, strict=True)]
    write_shard(following.round(0).captions / "0.parquet", rows, Caption)
    assert run(train_world.train, 1, config, following) == [True]
    trainer = json.loads((following.round(0).train / "summary.json").read_text())["rollout_gap"]
    print(f"largest gap in nats: vLLM to transformers {max(gaps):.1e}, to the trainer {trainer['max']:.1e}")
    assert max(gaps) < 2e-4 and trainer["max"] < 2e-4 and trainer["tokens"] > 20
