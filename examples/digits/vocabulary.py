"""The tokenizer of both toy models: Qwen2's scheme (byte-level BPE) with a vocabulary as small as the world.

Two needs meet here:

- Every loader must give the same ids. transformers replaces whatever tokenizer class a directory with
  `model_type = "qwen2"` names by its own `Qwen2Tokenizer`, which keeps the vocabulary and the merges of
  tokenizer.json but brings its own splitting rule. So we build exactly that kind of tokenizer.
- A cell's name and its digit must be neighbours (" third 7" = " third", " 7"), or looking a cell up is hardly learned,
  and a result should be one token. Qwen's rule splits every number into digits, so " 0" .. " 9" and "10" .. "99"
  are added tokens, which all loaders cut out before any rule.

`<think>` and `</think>` are ordinary added tokens (not special), so that decoding keeps them, as in Qwen3.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from world import DESCRIBE, NAMES, caption, random_task

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
IMAGE_TOKENS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
SPECIAL = (END_OF_TEXT, "<|im_start|>", END_OF_TURN, *IMAGE_TOKENS.values(), "<video>")
SPECIAL += ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
THINKING = ("<think>", "</think>")
NUMBERS = (*(str(n) for n in range(10, 100)), *(f" {n}" for n in range(10)))
SPLIT = (  # Qwen2's published rule
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<IMG_CONTEXT>
{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def corpus(prompts: tuple[str, ...], samples: int = 3000) -> list[str]:
    """Texts that hold every word of the world, the prompts included."""
    rng = random.Random("corpus")
    texts = ["system\n", "user\n", "assistant\n", DESCRIBE, "Calculate", *prompts]
    texts += [f"What is the {name} digit? {name} {name}" for name in NAMES]
    for _ in range(samples):
        task, digits = random_task(rng), [rng.randrange(10) for _ in NAMES]
        texts += [task.question(), *re.split("</?think>", task.chain(digits, rng)), caption(digits, rng)]
    return texts


def build_tokenizer(prompts: tuple[str, ...]) -> Tokenizer:
    """Train the tokenizer until every word of the world is one token; reserve tokens fill it up to a multiple of 64."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    rule = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([rule, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(corpus(prompts), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*THINKING, *NUMBERS)])
    missing = -tokenizer.get_vocab_size() % 64
    tokenizer.add_special_tokens([f"<|reserved_{i}|>" for i in range(missing)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template in the form that transformers reads."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "bos_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "extra_special_tokens": IMAGE_TOKENS | {"video_token": "<video>"},
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
