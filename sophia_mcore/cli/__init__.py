"""The `sophia` command: `commands` has the app, the other modules have groups of commands."""

from sophia_mcore.cli.commands import app, main

__all__ = ["app", "main"]
