"""Functions that read the state and inputs of phases from the run's folder: fields of the table in ``launch.phases``.

The functions ``*_units`` return the queues of a phase's work units. They return an empty list as long as the units are
not known, because an earlier phase has not made its results.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.phase import PhaseState, state_of_units
from sophia_mcore.records import Question
from sophia_mcore.rl.questions import checked_questions
from sophia_mcore.rl.start import rl_start
from sophia_mcore.rl.versions import newest_version
from sophia_mcore.score.left_out import counted
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.labels import BASE, STAGE, STAGE_START, round_label
from sophia_mcore.store.layout import CONVERSION, Round, RunFolder, checkpoint_steps
from sophia_mcore.store.shards import read_shard, shard_files
from sophia_mcore.store.units import UnitQueue
from sophia_mcore.track.metrics import read_metrics
from sophia_mcore.train.fp8.gate import has_passed

_RECENT_STEPS = 20


def evaluated_models(round: Round) -> list[tuple[str, Path]]:
    """(label, folder) of the models that a round's evaluation asks: its export, and in round 0 the base model too."""
    if round.config.evaluate.only:
        return [(BASE, round.config.models.policy)]
    with_base = round.config.evaluate.evaluate_base and round.index == 0
    return [(BASE, round.config.models.policy)] * with_base + [(round_label(round.index), round.folder.model)]


def asked_models(round: Round) -> list[Path]:
    """Folders of the models that the evaluation of a round loads. An empty list if an endpoint answers."""
    if round.config.evaluate.engine.kind == "openai":
        return []
    return [model for _, model in evaluated_models(round)]


def questions_state(round: Round, phase: str) -> PhaseState:
    """Finished if every configured set of questions has its file."""
    run = round.run
    wanted = [run.questions_file] if round.config.data.questions else []
    wanted += [run.evaluation_questions_file] if round.config.evaluate.questions else []
    if round.config.rl is not None and round.config.rl.questions:
        wanted.append(run.rl.own_questions_file)
    if round.config.rl is not None and round.config.rl.validation:
        wanted.append(run.rl.validation_questions_file)
    done = sum(path.is_file() for path in wanted)
    return PhaseState(phase=phase, round=round.index, total=len(wanted), done=done, finished=done == len(wanted))


def caption_units(round: Round) -> list[UnitQueue]:
    """Units of captions and, if the objective uses them, of the policy's own answers."""
    from sophia_mcore.generate.answers import fresh_queue
    from sophia_mcore.generate.captions import caption_queue, image_sets_of

    run = round.run
    if not run.questions_file.is_file():
        return []
    queues = [caption_queue(round, image_sets_of(run))]
    if round.config.objective.fresh_share:
        queues.append(fresh_queue(round, _ids(run.questions_file)))
    return queues


def reasoning_units(round: Round) -> list[UnitQueue]:
    """Units of trajectories."""
    from sophia_mcore.generate.reasoning import reasoning_queue

    if not round.run.questions_file.is_file():
        return []
    return [reasoning_queue(round, _ids(round.run.questions_file))]


def reasoning_state(round: Round, phase: str) -> PhaseState:
    """With what an early stop has left out so far."""
    found = state_of_units(phase, round.index, reasoning_units(round))
    if round.config.reasoning.waves is None or not found.done:
        return found
    counts = counted(shard_files(round.folder.trajectories))
    share = counts.left_out / max(1, counts.left_out + counts.stored)
    return replace(
        found, note=f"early stop: {counts.left_out:,} trajectories left out, {share:.0%} of those due so far"
    )


def evaluation_units(round: Round) -> list[UnitQueue]:
    """Units of answers to the evaluation questions: a queue for each model of the round and protocol."""
    from sophia_mcore.generate.answers import evaluation_queue

    config, run = round.config, round.run
    if not run.evaluation_questions_file.is_file():
        return []
    ids = _ids(run.evaluation_questions_file)
    labels = [label for label, _ in evaluated_models(round)]
    return [evaluation_queue(round, label, p, ids) for label in labels for p in config.evaluate.protocols]


def _ids(questions_file: Path) -> list[str]:
    return [question.id for question in read_shard(questions_file, Question)]


def score_units(round: Round) -> list[UnitQueue]:
    """Units of verdicts. Before the reasoning is finished, their number is not known."""
    from sophia_mcore.score.phase import plan_units

    folder = round.folder
    shards = shard_files(folder.trajectories) if folder.trajectories.is_dir() else []
    if not shards or not state_of_units("", round.index, reasoning_units(round)).finished:
        return []
    return [UnitQueue(folder.verdicts, plan_units(shards, round.config.score.trajectories_per_unit))]


def score_state(round: Round, phase: str) -> PhaseState:
    """Finished if all verdicts, the kept set and its summary are written."""
    found = state_of_units(phase, round.index, score_units(round))
    kept = round.folder.kept_file.is_file() and round.folder.kept_summary_file.is_file()
    return replace(found, finished=found.finished and kept)


def require_kept(round: Round) -> None:
    """Raise SophiaError if training cannot start: the score phase writes its summary last, so it must be there."""
    if round.config.train.data is None and not round.folder.kept_summary_file.is_file():
        raise SophiaError(f"train of round {round.index} cannot start: score of round {round.index} is not finished")


