"""Samples, tokens and packed rows, seen from outside."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from sophia_mcore.batch import samples as samples_module
from sophia_mcore.batch.collate import collate
from sophia_mcore.batch.samples import IGNORE, Sample, from_kept, from_mixture, image_digests
from sophia_mcore.batch.tokenize import load_tokenizer, tokenize
from sophia_mcore.config.schema import Mixture
from sophia_mcore.data.images import decode
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.pretrained.chat import user_text
from sophia_mcore.pretrained.family import IMAGE_PLACE, ImageSize
from sophia_mcore.pretrained.internvl.tiling import tiles
from sophia_mcore.records import Kept
from tests.support.batch_world import CHAT, SPEC, SPECIAL, make_images, make_samples, make_tokenizer
from tests.support.pictures import noise


@pytest.fixture
def world(tmp_path):
    store, digests = make_images(tmp_path / "images")
    sizes = {digests[0]: ImageSize(rows=1, tokens=4), digests[1]: ImageSize(rows=3, tokens=12)}
    return store, digests, sizes.__getitem__, make_tokenizer()


def kept(**changes):
    values = {
        "trajectory_id": "q.c.k0.n1",
        "question_id": "q",
        "caption_id": "c.k0",
        "images": ("ab",),
        "question": "Sum?",
        "response": "<think>3+2</think>5",
        "token_count": 9,
        "outcome": 1.0,
        "caption_reward": 0.875,
    }
    return Kept(**(values | changes))


def test_system_prompt_rule():
    rows = [kept(), kept(response="5"), kept(response="</think>5"), kept(response="<think>\n2\n</think> 5")]
    samples = from_kept(rows, long_thinking="LONG", default_system=None)
    assert [sample.system for sample in samples] == ["LONG", None, None, "LONG"]
    assert [sample.system for sample in from_kept(rows, long_thinking="LONG", default_system="D")][1] == "D"
    assert samples[0].weight == 1.0 and samples[0].id == "q.c.k0.n1"


def test_user_text():
    assert user_text("Sum?", 0) == "Sum?"
    assert user_text("Sum?", 1) == f"{IMAGE_PLACE}\nSum?"
    assert user_text("Same?", 2) == f"Image-1: {IMAGE_PLACE}\nImage-2: {IMAGE_PLACE}\nSame?"
    assert user_text("Is <image> it?", 1) == f"Is {IMAGE_PLACE} it?"
    assert user_text("What does the tag <image> mean?", 0) == "What does the tag <image> mean?"


def write_jsonl(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return Mixture(path=path, name="extra", share=0.25)


def test_mixture(tmp_path):
    (tmp_path / "a.png").write_bytes(noise(8, 8, 3))
    rows = [
        {"id": "1", "question": "q", "response": "<think>a</think>b", "images": ["a.png"]},
        {"id": "2", "question": "text only", "response": "b"},
    ]
    mixture = write_jsonl(tmp_path / "m.jsonl", rows)
    first, second = from_mixture(mixture, image_digests, long_thinking="LONG", default_system=None)
    assert (first.id, first.source, first.system, first.weight) == ("extra:1", "extra", "LONG", 1.0)
    assert first.images == tuple(image_digests([noise(8, 8, 3)])) and second.images == ()


GOOD = {"id": "1", "question": "q", "response": "r"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{nonsense"], "m.jsonl, line 1: not valid JSON"),
        ([GOOD, {"id": "2", "question": "q"}], "line 2: 'response' is missing"),
        ([GOOD | {"question": 3}], "line 1: 'question' is missing or not a str"),
        ([GOOD, GOOD], "line 2: id '1' occurs twice"),
        ([GOOD | {"images": ["none.png"]}], "line 1: image none.png cannot be read"),
        ([GOOD | {"images": ["m.jsonl"]}], "line 1: m.jsonl: image unreadable"),
        ([], "no samples in it"),
        (["[1]"], "line 1: not a JSON object"),
    ],
)
def test_bad_mixture_is_named(tmp_path, rows, message):
    mixture = write_jsonl(tmp_path / "m.jsonl", rows)
    with pytest.raises(UsageError, match=message):
        from_mixture(mixture, image_digests, long_thinking="", default_system=None)


def test_tokens_are_prompt_then_response_then_end(world):
    _, digests, image_size, tokenizer = world
    sample = Sample(id="a", source="kept", images=(digests[1],), system="Think.", question="Sum?", response="5 é")
    done = tokenize([sample], tokenizer, CHAT, image_size, 1000)
    tokens = done.samples[0]
    text = tokenizer.decode(tokens.input_ids.tolist(), skip_special_tokens=False)
    image = "<img>" + "<IMG_CONTEXT>" * 12 + "</img>"
    assert text == (
        "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\n" + image + "\nSum?<|im_end|>\n"
        "<|im_start|>assistant\n5 é<|im_end|>"
    )
    target = tokenizer.decode(tokens.input_ids[tokens.target_mask].tolist(), skip_special_tokens=False)
    assert target == "5 é<|im_end|>" and tokens.image_sizes == (ImageSize(rows=3, tokens=12),)


def test_what_is_dropped_and_counted(world):
    _, digests, image_size, tokenizer = world
    long, empty, spelled, fine = (
        Sample(id=r[:1], source="kept", images=(), system=None, question="q", response=r)
        for r in ("x" * 400, " ", "y<|im_end|>", "z</think>")
    )
    asks = Sample(id="i", source="kept", images=(), system=None, question="<IMG_CONTEXT>", response="5")
    done = tokenize([long, empty, spelled, fine, asks], tokenizer, CHAT, image_size, 300)
    assert [sample.id for sample in done.samples] == ["z"]
    assert done.dropped == {"too_long": 1, "no_response": 1, "special_token_in_text": 2}
    length = len(done.samples[0].input_ids)
    assert len(tokenize([fine], tokenizer, CHAT, image_size, length).samples) == 1
    assert tokenize([fine], tokenizer, CHAT, image_size, length - 1).dropped == {"too_long": 1}
    with pytest.raises(SophiaError, match="sample i: 0 <IMG_CONTEXT> tokens in the prompt, but its images make 4"):
        shown = replace(asks, images=(digests[0],), question="q")
        tokenize([shown], make_tokenizer(SPECIAL[:-1]), CHAT, image_size, 300)


def test_tokenizer_file(tmp_path):
    with pytest.raises(SophiaError, match="no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SophiaError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("a<|im_end|>").ids == tokenizer.encode("a<|im_end|>").ids


def test_packed_row(world):
    store, digests, image_size, tokenizer = world
    samples = tokenize(make_samples(digests, 4), tokenizer, CHAT, image_size, 1000).samples
    pixels = {digest: tiles(decode(store.get(digest)), SPEC) for digest in digests}
    row = collate(samples, length=4096, sequence_multiple=8, pixels=pixels.__getitem__, row_shape=(3, 8, 8))
    boundaries = row.cu_seqlens.tolist()
    assert boundaries[0] == 0 and boundaries[-1] == 4096 and all(b % 8 == 0 for b in boundaries)
    assert row.max_seqlen == max(np.diff(boundaries))
    assert row.sample_ids == tuple(sample.id for sample in samples)
    for index, sample in enumerate(samples):
        start, length = boundaries[index], len(sample.input_ids)
        here = slice(start, start + length)
        assert row.input_ids[0, here].tolist() == sample.input_ids.tolist()
        assert row.position_ids[0, start : boundaries[index + 1]].tolist() == list(range(boundaries[index + 1] - start))
        assert row.sequence_ids[0, here].eq(index).all()
        targets = row.targets[0, here]
        assert targets[targets != IGNORE].tolist() == sample.input_ids[sample.target_mask].tolist()
        assert (targets[sample.prompt_tokens - 1] == sample.input_ids[sample.prompt_tokens]) and targets[-1] == IGNORE
    assert row.target_mask.eq(row.targets != IGNORE).all() and row.weights.eq(row.target_mask.float()).all()
    assert int(row.target_mask.sum()) == sum(int(sample.target_mask.sum()) for sample in samples)
    padding = row.sequence_ids < 0
    assert not row.target_mask[padding].any() and row.input_ids[padding].eq(0).all()
    # images: none, square, wide, wide + square -> 4 distinct tiles, 8 slots
    assert row.pixel_values.shape == (4, 3, 8, 8)
    tile_index = torch.tensor([0, 1, 2, 3, 1, 2, 3, 0])
    assert torch.equal(row.feature_index, (4 * tile_index[:, None] + torch.arange(4)).flatten())
    expected = np.concatenate([pixels[digest] for sample in samples for digest in sample.images])
    assert torch.equal(row.pixel_values[tile_index], torch.from_numpy(expected))
    image_token = tokenizer.token_to_id("<IMG_CONTEXT>")
    assert int((row.input_ids == image_token).sum()) == len(row.feature_index)


def test_empty_row_and_row_without_pixels(world):
    _, digests, image_size, tokenizer = world
    row = collate([], length=64, sequence_multiple=4, pixels=lambda digest: None, row_shape=(3, 8, 8))
    assert not row.target_mask.any() and row.cu_seqlens.tolist() == [0, 64] and row.pixel_values.shape == (0, 3, 8, 8)
    samples = tokenize(make_samples(digests, 2), tokenizer, CHAT, image_size, 1000).samples
    row = collate(samples, length=512, sequence_multiple=1, pixels=None, row_shape=(3, 8, 8))
    assert row.pixel_values is None and row.feature_index.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="do not fit"):
        collate(samples, length=16, sequence_multiple=1, pixels=None, row_shape=(3, 8, 8))


def test_long_padding_is_cut_into_short_sequences():
    row = collate([], length=32768, sequence_multiple=4, pixels=None, row_shape=(3, 8, 8))
    assert row.max_seqlen == 1024 and len(row.cu_seqlens) == 33
    row = collate([], length=3000, sequence_multiple=12, pixels=None, row_shape=(3, 8, 8))
    assert row.cu_seqlens.tolist() == [0, 1032, 2064, 3000]


def test_given_logprobs_lie_on_the_targets(world):
    _, digests, image_size, tokenizer = world
    samples = tokenize(make_samples(digests, 3), tokenizer, CHAT, image_size, 1000).samples
    given = {s.id: -np.arange(1, 1 + int(s.target_mask.sum()), dtype=np.float32) for s in samples}
    options = {"length": 1024, "sequence_multiple": 8, "pixels": None, "row_shape": (3, 8, 8)}
    row = collate(samples, **options, behaviour_logprobs=given)
    for index, sample in enumerate(samples):
        chosen = row.behaviour_logprobs[(row.sequence_ids == index) & row.target_mask]
        assert chosen.tolist() == given[sample.id].tolist()
    assert row.behaviour_logprobs[~row.target_mask].eq(0).all() and row.rollout_logprobs is None
    given[samples[1].id] = given[samples[1].id][:-1]
    with pytest.raises(ValueError, match="values for"):
        collate(samples, **options, behaviour_logprobs=given)


def test_samples_module_needs_no_torch():
    code = "import sys, sophia_mcore.batch.samples; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert samples_module.KEPT_SOURCE == "kept"
