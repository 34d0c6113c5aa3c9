"""Teaching a toy model with plain PyTorch: batches of lessons, one loss, Muon for matrices and AdamW for the rest."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from lessons import SLOT, Lesson
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import InternVLForConditionalGeneration
from world import NAMES, Board, draw

IGNORE = -100
Eyes = Callable[[Sequence[Board]], Tensor]  # boards -> image features [boards, 4, hidden]


@dataclass(frozen=True)
class Schedule:
    """Length and learning rates; both optimisers warm up over 20 steps and fall along a cosine to `final`."""

    steps: int
    rows: int
    muon: float
    adamw: float
    final: float = 0.1

    def factor(self, step: int) -> float:
        """Share of the peak learning rate."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return min(1.0, (step + 1) / 20) * (self.final + (1 - self.final) * cosine)


class Words:
    """The tokenizer with a cache, as most pieces recur."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids = cache(lambda text: tuple(tokenizer.encode(text).ids))
        self.slot = tokenizer.token_to_id(SLOT)
        self.digits = torch.tensor([tokenizer.token_to_id(f" {digit}") for digit in range(10)])
        self.names = torch.tensor([self.ids(f" {name}")[0] for name in NAMES])

    def collate(self, lessons: Sequence[Lesson]) -> tuple[Tensor, Tensor]:
        """Token ids and labels [rows, longest], padded on the right; labels of what is not learnt are IGNORE."""
        rows, labels = [], []
        for lesson in lessons:
            pieces = [(self.ids(text), learn) for text, learn in lesson.pieces]
            rows.append(torch.tensor([i for ids, _ in pieces for i in ids]))
            labels.append(torch.tensor([i if learn else IGNORE for ids, learn in pieces for i in ids]))
        pad = nn.utils.rnn.pad_sequence
        return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=IGNORE)


def imagined(words: Words, embedding: nn.Embedding) -> Eyes:
    """Image features made of words: the token of a cell is the sum of the embeddings of its name and its digit.

    So the language model learns to look before there is a tower, and the tower later learns to produce these sums.
    """

    def see(boards: Sequence[Board]) -> Tensor:
        digits = torch.tensor([board.digits for board in boards])
        return embedding(words.digits)[digits] + embedding(words.names)

    return see


def pictures(boards: Sequence[Board], rng: random.Random) -> Tensor:
    """The boards as the tower wants them: float32 [boards, 3, 32, 32] in -1..1."""
    pixels = torch.stack([torch.from_numpy(draw(board, rng)) for board in boards])
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def tower_eyes(policy: InternVLForConditionalGeneration, rng: random.Random) -> Eyes:
    """Image features by the policy's own tower and projector."""
    return lambda boards: policy.model.get_image_features(pixel_values=pictures(boards, rng)).pooler_output


def answer_logits(
    body: nn.Module, head: nn.Linear, words: Words, lessons: Sequence[Lesson], eyes: Eyes
) -> tuple[Tensor, Tensor]:
    """Logits and labels of the tokens to be learnt: [tokens, vocabulary] and [tokens]."""
    ids, labels = words.collate(lessons)
    embedded = body.get_input_embeddings()(ids[:, :-1])
    boards = [lesson.board for lesson in lessons if lesson.board]
    if boards:
        embedded = embedded.masked_scatter((ids[:, :-1] == words.slot)[..., None], eyes(boards))
    hidden = body(inputs_embeds=embedded, use_cache=False).last_hidden_state
    learn = labels[:, 1:] != IGNORE
    return head(hidden[learn]), labels[:, 1:][learn]


def optimizers(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers (twice as fast as AdamW here), AdamW for all else that is trained."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    known = {id(p) for p in matrices}
    others = [p for _, p in trained if id(p) not in known]
    muon = torch.optim.Muon(matrices, lr=schedule.muon, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=schedule.adamw, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    return [muon, adamw]


def teach(
    model: nn.Module, schedule: Schedule, loss_of: Callable[[float], Tensor], progress: Callable[[int, str], None]
) -> float:
    """Minimise `loss_of(share of the steps done)`; returns the last loss."""
    opts = optimizers(model, schedule)
    peaks = [group["lr"] for opt in opts for group in opt.param_groups]
    loss = torch.zeros(())
    for step in range(schedule.steps):
        for peak, group in zip(peaks, (group for opt in opts for group in opt.param_groups), strict=True):
            group["lr"] = peak * schedule.factor(step)
        loss = loss_of(step / schedule.steps)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        progress(1, f"loss {loss.item():.2f}" if step % 10 == 9 else "")
    return loss.item()


def cross_entropy(logits_and_labels: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over the tokens to be learnt."""
    return F.cross_entropy(*logits_and_labels)


@torch.no_grad()
def accuracy(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of tokens whose most likely prediction is right."""
    right = torch.cat([logits.argmax(-1) == labels for logits, labels in batches])
    return right.float().mean().item()
