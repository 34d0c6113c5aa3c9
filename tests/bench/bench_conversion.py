"""Hugging Face -> Megatron shards at TP2 (fused QKV and gate/up), against a kernel file copy of the same bytes.

python -m tests.bench.bench_conversion [--gigabytes 1] [--repeats 5] [--folder TMP]

Prints two JSON lines: the conversion without digests, and the default, which forms an xxh3-128 of every tensor while
its bytes pass (`with_digests`). Every case runs in a fresh process; figures are CPU-seconds (user + system) of the work
itself, without imports, best of the interleaved repeats (in a virtual machine the first touch of a memory page costs as
much as several copies of it, which only ever adds); all cases sync their files. Peers: `sendfile` (a plain copy: the
ceiling), `load_all` (safetensors load_file, fuse, split, save_file), `torch_dcp` (the same tensors through
torch.distributed.checkpoint). `one_worker`: ours in one thread, as the copy is: two threads at once take more
CPU-seconds for the same work. `checkpoint_digests`: reading a checkpoint's files back and hashing them.
extra_rss_mib is the growth of peak memory during the conversion.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sophia_mcore.store.digests import Digest
from sophia_mcore.weights.conversion import WORKERS

LAYER = {"hidden": 4096, "mlp": 14336, "heads": 32, "groups": 8, "head": 128}
VOCABULARY = 32_000


def make_source(folder: Path, gigabytes: float) -> None:
    """A Qwen2-shaped text model in bf16 of about this size, in shards of 1 GB."""
    from sophia_mcore.weights.formats.safetensors import NewTensor, header_bytes, index_text

    h, m, d = LAYER["hidden"], LAYER["mlp"], LAYER["head"]
    layer_bytes = 2 * (2 * h * h + 2 * LAYER["groups"] * d * h + 3 * m * h)
    layers = max(1, round((gigabytes * 1e9 - 4 * VOCABULARY * h) / layer_bytes))
    rows = [("model.embed_tokens.weight", (VOCABULARY, h))]
    for i in range(layers):
        at = f"model.layers.{i}."
        rows += [(at + "input_layernorm.weight", (h,)), (at + "post_attention_layernorm.weight", (h,))]
        for letter, heads in (("q", LAYER["heads"]), ("k", LAYER["groups"]), ("v", LAYER["groups"])):
            rows += [(f"{at}self_attn.{letter}_proj.weight", (heads * d, h)),
                     (f"{at}self_attn.{letter}_proj.bias", (heads * d,))]  # fmt: skip
        rows += [(at + "self_attn.o_proj.weight", (h, h)), (at + "mlp.gate_proj.weight", (m, h)),
                 (at + "mlp.up_proj.weight", (m, h)), (at + "mlp.down_proj.weight", (h, m))]  # fmt: skip
    rows += [("model.norm.weight", (h,)), ("lm_head.weight", (VOCABULARY, h))]
    shards: list[list[NewTensor]] = [[]]
    for name, shape in rows:
        if sum(t.nbytes for t in shards[-1]) > 1e9:
            shards.append([])
        shards[-1].append(NewTensor(name, "BF16", shape))
    folder.mkdir()
    named = [(f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors", shard) for i, shard in enumerate(shards)]
    noise = os.urandom(1 << 24)
    for name, shard in named:
        with open(folder / name, "wb") as file:
            file.write(header_bytes(shard, {"format": "pt"}))
            for tensor in shard:
                for start in range(0, tensor.nbytes, len(noise)):
                    file.write(noise[: min(len(noise), tensor.nbytes - start)])
    (folder / "model.safetensors.index.json").write_text(index_text(named))
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": h, "intermediate_size": m,
              "num_hidden_layers": layers, "num_attention_heads": LAYER["heads"], "rms_norm_eps": 1e-6,
              "num_key_value_heads": LAYER["groups"], "vocab_size": VOCABULARY, "rope_theta": 1e6}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


# Cases: prepare (imports) -> the work that is measured -----------------------------------------------------------


def ours(source: Path, target: Path, digest: Digest | None = None, workers: int = WORKERS) -> Callable[[], None]:
    import xxhash  # noqa: F401  # what the work imports late is imported here

    import sophia_mcore.weights.formats.torch_dist_write  # noqa: F401
    from sophia_mcore.weights.conversion import Conversion
    from sophia_mcore.weights.convert import convert

    asked = Conversion(source, target, "megatron", tensor=2, digest=digest, workers=workers)
    return lambda: convert(asked) and None  # type: ignore[func-returns-value]


def one_worker(source: Path, target: Path) -> Callable[[], None]:
    return ours(source, target, workers=1)


def with_digests(source: Path, target: Path) -> Callable[[], None]:
    return ours(source, target, digest="xxh3-128")


def digests_one_worker(source: Path, target: Path) -> Callable[[], None]:
    return ours(source, target, digest="xxh3-128", workers=1)


def with_sha256(source: Path, target: Path) -> Callable[[], None]:
    return ours(source, target, digest="sha256")


def checkpoint_digests(source: Path, target: Path) -> Callable[[], None]:
    """What a trainer's checkpoint costs beside its writing: every file read back and hashed."""
    import xxhash  # noqa: F401

    from sophia_mcore.train.checkpoint_folder import digests

    target.mkdir()
    return lambda: digests(source, 0, 1) and None  # type: ignore[func-returns-value]


def sendfile(source: Path, target: Path) -> Callable[[], None]:
    def work() -> None:
        target.mkdir()
        for file in sorted(source.glob("*.safetensors")):
            with open(file, "rb") as old, open(target / file.name, "wb") as new:
                size, done = file.stat().st_size, 0
                while done < size:
                    done += os.sendfile(new.fileno(), old.fileno(), done, size - done)
                os.fsync(new.fileno())

    return work


