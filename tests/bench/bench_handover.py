"""New weights for the engines: published by tensor-parallel ranks and verified, against copies of the same bytes.

python -m tests.bench.bench_handover [--gigabytes 3] [--repeats 5] [--folder TMP]

Prints one JSON line. Two ranks hold a bf16 model; nothing is frozen. In every repeat each way has its turn, in changing
order, on one file system, with nothing waiting for the disk; seconds are the best of the repeats, of the slower rank.

`publish`: `weights.publish`, files and digests. It waits for no disk, nor does its peer. `sendfile`: one process copies
the same bytes with the kernel's own copy. `ratio`: seconds of the copy over those of publishing (goal 0.9).
`synced_ratio`: the same where both also sync their files at once, which the stage does before its next checkpoint.
`verify`: what an engine does before it loads a version.

`long_way`: what publishing replaces. A checkpoint of the weights alone with its digests and manifest, as training
writes it (`checkpoint`), and its export as a Hugging Face folder with digests (`export`); both are made to be kept, so
they sync. `of_long_way`: publishing over that (goal 0.2); `synced_of_long_way`: publishing that syncs at once, over
that. `identify`: an engine's `reload` of an exported folder reads every byte with sha256. `of_long_hand_over`:
publishing and verifying over checkpoint, export and identifying. vLLM's own loading follows on both sides and is left
out.

`extra_mib`: memory that a rank takes beside the model while it publishes (goal 16). `bytes`: written over trained
(goal 1).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing

from sophia_mcore.config.schema import Batch, Fp8, Objective, Parallel, Train
from sophia_mcore.model import lvlm
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.rl.versions import settle, verify_version
from sophia_mcore.store.layout import step_name
from sophia_mcore.store.lineage import model_digest
from sophia_mcore.train import checkpoint_folder
from sophia_mcore.train.checkpoint import METADATA, PlainSaveStrategy, current_layout
from sophia_mcore.weights.export import export_hf
from sophia_mcore.weights.load import load_hf
from sophia_mcore.weights.publish import publish, together
from tests.bench.bench_conversion import make_source
from tests.support import harness

Found = dict[str, float]


def _rank(groups: Any, backend: Any, source: Path, parent: Path, repeats: int) -> list[Found]:
    """What each way took in each repeat, on this rank."""
    spec = ModelSpec.from_model_dir(source)
    settings = SimpleNamespace(
        train=Train(dtype="bfloat16"), fp8=Fp8(), batch=Batch(sequence_length_tokens=64), objective=Objective()
    )
    chunks = lvlm.build(spec, settings, groups, backend)
    load_hf(chunks, source, spec, groups)
    ways: list[Callable[[], Found]] = [
        lambda: _publish(chunks, spec, groups, source, parent / "versions"),
        lambda: _copy(source, parent / "copy"),
        lambda: _long_way(chunks, source, parent / "long"),
    ]
    rows = []
    for repeat in range(repeats):
        row: Found = {}
        for way in ways if repeat % 2 == 0 else reversed(ways):
            _rest()
            row |= way()
        rows.append(row)
    return rows


def _rest() -> None:
    """All ranks are here, and nothing of what was written waits for the disk."""
    dist.barrier()
    if dist.get_rank() == 0:
        os.sync()
    dist.barrier()


def _publish(chunks: Any, spec: ModelSpec, groups: Any, source: Path, parent: Path) -> Found:
    """A version; then it is synced; then verified by one process."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before, cpu, began = _memory("VmRSS"), time.process_time(), time.monotonic()
    folder, digest, written = publish(chunks, spec, groups, source, parent, 0)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    extra = _memory("VmHWM") - before
    dist.barrier()
    began = time.monotonic()
    settle(parent)
    dist.barrier()
    settled, verified = time.monotonic() - began, 0.0
    if dist.get_rank() == 0:
        began = time.monotonic()
        verify_version(folder, digest)
        verified = time.monotonic() - began
        shutil.rmtree(folder)
    found = {"publish": seconds, "publish_synced": seconds + settled, "verify": verified}
    return {**found, "publish_cpu": cpu, "extra": extra, "written": written}


