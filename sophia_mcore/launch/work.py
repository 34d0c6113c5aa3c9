"""The functions that do the phases: the field ``work`` of the table in ``launch.phases``.

Each runs in the environment of its phase and imports heavy modules itself. Each may be killed and started again: it
finds finished work in the store and skips it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from sophia_mcore.config.engines import with_images
from sophia_mcore.data.prompt_images import most_images
from sophia_mcore.launch.readers import evaluated_models, rl_evaluated_models
from sophia_mcore.phase import Phase, SlurmTask
from sophia_mcore.progress import Progress, counting, relay
from sophia_mcore.rl.questions import exam_engine, stage_engine
from sophia_mcore.rl.start import rl_start
from sophia_mcore.store.layout import Round


def questions(round: Round, progress: Progress) -> None:
    """Check every question and image before any model starts, and write them into the store."""
    from sophia_mcore.benchmarks.rows import read_any
    from sophia_mcore.data.held_out import contents, shared
    from sophia_mcore.data.prepare import prepare_questions
    from sophia_mcore.environments.terms import require_terms
    from sophia_mcore.launch.inputs import policy_images
    from sophia_mcore.launch.reward_questions import judges
    from sophia_mcore.records import Question
    from sophia_mcore.store.images import ImageStore
    from sophia_mcore.store.shards import read_shard

    config, run = round.config, round.run
    sets = []
    if config.data.questions:
        sets.append(("questions checked", config.data.questions, run.questions_file))
    if config.evaluate.questions:
        sets.append(("held-out questions checked", config.evaluate.questions, run.evaluation_questions_file))
    if config.rl is not None and config.rl.questions:
        sets.append(("questions of the stage checked", config.rl.questions, run.rl.own_questions_file))
    if config.rl is not None and config.rl.validation:
        sets.append(("validation questions checked", config.rl.validation, run.rl.validation_questions_file))
    refuse_size = policy_images(config)
    for task, sources, file in sets:
        summary = prepare_questions(
            sources,
            ImageStore(run.images),
            file,
            max_bad_rows=config.data.max_bad_rows,
            max_image_pixels=config.data.max_image_pixels,
            refuse_size=refuse_size,
            progress=partial(_rows_checked, counting(progress, task)),
            read=read_any,
        )
        progress.start(
            f"{task}; {summary.questions:,} stored with {summary.images:,} images", summary.rows, summary.rows
        )
    if config.rewards and config.rl is None and judges(config):  # the stage checks its own questions
        require_terms(config.reward_terms, read_shard(run.questions_file, Question))
    asked, exam = contents(run.questions_file), contents(run.evaluation_questions_file)
    if found := shared("data.questions", asked, "evaluate.questions", exam)[0]:
        print(f"warning: {found}; they should not be trained on", file=sys.stderr)


def _rows_checked(show: Callable[[int, int], None], rows: int) -> None:
    show(rows, 0)  # total 0: the number of rows is not known before the end


def captions(round: Round, progress: Progress) -> None:
    """The policy captions every image set. If the objective uses its own answers, it answers the questions too."""
    from sophia_mcore.generate.answers import generate_fresh
    from sophia_mcore.generate.captions import generate_captions
    from sophia_mcore.generate.opening import lazy_engine

    config = round.config
    settings = with_images(config.captions.engine, most_images(round.run.questions_file))
    engine = lazy_engine(config, settings, round.policy, progress)
    generate_captions(round, engine, progress)
    if config.objective.fresh_share:
        generate_fresh(round, engine, progress)
    engine.close()


def reasoning(round: Round, progress: Progress) -> None:
    """The reasoner answers the questions from every caption."""
    from sophia_mcore.generate.opening import lazy_engine
    from sophia_mcore.generate.reasoning import generate_trajectories

    config = round.config
    settings = with_images(config.reasoning.engine, 0)  # it reads captions
    engine = lazy_engine(config, settings, config.models.reasoner, progress)
    generate_trajectories(round, engine, progress)
    engine.close()


def score(round: Round, progress: Progress) -> None:
    """Grade the trajectories, compute rewards and write the kept set."""
    from sophia_mcore.score.phase import score_round

    if not round.config.helpers:
        score_round(round, progress)
        return
    from sophia_mcore.generate.helpers import open_helpers

    with open_helpers(round.config, round.run, endpoints_only=True) as helpers:
        score_round(round, progress, helpers)


def export(round: Round, progress: Progress, phases: Sequence[Phase]) -> None:
    """Convert the newest Megatron checkpoint to a Hugging Face folder. Its model card needs the table of phases."""
    from sophia_mcore.report.model_card import write_cards
    from sophia_mcore.train.checkpoint_folder import list_checkpoints, read_manifest
    from sophia_mcore.weights.export import export_round

    for newest in list_checkpoints(round.folder.checkpoints)[:1]:
        read_manifest(newest)  # raises if a file has another size than the manifest says
    export_round(round, progress)
    write_cards(round.config, round.run, phases)


def evaluate(round: Round, progress: Progress) -> None:
    """Answer the evaluation questions with the base model (once per run) and the round's export, in one engine."""
    from sophia_mcore.generate.answers import evaluate as evaluate_model
    from sophia_mcore.generate.opening import lazy_engine

    config, models = round.config, evaluated_models(round)
    settings = with_images(config.evaluate.engine, most_images(round.run.evaluation_questions_file))
    engine = lazy_engine(config, settings, models[0][1], progress)
    for label, model in models:
        engine.reload(model)
        evaluate_model(round, label, engine, progress)
    engine.close()


