"""The table of phases: one row defines a phase (``sophia_mcore.phase.Phase`` explains the fields).

To add a phase, add a row and the functions that the row names. No other module decides by the name of a phase.
Inputs of the user's (``launch.inputs``) and commands say which phases they belong to.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.launch import parts, readers, work
from sophia_mcore.launch.resources import stage_shape, training_shape
from sophia_mcore.phase import Flow, Measured, Phase, Ranks, sampled_rounds, whole_rounds
from sophia_mcore.rl.start import rl_start

QUESTIONS = Phase(
    name="questions",
    flows=("round", "stage"),
    group="generate",
    renewed=True,
    environment="here",
    work=work.questions,
    once=True,
    state=readers.questions_state,
    settings=("data", "evaluate.questions"),
    parts=parts.questions,
    outputs=lambda run, index: {"questions": run.questions_file},
)
CAPTIONS = Phase(
    name="captions",
    group="generate",
    environment="rollout",
    work=work.captions,
    wanted=sampled_rounds,
    needs=("questions",),
    needs_before=("export",),
    models=lambda round: [round.policy],
    preflight=True,
    units=readers.caption_units,
    engine="captions.engine",
    settings=(
        *parts.CAPTION_SETTINGS,
        "models.policy",
        *("objective.fresh_share", "fresh", "batch.long_thinking_prompt_file"),
    ),
    parts=parts.captions,
    outputs=lambda run, index: {"captions": run.round(index).captions, "fresh": run.round(index).fresh},
    reported="captions",
)
REASONING = Phase(
    name="reasoning",
    group="generate",
    environment="rollout",
    work=work.reasoning,
    wanted=sampled_rounds,
    needs=("captions",),
    preflight=True,
    units=readers.reasoning_units,
    state=readers.reasoning_state,
    engine="reasoning.engine",
    asks="reasoner",
    settings=parts.REASONING_SETTINGS,
    parts=parts.reasoning,
    outputs=lambda run, index: {"trajectories": run.round(index).trajectories},
    reported="trajectories",
)
SCORE = Phase(
    name="score",
    environment="here",
    work=work.score,
    wanted=sampled_rounds,
    needs=("reasoning",),
    units=readers.score_units,
    state=readers.score_state,
    settings=("run.seed", "score", "reward", "rewards", "helpers"),
    parts=parts.score,
    outputs=lambda run, index: {"verdicts": run.round(index).verdicts, "kept": run.round(index).kept_file},
    measured=lambda folder: Measured(summary=folder.kept_summary_file),
    reported="kept",
)
FP8_CHECK = Phase(
    name="fp8-check",
    environment="trainer",
    ranks=Ranks(module="sophia_mcore.train.fp8.worker", folder=lambda round: round.run.fp8_check),
    needs=("score",),
    inputs=readers.require_kept_for_fp8_check,
    preflight=True,
    wanted=lambda config: whole_rounds(config) and config.fp8.used and not config.fp8.check.skip,
    once=True,
    state=readers.fp8_check_state,
    shape=training_shape,
    settings=parts.FP8_CHECK_SETTINGS,
    parts=parts.fp8_check,
)
TRAIN = Phase(
    name="train",
    environment="trainer",
    ranks=Ranks(module="sophia_mcore.train.worker", folder=lambda round: round.folder.train),
    wanted=whole_rounds,
    needs=("score", "fp8-check"),
    inputs=readers.require_kept,
    preflight=True,
    state=readers.train_state,
    shape=training_shape,
    settings=("run.seed", "models.policy", "batch", "parallel", "objective", "reward", "train", "fp8"),
    parts=parts.train,
    outputs=lambda run, index: {"checkpoint": run.round(index).checkpoints},
    measured=lambda folder: Measured(
        summary=folder.train_summary_file, steps=folder.train_metrics_file, system=folder.system_metrics_file
    ),
    reported="train",
)
EXPORT = Phase(
    name="export",
    environment="trainer",
    work=lambda round, progress: work.export(round, progress, PHASES),
    wanted=whole_rounds,
    needs=("train",),
    preflight=True,
    state=readers.export_state,
    settings=("models.policy", "export"),
    parts=parts.export,
    outputs=lambda run, index: {"export": run.round(index).model},
)
EVALUATE = Phase(
    name="evaluate",
    environment="rollout",
    work=work.evaluate,
    needs=("export",),
    models=readers.asked_models,
    wanted=lambda config: bool(config.evaluate.questions),
    units=readers.evaluation_units,
    engine="evaluate.engine",
    settings=(
        *("run.seed", "models.policy", "evaluate", "score"),
        *parts.PICTURE_SETTINGS,
        "batch.long_thinking_prompt_file",
    ),
    parts=parts.evaluate,
    outputs=readers.evaluations,
)
RL_SELECT = Phase(
    name="rl-select",
    flows=("stage",),
    step="select",
    environment="rollout",
    preflight=True,
    work=work.rl_select,
    needs=("questions",),
    models=lambda round: [rl_start(round.config, round.run)],
    wanted=lambda config: config.rl is not None and config.rl.selects,
    once=True,
    units=readers.rl_select_units,
    state=readers.rl_select_state,
    engine="rl.engine",
    settings=(
        *("run.seed", "rl.questions", "rl.start", "rl.prompt", "rl.max_tokens", "rl.select", "score"),
        *parts.PICTURE_SETTINGS,
    ),
    script="rl_select",
)
RL = Phase(
    name="rl",
    flows=("stage",),
    step="loop",
    environment="here",  # it supervises processes of both environments
    preflight=True,
    work=work.rl,
    on_node=work.rl_on_node,
    needs=("rl-select",),
    models=lambda round: [rl_start(round.config, round.run)],
    wanted=lambda config: config.rl is not None,
    once=True,
    state=readers.rl_state,
    engine="rl.engine",
    shape=stage_shape,
    settings=(
        *("run.seed", "models.policy", "rl", "batch", "parallel", "fp8", "score", "rewards", "helpers"),
        *("train.dtype", "train.train_vision_tower", "train.train_projector"),
    ),
    parts=parts.rl,
)
RL_EVALUATE = Phase(
    name="rl-evaluate",
    flows=("stage",),
    step="evaluate",
    renewed=True,
    environment="rollout",
    preflight=True,
    work=work.rl_evaluate,
    needs=("rl",),
    models=lambda round: [model for _, model in readers.rl_evaluated_models(round)],
    wanted=lambda config: config.rl is not None and bool(config.evaluate.questions),
    once=True,
    units=readers.rl_evaluation_units,
    state=readers.rl_evaluation_state,
    engine="evaluate.engine",
    settings=(
        *("run.seed", "evaluate", "score", "rl.prompt", "rl.environment", "rl.max_turns", "helpers"),
        *parts.PICTURE_SETTINGS,
        "batch.long_thinking_prompt_file",
    ),
    parts=parts.rl_evaluate,
    script="phase",
)
REPORT = Phase(
    name="report",
    flows=("round", "stage"),
    environment="here",
    work=lambda round, progress: work.report(round, progress, PHASES),
    needs=("evaluate", "rl-evaluate"),
    inputs=readers.requires_nothing,
    state=readers.report_state,
    again=True,
    uploads=True,
)

PHASES: tuple[Phase, ...] = (
    QUESTIONS,
    CAPTIONS,
    REASONING,
    SCORE,
    FP8_CHECK,
    TRAIN,
    EXPORT,
    EVALUATE,
    RL_SELECT,
    RL,
    RL_EVALUATE,
    REPORT,
)  # in flow order; each row says whether it belongs to the rounds, to the on-policy stage, or to both


def phases_in(flow: Flow) -> list[Phase]:
    """The phases of the rounds, or those of the on-policy stage, in flow order."""
    return [phase for phase in PHASES if flow in phase.flows]


def names_in(flow: Flow) -> list[str]:
    """Their names in flow order."""
    return [phase.name for phase in phases_in(flow)]


def stage_alone() -> list[Phase]:
    """The phases of the on-policy stage that are no part of a round, in flow order."""
    return [phase for phase in phases_in("stage") if "round" not in phase.flows]


def phases_of(index: int) -> list[Phase]:
    """The phases of round ``index`` in flow order. Phases that are done once belong to round 0."""
    return [phase for phase in phases_in("round") if not (phase.once and index > 0)]


def wanted_phases(config: Config, flow: Flow = "round") -> list[Phase]:
    """The phases that a run with this configuration has, in flow order."""
    return [phase for phase in phases_in(flow) if phase.wanted(config)]


def phase_named(name: str) -> Phase:
    """The phase of that name. Raises UsageError with the nearest name if there is none."""
    for phase in PHASES:
        if phase.name == name:
            return phase
    raise UsageError(_unknown(name, PHASES))


def expand(names: Iterable[str]) -> list[str]:
    """Replace groups by their phases; returns the names in flow order.

    Raises UsageError for an unknown name, and for a phase of the on-policy stage, which other commands run.
    """
    known = phases_in("round")
    wanted: set[str] = set()
    for name in names:
        found = {phase.name for phase in known if name in (phase.name, phase.group)}
        if not found and any(name == phase.name for phase in stage_alone()):
            raise UsageError(
                f"{name!r} is a phase of the on-policy stage: 'sophia rl' runs it, 'sophia submit --rl' submits it"
            )
        if not found:
            raise UsageError(_unknown(name, known))
        wanted |= found
    return [phase.name for phase in known if phase.name in wanted]


def starting_at(name: str) -> list[str]:
    """Names of the phase or group ``name`` and of all later phases of a round. Raises like ``expand``."""
    names = names_in("round")
    return names[names.index(expand([name])[0]) :]


def _unknown(name: str, known: Sequence[Phase]) -> str:
    names, groups = [phase.name for phase in known], [phase.group for phase in known if phase.group]
    nearest = difflib.get_close_matches(name, [*names, *dict.fromkeys(groups)], n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"phases: {', '.join(names)}"
    return f"unknown phase {name!r} ({hint})"


def needs_of(phase: Phase, index: int) -> list[tuple[Phase, int]]:
    """(phase, round) of everything that must be done before ``phase`` of round ``index`` may start."""
    needed = [phase_named(name) for name in phase.needs]
    before = [phase_named(name) for name in phase.needs_before] if index > 0 else []
    return [*((one, 0 if one.once else index) for one in needed), *((one, index - 1) for one in before)]


def wanted_needs(config: Config, phase: Phase, index: int) -> list[tuple[Phase, int]]:
    """Like ``needs_of``, but a phase that the run does not have is replaced by the phases that it needs itself."""
    found: list[tuple[Phase, int]] = []
    for needed, when in needs_of(phase, index):
        found += [(needed, when)] if needed.wanted(config) else wanted_needs(config, needed, when)
    return found