def require_kept_for_fp8_check(round: Round) -> None:
    """Raise SophiaError if the FP8 check cannot start: it measures on the results of the score phase."""
    if not round.folder.kept_summary_file.is_file():
        raise SophiaError(
            f"fp8-check of round {round.index} cannot start: score of round {round.index} is not finished"
        )


def fp8_check_state(round: Round, phase: str) -> PhaseState:
    """Finished if a check with these settings has passed, in this phase or by `sophia fp8-check`."""
    passed = has_passed(round.config, round.run)
    return PhaseState(phase=phase, round=round.index, total=1, done=int(passed), finished=passed)


def train_state(round: Round, phase: str) -> PhaseState:
    """Steps from the metrics. Finished if the summary is written."""
    folder = round.folder
    lines = [line for line in read_metrics(folder.train_metrics_file) if "loss" in line]
    finished = folder.train_summary_file.is_file()
    done = lines[-1]["step"] if lines else 0
    total = done if finished else round.config.train.steps or 0
    seconds = statistics.median(line["step_seconds"] for line in lines[-_RECENT_STEPS:]) if lines else None
    return PhaseState(
        phase=phase,
        round=round.index,
        total=total,
        done=done,
        finished=finished,
        loss=lines[-1]["loss"] if lines else None,
        seconds_left=(total - done) * seconds if seconds is not None and total and not finished else None,
    )


def export_state(round: Round, phase: str) -> PhaseState:
    """Finished if the export was made from the last checkpoint."""
    proof = round.folder.model / CONVERSION  # the folder appears at once, with this file, when it is complete
    source = (json_or_empty(proof).get("source") or {}).get("folder")
    checkpoints = list(checkpoint_steps(round.folder.checkpoints).values())
    finished = source is not None and (not checkpoints or source == checkpoints[-1].name)
    return PhaseState(phase=phase, round=round.index, total=1, done=int(finished), finished=finished)


def report_state(round: Round, phase: str) -> PhaseState:
    """Finished if the report has the round; where only an on-policy stage has begun, it has none."""
    found = json_or_empty(round.run.report_json)
    has_it = any(entry.get("round") == round.index for entry in found.get("rounds") or [])
    finished = (has_it or (bool(found) and round.run.is_stage_alone)) and round.run.report_html.is_file()
    return PhaseState(phase=phase, round=round.index, total=1, done=int(finished), finished=finished)


def rl_select_units(round: Round) -> list[UnitQueue]:
    """Units of the starting model's answers, from which questions are selected."""
    from sophia_mcore.generate.rl_select import select_queue

    file = checked_questions(round.config, round.run)
    return [select_queue(round, _ids(file))] if file.is_file() else []


def rl_select_state(round: Round, phase: str) -> PhaseState:
    """Finished if all answers are sampled and the questions are selected."""
    found = state_of_units(phase, round.index, rl_select_units(round))
    return replace(found, finished=found.finished and round.run.rl.select_file.is_file())


def rl_state(round: Round, phase: str) -> PhaseState:
    """Progress in batches: each trained batch has made a version of the policy."""
    run, total = round.run, round.config.on_policy.batches
    newest = newest_version(run.rl.versions)
    done = min(newest.version, total) if newest is not None else 0
    finished = stage_has_ended(round.config, run)
    lines = [line for line in read_metrics(run.rl.metrics_file) if "loss" in line]
    return PhaseState(
        phase=phase,
        round=round.index,
        total=total,
        done=total if finished else done,
        finished=finished,
        loss=lines[-1]["loss"] if lines else None,
    )


def stage_has_ended(config: Config, run: RunFolder) -> bool:
    """Whether the trainer's summary says that all batches are trained."""
    return json_or_empty(run.rl.summary_file).get("batches", 0) >= config.on_policy.batches


def rl_evaluated_models(round: Round) -> list[tuple[str, Path]]:
    """(label, folder) of the models that the evaluation of the stage asks: its starting model and its result."""
    return [(STAGE_START, rl_start(round.config, round.run)), (STAGE, round.run.rl.model)]


def rl_evaluation_units(round: Round) -> list[UnitQueue]:
    """Units of answers to the evaluation questions: a queue for each model of the stage and protocol."""
    from sophia_mcore.generate.answers import evaluation_queue

    run = round.run
    if not run.evaluation_questions_file.is_file():
        return []
    ids = _ids(run.evaluation_questions_file)
    protocols = round.config.evaluate.protocols
    return [evaluation_queue(round, label, one, ids) for label in (STAGE_START, STAGE) for one in protocols]


def rl_evaluation_state(round: Round, phase: str) -> PhaseState:
    """Finished only if the stage has ended: one that is to have more batches gets another model."""
    found = state_of_units(phase, round.index, rl_evaluation_units(round))
    return replace(found, finished=found.finished and stage_has_ended(round.config, round.run))


def requires_nothing(round: Round) -> None:
    """A value of ``Phase.inputs`` that requires nothing: the report also covers a run that is not finished."""


def evaluations(run: RunFolder, index: int) -> dict[str, Path]:
    """Folders of the answers of the base model and of the round's model: "evaluation:LABEL/PROTOCOL" -> folder."""
    return {
        f"evaluation:{label.name}/{protocol.name}": protocol
        for label in sorted(run.evaluation_questions_file.parent.glob("*"))
        if label.is_dir() and label.name in (BASE, round_label(index))
        for protocol in sorted(label.iterdir())
        if protocol.is_dir()
    }
