"""Commands about whole runs: on-policy stage, variants, Slurm jobs and their state."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sophia_mcore.cli.options import ConfigArgument, NewSettings, Overlays, Round, RunArgument, Sets, load


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the app."""
    for command in (rl, export, fork, submit, status, watch, track, cancel):
        app.command()(command)


def rl(
    config: ConfigArgument,
    batches: Annotated[int | None, typer.Option("--batches", min=1, help="Batches (default: rl.batches).")] = None,
    first: Annotated[str, typer.Option("--from", metavar="STEP", help="select, loop or evaluate.")] = "select",
    replay: Annotated[bool, typer.Option("--replay", help="Train on the stored rollouts; start no engine.")] = False,
    overlay: Overlays = None,
    set_: Sets = None,
    new_settings: NewSettings = False,
) -> None:
    """The on-policy stage on this machine, all its phases. Run again to resume."""
    from sophia_mcore.launch.phases import PHASES
    from sophia_mcore.launch.rl import run_rl
    from sophia_mcore.report.summary import print_stage_summary
    from sophia_mcore.track.send import send

    loaded = load(config, overlay, set_)
    folder = run_rl(loaded, batches=batches, first=first, replay=replay, new_settings=new_settings)
    if loaded.track.enabled:
        send(folder, loaded, PHASES)
    print_stage_summary(folder)


def export(
    config: ConfigArgument,
    round_: Round = 0,
    push: Annotated[str | None, typer.Option("--push", metavar="ORG/NAME", help="Then send it to the hub.")] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: a repository that only you see.")] = False,
    stage: Annotated[bool, typer.Option("--rl", help="With --push: the on-policy stage's model.")] = False,
    overlay: Overlays = None,
    set_: Sets = None,
    new_settings: NewSettings = False,
) -> None:
    """Write the trained policy as a Hugging Face folder with a card."""
    from sophia_mcore.errors import SophiaError, UsageError
    from sophia_mcore.launch.local import run_phases
    from sophia_mcore.launch.phases import PHASES
    from sophia_mcore.report.model_card import write_cards
    from sophia_mcore.store.layout import RunFolder
    from sophia_mcore.weights.push import check_name
    from sophia_mcore.weights.push import push as send

    if (private or stage) and push is None:
        raise UsageError("--private and --rl belong to --push ORG/NAME")
    if push is not None:
        check_name(push)  # before the work
    loaded = load(config, overlay, set_)
    if stage:
        run = RunFolder(loaded.run.folder)
        if not run.rl.summary_file.is_file():
            raise SophiaError(f"{run.rl.path}: the on-policy stage has not ended (`sophia rl CONFIG`)")
    else:
        run = run_phases(loaded, ["export"], [round_], new_settings=new_settings)
    write_cards(loaded, run, PHASES)
    folder = run.rl.model if stage else run.round(round_).model
    typer.echo(folder)
    if push is not None:
        typer.echo(send(folder, push, private=private))


def fork(
    run_folder: RunArgument,
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder of the new run.")],
    first: Annotated[str | None, typer.Option("--from", metavar="PHASE", help="Share nothing from here on.")] = None,
    overlay: Overlays = None,
    set_: Sets = None,
) -> None:
    """Begin a variant of a run. It shares all results that are valid under the new settings."""
    from sophia_mcore.launch.fork import fork as begin

    typer.echo(begin(run_folder, new, first=first, overlays=overlay or (), sets=set_ or ()))


