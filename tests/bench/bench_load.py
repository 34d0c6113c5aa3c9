"""Reading a model's weights for training, as one rank of TP1 and of TP2, against plain reads of the same bytes.

python -m tests.bench.bench_load [--gigabytes 2] [--repeats 5] [--folder TMP]

Prints one JSON line, in GB per CPU-second, best of the interleaved repeats, page cache warm, parameters allocated and
touched before. `ours` fills fused parameters from a Hugging Face folder; `pread` reads as many bytes, one file after
the other, into the same parameters: the ceiling. `safetensors` loads all files and copies each tensor once;
`torch_dcp` loads the same parameters, already fused, from a torch distributed checkpoint. The ratio is TP1's;
tp2_ratio that of a TP2 rank, which takes half, half of every row of two matrices in each layer: against as many bytes
one after the other, and in tp2_same_ratio against plain reads of the very same bytes. `mbridge` (pip install mbridge
einops; left out when it is not there) loads into a stand-in with the names of Transformer Engine's layers, because its
own model needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from sophia_mcore.model.names import Shard
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.weights.formats.opening import open_checkpoint
from sophia_mcore.weights.formats.stream import BUFFER_BYTES, Files, pieces
from sophia_mcore.weights.load import load_parameter, shard_boxes
from sophia_mcore.weights.ops import matrix_shape
from sophia_mcore.weights.tables import resolve
from tests.bench.bench_conversion import make_source

Parameters = dict[str, tuple[torch.Tensor, Shard]]


def parameters(source: Path, tensor: int) -> Parameters:
    """The parameters of rank 0 of `tensor` ranks, touched."""
    found = {}
    for entry in resolve(ModelSpec.from_model_dir(source), "hf"):
        shape = list(entry.shape)
        shard = Shard(None, 0, 1) if entry.cut is None else Shard(entry.cut.axis, 0, tensor, entry.cut.blocks)
        if shard.axis is not None:
            shape[shard.axis] //= tensor
        found[entry.name] = torch.zeros(shape, dtype=torch.bfloat16).fill_(1.0), shard
    return found


def ours(source: Path, target: Parameters) -> None:
    opened = open_checkpoint(source)
    with Files() as files:
        for name, (tensor, shard) in target.items():
            load_parameter(opened.tensors[name], tensor, shard, files)


def pread(source: Path, target: Parameters) -> None:
    """Fill the same parameters with the same number of bytes in the order of the files."""
    paths = sorted(source.glob("*.safetensors"))
    descriptors = [os.open(path, os.O_RDONLY) for path in paths]
    sizes = [path.stat().st_size for path in paths]
    which = position = 0
    for tensor, _ in target.values():
        view = memoryview(tensor.view(torch.uint8).view(-1).numpy().data)
        done = 0
        while done < len(view):
            part = view[done : done + BUFFER_BYTES]
            got = os.preadv(descriptors[which], [part], position)
            position, done = position + got, done + got
            if position >= sizes[which]:
                which, position = (which + 1) % len(paths), 0
    for descriptor in descriptors:
        os.close(descriptor)


def ranges(source: Path, target: Parameters) -> list[tuple[Path, int, memoryview]]:
    """(file, position, where to) of every run of bytes that the parameters are made of: a row's part, or many rows."""
    opened, found = open_checkpoint(source), []
    for name, (tensor, shard) in target.items():
        tiled = opened.tensors[name]
        view, done = memoryview(tensor.view(torch.uint8).view(-1).numpy().data), 0
        for box in shard_boxes(*matrix_shape(tiled.shape), shard):
            for piece in pieces(tiled, box):
                rows, width = (1, piece.rows * piece.width) if piece.in_one_run else (piece.rows, piece.width)
                for row in range(rows):
                    start = done + piece.position + row * piece.box_pitch
                    position = piece.offset + row * piece.tile.pitch
                    found.append((piece.tile.path, position, view[start : start + width]))
            done += box.area * 2
    return found


def pread_ranges(planned: list[tuple[Path, int, memoryview]]) -> None:
    """Plain reads of the very same bytes, each run by itself."""
    with Files() as files:
        for path, position, view in planned:
            done = 0
            while done < len(view):
                done += os.preadv(files.reading(path), [view[done:]], position + done)


