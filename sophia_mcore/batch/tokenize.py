"""Tokenizes samples exactly as the policy sees them when it answers: prompt tokens, then response tokens.

Prompt and response are tokenized separately, because a sampling engine also appends response tokens to prompt tokens.
Tokenizing the joined text could merge tokens across the border.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sophia_mcore.batch.samples import STORED, Sample
from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.chat import Chat, Message, user_text
from sophia_mcore.pretrained.family import IMAGE_PLACE, ImageSize
from sophia_mcore.records import END_OF_THOUGHT, THOUGHT

_CALL = 512  # samples tokenized in one call, which uses all cores


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedSample:
    """A sample as token ids. Targets are the tokens from `prompt_tokens` on: the response and its end token.

    A response that was cut off at the token limit has no end token.
    """

    id: str
    source: str
    input_ids: NDArray[np.int32]
    prompt_tokens: int
    images: tuple[str, ...]  # digests
    image_sizes: tuple[ImageSize, ...]  # of each image
    weight: float
    kind: int = STORED
    kl: float = 0.0  # weight of its own k3 term
    learned: NDArray[np.bool_] | None = None  # of the tokens from `prompt_tokens` on; None: all

    @property
    def target_mask(self) -> NDArray[np.bool_]:
        """True where the token is a target (not shifted)."""
        mask = np.arange(len(self.input_ids)) >= self.prompt_tokens
        if self.learned is not None:
            mask[self.prompt_tokens :] = self.learned
        return mask


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The tokenized samples. `dropped` counts the others by reason: too_long, no_response, special_token_in_text,
    other_end_token (the sampled tokens end with another end token than the policy's)."""

    samples: list[TokenizedSample]
    dropped: Counter[str]


def load_tokenizer(model_dir: Path) -> Tokenizer:
    """Load tokenizer.json unchanged. (AutoTokenizer may choose another class, which gives other ids.)

    Raises SophiaError when the file is missing or unreadable.
    """
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise SophiaError(f"{path}: no such file; the policy needs a tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise SophiaError(f"{path}: not a readable tokenizer ({error})") from None


def end_token(tokenizer: Tokenizer, chat: Chat) -> int:
    """Id of the token with which the chat template ends an answer. Raises SophiaError if that is not a single token."""
    text = chat.end_of_turn
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise SophiaError(
            f"the chat template ends an answer with {text!r}, which is {len(ids)} tokens and not one: "
            "the policy could not learn to stop"
        )
    return ids[0]


def tokenize(
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    chat: Chat,
    image_size: Callable[[str], ImageSize],
    max_tokens: int,
) -> Tokenized:
    """Tokenize all samples. Samples longer than `max_tokens` are dropped and counted, never cut.

    `image_size`: image digest -> rows of pixels and tokens of the image. A sample whose question or response contains
    one of the tokenizer's special tokens is dropped: it could end its turn early or refer to an image that is missing.
    Raises SophiaError when the prompt and the images have different numbers of image tokens.
    """
    special = [*special_tokens(tokenizer), chat.image_token, IMAGE_PLACE]
    end = end_token(tokenizer, chat)
    image_token = tokenizer.token_to_id(chat.image_token)
    result = Tokenized([], Counter())
    usable = []
    for sample in samples:
        if not sample.response.strip():
            result.dropped["no_response"] += 1
        elif sample.response_ids is not None and image_token in sample.response_ids:
            result.dropped["special_token_in_text"] += 1  # sampled, but not visible in the decoded text
        elif any(token in sample.response or token in sample.question for token in special):
            result.dropped["special_token_in_text"] += 1
        elif sample.response_ids is not None and sample.complete and sample.response_ids[-1] != end:
            result.dropped["other_end_token"] += 1
        else:
            usable.append(sample)
    for start in range(0, len(usable), _CALL):
        for tokens in _tokenize_some(usable[start : start + _CALL], tokenizer, chat, image_size, end):
            found = int(np.count_nonzero(tokens.input_ids == image_token))
            wanted = sum(size.tokens for size in tokens.image_sizes)
            if found != wanted:
                raise SophiaError(
                    f"sample {tokens.id}: {found} {chat.image_token} tokens in the prompt, but its images make {wanted}"
                )
            if len(tokens.input_ids) > max_tokens:
                result.dropped["too_long"] += 1
            else:
                result.samples.append(tokens)
    return result


def _tokenize_some(
    samples: Sequence[Sample], tokenizer: Tokenizer, chat: Chat, image_size: Callable[[str], ImageSize], end: int
) -> Iterator[TokenizedSample]:
    sizes = [tuple(image_size(image) for image in sample.images) for sample in samples]
    parts = [split_text(sample, chat, own) for sample, own in zip(samples, sizes, strict=True)]
    prompt_ids = [encoding.ids for encoding in tokenizer.encode_batch_fast([prompt for prompt, _ in parts])]
    responses = [response for _, response in parts]
    response_ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(responses, add_special_tokens=False)]
    for sample, own, prompt, response in zip(samples, sizes, prompt_ids, response_ids, strict=True):
        if sample.response_ids is not None:
            answer = list(sample.response_ids)
        else:
            answer = [*response, end] if sample.complete else response
        yield TokenizedSample(
            id=sample.id,
            source=sample.source,
            input_ids=np.array([*prompt, *answer], dtype=np.int32),
            prompt_tokens=len(prompt),
            images=sample.images,
            image_sizes=own,
            weight=sample.weight,
            kind=sample.kind,
        )


def split_text(sample: Sample, chat: Chat, sizes: Sequence[ImageSize]) -> tuple[str, str]:
    r"""(prompt, target) of a sample, with image placeholders expanded. Evaluation sends the same prompt.

    The chat template of the policy, of the reasoner or of both may end the prompt with an opening "<think>":

    - Sampled tokens (`response_ids`): the opening tag is a part of the prompt. It was not sampled, and the log-probs
      were recorded after it.
    - A text with a thought: the target begins with "<think>", unless the policy's own template writes the tag.
    - A text without a thought: the prompt has no opening tag, since the target does not close one.
    """
    messages = [] if sample.system is None else [Message("system", sample.system)]
    messages.append(Message("user", user_text(sample.question, len(sample.images))))
    text = chat.render(messages, add_generation_prompt=True)
    opened = chat.opened_thought(messages, text)
    plain, target = text.removesuffix(opened), sample.response
    if sample.response_ids is not None:
        text = plain + sample.opened
    elif opened and target.startswith(THOUGHT):
        target = target.removeprefix(THOUGHT).removeprefix(opened.removeprefix(THOUGHT))
    elif opened:
        text = plain
    return chat.expand(text, [size.tokens for size in sizes], sample.id), target


def without_special_tokens(text: str, special: Sequence[str]) -> str:
    """Remove the special tokens ``special`` from a text, so that text from data or models cannot end or begin a turn.

    >>> without_special_tokens("a<|im_<s>end|>b", ["<s>", "<|im_end|>"])
    'ab'
    """
    found = True
    while found:
        found = False
        for token in sorted(special, key=len):
            if token in text:
                text, found = text.replace(token, ""), True
    return text


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    """Texts of the tokenizer's special tokens, without "<think>" and "</think>", which count as text."""
    added = tokenizer.get_added_tokens_decoder().values()
    return [token.content for token in added if token.special and token.content not in (THOUGHT, END_OF_THOUGHT)]