def submit(
    config: ConfigArgument,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Rounds (default: run.rounds).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every command and ask Slurm; submit nothing.")
    ] = False,
    only: Annotated[str | None, typer.Option("--only", metavar="PHASE", help="Only this phase.")] = None,
    stage: Annotated[bool, typer.Option("--rl", help="The on-policy stage instead of the rounds.")] = False,
    engines: Annotated[int, typer.Option("--engines", min=0, help="With --rl: only N more engines for it.")] = 0,
    overlay: Overlays = None,
    set_: Sets = None,
    new_settings: NewSettings = False,
) -> None:
    """Submit the jobs that the run still needs to Slurm. Run again later: submits only what is missing."""
    from sophia_mcore.cli.submission import show_dry_run, show_submission, submit_more_engines
    from sophia_mcore.errors import UsageError
    from sophia_mcore.launch.phases import expand
    from sophia_mcore.launch.slurm import submit

    if stage and (only or rounds):
        raise UsageError("--rl submits the on-policy stage whole; --only and --rounds belong to rounds")
    if engines and not stage:
        raise UsageError("--engines adds engines to an on-policy stage that waits or runs: give it with --rl")
    loaded = load(config, overlay, set_, stages=not (engines or stage or only or rounds))
    if loaded.stages is not None:
        from sophia_mcore.cli.stages import submit_next

        submit_next(loaded, new_settings=new_settings, dry_run=dry_run)
        return
    if engines:
        submit_more_engines(loaded, engines, dry_run=dry_run)
        return
    names = expand([only]) if only else None
    if dry_run:
        show_dry_run(loaded, rounds, names, new_settings=new_settings, stage=stage)
    else:
        found = submit.submit(loaded, rounds, only=names, new_settings=new_settings, stage=stage)
        show_submission(found, dry_run=False)


def status(run_folder: RunArgument) -> None:
    """Phases, units, jobs, last loss, time left, what went wrong. Of [[stages]]: where they are."""
    from sophia_mcore.launch.local import open_any_run
    from sophia_mcore.launch.slurm.status import status_text
    from sophia_mcore.launch.stages_table import stages_text

    folder, config = open_any_run(run_folder)
    typer.echo(status_text(config, folder) if config.stages is None else stages_text(config, folder))


def watch(
    run_folder: RunArgument,
    every: Annotated[float, typer.Option("--every", min=0.2, metavar="SECONDS", help="Time between two reads.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show the run once and exit.")] = False,
) -> None:
    """Show the newest texts and metrics of a running run. Ctrl-C ends the watching, not the run."""
    from sophia_mcore.launch.watch import watch as look_on

    look_on(run_folder, every, once=once)


def track(
    run_folder: RunArgument,
    open_: Annotated[bool, typer.Option("--open", help="Then show MLflow's pages until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Of these pages.")] = 5000,
) -> None:
    """Send to MLflow or TensorBoard what is not there yet."""
    from sophia_mcore.errors import SophiaError
    from sophia_mcore.launch.local import open_run
    from sophia_mcore.launch.phases import PHASES
    from sophia_mcore.track.pages import serve_pages
    from sophia_mcore.track.runs import redact
    from sophia_mcore.track.send import send

    folder, config = open_run(run_folder)
    if not send(folder, config, PHASES):  # send has printed the reason
        if config.track.to == ("mlflow",):
            raise SophiaError(
                "MLflow did not receive everything (the warning says why); nothing is lost: run this again later"
            )
        raise SophiaError(f"{' and '.join(config.track.to)}: not everything is there (the warning says why)")
    if "tensorboard" in config.track.to:
        typer.echo(f"TensorBoard: tensorboard --logdir {folder.tensorboard}")
    if "mlflow" in config.track.to:
        typer.echo(f"{redact(config.track.tracking_uri)}: has everything of {folder.path}")
    if open_:
        serve_pages(config.track, port, typer.echo)


def cancel(run_folder: RunArgument) -> None:
    """End the run's jobs; `sophia submit` goes on from there."""
    from sophia_mcore.launch.local import open_any_run
    from sophia_mcore.launch.slurm import submit
    from sophia_mcore.store.layout import RunFolder

    folder, config = open_any_run(run_folder)
    folders = [folder] if config.stages is None else [RunFolder(one) for one in sorted(folder.stages.glob("*"))]
    ids = [number for one in folders for number in submit.cancel(one)]
    typer.echo(f"cancelled {len(ids)} jobs: {' '.join(ids)}" if ids else "no jobs of this run are waiting or running")
