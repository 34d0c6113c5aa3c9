"""The parts of each phase's results and what each depends on: the field ``parts`` of the table in ``launch.phases``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Config, Protocol, Source
from sophia_mcore.data.files_read import files_read_of, replaced_files
from sophia_mcore.data.sources import local_tables
from sophia_mcore.launch.readers import evaluated_models
from sophia_mcore.phase import Part
from sophia_mcore.provenance.settings import TABLES, covers, flat, model_folder
from sophia_mcore.rl.start import start_folder
from sophia_mcore.rl.versions import pointer_file
from sophia_mcore.store.content import Tables
from sophia_mcore.store.labels import BASE, STAGE, STAGE_START
from sophia_mcore.store.layout import SUMMARY, Round, bad_rows_file
from sophia_mcore.store.user_files import user_functions

# Settings of the on-policy stage that may change between two starts: they change where, how long and how fast work is
# done, and what is measured of it.
RL_CHANGEABLE = (
    "rl.batches", "rl.engine", "rl.engines", "rl.placement", "rl.rollout_nodes", "rl.questions_per_unit", "rl.versions",
    "rl.stall_seconds", "rl.patience_seconds", "rl.max_lost_share", "rl.stop_rollout_gap", "rl.max_resamples",
    "rl.accept_lag_uncorrected", "rl.train.save_every_batches", "rl.train.keep_checkpoints",
    "rl.train.term_gradients_every_steps", "rl.objective.chunk_tokens", "rl.objective.log_entropy",
)  # fmt: skip
# Settings that a part has in common with the row of its phase, or with other parts:
PICTURE_SETTINGS = ("batch.max_tiles", "batch.min_pixels", "batch.max_pixels")  # what a model sees of an image
CAPTION_SETTINGS = ("run.seed", "captions", *PICTURE_SETTINGS, "batch.default_system_prompt")
REASONING_SETTINGS = ("run.seed", "models.reasoner", "reasoning")
FP8_CHECK_SETTINGS = ("models.policy", "fp8", "train.dtype")


def questions(round: Round) -> list[Part]:
    """Two parts: the questions of the rounds, and the questions of the evaluation."""
    config, run = round.config, round.run
    kept, held_out = run.questions_file, run.evaluation_questions_file
    limit = "data.max_image_pixels"
    parts = [
        Part(
            name="questions",
            results={"questions": kept},
            beside=(bad_rows_file(kept), files_read_of(kept)),
            settings=("data.questions", limit),
            values=_files(config.data.questions),
            replaced=lambda: _pictures(kept),
        ),
        Part(
            name="evaluation",
            results={"evaluation_questions": held_out},
            beside=(bad_rows_file(held_out), files_read_of(held_out)),
            settings=("evaluate.questions", limit),
            values=_files(config.evaluate.questions),
            replaced=lambda: _pictures(held_out),
        ),
    ]
    return parts[1:] if config.evaluate.only else parts


def _pictures(questions_file: Path) -> dict[str, str]:
    return {f"picture {path.name}": f"the content of {path} has changed" for path in replaced_files(questions_file)}


def _files(sources: tuple[Source, ...]) -> dict[str, Any]:
    here = [source for source in sources if source.path]
    found: dict[str, Any] = {f"file {source.path}": Path(source.path) for source in here if source.kind != "datasets"}
    for source in here:
        found[f"{TABLES} {source.path}"] = Tables(source.path, tuple(local_tables(source)))
    return found


def _policy(round: Round) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    """(settings, reads) of the model that the round starts from: a setting in round 0, else the export before."""
    return (("models.policy",), ()) if round.index == 0 else ((), (("export", round.index - 1),))


def captions(round: Round) -> list[Part]:
    """The captions and, if the objective uses them, the policy's own answers."""
    setting, before = _policy(round)
    folder = round.folder
    found = [
        Part(
            name="captions",
            results={"captions": folder.captions},
            settings=(*CAPTION_SETTINGS, *setting),
            reads=(("questions", 0), *before),
        )
    ]
    if round.config.objective.fresh_share:
        grading = ("score", "fresh", "batch.long_thinking_prompt_file")
        found.append(
            Part(
                name="fresh",
                results={"fresh": folder.fresh},
                settings=("run.seed", "captions.engine", *PICTURE_SETTINGS, *grading, *setting),
                reads=(("questions", 0), *before),
            )
        )
    return found