def _copy(source: Path, target: Path) -> Found:
    """The weights of a folder, copied by the kernel in one process; then synced."""
    if dist.get_rank() != 0:
        return {}
    target.mkdir()
    began = time.monotonic()
    for path in sorted(source.glob("*.safetensors")):
        with open(path, "rb") as read, open(target / path.name, "wb") as write:
            offset, size = 0, path.stat().st_size
            while offset < size:
                offset += os.sendfile(write.fileno(), read.fileno(), offset, size - offset)
    seconds = time.monotonic() - began
    for path in target.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    synced = time.monotonic() - began
    shutil.rmtree(target)
    return {"sendfile": seconds, "sendfile_synced": synced}


def _long_way(chunks: Any, source: Path, parent: Path) -> Found:
    """A checkpoint, its export, and what an engine reads to know what it has loaded."""
    began = time.monotonic()
    if dist.get_rank() == 0:
        checkpoint_folder.begin(parent, 1)
    dist.barrier()
    folder, metadata = parent / f".tmp-{step_name(1)}", dict(METADATA)
    state = {f"model{i}": chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(chunks)}
    dist_checkpointing.save(state, str(folder), PlainSaveStrategy("torch_dist", 1), content_metadata=metadata)
    parts = together(lambda: checkpoint_folder.digests(folder, dist.get_rank(), dist.get_world_size()))
    digests = {name: digest for part in parts for name, digest in part.items()}
    layout, found = current_layout(), {}
    if dist.get_rank() == 0:
        checkpoint = checkpoint_folder.commit(folder, 1, layout, 1, digests)
        saved = time.monotonic()
        export_hf(checkpoint, source, parent / "export")
        exported = time.monotonic()
        model_digest(parent / "export")
        found = {"checkpoint": saved - began, "export": exported - saved, "long_way": exported - began}
        found["identify"] = time.monotonic() - exported
        shutil.rmtree(parent)
    dist.barrier()
    return found


def _memory(field: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def line(ranks: list[list[Found]], size: int) -> dict[str, Any]:
    """The JSON line of what the ranks have measured. ``size``: bytes of the model's files."""
    rows = [{key: max(row.get(key, 0.0) for row in rows) for key in rows[0]} for rows in zip(*ranks, strict=True)]
    best = {key: min(row[key] for row in rows) for key in rows[0]}
    cpu = min(sum(row["publish_cpu"] for row in rows) for rows in zip(*ranks, strict=True))
    ours, ours_synced, long_way = best["publish"], best["publish_synced"], best["long_way"]
    ratios = {
        "ratio": best["sendfile"] / ours,
        "synced_ratio": best["sendfile_synced"] / ours_synced,
        "of_long_way": ours / long_way,
        "synced_of_long_way": ours_synced / long_way,
        "of_long_hand_over": (ours + best["verify"]) / (long_way + best["identify"]),
    }
    seconds = ("publish", "sendfile", "publish_synced", "sendfile_synced", "verify")
    seconds = (*seconds, "long_way", "checkpoint", "export", "identify")
    return {
        "name": "handover",
        "gigabytes": round(size / 1e9, 2),
        "repeats": len(rows),
        **{key: round(best[key], 2) for key in seconds},
        "publish_cpu": round(cpu, 2),
        **{key: round(value, 3) for key, value in ratios.items()},
        "extra_mib": round(max(row["extra"] for row in rows) / 2**20),
        "bytes": round(rows[0]["written"] / size, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_source(folder / "source", options.gigabytes)
        size = sum(path.stat().st_size for path in (folder / "source").glob("*.safetensors"))
        (folder / "versions").mkdir()
        arguments = (folder / "source", folder, options.repeats)
        print(json.dumps(line(harness.run_layout(_rank, Parallel(tensor=2), *arguments, timeout=3600.0), size)))


if __name__ == "__main__":
    main()
