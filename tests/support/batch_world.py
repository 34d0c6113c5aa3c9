"""A byte-level tokenizer, an InternVL chat and a few images: the smallest world in which batches are real."""

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sophia_mcore.batch.samples import Sample
from sophia_mcore.pretrained.chat import Chat
from sophia_mcore.pretrained.internvl.tiling import ImageSpec
from sophia_mcore.store.images import ImageStore
from tests.support.pictures import noise

SPEC = ImageSpec(tile_size=8, tokens_per_tile=4, max_tiles=4)
CHAT = Chat.built_in("internvl2_5", system_message="You see.")
SPECIAL = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")


def make_tokenizer(special=SPECIAL) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def make_images(folder) -> tuple[ImageStore, list[str]]:
    """One square image (1 tile), one wide (2 tiles + thumbnail)."""
    store = ImageStore(folder)
    return store, store.add_many([noise(8, 8, 0), noise(16, 8, 1)])


def make_samples(digests, count=20, source="kept") -> list[Sample]:
    rng = np.random.default_rng(5)
    choices = [(), (digests[0],), (digests[1],), (digests[1], digests[0])]
    return [
        Sample(
            id=f"{source}-{i}",
            source=source,
            images=choices[i % 4],
            system=None if i % 3 else "Think.",
            question=f"q{i}",
            response=f"<think>{'x' * int(rng.integers(1, 60))}</think>{i}",
        )
        for i in range(count)
    ]
