"""New weights for the engines: published by tensor-parallel ranks and verified, against copies of the same bytes.

python -m tests.bench.bench_handover [--gigabytes 3] [--repeats 3] [--folder TMP]

Prints one JSON line. Two ranks hold a bf16 model and publish it (`weights.publish`: files, digests, sync). `sendfile`:
one process copies the same bytes with the kernel's own copy and syncs them; `verify`: what an engine does before it
loads. `ratio`: seconds of sendfile over those of publishing (goal 0.9). `long_way`: a checkpoint of the weights alone
(the ranks write their shards through torch) and its export as a Hugging Face folder, seconds; `of_long_way`: publishing
over that (goal 0.2). `extra_mib`: memory that a rank takes beside the model while it publishes (goal 16). `bytes`:
written over trained (goal 1). Best of the repeats; nothing is frozen.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing

from sophia_mcore.config.schema import Batch, Fp8, Objective, Parallel, Train
from sophia_mcore.model import lvlm
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.rl.versions import verify_version
from sophia_mcore.store.layout import step_name
from sophia_mcore.train import checkpoint_folder
from sophia_mcore.train.checkpoint import METADATA, PlainSaveStrategy
from sophia_mcore.weights.export import export_hf
from sophia_mcore.weights.load import load_hf
from sophia_mcore.weights.publish import publish
from tests.bench.bench_conversion import make_source
from tests.support import harness


def _rank(groups: Any, backend: Any, source: Path, parent: Path, repeats: int) -> list[dict[str, Any]]:
    """Publish ``repeats`` versions; what each took."""
    spec = ModelSpec.from_model_dir(source)
    settings = SimpleNamespace(
        train=Train(dtype="bfloat16"), fp8=Fp8(), batch=Batch(sequence_length_tokens=64), objective=Objective()
    )
    chunks = lvlm.build(spec, settings, groups, backend)
    load_hf(chunks, source, spec, groups)
    rows = []
    for version in range(repeats):
        dist.barrier()
        before, cpu, began = _peak(), time.process_time(), time.monotonic()
        folder, digest, written = publish(chunks, spec, groups, source, parent, version)
        rows.append(
            {
                "seconds": time.monotonic() - began, "cpu": time.process_time() - cpu, "extra": _peak() - before,
                "written": written, "folder": str(folder), "digest": digest,
            }
        )  # fmt: skip
        if version < repeats - 1:
            dist.barrier()
            if dist.get_rank() == 0:
                shutil.rmtree(folder)
    rows[0]["long_way"] = _long_way(chunks, source, parent)
    return rows


def _long_way(chunks: Any, source: Path, parent: Path) -> float:
    """Seconds of a checkpoint and its export, which publishing replaces."""
    dist.barrier()
    began = time.monotonic()
    if dist.get_rank() == 0:
        checkpoint_folder.begin(parent, 1)
    dist.barrier()
    folder = parent / f".tmp-{step_name(1)}"
    state = {f"model{i}": chunk.sharded_state_dict(metadata=dict(METADATA)) for i, chunk in enumerate(chunks)}
    strategy = PlainSaveStrategy("torch_dist", 1)
    dist_checkpointing.save(state, str(folder), strategy, content_metadata=dict(METADATA))
    if dist.get_rank() == 0:
        export_hf(folder, source, parent / "export")
    dist.barrier()
    return time.monotonic() - began


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def sendfile(source: Path, target: Path) -> float:
    """Seconds to copy the weights of a folder with the kernel's copy, synced."""
    target.mkdir()
    began = time.monotonic()
    for path in sorted(source.glob("*.safetensors")):
        with open(path, "rb") as read, open(target / path.name, "wb") as write:
            offset, size = 0, path.stat().st_size
            while offset < size:
                offset += os.sendfile(write.fileno(), read.fileno(), offset, size - offset)
            os.fsync(write.fileno())
    seconds = time.monotonic() - began
    shutil.rmtree(target)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_source(folder / "source", options.gigabytes)
        size = sum(path.stat().st_size for path in (folder / "source").glob("*.safetensors"))
        (folder / "versions").mkdir()
        copies = [sendfile(folder / "source", folder / "copy") for _ in range(options.repeats)]
        ranks = harness.run_layout(
            _rank, Parallel(tensor=2), folder / "source", folder / "versions", options.repeats, timeout=3600.0
        )
        copies += [sendfile(folder / "source", folder / "copy") for _ in range(options.repeats)]
        last = ranks[0][-1]
        began = time.monotonic()
        verify_version(Path(last["folder"]), last["digest"])
        verified = time.monotonic() - began
    seconds = min(max(rank[i]["seconds"] for rank in ranks) for i in range(options.repeats))
    found = {
        "gigabytes": round(size / 1e9, 2),
        "publish": round(seconds, 2),
        "publish_cpu": round(min(sum(rank[i]["cpu"] for rank in ranks) for i in range(options.repeats)), 2),
        "sendfile": round(min(copies), 2),
        "ratio": round(min(copies) / seconds, 2),
        "long_way": round(max(rank[0]["long_way"] for rank in ranks), 2),
        "of_long_way": round(seconds / max(rank[0]["long_way"] for rank in ranks), 3),
        "verify": round(verified, 2),
        "extra_mib": round(max(row["extra"] for rank in ranks for row in rank) / 2**20),
        "bytes": round(last["written"] / size, 4),
    }
    print(json.dumps({"name": "handover", **found}))


if __name__ == "__main__":
    main()
