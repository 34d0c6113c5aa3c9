"""How far each phase of a run is, read from its folder alone: `sophia status` shows it, `sophia submit` plans by it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.phases import PHASES, evaluated_models
from sophia_mcore.records import Question
from sophia_mcore.store.failures import read_failures
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import read_shard, shard_files
from sophia_mcore.store.units import UnitQueue
from sophia_mcore.track.metrics import read_metrics

_RECENT_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class PhaseState:
    """Work units of one phase of one round; for training, steps. ``total`` 0: not known yet."""

    phase: str
    round: int
    total: int = 0
    done: int = 0
    claimed: int = 0
    failed: int = 0
    finished: bool = False
    loss: float | None = None
    seconds_left: float | None = None


def state_of(config: Config, run: RunFolder, phase: str, round_index: int) -> PhaseState:
    """The state of one phase. Raises SophiaError when its folder holds work of other settings."""
    return _READERS[phase](config, run, phase, round_index)


def states(config: Config, run: RunFolder, rounds: Iterable[int]) -> list[PhaseState]:
    """All phases of all rounds in flow order; the questions are checked once, in the first round."""
    return [
        state_of(config, run, phase, index)
        for index in rounds
        for phase in PHASES
        if not (phase == "questions" and index > 0)
    ]


def _questions(config: Config, run: RunFolder, phase: str, round_index: int) -> PhaseState:
    wanted = [run.questions_file, *([run.evaluation_questions_file] if config.evaluate.questions else [])]
    done = sum(path.is_file() for path in wanted)
    return PhaseState(phase=phase, round=round_index, total=len(wanted), done=done, finished=done == len(wanted))


def _units(config: Config, run: RunFolder, phase: str, round_index: int) -> PhaseState:
    return _of_queues(phase, round_index, queues_of(config, run, phase, round_index))


def queues_of(config: Config, run: RunFolder, phase: str, round_index: int) -> list[UnitQueue]:
    """The work units of captions, reasoning or evaluate; [] while the questions are not there."""
    from sophia_mcore.generate.answers import evaluation_queue, fresh_queue
    from sophia_mcore.generate.captions import caption_queue, image_sets_of
    from sophia_mcore.generate.reasoning import reasoning_queue

    round = Round(config, run, round_index)
    if phase == "evaluate":
        if not run.evaluation_questions_file.is_file():
            return []
        ids = [question.id for question in read_shard(run.evaluation_questions_file, Question)]
        models = evaluated_models(config, run, round_index)
        return [evaluation_queue(round, label, p, ids) for label, _ in models for p in config.evaluate.protocols]
    if not run.questions_file.is_file():
        return []
    ids = [question.id for question in read_shard(run.questions_file, Question)]
    if phase == "captions":
        queues = [caption_queue(round, image_sets_of(run))]
        return [*queues, fresh_queue(round, ids)] if config.objective.fresh_share else queues
    return [reasoning_queue(round, ids)]


def _of_queues(phase: str, round_index: int, queues: list[UnitQueue]) -> PhaseState:
    total = sum(len(queue.units) for queue in queues)
    done = sum(len(queue.done_units()) for queue in queues)
    return PhaseState(
        phase=phase,
        round=round_index,
        total=total,
        done=done,
        claimed=sum(queue.claimed() for queue in queues) if done < total else 0,
        failed=sum(len(read_failures(queue.folder).keys() - queue.done_units()) for queue in queues),
        finished=bool(queues) and done == total,
    )


def _evaluate(config: Config, run: RunFolder, phase: str, round_index: int) -> PhaseState:
    if not config.evaluate.questions:
        return PhaseState(phase=phase, round=round_index, finished=True)
    return _units(config, run, phase, round_index)


def _score(config: Config, run: RunFolder, phase: str, round_index: int) -> PhaseState:
    from sophia_mcore.score.phase import plan_units

    folder = run.round(round_index)
    shards = shard_files(folder.trajectories) if folder.trajectories.is_dir() else []
    if not shards or not state_of(config, run, "reasoning", round_index).finished:
        return PhaseState(phase=phase, round=round_index)  # how many units there will be is not known
    queue = UnitQueue(folder.verdicts, plan_units(shards, config.score.trajectories_per_unit))
    found = _of_queues(phase, round_index, [queue])
    kept = folder.kept_file.is_file() and folder.kept_summary_file.is_file()
    return replace(found, finished=found.finished and kept)


def _train(config: Config, run: RunFolder, phase: str, round_index: int) -> PhaseState:
    folder = run.round(round_index).train
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    finished = (folder / "summary.json").is_file()
    done = lines[-1]["step"] if lines else 0
    total = done if finished else config.train.steps or 0
    seconds = statistics.median(line["step_seconds"] for line in lines[-_RECENT_STEPS:]) if lines else None
    return PhaseState(
        phase=phase,
        round=round_index,
        total=total,
        done=done,
        finished=finished,
        loss=lines[-1]["loss"] if lines else None,
        seconds_left=(total - done) * seconds if seconds is not None and total and not finished else None,
    )


def _export(config: Config, run: RunFolder, phase: str, round_index: int) -> PhaseState:
    folder = run.round(round_index)
    proof = folder.model / "conversion.json"  # written with the folder, which appears when it is complete
    try:
        source = json.loads(proof.read_bytes())["source"]["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        source = None
    names = sorted(path.name for path in folder.checkpoints.glob("step-*"))
    finished = source is not None and (not names or source == max(names, key=lambda name: (len(name), name)))
    return PhaseState(phase=phase, round=round_index, total=1, done=int(finished), finished=finished)


def _report(config: Config, run: RunFolder, phase: str, round_index: int) -> PhaseState:
    try:
        rounds = json.loads(run.report_json.read_bytes())["rounds"]
        finished = any(entry["round"] == round_index for entry in rounds) and run.report_html.is_file()
    except (OSError, ValueError, KeyError, TypeError):
        finished = False
    return PhaseState(phase=phase, round=round_index, total=1, done=int(finished), finished=finished)


_READERS: dict[str, Callable[[Config, RunFolder, str, int], PhaseState]] = {
    "questions": _questions,
    "captions": _units,
    "reasoning": _units,
    "score": _score,
    "train": _train,
    "export": _export,
    "evaluate": _evaluate,
    "report": _report,
}


def check_inputs(config: Config, run: RunFolder, phase: str, round_index: int) -> None:
    """What a phase needs is there: looked at by the phase itself, whatever dependency let it start.

    Raises SophiaError naming what is missing.
    """
    needs = {"captions": "questions", "reasoning": "captions", "score": "reasoning", "train": "score"}
    needs |= {"export": "train", "evaluate": "export"}
    before = needs.get(phase)
    if before is None or (before == "score" and config.train.data is not None):
        return
    if before == "score":  # its summary is the last thing that it writes
        if not run.round(round_index).kept_summary_file.is_file():
            raise SophiaError(
                f"train of round {round_index} cannot start: score of round {round_index} is not finished"
            )
        return
    index = 0 if before == "questions" else round_index
    state = state_of(config, run, before, index)
    if not state.finished:
        some = f" ({state.done} of {state.total} done)" if state.total else ""
        raise SophiaError(
            f"{phase} of round {round_index} cannot start: {before} of round {index} is not finished{some}"
        )
    if phase in ("captions", "evaluate"):
        from sophia_mcore.pretrained.complete import check_model_dir

        models = policies_of(config, run, phase, round_index)
        for path in models:
            check_model_dir(path)


def policies_of(config: Config, run: RunFolder, phase: str, round_index: int) -> list[Path]:
    """The policy folders that captions or evaluate of a round read."""
    if phase == "captions":
        return [run.starting_policy(round_index, config.models.policy)]
    return [folder for _, folder in evaluated_models(config, run, round_index)]
