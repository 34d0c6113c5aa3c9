"""A run of several stages whose phases and on-policy stage are stand-ins: they claim the folder, keep records and write
results as the real ones do, but train nothing. How good a model is stands in its weights.

    python -m tests.support.stages_world CONFIG [--kill-at POINT] [--new-settings]

runs the stages; at POINT ("01-rl evaluate") it kills itself as `kill -9` does.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import run_command
from sophia_mcore.launch import phases, promotion, stages
from sophia_mcore.launch.local import claim_folder, make_folder
from sophia_mcore.launch.readers import evaluated_models, rl_evaluated_models
from sophia_mcore.launch.stage_configs import StageRun
from sophia_mcore.launch.state import state_of
from sophia_mcore.phase import Phase
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.provenance.prepare import prepare
from sophia_mcore.records import Answer, Question, trajectory_id
from sophia_mcore.rl.validation import due_versions, validation_queue
from sophia_mcore.rl.versions import newest_version
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.store.shards import read_shard, write_shard
from sophia_mcore.store.units import UnitQueue
from tests.support.provenance_world import make_whole_run
from tests.support.report_world import sampled
from tests.support.versions import publish

QUESTIONS = 10  # in each set of evaluation questions

TOML = """
[run]
name = "x"
folder = "run"
[models]
policy = "policy"
reasoner = "policy"
[[data.questions]]
kind = "jsonl"
path = "questions.jsonl"
[captions]
images_per_unit = 64
[reasoning]
questions_per_unit = 3
[evaluate]
questions_per_unit = 64
[[evaluate.questions]]
kind = "jsonl"
path = "held_out.jsonl"
name = "held-out"
[[evaluate.questions]]
kind = "jsonl"
path = "other.jsonl"
name = "other"
[[evaluate.protocols]]
name = "paper"
sampling = {}
[[evaluate.protocols]]
name = "greedy"
sampling = { temperature = 0.0 }
[track]
enabled = false
[rl]
batches = 2
max_tokens = 64
[[stages]]
name = "warm-up"
kind = "supervised"
set = { "train.data" = "pairs.jsonl", train.steps = 4 }
promote = "evaluate.pass_at_1"
[[stages]]
name = "rl"
kind = "rl"
promote = "evaluate.held-out"
[[stages]]
name = "again"
kind = "supervised"
set = { "train.data" = "pairs.jsonl" }
promote = "evaluate.greedy"
"""


def write_world(folder: Path, quality: dict[str, float], text: str = TOML) -> Path:
    """FOLDER/run.toml with what it names. ``quality``: share of right answers of each stage's model, by stage."""
    write_model(folder / "policy", quality.get("policy", 0.2))
    for name in ("questions", "held_out", "other"):
        (folder / f"{name}.jsonl").write_text('{"id": "q", "question": "What?", "answer": "1"}\n')
    (folder / "pairs.jsonl").write_text('{"id": "p", "question": "What?", "response": "1"}\n')
    (folder / "quality.json").write_text(json.dumps(quality))
    (folder / "run.toml").write_text(text)
    return folder / "run.toml"


