"""FP8 copies of a model for rollouts. nvidia-modelopt makes them in its own environment; this module checks them.

In the copy, the linear layers of the language model are E4M3 with one scale per tensor: weight = stored value x
weight_scale, and inputs are divided by input_scale. Vision tower, projector, norms, biases, embeddings and output layer
are unchanged.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.pretrained.families import family_of_folder
from sophia_mcore.progress import Progress
from sophia_mcore.records import Caption, Trajectory
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.digests import Digest, new_digest
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import CONVERSION, RunFolder
from sophia_mcore.store.shards import read_values
from sophia_mcore.weights import proof
from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.formats.copying import Digests
from sophia_mcore.weights.formats.folder import new_folder
from sophia_mcore.weights.formats.model_files import copy_model_files
from sophia_mcore.weights.formats.opening import Checkpoint, is_fp8_copy, open_checkpoint, single_tile, table_names
from sophia_mcore.weights.formats.safetensors import DTYPE_BYTES, StoredTensor, open_folder
from sophia_mcore.weights.formats.stream import BUFFER_BYTES, Files, bands, read_box
from sophia_mcore.weights.formats.tiles import raise_problems
from sophia_mcore.weights.formats.torch_dist import METADATA_NAME
from sophia_mcore.weights.ops import Rectangle, matrix_shape

QUANTIZER = Path(".venv-modelopt/bin/python")
CALIBRATION_TEXTS = 256
SCALES = ("weight_scale", "input_scale")
_LINEAR = re.compile(r"(?:^|\.)layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.weight$")
# E4M3 has 3 bits of mantissa, so half a step is 2^-4 of the value. Below the normal range a step is 2^-9 of the scale.
RELATIVE_BOUND, SUBNORMAL_BOUND = 2.0**-4, 2.0**-10
ROUNDING = 1.0 + 2.0**-7  # tolerance, because the scale and the division were rounded too


@dataclass(frozen=True, slots=True)
class Fp8Check:
    """The result of the check of an FP8 copy. Tensors are stored tensors, under the names of the weight tables."""

    quantized: tuple[str, ...]
    untouched: int
    worst: float  # largest error, as a fraction of the rounding bound
    tensors: tuple[Mapping[str, Any], ...]  # for each tensor of the source: shape, and keys and dtype on both sides
    digests: Digests | None


def quantize_fp8(conversion: Conversion, progress: Progress) -> Fp8Check:
    """Write an FP8 copy of a native Hugging Face folder and check it.

    ``conversion.calibration``: a run folder, whose captions and trajectories are used, or a file with one text per
    line. ``conversion.quantizer``: Python of the environment with nvidia-modelopt.

    Raises:
        UsageError: the source is not a native folder, interpreter or texts are missing, the destination exists.
        SophiaError: quantization failed, or the copy does not pass the check. Nothing is left in the destination.
    """
    source, quantizer, calibration = conversion.source, conversion.quantizer or QUANTIZER, conversion.calibration
    require_native(source)
    if not quantizer.is_file():
        raise UsageError(f"{quantizer}: no such interpreter; FP8 needs an environment with nvidia-modelopt")
    assert calibration is not None, "Conversion.check"
    texts = calibration_texts(calibration)
    progress.note("quantizing")
    with new_folder(conversion.destination) as folder:
        _run(quantizer, source, folder, texts)
        for file in folder.glob("*.safetensors"):
            file.chmod(0o644)  # modelopt makes files that only the owner may read
        copy_model_files(source, folder, skip=("config.json",))  # keep modelopt's config.json: it names the FP8 format
        found = check_fp8(source, folder, progress, conversion.digest)
        write_json(folder / CONVERSION, _proof(source, folder, found, calibration, len(texts)))
    return found


def require_native(source: Path) -> Checkpoint:
    """Open the source of an FP8 copy. Raises UsageError unless it is a native Hugging Face folder."""
    opened = open_checkpoint(source)
    if opened.layout != "hf":
        raise UsageError(f"{source} is in layout {opened.layout}; convert it --to hf first")
    return opened


def _stored(folder: Path, source: Path) -> dict[str, StoredTensor]:
    """Stored tensors of ``folder`` under the names of the weight tables. ``source`` decides the model family."""
    found = family_of_folder(source)
    return table_names(open_folder(folder).tensors, found and found[0])


def plan(source: Path) -> tuple[str, ...]:
    """A line for each stored tensor of the source, which says whether it becomes FP8 or is copied."""
    stored = _stored(source, source)
    return tuple(
        f"{name} {tensor.dtype} {list(tensor.shape)} -> {'F8_E4M3' if _LINEAR.search(name) else 'copy'}"
        for name, tensor in stored.items()
    )


def fp8_pair(a: Path, b: Path) -> tuple[Path, Path] | None:
    """(source, copy) if one of the two folders is an FP8 copy, else None."""
    for source, copy in ((a, b), (b, a)):
        hugging_face = (copy / "config.json").exists() and not (copy / METADATA_NAME).exists()
        if hugging_face and is_fp8_copy(open_folder(copy).tensors):
            require_native(source)
            return source, copy
    return None


def calibration_texts(calibration: Path) -> list[str]:
    """At most CALIBRATION_TEXTS texts, spread evenly over a run's captions and trajectories or over a file's lines.

    Raises UsageError if there are none.
    """
    if calibration.is_dir():
        texts = list(_stored_texts(calibration))
    elif calibration.is_file():
        try:
            lines = calibration.read_text(encoding="utf-8-sig").split("\n")  # only a newline ends a line
            texts = [line.removesuffix("\r") for line in lines if line.strip()]
        except ValueError:
            raise UsageError(f"{calibration} is not a text file (UTF-8), one calibration text per line") from None
    else:
        raise UsageError(f"{calibration}: no such run folder or file of calibration texts")
    if not texts:
        raise UsageError(f"{calibration} holds no captions or trajectories to calibrate on")
    step = max(1, len(texts) // CALIBRATION_TEXTS)
    return texts[::step][:CALIBRATION_TEXTS]


def _stored_texts(run_folder: Path) -> Iterator[str]:
    run = RunFolder(run_folder)
    for folder in map(run.round, run.rounds()):
        for records, kind in ((folder.captions, Caption), (folder.trajectories, Trajectory)):
            if records.is_dir():
                yield from (text for (text,) in read_values(records, kind, ["text"]))


def _run(quantizer: Path, source: Path, folder: Path, texts: list[str]) -> None:
    with TemporaryDirectory() as temporary:
        found = family_of_folder(source)
        file = Path(temporary) / "job.json"
        file.write_text(json.dumps({"texts": texts, "kept": found[0].unquantized if found else ()}))
        module = "sophia_mcore.weights.quantize.worker"
        root = Path(__file__).parents[3]
        command = [str(quantizer.absolute()), "-m", module, str(source.absolute()), str(folder.absolute()), str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=root)
        except OSError as error:
            raise UsageError(f"--quantizer {quantizer} cannot be run: {error.strerror}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((x.removeprefix("error: ") for x in reversed(lines) if x.startswith("error: ")), None)
        raise SophiaError(
            f"FP8 quantization by --quantizer {quantizer} failed with exit code {done.returncode}: "
            f"{reason or (lines or ['no message'])[-1]}"
        )


def check_fp8(source: Path, copy: Path, progress: Progress, digest: Digest | None = None) -> Fp8Check:
    """Compare an FP8 copy with its source: names and types of tensors, and every value with E4M3's rounding bound.

    ``digest``: also compute digests of all stored tensors on both sides.

    Raises SophiaError that names every tensor that is missing, left over, of a wrong type, changed, or out of bounds.
    """
    old, new = (_stored(folder, source) for folder in (source, copy))
    linears = [name for name in old if _LINEAR.search(name)]
    scales = {f"{n.removesuffix('weight')}{scale}" for n in linears for scale in SCALES}
    problems = {
        "missing": sorted((old.keys() | scales) - new.keys()),
        "left over": sorted(new.keys() - old.keys() - scales),
        "not E4M3": [n for n in linears if n in new and new[n].dtype != "F8_E4M3"],
        "not one F32 scale": [n for n in scales & new.keys() if (new[n].dtype, new[n].nbytes) != ("F32", 4)],
        "of another shape": [n for n in old if n in new and new[n].shape != old[n].shape],
    }
    raise_problems(f"{copy} is not a valid FP8 copy", problems)
    progress.start("check fp8", sum(t.nbytes for t in old.values()))
    worst, changed, outside = 0.0, [], []
    with Files() as files:
        before, after = _Reader(files, digest), _Reader(files, digest)
        for name, tensor in old.items():
            if name not in linears:
                if not _same(tensor, new[name], before, after):
                    changed.append(name)
            else:
                weight_scale, input_scale = (new[f"{name.removesuffix('weight')}{scale}"] for scale in SCALES)
                _scalar(input_scale, after)
                share = _worst_error(tensor, new[name], _scalar(weight_scale, after), before, after)
                worst = max(worst, share)
                if not share <= ROUNDING:
                    outside.append(name)
            progress.advance(tensor.nbytes)
    raise_problems(f"{copy} differs from {source}", {"changed": changed, "outside the FP8 bound": outside})
    entries = tuple(_entry(name, tensor, new, name in linears) for name, tensor in old.items())
    digests = Digests(digest, before.digests, after.digests) if digest else None
    return Fp8Check(tuple(linears), len(old) - len(linears), worst, entries, digests)


def _entry(name: str, old: StoredTensor, new: Mapping[str, StoredTensor], quantized: bool) -> dict[str, Any]:
    """Entry of a tensor in conversion.json, in the form of `proof.proof`."""
    scales = [f"{name.removesuffix('weight')}{scale}" for scale in SCALES] if quantized else []
    return {
        "name": name,
        "shape": list(old.shape),
        "source": {"keys": [old.name], "operation": "copy", "dtype": old.dtype},
        "target": {
            "keys": [new[key].name for key in (name, *scales)],
            "operation": "divide by weight_scale, round to E4M3" if quantized else "copy",
            "dtype": new[name].dtype,
        },
    }


@dataclass
class _Reader:
    """Reads stored tensors band by band. ``digests`` gets the digest of each tensor that was read to its end."""

    files: Files
    algorithm: Digest | None
    digests: dict[str, str] = field(default_factory=dict)

    def bands(self, tensor: StoredTensor) -> Iterator[bytes]:
        running = new_digest(self.algorithm) if self.algorithm else None
        for band in _bands(tensor, self.files):
            if running:
                running.update(band)
            yield band
        if running:
            self.digests[tensor.name] = running.hexdigest()


def _same(a: StoredTensor, b: StoredTensor, before: _Reader, after: _Reader) -> bool:
    if a.dtype != b.dtype:
        return False
    return all(x == y for x, y in zip(before.bands(a), after.bands(b), strict=True))


def _bands(tensor: StoredTensor, files: Files) -> Iterator[bytes]:
    rows, columns = matrix_shape(tensor.shape)
    row_bytes = columns * DTYPE_BYTES[tensor.dtype]
    # 4 bytes per value is the widest type; with it, both sides have the same rows in each band
    for row, count in bands(rows, columns * 4, BUFFER_BYTES):
        buffer = bytearray(count * row_bytes)
        read_box(single_tile(tensor), Rectangle(row, count, 0, columns), memoryview(buffer), files)
        yield bytes(buffer)


def _scalar(tensor: StoredTensor, reader: _Reader) -> float:
    import numpy

    return float(numpy.frombuffer(b"".join(reader.bands(tensor)), numpy.float32)[0])


def _worst_error(old: StoredTensor, new: StoredTensor, scale: float, before: _Reader, after: _Reader) -> float:
    """Largest |old - new x scale| as a fraction of the rounding bound. Infinity if a value is not a number."""
    import torch

    from sophia_mcore.weights.formats.torch_dtypes import TORCH_DTYPES

    worst = 0.0
    for a, b in zip(before.bands(old), after.bands(new), strict=True):
        exact = torch.frombuffer(bytearray(a), dtype=TORCH_DTYPES[old.dtype]).float()
        found = torch.frombuffer(bytearray(b), dtype=torch.float8_e4m3fn).float() * scale
        bound = torch.clamp(exact.abs() * RELATIVE_BOUND, min=scale * SUBNORMAL_BOUND)
        share = ((exact - found).abs() / bound).max().item()
        worst = max(worst, share if share == share else float("inf"))
    return worst


def _proof(source: Path, folder: Path, found: Fp8Check, calibration: Path, texts: int) -> Mapping[str, Any]:
    return {
        "format": proof.FORMAT,
        "source": {"folder": source.name, "layout": "hf"},
        "target": {"layout": "fp8"},
        "calibration": {"from": calibration.name, "texts": texts},
        "quantized": list(found.quantized),
        "untouched": found.untouched,
        "worst_error_of_bound": found.worst,
        "versions": proof.versions() | _quantizer_version(folder),
        "tensors": list(found.tensors),
        "digests": found.digests and asdict(found.digests),
    }


def _quantizer_version(folder: Path) -> dict[str, str]:
    """modelopt's version, from the files that it writes: it is not installed in this process's environment."""
    for name, path in (("hf_quant_config.json", ()), ("config.json", ("quantization_config",))):
        try:
            value: Any = json_or_empty(folder / name)
            for key in (*path, "producer", "version"):
                value = value[key]
        except (KeyError, TypeError):
            continue
        return {"nvidia-modelopt": str(value)}
    return {}
