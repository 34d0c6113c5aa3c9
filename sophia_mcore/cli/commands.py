"""The `sophia` command: parses arguments, calls functions, prints results. Commands import heavy modules themselves."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Annotated

import typer

from sophia_mcore.cli import check as _check_command
from sophia_mcore.cli import runs as _run_commands
from sophia_mcore.cli.benchmark import benchmark
from sophia_mcore.cli.options import ConfigArgument, NewSettings, Overlays, Round, RunArgument, Sets, each_stage, load
from sophia_mcore.errors import run_command

app = typer.Typer(
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="SOPHIA: semi-off-policy RL for vision-language slow thinking on Megatron-Core.",
)


# the names of the phases of a round: `launch.phases` has them, which is slow to import
_PHASES = "questions, captions, reasoning, score, fp8-check, train, export, evaluate, report"


def _print_version(asked: bool) -> None:
    if asked:
        from sophia_mcore import __version__

        typer.echo(f"sophia_mcore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _phases(
    config: Path, overlays: list[Path] | None, sets: list[str] | None, names: list[str], round_: int, new: bool
) -> None:
    from sophia_mcore.launch.local import run_phases
    from sophia_mcore.launch.phases import expand

    run_phases(load(config, overlays, sets), expand(names), [round_], new_settings=new)


@app.command()
def init(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A table, JSON lines, Parquet, or a folder with one.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The TOML to write.")] = Path("run.toml"),
    columns: Annotated[
        list[str] | None, typer.Option("--column", metavar="ROLE=NAME", help="A column it cannot guess: answer=Result.")
    ] = None,
) -> None:
    """Look at your data and write a short TOML for it."""
    from sophia_mcore.launch.init import write_run_toml

    typer.echo(write_run_toml(data, out, columns or ()))


@app.command()
def run(
    config: ConfigArgument,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Rounds (default: run.rounds).")] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="PHASE", help=f"Do this phase and all later ones again: {_PHASES}.")
    ] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="PHASE", help="Only this phase.")] = None,
    overlay: Overlays = None,
    set_: Sets = None,
    new_settings: NewSettings = False,
) -> None:
    """The whole round, or all [[stages]], on this machine. Run again to resume: finished work is not redone."""
    from sophia_mcore.errors import UsageError
    from sophia_mcore.launch.local import run_phases
    from sophia_mcore.launch.phases import PHASES, expand, names_in, starting_at

    if first and only:
        raise UsageError("--from and --only cannot be combined")
    loaded = load(config, overlay, set_, stages=True)
    if loaded.stages is not None:
        from sophia_mcore.cli.stages import run_all

        if rounds or first or only:
            raise UsageError(f"{config} is a run of several stages: --rounds, --from and --only belong to one of them")
        run_all(loaded, new_settings=new_settings)
        return
    names = expand([only]) if only else starting_at(first) if first else names_in("round")
    again = names[0] if first else None
    folder = run_phases(loaded, names, range(rounds or loaded.run.rounds), new_settings=new_settings, again=again)
    if any(phase.uploads for phase in PHASES if phase.name in names):
        from sophia_mcore.report.summary import print_summary
        from sophia_mcore.track.send import send

        if loaded.track.enabled:
            send(folder, loaded, PHASES)
        print_summary(folder)


def _phase_command(name: str, help_text: str) -> None:
    def command(
        config: ConfigArgument,
        round_: Round = 0,
        overlay: Overlays = None,
        set_: Sets = None,
        new_settings: NewSettings = False,
    ) -> None:
        _phases(config, overlay, set_, [name], round_, new_settings)

    command.__doc__ = help_text
    app.command(name)(command)


for _name, _help in {
    "generate": "Check questions, caption images, reason from the captions.",
    "score": "Verify answers, reward captions, keep the best trajectories.",
    "train": "Train the policy on the kept trajectories.",
    "evaluate": "pass@1 on held-out questions, before and after.",
}.items():
    _phase_command(_name, _help)


@app.command("fp8-check")
def fp8_check(config: ConfigArgument, round_: Round = 0, overlay: Overlays = None, set_: Sets = None) -> None:
    """Measure FP8 training on stored trajectories. `train` asks for a passed check."""
    from sophia_mcore.launch.fp8_check import run_fp8_check

    typer.echo(run_fp8_check(load(config, overlay, set_), round_))


@app.command()
def grade(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="- reads standard input.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.jsonl")],
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds per answer.")] = 1.0,
) -> None:
    """Grade answers: to each line, add verdict, extracted, seconds.

    A line has "id", "response" and "answer". It may have "type" (of the answer), "options" (texts, in order),
    "benchmark" (whose precision counts), "tolerance" (absolute) and "question"; docs/grading.md lists their values.
    """
    import math

    from sophia_mcore.config.schema import Score
    from sophia_mcore.errors import UsageError
    from sophia_mcore.launch.terminal import TerminalProgress
    from sophia_mcore.score.grade_file import grade_file

    if not (math.isfinite(timeout) and timeout > 0):
        raise UsageError(f"--timeout {timeout:g}: a finite number of seconds above 0")
    if str(target) == "-":
        raise UsageError("OUT.jsonl is a file, which may be continued: '-' is not; ./- is a file of that name")

    with TerminalProgress() as progress:
        summary = grade_file(source, target, Score(workers=workers, timeout_seconds=timeout), progress)
    typer.echo(summary)


app.command()(benchmark)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC")],
    destination: Annotated[Path, typer.Argument(metavar="DST")],
    to: Annotated[str, typer.Option(help="megatron, hf, hf-custom or fp8.")],
    tensor: Annotated[int, typer.Option("--tp", min=1, help="Tensor parallel size of a Megatron checkpoint.")] = 1,
    pipeline: Annotated[int, typer.Option("--pp", min=1, help="Pipeline parallel size of a Megatron checkpoint.")] = 1,
    base: Annotated[Path | None, typer.Option(help="HF folder whose config a Megatron checkpoint needs.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Cast all tensors: bf16, fp16 or fp32.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="For fp8: a run folder, or a file of texts.")] = None,
    quantizer: Annotated[Path | None, typer.Option(help="For fp8: Python of the ModelOpt environment.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read the result back and compare.")] = False,
    digest: Annotated[str | None, typer.Option(help="Of every tensor, in conversion.json: xxh3-128 or sha256.")] = None,
    no_checksums: Annotated[bool, typer.Option("--no-checksums", help="No digests in conversion.json.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Tensors copied at a time.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
) -> None:
    """Convert a checkpoint: Hugging Face, Megatron and FP8 layouts."""
    import difflib

    from sophia_mcore.errors import UsageError
    from sophia_mcore.weights.command import run_convert
    from sophia_mcore.weights.conversion import Conversion, named_dtype

    known = ("megatron", "hf", "hf-custom", "fp8")
    if to not in known:
        nearest = difflib.get_close_matches(to, known, n=1)
        raise UsageError(f"--to {to!r}: " + (f"did you mean {nearest[0]!r}?" if nearest else f"one of {known}"))
    if digest and no_checksums:
        raise UsageError(f"--digest {digest} and --no-checksums cannot be combined")
    run_convert(
        Conversion(
            source,
            destination,
            to,  # type: ignore[arg-type]
            tensor=tensor,
            pipeline=pipeline,
            base=base,
            dtype=named_dtype(dtype),
            verify=verify,
            digest=None if no_checksums else digest or "xxh3-128",  # type: ignore[arg-type]
            workers=workers,
            calibration=calibration,
            quantizer=quantizer,
            dry_run=dry_run,
        )
    )


@app.command()
def verify(
    first: Annotated[Path, typer.Argument(metavar="A")],
    second: Annotated[Path, typer.Argument(metavar="B")],
    base: Annotated[Path | None, typer.Option(help="HF folder whose config a Megatron checkpoint needs.")] = None,
) -> None:
    """Compare two checkpoints of any layout, bit by bit. An FP8 copy and its source: within the rounding bound."""
    from sophia_mcore.weights.command import run_verify

    run_verify(first, second, base)


@app.command()
def plan(
    config: ConfigArgument,
    gpus: Annotated[int, typer.Option(help="How many GPUs.")],
    gpu: Annotated[str, typer.Option(help="Which: h100, h200, ...")] = "h100",
    fp8: Annotated[bool, typer.Option("--fp8", help="Consider FP8 too.")] = False,
    questions: Annotated[int | None, typer.Option(help="How many questions.")] = None,
    response_tokens: Annotated[float | None, typer.Option(help="Mean length of a trajectory.")] = None,
    caption_tokens: Annotated[float | None, typer.Option(help="Mean length of a caption.")] = None,
    tiles: Annotated[float | None, typer.Option(min=0, help="Mean number of tiles, or images, of a question.")] = None,
    image_tokens: Annotated[float | None, typer.Option(help="Mean tokens of an image, where sizes vary.")] = None,
    kept: Annotated[float | None, typer.Option(help="Share of the questions that keep a trajectory.")] = None,
    accuracy: Annotated[float | None, typer.Option(help="Share of right trajectories, for reasoning.waves.")] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rates from what tests/gpu/blocks.py measured.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many layouts to show.")] = 8,
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the best layout as an overlay.")] = None,
    overlay: Overlays = None,
    set_: Sets = None,
) -> None:
    """Which layouts fit, how fast they train, what the round costs. Needs no GPU and no weights."""
    from rich.console import Console

    from sophia_mcore.plan.command import check_target, make_plan, write_overlay
    from sophia_mcore.plan.show import show
    from sophia_mcore.plan.workload import Assumptions

    given = Assumptions(
        questions=questions,
        response_tokens=response_tokens,
        caption_tokens=caption_tokens,
        tiles=tiles,
        kept=kept,
        image_tokens=image_tokens,
        accuracy=accuracy,
    )
    loaded = load(config, overlay, set_, stages=write is None)
    if write is not None:
        check_target(write, (config, *(overlay or ())))  # before the work
    for name, one in each_stage(loaded):
        if name:
            typer.echo(name)
        made = make_plan(one, gpu, gpus, given, fp8, measured)
        show(made, Console(), top)
    if write is not None:
        typer.echo(f"wrote {write}: {write_overlay(write, made.best, config, overlay or (), set_ or ())}")


@app.command()
def report(
    run_folder: RunArgument,
    other: Annotated[Path | None, typer.Argument(metavar="RUN_B", help="A second run: compare the two.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Where a comparison goes.")] = None,
) -> None:
    """Write the page of a run, or one page that compares two runs. Beside it stands report.json."""
    from sophia_mcore.launch.local import open_run
    from sophia_mcore.launch.opening import open_for_report
    from sophia_mcore.launch.phases import PHASES
    from sophia_mcore.report.build import write_report
    from sophia_mcore.report.reading import Problems

    if other is not None:
        from sophia_mcore.report.compare import write_comparison

        opened, second = open_run(run_folder), open_run(other)
        typer.echo(write_comparison(opened, second, PHASES, output))
    elif output is not None:
        from sophia_mcore.errors import UsageError

        raise UsageError("--output is for the comparison of two runs; one run's report lies in its folder")
    else:
        from sophia_mcore.report.summary import print_missing, print_stale

        problems = Problems()
        run, config = open_for_report(run_folder, problems)
        page = write_report(config, run, PHASES, problems)
        print_stale(run)
        print_missing(run)
        typer.echo(page)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Could this run here?")] = None,
    overlay: Overlays = None,
    set_: Sets = None,
) -> None:
    """What this machine has, what is missing, and how to get it."""
    from rich.console import Console

    from sophia_mcore.doctor.command import doctor as examine
    from sophia_mcore.errors import UsageError

    if config is None and (overlay or set_):
        raise UsageError("--overlay and --set change a CONFIG: name it too")
    if config is None:
        examine(None, Console())
        return
    for name, one in each_stage(load(config, overlay, set_, stages=True)):
        if name:
            typer.echo(name)
        examine(one, Console())


_check_command.register(app)
_run_commands.register(app)


def main() -> None:
    """Entry point. Exit code 2 for bad arguments; other exit codes as in `errors.run_command`."""
    gc.set_threshold(50_000)  # modules and settings stay: to look among them for garbage takes a sixth of the start

    def call() -> None:
        try:
            app()
        except SystemExit as end:
            if end.code == 130:  # typer exits on KeyboardInterrupt without a message
                raise KeyboardInterrupt from end
            raise

    sys.exit(run_command("sophia", call))
