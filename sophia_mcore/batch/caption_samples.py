"""Samples from the policy's own captions, to compare the trainer's log-probs with those of the sampling engine."""

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
    """Samples of `comparable_captions`: the describe prompt is the question, the caption is the response."""
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
    """The first train.measure_samples captions that have a log-prob for each token and were sampled at temperature 1
    and top-p 1. Only these log-probs can be compared with the trainer's."""

    def comparable(caption: Caption) -> bool:
        known = len(caption.token_logprobs) == len(caption.token_ids) > 0 and min(caption.token_ids) >= 0
        return known and caption.temperature == 1.0 and caption.top_p == 1.0

    captions = read_folder(folder.captions, Caption) if folder.captions.is_dir() else iter(())
    return islice(filter(comparable, captions), config.train.measure_samples)
