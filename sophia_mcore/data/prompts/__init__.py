"""The shipped prompt templates, and how a template becomes a prompt. Templates are text files: see this folder."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from sophia_mcore.data.cells import reserved_in
from sophia_mcore.errors import UsageError

NAMES = ("describe", "simulate_seeing", "long_thinking", "boxed", "rethink", "judge", "extract_answer")


def load_prompt(
    name: str, override: Path | None = None, needs: tuple[str, ...] = (), *, package: str = __package__
) -> str:
    """Template ``name``.txt of ``package``, or the text of ``override``; outer blank lines are dropped.

    ``needs`` are the placeholders that must occur in it. Raises UsageError when the file is missing, empty, not UTF-8,
    lacks a placeholder, or contains what a chat template reads as structure.
    """
    source = override or resources.files(package) / f"{name}.txt"
    if override is not None and override.exists() and not override.is_file() and not override.is_dir():
        raise UsageError(f"{override}: a pipe or device; the {name} prompt is read more than once, so a file is needed")
    try:
        text = source.read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise UsageError(f"{source}: the {name} prompt cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{source}: the {name} prompt is not UTF-8 text") from None
    if reserved := reserved_in(text):
        raise UsageError(f"{source}: the {name} prompt {reserved}")
    if not text:
        raise UsageError(f"{source}: the {name} prompt is empty")
    missing = [f"{{{placeholder}}}" for placeholder in needs if f"{{{placeholder}}}" not in text]
    if missing:
        raise UsageError(f"{source}: the {name} prompt lacks {' and '.join(missing)}")
    return text


def fill(template: str, **values: str) -> str:
    r"""Put values in place of ``{name}``. Values are data: braces in them, and all other braces, stay as they are.

    >>> fill("{question} in \\boxed{}", question="What is {caption}?", caption="no")
    'What is {caption}? in \\boxed{}'
    """
    names = "|".join(re.escape(name) for name in values)
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)