def reasoning(round: Round) -> list[Part]:
    """One part: the trajectories."""
    return [
        Part(
            name="trajectories",
            results={"trajectories": round.folder.trajectories},
            settings=(
                *REASONING_SETTINGS,
                *(("reward",) if round.config.reasoning.waves is not None else ()),  # decides what is left out
            ),
            reads=(("questions", 0), ("captions", round.index)),
        )
    ]


def score(round: Round) -> list[Part]:
    """Verdicts and the kept set are different parts: after a change of the reward nothing is graded again."""
    folder, index = round.folder, round.index
    return [
        Part(
            name="verdicts",
            results={"verdicts": folder.verdicts},
            beside=(folder.verdict_changes_file,),
            settings=("score",),
            reads=(("questions", 0), ("trajectories", index)),
        ),
        *_terms(round),
        Part(
            name="kept",
            results={"kept": folder.kept_file},
            beside=(folder.kept_summary_file, folder.second_opinion_file),
            settings=("run.seed", "reward", "rewards"),
            reads=(("questions", 0), ("trajectories", index), ("verdicts", index)),
        ),
    ]


def _terms(round: Round) -> list[Part]:
    """The values of the reward's terms. Their weights, and which questions they are for, change no value."""
    config, folder = round.config, round.folder
    if config.verdict_alone:
        return []
    values: dict[str, Any] = {
        "rewards (functions)": [
            {
                "name": term.label,
                "function": term.function,
                "options": term.options,
                "ask": term.ask,
                "only": term.only.model_dump() if term.only else None,
            }
            for term in config.rewards
        ]
    }
    for function in user_functions(config):
        if function.key.startswith("rewards."):
            file = function.file if function.file.is_file() else function.copy_in(round.run)
            values[f"{function.key}: {function.file}"] = file
    reads = [("questions", 0), ("trajectories", round.index), ("verdicts", round.index)]
    if config.objective.fresh_share:
        reads.append(("fresh", round.index))
    results = {"terms": folder.terms}
    return [Part(name="terms", results=results, settings=("helpers",), values=values, reads=tuple(reads))]


def fp8_check(round: Round) -> list[Part]:
    """One part: the FP8 check that has passed. A failed check leaves no result."""
    run = round.run
    return [
        Part(
            name="fp8_check",
            results={"fp8_check": run.fp8_check / SUMMARY},
            beside=(run.fp8_check, run.fp8_check_file, run.fp8_check_html),
            settings=FP8_CHECK_SETTINGS,
        )
    ]


def training_inputs(round: Round) -> tuple[tuple[str, int], ...]:
    """(name, round) of each result that the training of the round reads as data."""
    config, index = round.config, round.index
    if config.train.data is not None:
        return ()
    names = ["kept"] if config.objective.trajectories == "kept" else ["questions", "trajectories", "verdicts"]
    if config.objective.behaviour == "recorded":
        names += ["questions", "trajectories"]
    if config.objective.fresh_share:
        names += ["questions", "fresh"]
    return tuple((name, 0 if name == "questions" else index) for name in dict.fromkeys(names))


def train(round: Round) -> list[Part]:
    """One part: the checkpoints, and the summary that is written when the training has ended."""
    setting, before = _policy(round)
    objective = round.config.objective
    by_reward = objective.trajectories != "kept" or bool(objective.fresh_share)
    folder = round.folder
    return [
        Part(
            name="train",
            results={"checkpoint": folder.checkpoints, "training": folder.train_summary_file},
            beside=(folder.train,),
            settings=(
                *("run.seed", "batch", "objective", "train", *setting),
                *("fp8.recipe", "fp8.backend", "fp8.format", "fp8.layers_at_start_in_bf16"),
                *("fp8.layers_at_end_in_bf16", "fp8.layers_in_bf16", "fp8.attention_in_bf16"),
                *("fp8.amax_history", "fp8.amax_algorithm"),
                *(("reward.alpha", "reward.broken") if by_reward else ()),
            ),
            reads=(*training_inputs(round), *before),
        )
    ]


