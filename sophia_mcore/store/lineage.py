"""Lineage of records: digest of the model, hash of the prompt, seed, id of the run."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.atomic import creating

UID_FILE = "track.uid"  # id of the run; it stays the same when the folder is moved
# Files that change what a model says. Optimizer states and readme files do not.
_MODEL_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "*.tiktoken")


def model_digest(model_dir: Path | str) -> str:
    """sha256 (64 hex digits) over weights, configuration and tokenizer files of a Hugging Face directory.

    Depends only on the names and contents of these files, not on the directory's path. Reads every byte.
    Raises SophiaError when the directory is missing, unreadable or has no such file.
    """
    folder = Path(model_dir)
    if not folder.is_dir():
        raise SophiaError(f"no model directory at {folder}")
    files = model_files(folder)
    if not files:
        raise SophiaError(f"model directory {folder} holds no weights or configuration")
    try:
        with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
            digests = list(pool.map(file_digest, files))
    except OSError as error:
        raise SophiaError(f"cannot read model directory {folder}: {error}") from error
    lines = (f"{path.name}\t{digest}\n" for path, digest in zip(files, digests, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that change what the model says; an empty list if ``folder`` is no model folder."""
    return sorted({path for pattern in _MODEL_PATTERNS for path in folder.glob(pattern) if path.is_file()})


def file_digest(path: Path) -> str:
    """sha256 (64 hex digits) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prompt_hash(text: str) -> str:
    """sha256 (64 hex digits) of a rendered prompt."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def seed_for(run_seed: int, *parts: str | int) -> int:
    """Seed in [0, 2**31) that depends only on the arguments, so neither the machine nor the order of work changes it.

    >>> seed_for(0, "captions", 0, "3f2a") == seed_for(0, "captions", 0, "3f2a")
    True
    >>> seed_for(0, "a", "bc") == seed_for(0, "ab", "c")
    False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (run_seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFF_FFFF


def run_uid(folder: Path) -> str:
    """The run's unique id, made at the first call. MLflow runs and Slurm jobs carry it, so that they can be found."""
    path = folder / UID_FILE
    if not path.exists():  # do not write when it exists: the disk may be full
        with contextlib.suppress(FileExistsError), creating(path) as file:
            file.write(uuid.uuid4().hex.encode())
    return path.read_text().strip()
