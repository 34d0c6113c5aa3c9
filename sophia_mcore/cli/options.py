"""Arguments and options that commands of `sophia` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sophia_mcore.config.schema import Config

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's TOML file.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder (or its TOML file).")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one setting.")]
Overlays = Annotated[list[Path] | None, typer.Option("--overlay", metavar="FILE", help="TOML merged over CONFIG.")]
Round = Annotated[int, typer.Option("--round", min=0, help="Which round.")]
NewSettings = Annotated[
    bool, typer.Option("--new-settings", help="Go on in a run folder that was started with other settings.")
]


def load(config: Path, overlays: list[Path] | None, sets: list[str] | None, *, stages: bool = False) -> Config:
    """Load the configuration with overlays and `--set`.

    Raises UsageError for a run of several stages, unless the command takes one (``stages``).
    """
    from sophia_mcore.config import load_config
    from sophia_mcore.errors import UsageError
    from sophia_mcore.store.layout import RunFolder

    loaded = load_config(config, overlays or (), sets or ())
    if loaded.stages is not None and not stages:
        first = RunFolder(loaded.run.folder).stage(0, loaded.stages[0].name)
        raise UsageError(
            f"{config} is a run of several stages, and this command works on one: name its configuration, such as "
            f"{first.config_file}, which `sophia run` writes"
        )
    return loaded


def each_stage(config: Config) -> list[tuple[str, Config]]:
    """(name, configuration) of each stage; of a run without stages the configuration alone, with the name ""."""
    if config.stages is None:
        return [("", config)]
    from sophia_mcore.launch.stage_configs import stage_runs

    return [
        (f"stage {one.label} ({one.stage.kind}, promote {one.stage.promote!r})", one.config)
        for one in stage_runs(config)
    ]