def safetensors_all(source: Path, target: Parameters) -> None:
    from safetensors.torch import load_file

    for file in sorted(source.glob("*.safetensors")):
        for tensor in load_file(file).values():
            tensor.clone()  # load_file alone only maps the file


def torch_dcp(folder: Path, target: Parameters) -> None:
    from torch.distributed import checkpoint

    state = {name: tensor for name, (tensor, _) in target.items()}
    checkpoint.load(state, storage_reader=checkpoint.FileSystemReader(folder), no_dist=True)


def mbridge(source: Path, target: Parameters) -> Callable[[], None] | None:
    """mbridge's own load_weights into the same parameters, None if it is not installed."""
    try:
        from mbridge import AutoBridge
    except ImportError:
        return None
    import torch.distributed as dist
    from megatron.core import parallel_state

    dist.init_process_group("gloo", init_method=f"file://{source}.rendezvous", rank=0, world_size=1)
    parallel_state.initialize_model_parallel(1)
    fused = {"input_layernorm": "self_attention.linear_qkv", "pre_mlp_layernorm": "mlp.linear_fc1"}
    stand_in = torch.nn.Module()
    for name, (tensor, _) in target.items():
        for norm, linear in fused.items():
            name = name.replace(f"{norm}.weight", f"{linear}.layer_norm_weight")
        place, parts = stand_in, name.removeprefix("language.").split(".")
        for part in parts[:-1]:
            if part not in dict(place.named_children()):
                place.add_module(part, torch.nn.ModuleList() if part == "layers" else torch.nn.Module())
                place.get_submodule(part).layer_number = int(part) + 1 if part.isdigit() else 0  # type: ignore[assignment]
            place = place.get_submodule(part)
        place.register_parameter(parts[-1], torch.nn.Parameter(tensor, requires_grad=False))
    bridge = AutoBridge.from_pretrained(str(source))
    return lambda: bridge.load_weights([stand_in], str(source))  # type: ignore[no-any-return]


def cpu_seconds(work: Callable[[], None]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the JSON line."""
    from torch.distributed import checkpoint

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, dcp = Path(folder) / "source", Path(folder) / "dcp"
        make_source(source, options.gigabytes)
        one, two = parameters(source, 1), parameters(source, 2)
        state = {name: tensor for name, (tensor, _) in one.items()}
        checkpoint.save(state, storage_writer=checkpoint.FileSystemWriter(dcp), no_dist=True)
        sizes = {n: sum(t.nbytes for t, _ in p.values()) / 1e9 for n, p in (("tp1", one), ("tp2", two))}
        planned = ranges(source, two)
        cases: dict[str, tuple[float, Callable[[], None]]] = {
            "pread": (sizes["tp1"], lambda: pread(source, one)), "ours": (sizes["tp1"], lambda: ours(source, one)),
            "pread_tp2": (sizes["tp2"], lambda: pread(source, two)),
            "ours_tp2": (sizes["tp2"], lambda: ours(source, two)),
            "pread_tp2_same": (sizes["tp2"], lambda: pread_ranges(planned)),
            "safetensors": (sizes["tp1"], lambda: safetensors_all(source, one)),
            "torch_dcp": (sizes["tp1"], lambda: torch_dcp(dcp, one)),
        }  # fmt: skip
        if peer := mbridge(source, one):
            cases["mbridge"] = sizes["tp1"], peer
        for _ in range(options.repeats):
            for name, (size, work) in cases.items():
                best[name] = max(best.get(name, 0.0), size / cpu_seconds(work))
    line = {
        "name": "load", "ours": best["ours"], "peer": best["pread"], "ratio": best["ours"] / best["pread"],
        "unit": "GB per CPU-second", "peer_name": "pread", "tp2_ratio": best["ours_tp2"] / best["pread_tp2"],
        "ours_tp2": best["ours_tp2"], "tp2_same_ratio": best["ours_tp2"] / best["pread_tp2_same"],
        "safetensors": best["safetensors"], "torch_dcp": best["torch_dcp"],
        "safetensors_ratio": best["ours"] / best["safetensors"], "torch_dcp_ratio": best["ours"] / best["torch_dcp"],
        "mbridge": best.get("mbridge"), "mbridge_ratio": best["ours"] / best["mbridge"] if "mbridge" in best else None,
        "gigabytes": sizes["tp1"], "repeats": options.repeats,
    }  # fmt: skip
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}))


if __name__ == "__main__":
    main()
