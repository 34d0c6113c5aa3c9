"""One training step's forward and backward of a mid-size InternVL: against transformers, and over layouts.

python -m tests.bench.bench_step [--tokens 1024] [--tiles 4] [--repeats 3]

Prints one JSON line. Same random weights (one folder, read by both), same row, fp32, one thread; tower and projector
frozen on both sides, the language model trained. Every run is a fresh process: one warm-up step, one measured one;
figures are the best of the interleaved repeats. ratio: our CPU-seconds over transformers' (the goal is at most 1.1).
extra_mb: growth of peak memory over what model and inputs take. layouts: tokens per second (wall, and per CPU-second
of all ranks) of two such rows on gloo ranks of one thread each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDE, TOKENS_PER_TILE, IMAGE_TOKEN, VOCABULARY = 224, 64, 31_999, 32_000
LAYOUTS = {"tp1": {}, "tp2": {"tensor": 2, "sequence_parallel": True}, "pp2": {"pipeline": 2}}
ROWS = 2


def save_model(folder: Path) -> None:
    """A random InternVL of about 90M parameters in transformers' native layout."""
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    torch.manual_seed(0)
    vision = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536,
              "image_size": [SIDE, SIDE], "patch_size": [14, 14], "attention_bias": True,
              "norm_type": "layer_norm"}  # fmt: skip
    text = {"model_type": "qwen2", "vocab_size": VOCABULARY, "hidden_size": 640, "intermediate_size": 1920,
            "num_hidden_layers": 8, "num_attention_heads": 10, "num_key_value_heads": 2, "tie_word_embeddings": False,
            "max_position_embeddings": 4096}  # fmt: skip
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, image_seq_length=TOKENS_PER_TILE,
        downsample_ratio=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    InternVLForConditionalGeneration(config).float().save_pretrained(folder)


def inputs(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Ids [1, S] with the tiles' placeholders in front, labels [1, S] (unshifted), pixels [T, 3, h, w]."""
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY - 100, (1, options.tokens), generator=generator)
    ids[0, 2 : 2 + options.tiles * TOKENS_PER_TILE] = IMAGE_TOKEN
    labels = torch.where(ids == IMAGE_TOKEN, -100, ids)
    return ids, labels, torch.randn(options.tiles, 3, SIDE, SIDE, generator=generator)


def transformers_step(folder: Path, options: argparse.Namespace) -> Callable[[], float]:
    """Forward and backward with transformers' own loss (its default attention, torch's fused one)."""
    import torch
    from transformers import InternVLForConditionalGeneration

    model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    model.lm_head.requires_grad_(True)
    ids, labels, pixels = inputs(options)

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, pixel_values=pixels, labels=labels, use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    return step


def our_config(parallel: dict[str, Any], options: argparse.Namespace) -> Any:
    from tests.support.configs import make_config

    return make_config(parallel=parallel, train={"dtype": "float32"}, batch={"sequence_length_tokens": options.tokens})


def our_step(groups: Any, backend: Any, folder: Path, options: argparse.Namespace, rows: int) -> Callable[[], float]:
    """The same through our model and megatron-core's schedule; the token mean's slopes are known before the forward."""
    import torch
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from sophia_mcore.model import lvlm
    from sophia_mcore.pretrained.spec import ModelSpec
    from sophia_mcore.weights.load import load_hf

    spec = ModelSpec.from_model_dir(folder)
    chunks = lvlm.build(spec, our_config(dict(groups.parallel), options), groups, backend)
    load_hf(chunks, folder, spec, groups)
    (model,) = chunks
    model.config.finalize_model_grads_func = None  # no data parallelism here, nothing to sum
    ids, labels, pixels = inputs(options)
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    slopes = -(targets >= 0).float() / int((targets >= 0).sum())

    def forward_step(_: Any, module: Any) -> Any:
        output = module(ids, None, None, pixels, torch.arange(len(pixels) * TOKENS_PER_TILE), targets, slopes)

        def loss(scores: Any) -> Any:
            mean = (scores.logprobs * slopes).sum()
            return mean, torch.zeros((), dtype=torch.int), float(mean.detach())

        return output, loss

    def step() -> float:
        model.zero_grad(set_to_none=True)
        reports = get_forward_backward_func()(
            forward_step_func=forward_step, data_iterator=None, model=[model], num_microbatches=rows,
            seq_length=options.tokens, micro_batch_size=1, forward_only=False,
        )  # fmt: skip
        return reports[0] if reports else 0.0

    return step


