"""A model folder to the hub, by the hub's own client. The token comes from HF_TOKEN and is never printed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Protocol

from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.pretrained.complete import check_model_dir

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "README.md")
TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class Hub(Protocol):
    """What is asked of a hub; ``huggingface_hub.HfApi`` has it."""

    def create_repo(self, repo_id: str, *, token: str, private: bool, exist_ok: bool) -> Any: ...

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, token: str, allow_patterns: list[str], commit_message: str
    ) -> Any: ...


def check_name(name: str) -> str:
    """``name`` if it is ORG/NAME. Raises UsageError."""
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise UsageError(f"--push {name!r}: a name on the hub is ORG/NAME, such as my-lab/sophia-8b")
    return name


def push(folder: Path, name: str, *, private: bool, hub: Hub | None = None) -> str:
    """Send a model folder to the repository ``name``, which is made if it is not there; returns its address.

    Raises UsageError for a name that is none or a missing token, SophiaError when the folder is not complete or the hub
    refuses.
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
    except Exception as error:  # whatever the client, the network or the hub says; it may repeat the token
        line = next(iter(str(error).splitlines()), "").replace(token, "***")
        raise SophiaError(f"--push {name}: {type(error).__name__}: {line}"[:400]) from None
    return f"https://huggingface.co/{name}"
