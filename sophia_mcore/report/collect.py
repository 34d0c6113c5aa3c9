"""What a run's folder says of itself: counts, rewards, losses, pass@1. Reads whatever is there; changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.evaluate.results import results
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import shard_files

_SUMMARY_FIELDS = ("questions", "captions", "trajectories", "kept", "caption_reward_mean")


def collect(config: Config, run: RunFolder) -> dict[str, Any]:
    """The content of report.json.

    {"run", "rounds": [{"round", "questions", "captions", "trajectories", "kept", "caption_reward_mean",
    "tokens_generated", "verdicts", "dropped", "train": {"steps", "loss_first", "loss_last", ...}}],
    "evaluation": {"base": {"pass_at_1", "n", "ci95": [lo, hi], ...}, "round-0": {...}}, "missing": [...]}.
    A part that is not there yet is absent and named in "missing".
    """
    missing: list[str] = []
    rounds = []
    for index in range(max(config.run.rounds, _rounds_begun(run))):
        entry = _round(run, index, missing)
        if len(entry) > 1 or index == 0:
            rounds.append(entry)
    evaluation = results(run, config)
    for label in ["base"] * config.evaluate.evaluate_base + [f"round-{r['round']}" for r in rounds]:
        if config.evaluate.questions and label not in evaluation:
            missing.append(f"evaluation of {label}")
    return {"run": config.run.name, "rounds": rounds, "evaluation": evaluation, "missing": missing}


def _rounds_begun(run: RunFolder) -> int:
    count = 0
    while run.round(count).path.is_dir():
        count += 1
    return count


def _round(run: RunFolder, index: int, missing: list[str]) -> dict[str, Any]:
    folder = run.round(index)
    entry: dict[str, Any] = {"round": index}
    kept = read_json(folder.kept_summary_file)
    if kept is None:
        missing.append(f"round {index}: verdicts and kept trajectories")
    else:
        entry.update({name: kept[name] for name in _SUMMARY_FIELDS if name in kept})
        entry.update({name: kept[name] for name in ("verdicts", "dropped") if name in kept})
    tokens = sum(count_tokens(shards) for shards in (folder.captions, folder.trajectories))
    if tokens:
        entry["tokens_generated"] = tokens
    train = read_json(folder.train / "summary.json")
    if train is None:
        missing.append(f"round {index}: training")
    else:
        entry["train"] = train
    return entry


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in ``path``, or None when it is absent or damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def count_tokens(folder: Path) -> int:
    """Tokens sampled into the Parquet shards of ``folder``; only that column is read."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    total = 0
    for shard in shard_files(folder) if folder.is_dir() else ():
        try:
            lengths = pc.list_value_length(pq.read_table(shard, columns=["token_ids"]).column(0))
        except (OSError, ValueError):
            continue  # a damaged shard is the store's to report, not the report's to die of
        total += int(pc.sum(lengths).as_py() or 0)
    return total