def measured(step: Callable[[], float]) -> dict[str, float]:
    """Loss, CPU- and wall seconds of one step after a warm-up, and the growth of peak memory (MB) of the first."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in memory now
    before = _memory("VmRSS")
    loss = step()
    extra, whole = _memory("VmHWM") - before, _memory("VmHWM")
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return {
        "loss": loss,
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "extra_mb": extra / 1e6,
        "peak_mb": whole / 1e6,
    }


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _rank(groups: Any, backend: Any, folder: Path, options: argparse.Namespace, rows: int) -> dict[str, float]:
    return measured(our_step(groups, backend, folder, options, rows))


def case(name: str, folder: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    """One case in this fresh process: what each of its ranks measured."""
    import torch

    torch.set_num_threads(1)
    if name == "transformers":
        return [measured(transformers_step(folder, options))]
    import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401  (once, for all forked ranks)

    from sophia_mcore.config.schema import Parallel
    from sophia_mcore.parallel.local import run_layout

    parallel = Parallel(**LAYOUTS.get(name, {}))
    return run_layout(_rank, parallel, folder, options, 1 if name == "ours" else ROWS, timeout=400.0)


def main() -> None:
    """Run all cases, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 1024), ("tiles", 4), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(case(options.case, options.folder, options)))
        return
    runs: dict[str, list[list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-step-") as folder:
        save_model(Path(folder))
        for repeat in range(options.repeats):
            for name in ("ours", "transformers", *(LAYOUTS if repeat < 2 else ())):
                runs.setdefault(name, []).append(_child(name, folder, options))
    best = {n: {key: min(run[0][key] for run in runs[n]) for key in runs[n][0][0]} for n in ("ours", "transformers")}
    tokens = options.tokens
    layouts = {
        name: {
            "tokens_per_second": round(
                ROWS * tokens / min(max(rank["wall_seconds"] for rank in run) for run in runs[name])
            ),
            "tokens_per_cpu_second": round(
                ROWS * tokens / min(sum(rank["cpu_seconds"] for rank in run) for run in runs[name])
            ),
        }
        for name in LAYOUTS
    }
    print(
        json.dumps(
            {
                "name": "step",
                "ours": round(tokens / best["ours"]["cpu_seconds"], 1),
                "peer": round(tokens / best["transformers"]["cpu_seconds"], 1),
                "ratio": round(best["ours"]["cpu_seconds"] / best["transformers"]["cpu_seconds"], 3),
                "unit": "tokens/cpu-second, forward and backward; ratio: our CPU-seconds over the peer's",
                "peer_name": "transformers",
                "memory_ratio": round(best["ours"]["extra_mb"] / best["transformers"]["extra_mb"], 3),
                "loss_difference": abs(best["ours"]["loss"] - best["transformers"]["loss"]),
                "cases": {n: {key: round(value, 2) for key, value in values.items()} for n, values in best.items()},
                "layouts": layouts,
                "shape": {"tokens": tokens, "tiles": options.tiles, "rows_of_layouts": ROWS},
            }
        )
    )


def _child(name: str, folder: str, options: argparse.Namespace) -> list[dict[str, float]]:
    sizes = [f"--{key}={getattr(options, key)}" for key in ("tokens", "tiles")]
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.bench.bench_step",
        f"--case={name}",
        f"--folder={folder}",
        *sizes,
    ]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
