"""What `sophia submit` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:  # slow to import
    from sophia_mcore.config.schema import Config
    from sophia_mcore.launch.slurm.submit import Submission
    from sophia_mcore.phase import PhaseState


def show_submission(found: Submission, *, dry_run: bool) -> None:
    """The table of the jobs, and what is to be said about them."""
    from sophia_mcore.launch.slurm.status import submission_table

    typer.echo(submission_table(found, dry_run=dry_run))
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)


def show_dry_run(
    config: Config,
    rounds: int | None = None,
    names: list[str] | None = None,
    *,
    new_settings: bool,
    stage: bool,
    found: list[PhaseState] | None = None,
) -> None:
    """What would be submitted, with Slurm's answers. Raises UsageError if Slurm would refuse a job.

    ``found``: states of the phases; None: as they are now.
    """
    from sophia_mcore.errors import UsageError
    from sophia_mcore.launch.slurm import jobs, submit

    made = submit.dry_run(config, rounds, names, stage=stage, found=found)
    typer.echo(jobs.shell_lines(made.commands))
    show_submission(made, dry_run=True)
    refused = [key[0] for key, answer in made.answers.items() if answer.startswith("refused")]
    if refused:
        raise UsageError(f"Slurm would refuse {', '.join(refused)}")
    if complaint := submit.would_refuse(config, new_settings=new_settings, stage=stage):
        typer.echo(f"warning: submit itself would end with: {complaint}", err=True)


def submit_more_engines(config: Config, count: int, *, dry_run: bool) -> None:
    """Submit ``count`` engines for the on-policy stage, or show the command that would."""
    from sophia_mcore.launch.slurm import jobs
    from sophia_mcore.launch.slurm.engines import dry_engines, submit_engines

    if not dry_run:
        typer.echo(f"submitted {count} engines: job {submit_engines(config, count)}")
        return
    command, notes = dry_engines(config, count)
    typer.echo(jobs.shell_lines([command]))
    for note in notes:
        typer.echo(f"note: {note}", err=True)
