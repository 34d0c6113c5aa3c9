"""The commands for Slurm: submit, status, cancel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_cluster_commands(app: typer.Typer) -> None:
    """Add them to the `sophia` command."""
    for command in (submit, status, cancel):
        app.command()(command)


def submit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's TOML file.")],
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Rounds (default: run.rounds).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every command and ask Slurm; submit nothing.")
    ] = False,
    only: Annotated[str | None, typer.Option("--only", metavar="PHASE", help="Only this phase.")] = None,
    overlay: Annotated[list[Path] | None, typer.Option("--overlay", metavar="FILE", help="TOML over CONFIG.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one setting.")] = None,
    new_settings: Annotated[bool, typer.Option("--new-settings", help="Go on with other settings.")] = False,
) -> None:
    """Submit what the run still needs to Slurm. Again, later: only what is missing."""
    from sophia_mcore.config import load_config
    from sophia_mcore.errors import UsageError
    from sophia_mcore.launch.local import PHASES, expand
    from sophia_mcore.launch.slurm import jobs, submit
    from sophia_mcore.launch.slurm.status import submission_table

    loaded = load_config(config, overlay or (), set_ or ())
    names = expand([only] if only else PHASES)
    if dry_run:
        found = submit.dry_run(loaded, rounds, names)
        typer.echo(jobs.shown(found.commands))
    else:
        found = submit.submit(loaded, rounds, only=names, new_settings=new_settings)
    typer.echo(submission_table(found, dry_run=dry_run))
    refused = [key[0] for key, answer in found.answers.items() if dry_run and answer.startswith("refused")]
    if refused:
        raise UsageError(f"Slurm refuses {', '.join(refused)} as it stands")
    if dry_run and (complaint := submit.would_refuse(loaded)):
        typer.echo(f"warning: submit itself would end with: {complaint}", err=True)


def status(run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder (or its TOML file).")]) -> None:
    """Phases, work units, jobs, last loss, time left, and what went wrong."""
    from sophia_mcore.launch.local import open_run
    from sophia_mcore.launch.slurm.status import status_text

    folder, config = open_run(run)
    typer.echo(status_text(config, folder))


def cancel(run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder (or its TOML file).")]) -> None:
    """End the run's jobs; `sophia submit` goes on from there."""
    from sophia_mcore.launch.local import open_run
    from sophia_mcore.launch.slurm import submit

    folder, _ = open_run(run)
    ids = submit.cancel(folder)
    typer.echo(f"cancelled {len(ids)} jobs: {' '.join(ids)}" if ids else "no jobs of this run are waiting or running")
