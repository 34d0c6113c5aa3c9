"""Errors that end a command with one clear line. Everything else is a bug and keeps its traceback in the log."""

from __future__ import annotations


class SophiaError(Exception):
    """The work failed: what, where, and what to do. Exit code 1."""

    exit_code = 1


class UsageError(SophiaError):
    """Bad usage or configuration: what is wrong, where, the nearest valid name. Exit code 2."""

    exit_code = 2
