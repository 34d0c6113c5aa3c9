"""Exports a trainer's distributed checkpoint as a Hugging Face folder that transformers and vLLM can load."""

from __future__ import annotations

import shutil
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.progress import NoProgress, Progress
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.digests import Digest
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import CONVERSION, MODEL_CARD, Round, checkpoint_steps, step_name
from sophia_mcore.weights import proof
from sophia_mcore.weights.conversion import DEFAULT_SHARD_MIB
from sophia_mcore.weights.formats.copying import write_target
from sophia_mcore.weights.formats.folder import new_folder
from sophia_mcore.weights.formats.model_files import write_settings
from sophia_mcore.weights.formats.opening import open_checkpoint
from sophia_mcore.weights.formats.targets import plan_hf


def export_hf(
    checkpoint_dir: Path,
    base_model_dir: Path,
    out_dir: Path,
    shard_size_mib: int = DEFAULT_SHARD_MIB,
    *,
    dtype: str | None = None,
    digest: Digest | None = "xxh3-128",
    progress: Progress | None = None,
) -> None:
    """Write the model of a distributed checkpoint, of any layout, as a Hugging Face folder like the base model's.

    This streams the bytes in one process. Layout, configuration, tokenizer, preprocessor, chat template and dtypes are
    those of the base model; ``dtype`` ("BF16", "F16" or "F32") overrides the dtype of all tensors. The folder appears
    when it is complete, with conversion.json beside the weights.

    Raises:
        UsageError: the output exists, or the base is not a model folder.
        SophiaError: the checkpoint does not fit the base model (all names are listed), a file is damaged, or the disk
            is full.
    """
    progress = progress or NoProgress()
    base = open_checkpoint(Path(base_model_dir))
    if base.layout == "megatron":
        raise SophiaError(f"{base_model_dir}: the base of an export must be a Hugging Face folder")
    source = open_checkpoint(Path(checkpoint_dir), base.folder)
    dtypes = {name: dtype or tensor.dtype for name, tensor in base.tensors.items()}
    if digest and source.chunks:
        source.check_bytes(progress)
    with new_folder(Path(out_dir)) as folder:
        target = plan_hf(source.spec, base.layout, dtypes, folder, shard_size_mib << 20, spelling=base.spelling)
        progress.start("export", target.nbytes)
        digests = write_target(source, target, (digest,) if digest else (), advance=progress.advance)
        write_settings(base.spec, base.folder, folder, base.layout, dtype, skip=(MODEL_CARD,))
        write_json(
            folder / CONVERSION, proof.proof(source, target, digests[digest] if digest else None, verified=False)
        )


def export_round(round: Round, progress: Progress) -> None:
    """Export the last checkpoint of a round's training, unless an intact export of it exists.

    Raises like ``export_hf``, and SophiaError when training is not finished.
    """
    out = round.folder.model
    checkpoints = list(checkpoint_steps(round.folder.checkpoints).values())
    if not checkpoints:
        raise SophiaError(f"{round.folder.checkpoints}: no checkpoint to export (train first)")
    newest = checkpoints[-1]
    _require_finished(round.folder.train_summary_file, newest)
    if out.exists() and _made_from(out) == newest.name and _is_intact(out):
        return
    shutil.rmtree(out, ignore_errors=True)  # a damaged export, or one of an earlier checkpoint
    export_hf(newest, round.policy, out, round.config.export.shard_size_mib, progress=progress)


def _require_finished(summary_file: Path, checkpoint: Path) -> None:
    try:
        steps = int(json_or_empty(summary_file)["steps"])
    except (ValueError, KeyError, TypeError):
        steps = None
    if steps is None or checkpoint.name != step_name(steps):
        end = "is not finished" if steps is None else f"has {steps} steps"
        raise SophiaError(
            f"{checkpoint} is the newest checkpoint, but the training {end}: run `sophia train` again, or convert this "
            "checkpoint as it is (`sophia convert CHECKPOINT OUT --to hf --base POLICY`)"
        )


def _made_from(model: Path) -> str | None:
    """Name of the checkpoint that an export was made from; None if there is no finished export."""
    try:
        return str(json_or_empty(model / CONVERSION)["source"]["folder"])
    except (KeyError, TypeError):
        return None


def _is_intact(model: Path) -> bool:
    """Whether every weights file of an export exists and has the size that its header says."""
    try:
        open_checkpoint(model)
    except SophiaError:
        return False
    return True
