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


def load(config: Path, overlays: list[Path] | None, sets: list[str] | None) -> Config:
    """Load the configuration with overlays and `--set`."""
    from sophia_mcore.config import load_config

    return load_config(config, overlays or (), sets or ())
