"""`sophia run` and `sophia submit` for a run of several stages."""

from __future__ import annotations

import typer

from sophia_mcore.config.schema import Config
from sophia_mcore.launch.stage_configs import StageRun


def run_all(config: Config, *, new_settings: bool) -> None:
    """Run all stages that are not finished; each that was run is sent to tracking and summed up."""
    from sophia_mcore.launch.stages import run_stages

    last = run_stages(config, _say, new_settings=new_settings, ended=_show)
    typer.echo(f"all stages are finished; the model: {last.chosen.model}")


def submit_next(config: Config, *, new_settings: bool, dry_run: bool) -> None:
    """Submit the first stage that is not finished."""
    from sophia_mcore.cli.submission import show_dry_run, show_submission
    from sophia_mcore.launch.slurm.submit import no_jobs_alive, submit
    from sophia_mcore.launch.stages import accept_settings, accepts, states_to_submit, unfinished

    one, before = unfinished(config, _say, keep=not dry_run)
    if one is None:
        typer.echo("all stages are finished: no job submitted")
        return
    typer.echo(f"stage {one.label} ({one.stage.kind}) in {one.run.path}")
    if dry_run:
        accepted = accepts(one, before, _say, new_settings=new_settings)
        stage = one.stage.on_policy
        show_dry_run(one.config, new_settings=accepted, stage=stage, found=states_to_submit(one))
    else:
        with no_jobs_alive(one.run):  # before results that no longer hold are moved aside
            accepted = accept_settings(one, before, _say, new_settings=new_settings)
        found = submit(one.config, new_settings=accepted, stage=one.stage.on_policy)
        show_submission(found, dry_run=False)
    typer.echo("when its jobs have ended, the same command chooses its model and submits the next stage")


def _show(one: StageRun) -> None:
    from sophia_mcore.launch.phases import PHASES
    from sophia_mcore.report.summary import print_stage_summary, print_summary
    from sophia_mcore.track.send import send

    if one.config.track.enabled:
        send(one.run, one.config, PHASES)
    if one.stage.on_policy:
        print_stage_summary(one.run)
    else:
        print_summary(one.run)


def _say(text: str) -> None:
    typer.echo(text)
