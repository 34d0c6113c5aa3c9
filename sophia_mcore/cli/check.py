"""`sophia check`: checks and prints a configuration, explains keys, and finds training questions of benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sophia_mcore.cli.options import Overlays, Sets, each_stage, load
from sophia_mcore.errors import SophiaError, UsageError

if TYPE_CHECKING:
    from sophia_mcore.config.schema import Config


def check(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="The run's TOML file.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="NAME[=PATH],...", help="Find training questions of these benchmarks."),
    ] = None,
    drop: Annotated[
        Path | None, typer.Option("--drop", metavar="FILE", help="With --against: write the questions without them.")
    ] = None,
    overlay: Overlays = None,
    set_: Sets = None,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="KEY", help="What a key or section means.")
    ] = None,
    try_: Annotated[
        int,
        typer.Option("--try", metavar="N", help="Play N questions twice with rewards and environment."),
    ] = 0,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of CONFIG, for editors.")] = False,
) -> None:
    """Check a configuration file, and print it resolved. Then the first questions (as comments), the inputs of later
    phases, and whether the layout fits the policy. With --against: training questions that share text or image with a
    benchmark. With --try: what rewards and environment make of a stand-in's answers, and whether they say it twice."""
    if drop is not None and not against:
        raise UsageError("--drop needs --against BENCHMARK")
    if explain is not None or schema:
        from sophia_mcore.config.reference import explain_setting, json_schema

        typer.echo(explain_setting(explain) if explain is not None else json.dumps(json_schema(), indent=2))
        return
    if config is None:
        raise UsageError("name a CONFIG to check, or --explain KEY, or --schema")
    loaded = load(config, overlay, set_, stages=True)
    if against:
        from sophia_mcore.launch.contamination import check_against

        if drop is not None and loaded.stages is not None:
            raise UsageError("--drop writes the questions of one run, and this is a run of several stages")
        names = [one for text in against for one in text.split(",") if one]
        for name, one in each_stage(loaded):
            for line in (*([name] if name else ()), *check_against(one, names, drop)):
                typer.echo(line)
        return
    _show(config, loaded)
    if try_:
        from sophia_mcore.launch.trial import Waiting, try_functions

        for name, one in each_stage(loaded):
            waiting = Waiting(lambda line: typer.echo(line, err=True))
            if name:
                typer.echo(f"# {name}")
            for line in try_functions(one, try_, waiting):
                typer.echo(f"# {line}")


def _show(file: Path, config: Config) -> None:
    from sophia_mcore.config import dump_toml
    from sophia_mcore.config.load import dump_given
    from sophia_mcore.launch.inputs import policy_images, trained_spec
    from sophia_mcore.store.user_files import check_user_files

    stages = each_stage(config)
    for _, one in stages:
        check_user_files(one)
    doubts = _doubtful_terms([one for _, one in stages])
    refusals = [policy_images(one) for _, one in stages]
    for _, one in stages:
        if (spec := trained_spec(one)) is not None:
            from sophia_mcore.parallel.layout import check_run_layout  # here: slow to import

            check_run_layout(spec, one)
    typer.echo(dump_toml(config) if config.stages is None else dump_given(config), nl=False)
    shown: set[str] = set()  # stages read the same questions again and again
    stopped = False
    for (name, one), refuse_size in zip(stages, refusals, strict=True):
        if name:
            typer.echo(f"\n# {name} in {one.run.folder}")
        stopped = _show_inputs(one, refuse_size, shown) or stopped
    for line in [*doubts, *_unusable_models(stages[0][1])]:  # models of later stages are made by the stages before
        typer.echo(f"warning: {line}", err=True)
    typer.echo(f"# ok: {file}{', but a run would stop at the questions above' if stopped else ''}")


def _doubtful_terms(configs: Sequence[Config]) -> list[str]:
    """Raise UsageError for a term of the reward that is for no question; returns what is doubtful of the others."""
    found: dict[str, None] = {}  # stages share their rewards
    for config in configs:
        if any(term.only is not None or term.function == "step" for term in config.rewards):
            from sophia_mcore.launch.reward_questions import check_terms_fit, doubtful_steps  # here: slow to import

            check_terms_fit(config)
            found |= dict.fromkeys(doubtful_steps(config))
    return list(found)


def _unusable_models(config: Config) -> list[str]:
    """What is wrong with model folders; a name on the hub is downloaded before the first phase."""
    from sophia_mcore.pretrained.complete import check_model_dir
    from sophia_mcore.pretrained.hub import hub_name

    lines = []
    for key, path in (("policy", config.models.policy), ("reasoner", config.models.reasoner)):
        if path is not None and hub_name(path) is None:
            try:
                check_model_dir(path)
            except SophiaError as error:
                lines.append(f"models.{key}: {error} ('sophia doctor' says more)")
    return lines


def _show_inputs(config: Config, refuse_size: Callable[[int, int], object] | None, shown: set[str]) -> bool:
    """Show questions and inputs; returns whether a source cannot be read or has more bad rows than allowed."""
    from sophia_mcore.benchmarks.rows import read_any
    from sophia_mcore.data.preview import previews
    from sophia_mcore.launch.inputs import MADE_BY, inputs_of

    found_sources = previews(config, read_any, refuse_size)
    for text in map(str, found_sources):
        if text not in shown:
            shown.add(text)
            typer.echo("\n" + "\n".join(f"# {line}" for line in text.split("\n")))
    for found in inputs_of(config):
        if found.key == MADE_BY:  # what is missing is shown above, and not yet an error
            try:
                found.look()
            except SophiaError as error:
                typer.echo(f"warning: {error}", err=True)
        elif not found.key.startswith("evaluate.questions"):  # shown above
            found.look()
    return any(one.refused or one.bad > config.data.max_bad_rows for one in found_sources)


def register(app: typer.Typer) -> None:
    """Add the command `sophia check` to the app."""
    app.command()(check)
