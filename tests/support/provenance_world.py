"""A run in which every part of every phase has results, each with its record; nothing was trained for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.generate.captions import image_sets_of
from sophia_mcore.launch.phases import PHASES
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.records import Answer, Question, Terms
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_shard, shard_files, write_shard
from sophia_mcore.store.units import units_of
from tests.support.report_world import make_finished_run

_UNITS = {
    "captions.images_per_unit": 64, "fresh.questions_per_unit": 64, "reasoning.questions_per_unit": 3,
    "evaluate.questions_per_unit": 64,
}  # fmt: skip


def make_whole_run(folder: Path, config: Config | None = None) -> tuple[RunFolder, Config]:
    """A finished run of six questions. ``config``: other settings than the world's; its folder is replaced."""
    run, made = make_finished_run(folder, questions=6)
    config = with_values(config or made, {"run.folder": folder, **_UNITS})
    run.config_file.write_text(dump_toml(config))
    checkpoint = run.round(0).checkpoints / "step-00000019"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text(json.dumps({"step": 19, "digests": {"__0_0.distcp": "abc"}}))
    (run.round(0).model / "conversion.json").write_text(json.dumps({"source": {"folder": checkpoint.name}}))
    (run.round(0).model / "model.safetensors").write_bytes(b"old weights")
    if config.fp8.used:
        run.fp8_check.mkdir()
        (run.fp8_check / "summary.json").write_text(json.dumps({"passed": True}))
    questions = read_shard(run.questions_file, Question)
    answers = read_shard(next(run.evaluation("base", "paper").glob("*.parquet")), Answer)
    write_shard(run.round(0).fresh / "000000-a.parquet", answers[: len(questions)], Answer)
    if not config.verdict_alone:
        row = Terms(trajectory_id="t", question_id="q0", caption_id="", values="{}")
        write_shard(run.round(0).terms / "000000-a.parquet", [row], Terms)
    for protocol in config.evaluate.protocols:
        for label in ("base", "round-0"):
            target = run.evaluation(label, protocol.name) / "000000-a.parquet"
            if not target.exists():
                write_shard(target, answers, Answer)
    _name_shards(config, run)
    record_all(config, run)
    return run, config


def _name_shards(config: Config, run: RunFolder) -> None:
    """Give the shards of the world the names of work units."""
    asked = [question.id for question in read_shard(run.questions_file, Question)]
    held_out = [question.id for question in read_shard(run.evaluation_questions_file, Question)]
    folder = run.round(0)
    named = {
        folder.captions: units_of(image_sets_of(run), _UNITS["captions.images_per_unit"]),
        folder.fresh: units_of(asked, _UNITS["fresh.questions_per_unit"]),
        folder.trajectories: units_of(asked, _UNITS["reasoning.questions_per_unit"]),
    }
    for answers in run.evaluation_questions_file.parent.glob("*/*"):
        named[answers] = units_of(held_out, _UNITS["evaluate.questions_per_unit"])
    for path, units in named.items():
        for shard, unit in zip(shard_files(path), units, strict=True):
            shard.rename(path / f"{unit.id}.parquet")


def record_all(config: Config, run: RunFolder) -> None:
    """Write down that all results of the run were made with this configuration."""
    provenance = Provenance(config, run, PHASES)
    for phase, index, part in list(provenance.all_parts()):
        provenance.write(phase, index, part)


def with_values(config: Any, values: dict[str, Any]) -> Any:
    """``config`` with other values by key, unchecked: also such as the schema would refuse."""
    for key, value in values.items():
        config = _with(config, key.split("."), value)
    return config


def _with(tree: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    if isinstance(tree, tuple):
        position = int(path[0])
        return (*tree[:position], _with(tree[position], path[1:], value), *tree[position + 1 :])
    if isinstance(tree, BaseModel):
        return tree.model_copy(update={path[0]: _with(getattr(tree, path[0]), path[1:], value)})
    return {**tree, path[0]: _with(tree.get(path[0]), path[1:], value)}
