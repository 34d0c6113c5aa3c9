"""The policy's own captions as samples, and which of them have log-probs that the trainer's can be compared with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from sophia_mcore.batch.samples import Sample
from sophia_mcore.config.schema import Config
from sophia_mcore.data.prompts import load_prompt
from sophia_mcore.pretrained.chat import plain
from sophia_mcore.records import Caption
from sophia_mcore.store.layout import RoundFolder
from sophia_mcore.store.shards import read_folder


def caption_samples(config: Config, folder: RoundFolder) -> list[Sample]:
    """The captions as the policy's answers to the describe prompt, up to train.measure_samples of them."""
    template = plain(load_prompt("describe", config.captions.prompt_file))
    return [
        Sample(
            id=caption.id,
            source="captions",
            images=caption.images,
            system=config.batch.default_system_prompt,
            question=template,
            response=caption.text,
            response_ids=caption.token_ids,
            opened=caption.opened,
            complete=caption.finish_reason == "stop",
        )
        for caption in comparable_captions(config, folder)
    ]


def comparable_captions(config: Config, folder: RoundFolder) -> Iterator[Caption]:
    """The first train.measure_samples captions with a log-prob for each token, sampled at temperature 1 and top-p 1."""

    def comparable(caption: Caption) -> bool:
        known = len(caption.token_logprobs) == len(caption.token_ids) > 0 and min(caption.token_ids) >= 0
        return known and caption.temperature == 1.0 and caption.top_p == 1.0

    captions = read_folder(folder.captions, Caption) if folder.captions.is_dir() else iter(())
    return islice(filter(comparable, captions), config.train.measure_samples)
