"""Forced rethinking with a real vLLM, a real trainer and a model that can answer: exact to the token and the loss."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from sophia_mcore.records import Rollout
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_folder
from sophia_mcore.track.metrics import read_metrics
from tests.support.digits_stage import POLICY, SYSTEM, finish, make_stage, start

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
TRIGGERS = {"questioning": " Wait, check again:", "verification": " Wait,", "correction": " In the image I see"}
LEAST, MOST, PER_QUESTION = 2, 20, 2

RETHINK = f"""
batches = 1
[rl.train]
learning_rate = 1e-4
[rl.rethink]
share = 1.0
cut_share = 0.5
least_tokens = {LEAST}
most_tokens = {MOST}
per_question = {PER_QUESTION}
temperature = 1.0
questioning = "{TRIGGERS["questioning"]}"
verification = "{TRIGGERS["verification"]}"
correction = "{TRIGGERS["correction"]}"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rollout_python: Path) -> RunFolder:
    """One batch of the digits' base model, which is right about half of its yes/no questions."""
    folder = tmp_path_factory.mktemp("rethink")
    made = make_stage(folder, rollout_python, questions=12, rl=RETHINK)
    finish(start(folder))
    return made


def test_tokens_are_reused_and_the_rule_is_kept(run: RunFolder) -> None:
    rollouts = list(read_folder(run.rl.batch(0), Rollout))
    firsts = {one.id: one for one in rollouts if not one.parent}
    again = [one for one in rollouts if one.parent]
    tokenizer = Tokenizer.from_file(str(POLICY / "tokenizer.json"))
    asked = [one for one in firsts.values() if one.finish_reason == "stop" and len(one.token_ids) <= 48 - MOST]
    assert sorted(one.parent for one in again) == sorted(one.id for one in asked) and len(again) >= 24
    kinds = set()
    for one in again:
        first = firsts[one.parent]
        trigger = tokenizer.encode(TRIGGERS[one.trigger], add_special_tokens=False).ids
        own = list(one.token_ids[: one.given - len(trigger)])
        assert one.token_ids[one.given - len(trigger) : one.given] == tuple(trigger)
        assert own == list(first.token_ids[: len(own)])  # a beginning of the first try, never encoded anew
        whole = len(own) == len(first.token_ids) - 1  # all but the end token
        assert whole or "</think>" in tokenizer.decode(list(first.token_ids[len(own) :]), skip_special_tokens=False)
        assert 1 <= len(one.token_logprobs) <= MOST and len(one.token_ids) == one.given + len(one.token_logprobs)
        right = first.verdict == "correct"
        assert one.trigger in ("questioning", "verification" if right else "correction")
        kinds.add(one.trigger)
    assert kinds == set(TRIGGERS)


def test_the_engines_log_probs_and_the_auxiliary_loss_are_the_models(run: RunFolder) -> None:
    """Against transformers: log-probs behind the trigger within 1e-4, and the NLL over all of the kept ones' tokens."""
    again = [one for one in read_folder(run.rl.batch(0), Rollout) if one.parent]
    found = [logprobs_of(run, one) for one in again]
    for one, values in zip(again, found, strict=True):
        np.testing.assert_allclose(values[one.given :], one.token_logprobs, atol=1e-4)
    kept = kept_of(again)
    (batch,) = lines(run, "batch")
    (update,) = lines(run, "update")
    assert (
        batch["rethink_asked"] == len(again) and batch["rethink_kept"] == update["samples_auxiliary"] == len(kept) > 0
    )
    targets = np.concatenate([values for one, values in zip(again, found, strict=True) if one.id in kept])
    assert update["nll_auxiliary"] == pytest.approx(-targets.mean(), abs=1e-4)


def kept_of(again: list[Rollout]) -> set[str]:
    """Right, long enough, at most two of a question, the lowest ids first; no trigger's words count as doubt."""
    chosen: dict[str, list[str]] = {}
    for one in sorted(again, key=lambda one: one.id):
        if one.verdict == "correct" and LEAST <= len(one.token_logprobs) <= MOST:
            chosen.setdefault(one.question_id, []).append(one.id)
    return {name for names in chosen.values() for name in names[:PER_QUESTION]}


def lines(run: RunFolder, phase: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run.rl.train / "metrics.jsonl") if line["phase"] == phase]


@cache
def policy_model() -> Any:
    from transformers import InternVLForConditionalGeneration

    return InternVLForConditionalGeneration.from_pretrained(POLICY, dtype=torch.float32).eval()


def logprobs_of(run: RunFolder, one: Rollout) -> np.ndarray[Any, Any]:
    """Log-prob of each of the rollout's tokens under the starting model, by transformers."""
    tokenizer = Tokenizer.from_file(str(POLICY / "tokenizer.json"))
    rows = [json.loads(line) for line in (run.path.parent / "data" / "train.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["id"] == one.question_id)
    prompt = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<img>{'<IMG_CONTEXT>' * 4}</img>\n"
    prompt += f"{row['question']}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    pixels = torch.from_numpy(np.asarray(Image.open(run.path.parent / "data" / row["image"]).convert("RGB")).copy())
    with torch.no_grad():
        logits = policy_model()(
            input_ids=torch.tensor([[*ids, *one.token_ids]]),
            pixel_values=(pixels.permute(2, 0, 1).float() / 127.5 - 1.0)[None],
        ).logits[0]
    after = logits[len(ids) - 1 : -1].log_softmax(-1)
    return after.gather(1, torch.tensor(one.token_ids)[:, None])[:, 0].numpy()
