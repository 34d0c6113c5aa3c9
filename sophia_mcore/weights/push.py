"""Uploads a model folder to the hub with huggingface_hub. The token comes from HF_TOKEN and is never printed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Protocol

from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.pretrained.complete import check_model_dir
from sophia_mcore.store.layout import MODEL_CARD

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", MODEL_CARD)
TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class Hub(Protocol):
    """The methods of a hub client that are used here; ``huggingface_hub.HfApi`` has them."""

    def create_repo(self, repo_id: str, *, token: str, private: bool, exist_ok: bool) -> Any: ...

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, token: str, allow_patterns: list[str], commit_message: str
    ) -> Any: ...


def check_name(name: str) -> str:
    """Return ``name``. Raises UsageError unless it has the form ORG/NAME."""
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise UsageError(f"--push {name!r}: a name on the hub is ORG/NAME, such as my-lab/sophia-8b")
    return name


def push(folder: Path, name: str, *, private: bool, hub: Hub | None = None) -> str:
    """Upload a model folder to the repository ``name``, which is created if it is missing; returns its address.

    Raises UsageError for an invalid name or a missing token, SophiaError if the folder is not complete or the upload
    fails.
    """
    check_name(name)
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise UsageError(f"--push {name}: {TOKEN_VARIABLE} is not set; it holds a token of yours that may write")
    check_model_dir(folder)
    if hub is None:
        from huggingface_hub import HfApi

        hub = HfApi()
    try:
        hub.create_repo(name, token=token, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            token=token,
            allow_patterns=list(PATTERNS),
            commit_message="Model exported by sophia_mcore",
        )
    except Exception as error:  # any error of client, network or hub; its text may contain the token
        line = next(iter(str(error).splitlines()), "").replace(token, "***")
        raise SophiaError(f"--push {name}: {type(error).__name__}: {line}"[:400]) from None
    return f"https://huggingface.co/{name}"
