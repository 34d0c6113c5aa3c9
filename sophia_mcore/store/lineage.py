"""Where a record came from: digest of the model, hash of the prompt, seed."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.atomic import creating

UID_FILE = "track.uid"  # names the run for all time, wherever its folder is moved
# Everything that changes what a model says; training leftovers and readme files do not.
_MODEL_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "*.tiktoken")


def model_digest(model_dir: Path | str) -> str:
    """sha256 (64 hex digits) over weights, configuration and tokenizer files of a Hugging Face directory.

    Depends on file names and contents only, not on where the directory lies. Every byte is read.
    Raises SophiaError when the directory is missing, unreadable or holds no such file.
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
    """The files of a model folder that change what the model says; [] in another folder."""
    return sorted({path for pattern in _MODEL_PATTERNS for path in folder.glob(pattern) if path.is_file()})


def file_digest(path: Path) -> str:
    """sha256 (64 hex digits) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prompt_hash(text: str) -> str:
    """sha256 (64 hex digits) of a rendered prompt."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def seed_for(run_seed: int, *parts: str | int) -> int:
    """Seed in [0, 2**31) that depends only on its arguments, so it is the same on any machine and in any order of work.

    >>> seed_for(0, "captions", 0, "3f2a") == seed_for(0, "captions", 0, "3f2a")
    True
    >>> seed_for(0, "a", "bc") == seed_for(0, "ab", "c")
    False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (run_seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFF_FFFF


def run_uid(folder: Path) -> str:
    """The run's own name, made at the first call: MLflow's runs and Slurm's jobs are found by it."""
    path = folder / UID_FILE
    if not path.exists():  # an existing file needs no write, which a full disk would refuse
        with contextlib.suppress(FileExistsError), creating(path) as file:
            file.write(uuid.uuid4().hex.encode())
    return path.read_text().strip()
