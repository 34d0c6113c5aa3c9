"""Names of models on the hub, in place of folders: `org/name`, `org/name@revision`, `hf://org/name@revision`.

A name is looked up in the local cache first. If it is not there, it is downloaded once. The path of the cached folder
contains the revision, so a run is pinned to it. A missing folder is never taken for a repository: `a/b` is a name only
if there is no folder `a` here; `./a/b` and `models/b` are always folders.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sophia_mcore.errors import SophiaError, UsageError

_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
# Usual names of folders with models: if `models/x` does not exist, it is a missing folder, not a repository.
_FOLDERS = {"models", "model", "checkpoints", "checkpoint", "weights", "runs", "data", "outputs", "output", "examples"}
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository on the hub. ``revision`` None: the newest known revision."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")

    @property
    def command(self) -> str:
        """The shell command that downloads the model."""
        return f"hf download {self.repository}" + (f" --revision {self.revision}" if self.revision else "")


def hub_name(path: Path) -> HubName | None:
    """The name on the hub that a model setting gives; None if the setting is a folder.

    >>> str(hub_name(Path("hf://OpenGVLab/InternVL3-8B@main")))
    'OpenGVLab/InternVL3-8B@main'
    >>> hub_name(Path("runs/digits/round-0/model")), hub_name(Path("/models/InternVL3-8B"))
    (None, None)
    """
    parts = path.parts
    marked = bool(parts) and parts[0] == "hf:"  # Path changes "hf://" to "hf:/"
    if marked:
        parts = parts[1:]
    local = not marked and bool(parts) and (parts[0].lower() in _FOLDERS or Path(parts[0]).is_dir() or path.exists())
    if len(parts) != 2 or local:
        return None
    name, at, revision = parts[1].partition("@")
    if not (_PART.fullmatch(parts[0]) and _PART.fullmatch(name)) or (at and not revision):
        return None
    return HubName(f"{parts[0]}/{name}", revision or None)


def local_folder(path: Path, *, download: bool = False) -> Path:
    """The folder of a model setting: the folder itself, or the folder in the local cache for a name on the hub.

    ``download``: download the model if it is not in the cache. Raises UsageError with the command to run if it is not
    there and ``download`` is False. Raises SophiaError if the download fails.
    """
    name = hub_name(path)
    if name is None:
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name.repository, revision=name.revision, allow_patterns=list(_FILES), local_files_only=not download
            )
        )
    except LocalEntryNotFoundError:
        if download:
            raise SophiaError(
                f"{name} is not in the local cache, and the hub cannot be reached; with a network: {name.command}"
            ) from None
        raise UsageError(
            f"{name} is neither a folder here nor in the local cache; to download it: {name.command}"
        ) from None
    except Exception as error:  # the library passes on exceptions of its HTTP client
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SophiaError(f"{name} cannot be downloaded: {reason}; to try it by hand: {name.command}") from None
