"""What an early stop has left out of a round's trajectories, and whether the verdicts still agree with that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.score.early_stop import Cut, Rule, unjustified
from sophia_mcore.score.reward import Candidate
from sophia_mcore.store.layout import RoundFolder
from sophia_mcore.store.shards import read_metadata


@dataclass(frozen=True)
class Counts:
    """Trajectories of some units. ``begun``: of those left out, ``tokens_in_vain`` of theirs were sampled at least.

    How many more it were depends on the moment at which the engine gave them up. ``cuts``: by question.
    """

    stored: int
    left_out: int
    begun: int
    tokens_in_vain: int
    cuts: dict[str, Cut]


def counted(shards: Sequence[Path]) -> Counts:
    """From the shards' metadata alone."""
    stored = left_out = begun = in_vain = 0
    cuts: dict[str, Cut] = {}
    for path in shards:
        metadata = read_metadata(path)
        found = metadata["metadata"].get("early_stop", {})
        stored += metadata["rows"]
        left_out += found.get("left_out", 0)
        begun += found.get("begun", found.get("left_out", 0))  # shards of before do not say it
        in_vain += found.get("tokens_in_vain", 0)
        for question, cut in found.get("cut", {}).items():
            length, name = cut["bar"]
            cuts[question] = Cut((length, name), frozenset(cut["captions"]))
    return Counts(stored, left_out, begun, in_vain, cuts)


def left_out(
    config: Config, folder: RoundFolder, shards: Sequence[Path], candidates: Sequence[Candidate]
) -> dict[str, Any]:
    """For kept.json: counts of what ``reasoning.waves`` has left out; {} without it.

    Raises SophiaError when a caption has too few trajectories for what is known now: then the kept set is not that of
    sampling everything.
    """
    if config.reasoning.waves is None:
        return {}
    rule = Rule(config.reward, config.reasoning.per_caption)
    counts = counted(shards)
    if found := unjustified(rule, candidates, counts.cuts):
        question, caption = found[0]
        raise SophiaError(
            f"{folder.trajectories}: {len(found)} captions have too few trajectories, such as {caption} of question "
            f"{question!r}: sampling stopped by verdicts or a reward that no longer hold (reasoning.waves); move the "
            "folder away and run `sophia generate` again"
        )
    stored = Counter((one.question_id, one.caption_id) for one in candidates)
    questions = {one.question_id for one in candidates}
    pairs = len(questions) * config.captions.per_image
    tokens = sum(one.length for one in candidates)
    # as if those left out had become as long as the stored ones are on average, which nobody knows
    length = tokens / max(1, counts.stored)
    never_begun = counts.left_out - counts.begun
    return {
        "early_stop": {
            "waves": list(config.reasoning.waves),
            "captions_stopped": pairs - sum(count == config.reasoning.per_caption for count in stored.values()),
            "trajectories_left_out": counts.left_out,
            "trajectories_given_up": counts.begun,
            "tokens_sampled": tokens + counts.tokens_in_vain,
            "tokens_saved": round(never_begun * length),
            "tokens_saved_at_most": max(0, round(counts.left_out * length) - counts.tokens_in_vain),
        }
    }