def export(round: Round) -> list[Part]:
    """One part: the exported model. Its files and tokenizer follow those of the model that the round started from."""
    setting, before = _policy(round)
    reads = (("checkpoint", round.index), *before)
    return [Part(name="export", results={"export": round.folder.model}, settings=setting, reads=reads)]


def evaluate(round: Round) -> list[Part]:
    """One part per model and protocol: its answers."""
    found = []
    for label, _ in evaluated_models(round):
        base = label == BASE
        settings = ("batch.long_thinking_prompt_file", *(("models.policy",) if base else ()))
        found += _answers(round, label, settings, {}, () if base else (("export", round.index),))
    return found


def _answers(
    round: Round, label: str, settings: tuple[str, ...], values: dict[str, Any], reads: tuple[tuple[str, int], ...]
) -> list[Part]:
    """One part per protocol: the answers of a model to the evaluation questions."""
    common = ("run.seed", "evaluate.engine", "evaluate.questions_per_unit", "score")
    found = []
    for protocol in round.config.evaluate.protocols:
        found.append(
            Part(
                name=f"{label}/{protocol.name}",
                results={f"evaluation:{label}/{protocol.name}": round.run.evaluation(label, protocol.name)},
                settings=(*common, *PICTURE_SETTINGS, *settings),
                values=_sampled(protocol) | values,
                reads=(("evaluation_questions", 0), *reads),
            )
        )
    return found


def validated_by(config: Config) -> dict[str, Any]:
    """The protocol by which versions of the on-policy stage are validated, and so chosen; {} without validation."""
    return _sampled(config.evaluate.protocols[0]) if config.on_policy.validation else {}


def _sampled(protocol: Protocol) -> dict[str, Any]:
    return {f"evaluate.protocols ({protocol.name})": protocol.model_dump(mode="json", exclude={"name"})}


def rl(round: Round) -> list[Part]:
    """One part: the summary of the stage, which names its model. ``launch.rl`` compares the stage's settings."""
    return [Part(name="rl", results={"rl": round.run.rl.summary_file})]


def whole_rl(round: Round) -> list[Part]:
    """One part: all of RUN/rl. It is there as soon as an answer of the selection, or the first version, is.

    It is for stages of [[stages]], which begin anew when it changes; `sophia rl` goes on with other settings if asked.
    """
    config, folder = round.config, round.run.rl
    stage = config.on_policy
    free = tuple(key.removeprefix("rl.") for key in RL_CHANGEABLE)
    return [
        Part(
            name="stage",
            results={
                "rl": folder.summary_file,
                "rl_start": pointer_file(folder.versions, 0),
                "rl_select": folder.select,
            },
            beside=(folder.path,),
            settings=(
                *("run.seed", "models.policy", "batch", "score", "rewards", "helpers", "rl", "fp8"),
                *("train.dtype", "train.train_vision_tower", "train.train_projector", "data.max_image_pixels"),
                *(("data.questions",) if not stage.questions else ()),
                *(("evaluate.questions_per_unit",) if stage.validation else ()),
            ),
            values={
                **validated_by(config),
                **{f"rl.{key}": value for key, value in flat(stage).items() if not covers(free, key)},
                "rl.start": model_folder(start_folder(config, round.run)),
                **_files((*(stage.questions or config.data.questions), *stage.validation)),
            },
        )
    ]


def rl_evaluate(round: Round) -> list[Part]:
    """One part per model and protocol: the answers of the stage's starting model and of its model."""
    stage = round.config.on_policy
    asked: dict[str, Any] = {
        "rl.prompt": stage.prompt,
        "rl.environment": stage.environment.model_dump(mode="json"),
        "rl.max_turns": stage.max_turns,
    }
    settings = ("batch.long_thinking_prompt_file", "helpers", "rl.environment")
    exports = list(round.run.exports(round.config.run.rounds))
    if stage.start in exports:
        before = _answers(round, STAGE_START, settings, asked, (("export", exports.index(stage.start)),))
    else:
        before = _answers(
            round, STAGE_START, settings, asked | {"rl.start": model_folder(start_folder(round.config, round.run))}, ()
        )
    return [
        *before,
        *_answers(round, STAGE, settings, asked, (("rl", 0),)),
    ]