def write_model(folder: Path, quality: float, note: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(json.dumps({"quality": quality, "note": note}))


def quality_of(model: Path) -> float:
    return float(json.loads((model / "model.safetensors").read_text())["quality"])


class World:
    """The stand-ins. ``log`` has what was done, as "01-rl train"."""

    def __init__(self, folder: Path, kill_at: str = "") -> None:
        self.folder, self.kill_at = folder, kill_at
        self.log: list[str] = []

    def did(self, config: Config, what: str) -> None:
        label = f"{config.run.folder.name} {what}"
        if label == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.log.append(label)
        with open(self.folder / "log", "a") as file:
            file.write(f"{label}\n")

    def quality(self, config: Config) -> float:
        found = json.loads((self.folder / "quality.json").read_text())
        return float(found[config.run.folder.name[3:]])

    def run_phases(
        self, config: Config, names: Iterable[str], rounds: Iterable[int], *, new_settings: bool = False
    ) -> RunFolder:
        run, chosen = make_folder(config), set(names)
        with folder_lock(run.lock_file):
            claim_folder(config, run, new_settings=new_settings)
            for index in rounds:
                for phase in phases.phases_of(index):
                    if phase.name in chosen and phase.wanted(config) and not phase.again:
                        self.phase(phase, Round(config, run, index))
        return run

    def phase(self, phase: Phase, round: Round) -> None:
        prepare(Provenance(round.config, round.run, phases.PHASES), phase, round.index, lambda text: None)
        if state_of(phase, round).finished:
            return
        self.did(round.config, phase.name)
        if phase.name == "questions" and round.config.train.data is None:  # a round of SOPHIA, whole
            make_whole_run(round.run.path, round.config)
            write_model(round.folder.model, self.quality(round.config))
        elif phase.name == "questions":
            write_questions(round.config, round.run)
        elif phase.name == "train":
            write_training(round)
        elif phase.name == "export":
            write_model(round.folder.model, self.quality(round.config), f"from {quality_of(round.policy)}")
            tensors = (round.folder.model / "model.safetensors").read_text()
            source = {"source": {"folder": "step-00000004"}, "tensors": tensors}
            (round.folder.model / "conversion.json").write_text(json.dumps(source))
        elif phase.name == "evaluate":
            assert phase.units is not None
            write_answers(round, phase.units(round), dict(evaluated_models(round)))

    def run_rl(self, config: Config, *, new_settings: bool = False) -> RunFolder:
        run = make_folder(config)
        round = Round(config, run, 0)
        with folder_lock(run.lock_file):
            claim_folder(config, run, new_settings=new_settings)
            if not phases.QUESTIONS.state_of(round).finished:
                write_questions(config, run)
            if not phases.RL.state_of(round).finished:
                self.train_on_policy(round)
            if phases.RL_EVALUATE.wanted(config):
                prepare(Provenance(config, run, phases.PHASES), phases.RL_EVALUATE, 0, lambda text: None)
                assert phases.RL_EVALUATE.units is not None
                queues = phases.RL_EVALUATE.units(round)
                if any(not queue.done() for queue in queues):
                    self.did(config, "evaluate")
                    write_answers(round, queues, dict(rl_evaluated_models(round)))
        return run

    def train_on_policy(self, round: Round) -> None:
        config, run = round.config, round.run
        start = config.models.policy
        run.rl.versions.mkdir(parents=True, exist_ok=True)
        newest = newest_version(run.rl.versions)
        done = -1 if newest is None else newest.version
        for version in range(done + 1, config.on_policy.batches + 1):
            self.did(config, f"batch {version}")
            write_model(self.folder / "version", self.quality(config) if version else quality_of(start), f"v{version}")
            publish(self.folder / "version", run.rl.versions, version)
            if config.on_policy.validation:
                write_validation(config, run, version, quality_of(self.folder / "version"))
        write_model(run.rl.model, self.quality(config), f"{config.on_policy.batches} batches from {quality_of(start)}")
        run.rl.train.mkdir(parents=True, exist_ok=True)
        newest = newest_version(run.rl.versions)
        assert newest is not None
        summary = {"batches": config.on_policy.batches, "version": newest.version, "digest": newest.digest}
        run.rl.summary_file.write_text(json.dumps(summary))


def write_questions(config: Config, run: RunFolder) -> None:
    made = [_question(f"{s}{i}", s) for s in ("held-out", "other") for i in range(QUESTIONS)]
    files = {run.questions_file: made[:2], run.evaluation_questions_file: made}
    if config.rl is not None and config.rl.validation:
        files[run.rl.validation_questions_file] = made[:QUESTIONS]
    if config.rl is not None and config.rl.questions:
        files[run.rl.own_questions_file] = made[:2]
    for file, found in files.items():
        if not file.is_file():
            write_shard(file, found, Question)


def _question(name: str, source: str) -> Question:
    return Question(id=name, question="What?", answer="1", answer_type="integer", images=("0" * 64,), source=source)


def write_training(round: Round) -> None:
    folder = round.folder
    checkpoint = folder.checkpoints / "step-00000004"
    checkpoint.mkdir(parents=True)
    made_from = {"data": Path("pairs.jsonl").read_text(), "steps": round.config.train.steps}
    (checkpoint / "checkpoint.json").write_text(json.dumps(made_from))
    folder.train_summary_file.write_text(json.dumps({"steps": 4}))


def write_answers(round: Round, queues: Iterable[UnitQueue], models: dict[str, Path]) -> None:
    """The answers that are missing. A model answers the first of each set of questions, as many as it is good for."""
    run = round.run
    asked = {one.id: one for one in read_shard(run.evaluation_questions_file, Question)}
    for queue in queues:
        label = queue.folder.parent.name
        quality = quality_of(models[label])
        for unit in queue.units.values():
            target = queue.folder / f"{unit.id}.parquet"
            if not target.exists():
                write_shard(target, [_answer(asked[item], quality) for item in unit.items], Answer)


def _answer(question: Question, quality: float) -> Answer:
    right = int(question.id.removeprefix(question.source)) < QUESTIONS * quality
    fields: dict[str, Any] = {**sampled("1", 1), "id": trajectory_id(question.id, "", 0), "question_id": question.id}
    return Answer(**fields, index=0, verdict="correct" if right else "incorrect", extracted="1")


def write_validation(config: Config, run: RunFolder, version: int, quality: float) -> None:
    questions = {one.id: one for one in read_shard(run.rl.validation_questions_file, Question)}
    if version in due_versions(config.on_policy, version):
        queue = validation_queue(config, run, version, config.evaluate.protocols[0].name, list(questions))
        for unit in queue.units.values():
            found = [_answer(questions[item], quality) for item in unit.items]
            write_shard(queue.folder / f"{unit.id}.parquet", found, Answer)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--kill-at", default="")
    parser.add_argument("--new-settings", action="store_true")
    options = parser.parse_args(arguments)
    world = World(options.config.parent.absolute(), options.kill_at)

    def record(one: StageRun, *others: Any) -> None:
        world.did(one.config, "choice")
        promotion.record(one, *others)

    def work() -> None:
        config = load_config(options.config)
        stages.run_stages(config, print, new_settings=options.new_settings, ended=lambda one: print("ended", one.label))

    with patch.multiple(stages, run_phases=world.run_phases, run_rl=world.run_rl, record=record):
        return run_command("stages", work)


if __name__ == "__main__":
    sys.exit(main())
