"""What the base models can do, measured by letting them speak."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import torch
from lessons import exchange, random_digits, reasoner_question
from teach import Words, pictures
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration, Qwen2ForCausalLM
from vocabulary import END_OF_TURN
from world import DESCRIBE, NAMES, caption, random_board, random_task

SAMPLES = 200
SEEN = re.compile(rf"({'|'.join(NAMES)}) (\d)")
BOXED = re.compile(r"\\boxed\{([^}]*)\}")


@torch.no_grad()
def speak(
    body: nn.Module,
    head: nn.Linear,
    words: Words,
    prompts: Sequence[str],
    features: Tensor | None = None,
    temperature: float = 0.0,
    max_tokens: int = 64,
) -> list[str]:
    """Continue each prompt until the end of the turn; `features` [prompts, 4, hidden] fill the image slots in order."""
    rows = [torch.tensor(words.ids(prompt)) for prompt in prompts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]).long()
    embedding, end = body.get_input_embeddings(), words.tokenizer.token_to_id(END_OF_TURN)
    inputs, positions = embedding(ids), (mask.cumsum(1) - 1).clamp(min=0)
    if features is not None:
        inputs = inputs.masked_scatter((ids == words.slot)[..., None], features)
    spoken, cache = torch.zeros(len(rows), 0, dtype=torch.long), None
    while spoken.shape[1] < max_tokens and not (spoken == end).any(1).all():
        out = body(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        logits, cache = head(out.last_hidden_state[:, -1]), out.past_key_values
        chosen = (
            torch.multinomial((logits / temperature).softmax(-1), 1) if temperature else logits.argmax(-1, keepdim=True)
        )
        spoken = torch.cat([spoken, chosen], 1)
        inputs, positions = embedding(chosen), positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(chosen)], 1)
    cut = ([*row, end] for row in spoken.tolist())
    return [words.tokenizer.decode(row[: row.index(end)], skip_special_tokens=False) for row in cut]


def boxed(text: str) -> str:
    """The last boxed answer, "" if there is none."""
    return (BOXED.findall(text) or [""])[-1]


def reasoner_figures(model: Qwen2ForCausalLM, words: Words) -> dict[str, float]:
    """Share of right answers on complete and right descriptions, greedy and at temperature 1."""
    rng = random.Random("check B")
    cases = [(random_digits(rng), random_task(rng)) for _ in range(SAMPLES)]
    prompts = [
        exchange(reasoner_question(caption(digits, rng, 0.0), task.question()), "").prompt for digits, task in cases
    ]
    shares = {}
    for name, temperature in (("reasoning_greedy", 0.0), ("reasoning_sampled", 1.0)):
        answers = map(boxed, speak(model.model, model.lm_head, words, prompts, temperature=temperature))
        right = [answer == task.answer(digits) for answer, (digits, task) in zip(answers, cases, strict=True)]
        shares[name] = sum(right) / SAMPLES
    return shares


def caption_figures(policy: InternVLForConditionalGeneration, words: Words) -> dict[str, float]:
    """Share of captions that name all four digits right, and of single digits that are right, on unseen scans."""
    rng = random.Random("check C")
    boards = [random_board("validation", rng) for _ in range(SAMPLES)]
    with torch.no_grad():
        features = policy.model.get_image_features(pixel_values=pictures(boards, rng)).pooler_output
    prompts = [exchange(DESCRIBE, "", board=board).prompt for board in boards]
    shares = {}
    for name, temperature in (("captions_greedy", 0.0), ("captions_sampled", 1.0)):
        texts = speak(policy.model.language_model, policy.lm_head, words, prompts, features, temperature)
        named = [dict(SEEN.findall(text)) for text in texts]
        truth = [dict(zip(NAMES, map(str, board.digits), strict=True)) for board in boards]
        shares[name] = sum(said == true for said, true in zip(named, truth, strict=True)) / SAMPLES
        pairs = [value == true[cell] for said, true in zip(named, truth, strict=True) for cell, value in said.items()]
        shares[name.replace("captions", "digits")] = sum(pairs) / max(1, len(pairs))
    return shares