def fused(source: Path) -> dict[str, object]:
    """All tensors loaded, fused as Megatron has them and split for two ranks."""
    import torch
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        state |= load_file(file)
    groups, found = LAYER["groups"], {}
    for name in [n for n in state if n.endswith(("q_proj.weight", "q_proj.bias"))]:
        parts = [state.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
        grouped = [p.view(groups, -1, *p.shape[1:]) for p in parts]
        found[name.replace("q_proj", "qkv")] = torch.cat(grouped, 1).reshape(-1, *parts[0].shape[1:]).chunk(2)
    for name in [n for n in state if n.endswith("gate_proj.weight")]:
        gate, up = state.pop(name).chunk(2), state.pop(name.replace("gate_proj", "up_proj")).chunk(2)
        found[name.replace("gate_proj", "fc1")] = [torch.cat(pair) for pair in zip(gate, up, strict=True)]
    for name, tensor in state.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            found[name] = [part.contiguous() for part in tensor.chunk(2, 1)]
        else:
            found[name] = tensor.chunk(2) if tensor.dim() == 2 else (tensor,)
    return found  # type: ignore[return-value]


def load_all(source: Path, target: Path) -> Callable[[], None]:
    from safetensors.torch import save_file

    def work() -> None:
        target.mkdir()
        tensors = fused(source)
        for rank in range(2):
            mine = {n: parts[rank].contiguous() for n, parts in tensors.items() if rank < len(parts)}  # type: ignore[arg-type, index]
            save_file(mine, target / f"rank{rank}.safetensors")
            with open(target / f"rank{rank}.safetensors", "rb") as file:
                os.fsync(file.fileno())

    return work


def torch_dcp(source: Path, target: Path) -> Callable[[], None]:
    from torch.distributed import checkpoint

    def work() -> None:
        state = {f"{n}.{rank}": part for n, parts in fused(source).items() for rank, part in enumerate(parts)}  # type: ignore[arg-type, var-annotated]
        checkpoint.save(state, storage_writer=checkpoint.FileSystemWriter(target), no_dist=True)

    return work


FAST = {
    "sendfile": sendfile, "ours": ours, "one_worker": one_worker, "with_digests": with_digests,
    "digests_one_worker": digests_one_worker, "checkpoint_digests": checkpoint_digests,
}  # fmt: skip
CASES = {**FAST, "with_sha256": with_sha256, "load_all": load_all, "torch_dcp": torch_dcp}
SLOW_REPEATS = 1


def measure(case: str, source: Path, target: Path) -> dict[str, float]:
    """Run one case in this process."""
    work = CASES[case](source, target)
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_seconds": cpu, "seconds": seconds, "extra_rss_mib": (after.ru_maxrss - before.ru_maxrss) / 1024}


def run_case(case: str, source: Path, target: Path) -> dict[str, float]:
    """Run one case in a fresh process and delete what it wrote."""
    command = [sys.executable, "-m", "tests.bench.bench_conversion", "--case", case, str(source), str(target)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(target)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def main() -> None:
    """Print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--case", nargs=3, metavar=("NAME", "SOURCE", "TARGET"))
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case[0], Path(options.case[1]), Path(options.case[2]))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder) / "source"
        make_source(source, options.gigabytes)
        size = sum(f.stat().st_size for f in source.glob("*.safetensors")) / 1e9
        found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
        run_case("sendfile", source, Path(folder) / "warm")  # the source into the page cache
        for repeat in range(options.repeats):
            for case in CASES if repeat < SLOW_REPEATS else FAST:
                found[case].append(run_case(case, source, Path(folder) / case))
    speed = {case: size / min(r["cpu_seconds"] for r in runs) for case, runs in found.items()}
    line = {
        "name": "conversion", "ours": speed["ours"], "peer": speed["sendfile"],
        "ratio": speed["ours"] / speed["sendfile"], "unit": "GB per CPU-second", "peer_name": "sendfile",
        "one_worker": speed["one_worker"], "one_worker_ratio": speed["one_worker"] / speed["sendfile"],
        "load_all": speed["load_all"], "torch_dcp": speed["torch_dcp"],
        "load_all_ratio": speed["ours"] / speed["load_all"], "torch_dcp_ratio": speed["ours"] / speed["torch_dcp"],
        "extra_rss_mib": max(r["extra_rss_mib"] for r in found["ours"]), "gigabytes": size,
        "seconds": min(r["seconds"] for r in found["ours"]), "repeats": options.repeats,
    }  # fmt: skip
    digests = {
        "name": "conversion digests", "ours": speed["with_digests"], "peer": speed["sendfile"],
        "ratio": speed["with_digests"] / speed["sendfile"], "unit": "GB per CPU-second", "peer_name": "sendfile",
        "one_worker": speed["digests_one_worker"],
        "one_worker_ratio": speed["digests_one_worker"] / speed["sendfile"],
        "without": speed["ours"], "with_sha256": speed["with_sha256"],
        "sha256_ratio": speed["with_sha256"] / speed["sendfile"], "checkpoint_digests": speed["checkpoint_digests"],
        "checkpoint_digests_ratio": speed["checkpoint_digests"] / speed["sendfile"], "gigabytes": size,
        "seconds": min(r["seconds"] for r in found["with_digests"]), "repeats": options.repeats,
    }  # fmt: skip
    for printed in (line, digests):
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in printed.items()}))


if __name__ == "__main__":
    main()
