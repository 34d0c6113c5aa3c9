"""The phases of a round: what each needs, in which environment it runs, how it is started.

Light phases (questions, score, report) run in the calling process; the others are workers, because
vLLM and Megatron live in different environments. Every phase checks its inputs itself and may be
killed and started again: finished work is found in the store and skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.process import run_worker
from sophia_mcore.launch.terminal import TerminalProgress
from sophia_mcore.progress import counting
from sophia_mcore.store.layout import Round, RunFolder

BASE_LABEL = "base"
_SAVE_SECONDS = 600  # that ranks have to save and leave when they are asked to stop
_NVIDIA = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")  # without any of them there is no driver


@dataclass(frozen=True)
class Context:
    """What every phase is given."""

    config: Config
    run: RunFolder
    progress: TerminalProgress


def evaluated_models(config: Config, run: RunFolder, round_index: int) -> list[tuple[str, Path]]:
    """(label, folder) of the models that the evaluation of a round asks: the base model once, the round's export."""
    with_base = config.evaluate.evaluate_base and round_index == 0
    return [(BASE_LABEL, config.models.policy)] * with_base + [(f"round-{round_index}", run.round(round_index).model)]


def preflight(context: Context, round_index: int) -> None:
    """What can be refused before any work: model folders that cannot be loaded, a layout the policy does not fit.

    Raises SophiaError or UsageError, as the phase that would have failed later.
    """
    from sophia_mcore.parallel.layout import check_layout
    from sophia_mcore.pretrained.complete import check_model_dir
    from sophia_mcore.pretrained.spec import ModelSpec

    config = context.config
    policy = context.run.starting_policy(round_index, config.models.policy)
    check_model_dir(policy)
    if config.models.reasoner is not None:
        check_model_dir(config.models.reasoner)
    check_layout(ModelSpec.from_model_dir(policy), config.parallel, config.batch.sequence_length_tokens)


def prepare(context: Context, round_index: int) -> None:
    """Check every question and image before any model starts, and put them into the store."""
    from sophia_mcore.data.prepare import prepare_questions
    from sophia_mcore.store.images import ImageStore

    data, images = context.config.data, ImageStore(context.run.images)
    sets = [("questions checked", data.questions, context.run.questions_file)]
    if context.config.evaluate.questions:
        held_out = context.config.evaluate.questions
        sets.append(("held-out questions checked", held_out, context.run.evaluation_questions_file))
    for task, sources, file in sets:
        show = counting(context.progress, task)
        prepare_questions(
            sources,
            images,
            file,
            max_bad_rows=data.max_bad_rows,
            max_image_pixels=data.max_image_pixels,
            progress=partial(_rows_checked, show),
        )


def _rows_checked(show: Callable[[int, int], None], rows: int) -> None:
    show(rows, 0)  # how many there are is known at the end


def captions(context: Context, round_index: int) -> None:
    """The policy captions every image set."""
    _rollout(context, "captions", ["sophia_mcore.generate.worker", "--stage", "captions"], round_index)


def reasoning(context: Context, round_index: int) -> None:
    """The reasoner answers from every caption."""
    _rollout(context, "reasoning", ["sophia_mcore.generate.worker", "--stage", "reasoning"], round_index)


def score(context: Context, round_index: int) -> None:
    """Verdicts, rewards and the kept set."""
    from sophia_mcore.score.phase import score_round

    score_round(Round(context.config, context.run, round_index), context.progress)


def train(context: Context, round_index: int) -> None:
    """Megatron training on the kept set, under torchrun."""
    kept_file = context.run.round(round_index).kept_file
    if context.config.train.data is None and not kept_file.is_file():  # said here: the ranks take a while to start
        raise SophiaError(f"{kept_file}: no such file; run `sophia score` first")
    flags = [str(context.run.config_file), "--round", str(round_index)]
    run_ranks(context, f"train-round-{round_index}", "sophia_mcore.train.worker", flags)


def run_ranks(context: Context, name: str, module: str, flags: list[str]) -> None:
    """A module on every rank of the layout, on this machine under torchrun, with logs/NAME.log. Raises SophiaError."""
    config = context.config
    _require_driver_for_fp8(config)
    threads = config.train.threads_per_process
    run_worker(
        [
            interpreter(config.environments.trainer),
            *("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={config.parallel.world_size}"),
            *(f"--shutdown-timeout={_SAVE_SECONDS}", "-m", module, *flags),
        ],
        log_file=_log(context, name),
        environment={"OMP_NUM_THREADS": str(threads)} if threads else {},
        follow=context.progress.follow,
        patience_seconds=_SAVE_SECONDS + 10,
    )


def _require_driver_for_fp8(config: Config) -> None:
    """Said before the ranks start, which takes a while; they look for the device itself."""
    from sophia_mcore.parallel.layout import fp8_refusal

    wanted = config.fp8.native
    if wanted and not any(Path(sign).exists() for sign in _NVIDIA):
        raise fp8_refusal(config.fp8.recipe, "a CUDA device")


def export(context: Context, round_index: int) -> None:
    """Megatron checkpoint -> Hugging Face directory."""
    from sophia_mcore.train.checkpoint_folder import list_checkpoints, read_manifest

    for newest in list_checkpoints(context.run.round(round_index).checkpoints)[:1]:
        read_manifest(newest)  # which the worker will read: its files have their sizes
    run_worker(
        [
            interpreter(context.config.environments.trainer),
            *("-m", "sophia_mcore.weights.worker", str(context.run.config_file), "--round", str(round_index)),
        ],
        log_file=_log(context, f"export-round-{round_index}"),
        environment={},
        follow=context.progress.follow,
    )


def evaluate(context: Context, round_index: int) -> None:
    """pass@1 of the base model (once) and of the round's export, by the same code."""
    if not context.config.evaluate.questions:
        return
    models = evaluated_models(context.config, context.run, round_index)
    flags = [f"--model={label}={model}" for label, model in models]
    _rollout(context, f"evaluate-round-{round_index}", ["sophia_mcore.evaluate.worker", *flags], None)


def report(context: Context, round_index: int) -> None:
    """report.json and the run as a web page."""
    from sophia_mcore.report.build import write_report

    write_report(context.config, context.run)


PHASES: dict[str, Callable[[Context, int], None]] = {
    "questions": prepare,
    "captions": captions,
    "reasoning": reasoning,
    "score": score,
    "train": train,
    "export": export,
    "evaluate": evaluate,
    "report": report,
}


def interpreter(path: Path | None) -> str:
    """The Python of an environment; raises SophiaError naming how to make it when it is missing."""
    if path is None:
        return sys.executable
    if not path.is_file():
        raise SophiaError(f"{path}: no such interpreter ('make env' makes it; [environments] in the config names it)")
    return str(path.absolute())


def _rollout(context: Context, name: str, module_and_flags: list[str], round_index: int | None) -> None:
    module, *flags = module_and_flags
    chosen = [] if round_index is None else ["--round", str(round_index)]
    suffix = "" if round_index is None else f"-round-{round_index}"
    run_worker(
        [
            interpreter(context.config.environments.rollout),
            *("-m", module, str(context.run.config_file), *flags, *chosen),
        ],
        log_file=_log(context, name + suffix),
        environment={},
        follow=context.progress.follow,
    )


def _log(context: Context, name: str) -> Path:
    return context.run.path / "logs" / f"{name}.log"