def rl_select(round: Round, progress: Progress) -> None:
    """The starting model answers every question several times. Questions that are too easy or too hard are dropped."""
    from sophia_mcore.generate.opening import lazy_engine
    from sophia_mcore.generate.rl_select import select_questions

    config = round.config
    engine = lazy_engine(config, stage_engine(config, round.run), rl_start(config, round.run), progress)
    select_questions(round, engine, progress)
    engine.close()


def rl(round: Round, progress: Progress, *, replay: bool = False) -> None:
    """The batches of the on-policy stage, with this machine as the only node. ``replay``: of stored rollouts alone."""
    from sophia_mcore.launch.readers import stage_has_ended
    from sophia_mcore.launch.stage import make_ready, supervise, this_machine

    config, run = round.config, round.run
    make_ready(config, run)
    if not stage_has_ended(config, run):
        node = this_machine(config, replay=replay)
        supervise(config, run, node, replay=replay, follow=partial(relay, progress))


def rl_on_node(round: Round, task: SlurmTask) -> None:
    """The same as a Slurm job: the part of the task's node."""
    from sophia_mcore.launch.slurm.stage import run_on_node

    run_on_node(round, task)


def rl_evaluate(round: Round, progress: Progress) -> None:
    """Answer the evaluation questions with the stage's model and its starting model, with the stage's system prompt."""
    from sophia_mcore.generate.answers import evaluate as evaluate_model
    from sophia_mcore.generate.opening import lazy_engine
    from sophia_mcore.rl.prompts import system_prompt

    config, models = round.config, rl_evaluated_models(round)
    engine = lazy_engine(config, exam_engine(config, round.run), models[0][1], progress)
    in_turns = not config.on_policy.one_turn and not any(source.benchmark for source in config.evaluate.questions)
    if not config.on_policy.one_turn and not in_turns:
        progress.note("benchmarks are answered in one turn, without the stage's environment")
    for label, model in models:
        engine.reload(model)
        if in_turns:
            from sophia_mcore.generate.episode_exam import evaluate_episodes

            evaluate_episodes(round, label, model, engine, progress)
        else:
            evaluate_model(round, label, engine, progress, system=system_prompt(config))
    engine.close()


def report(round: Round, progress: Progress, phases: Sequence[Phase]) -> None:
    """Write report.json and report.html, with the results of all phases."""
    from sophia_mcore.report.build import write_report
    from sophia_mcore.report.model_card import write_cards

    write_report(round.config, round.run, phases)
    write_cards(round.config, round.run, phases)  # with the scores that are there now
