"""Finds ids of special tokens in the tokenizer files of a model folder, without loading the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sophia_mcore.errors import UsageError

TOKENIZER_FILES = ("added_tokens.json", "tokenizer_config.json", "tokenizer.json")


def id_of_token(folder: Path, token: str) -> int | None:
    """Id of an added token in the tokenizer files of a model folder; None if no file contains it.

    Raises UsageError for a damaged file.
    """
    for name, read in zip(TOKENIZER_FILES, (_from_added_tokens, _from_tokenizer_config, _from_tokenizer), strict=True):
        file = folder / name
        if file.exists():
            try:
                found = read(json.loads(file.read_text()), token)
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                raise UsageError(f"{file}: not what a tokenizer file holds ({error!r})") from None
            if found is not None:
                return found
    return None


def _from_added_tokens(values: dict[str, Any], token: str) -> int | None:
    return values.get(token)


def _from_tokenizer_config(values: dict[str, Any], token: str) -> int | None:
    entries = values.get("added_tokens_decoder", {}).items()
    return next((int(i) for i, entry in entries if entry.get("content") == token), None)


def _from_tokenizer(values: dict[str, Any], token: str) -> int | None:
    return next((e["id"] for e in values.get("added_tokens", ()) if e.get("content") == token), None)
