"""Speed, memory and losses of real-width decoder layers on one GPU, and of the 6B vision tower: JSON in one call.

python -m tests.gpu.blocks OUT.json [--model internvl3_8b|internvl3_38b] [--layers 4] [--lengths 16384 32768]
    [--recipes none tensorwise delayed blockwise] [--loss-steps 200] [--tower-tiles 8 16 32 64]

Each (recipe, length): some updates of `layers` layers with a small vocabulary on one packed row, TFLOP/s by
`gpu_world.step_flops`, MFU against --peak-tflops, peak memory. `loss_gap`: relative difference to bf16 of the mean loss
over the last half of the same 200 steps on sequences that can be learned. Tower: forward only, as it is frozen.
A part that fails is written down with its error; the rest goes on. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.gpu.gpu_world import one_rank, packed, require_gpu, step_flops, text_only, update, with_train

VOCABULARY, SEQUENCE = 8192, 4096  # a packed row is made of sequences of 4,096 tokens


def configuration(length: int, recipe: Any) -> Any:
    from sophia_mcore.config.schema import Fp8, Fp8Check, Parallel
    from tests.support import layouts

    config = with_train(
        layouts.tiny_config(Parallel()), dtype="bfloat16", distributed_optimizer=False, learning_rate=3e-4
    )
    batch = config.batch.model_copy(update={"sequence_length_tokens": length})
    return config.model_copy(update={"batch": batch, "fp8": Fp8(recipe=recipe, check=Fp8Check(skip=True))})


def learnable(length: int, generator: torch.Generator) -> torch.Tensor:
    """[1, length] ids in which each follows from the one before (times 5, plus 0 to 3)."""
    ids = torch.empty(length, dtype=torch.long)
    ids[0], noise = 1, torch.randint(0, 4, (length,), generator=generator)
    for place in range(1, length):
        ids[place] = (ids[place - 1] * 5 + noise[place]) % VOCABULARY
    return ids[None].cuda()


def updates(model: str, layers: int, length: int, recipe: str, steps: int) -> dict[str, Any]:
    """`steps` updates: median seconds, TFLOP/s, peak memory in GB, losses."""
    from sophia_mcore.model import lvlm
    from sophia_mcore.train.optim import build_optimizer, wrap_ddp
    from tests.support import real_models

    spec = text_only(real_models.MODELS[model], layers, VOCABULARY)
    config = configuration(length, recipe)
    lengths = [SEQUENCE] * (length // SEQUENCE)
    seconds, losses = [], []
    torch.cuda.reset_peak_memory_stats()
    with one_rank() as (groups, backend):
        chunks = lvlm.build(spec, config, groups, backend)
        torch.manual_seed(0)
        for name, parameter in chunks[0].named_parameters():  # norms are ones already, the rest is not filled
            if parameter.dim() > 1 or name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.02)
        wrapped = wrap_ddp(chunks, config.train)
        optimizer = build_optimizer(wrapped, config.train, recipe if recipe != "none" else None)
        generator = torch.Generator().manual_seed(0)
        rows = [learnable(length, generator) for _ in range(4)]
        slopes = torch.full((1, length), -1.0 / length, device="cuda")
        for number in range(steps):
            ids = rows[number % len(rows)]
            torch.cuda.synchronize()
            start = time.perf_counter()

            def loss_of(model: Any, ids: torch.Tensor = ids) -> torch.Tensor:
                scores = model(ids, None, packed(lengths), targets=ids.roll(-1, 1), coefficients=slopes)
                return (scores.logprobs * slopes).sum()

            losses.append(update(wrapped[0], optimizer, loss_of))
            seconds.append(time.perf_counter() - start)
    typical = sorted(seconds[2:])[len(seconds[2:]) // 2]
    return {
        "seconds": typical,
        "tflops": step_flops(spec.language, lengths) / typical / 1e12,
        "tokens_per_second_and_layer": length * layers / typical,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        "losses": losses,
    }


def tower(tiles: int) -> dict[str, float]:
    """The frozen 6B tower on a batch of tiles: tiles per second and peak memory in GB."""
    from sophia_mcore.model.vision.internvl import VisionTower
    from tests.support import real_models

    torch.cuda.reset_peak_memory_stats()
    model = VisionTower(real_models.vision(True), torch.bfloat16, torch.device("cuda"), False).requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
        pixels = torch.randn(tiles, 3, 448, 448, device="cuda", dtype=torch.bfloat16)
        model(pixels)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(3):
            model(pixels)
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / 3
    return {"tiles_per_second": tiles / seconds, "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9}


def attempt(work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What `work` returns, or its error in one line."""
    try:
        return work(*given)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    finally:
        torch.cuda.empty_cache()


def main() -> None:
    """Measure everything that was asked for; the file is rewritten after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="internvl3_8b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="*", default=[16_384, 32_768])
    parser.add_argument("--recipes", nargs="*", default=["none", "tensorwise", "delayed", "blockwise"])
    parser.add_argument("--loss-steps", type=int, default=200)
    parser.add_argument("--tower-tiles", type=int, nargs="*", default=[])
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16, datasheet of H100 SXM and H200")
    options = parser.parse_args()
    require_gpu()
    import megatron.core

    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "megatron_core": megatron.core.__version__,
        "model": options.model, "layers": options.layers, "vocabulary": VOCABULARY, "sequence": SEQUENCE,
        "steps": {}, "losses": {}, "tower": {},
    }  # fmt: skip
    for length in options.lengths:
        for recipe in options.recipes:
            found = attempt(updates, options.model, options.layers, length, recipe, 12)
            found["mfu_of_bf16_peak"] = found.get("tflops", 0.0) / options.peak_tflops
            result["steps"][f"{recipe} {length}"] = found
            options.out.write_text(json.dumps(result, indent=1))
    for recipe in options.recipes if options.loss_steps else ():
        found = attempt(updates, options.model, options.layers, SEQUENCE, recipe, options.loss_steps)
        result["losses"][recipe] = found
        half = found.get("losses", [])[options.loss_steps // 2 :]
        plain = result["losses"].get("none", {}).get("losses", [])[options.loss_steps // 2 :]
        if half and plain:
            found["loss_gap"] = sum(half) / sum(plain) - 1.0
        options.out.write_text(json.dumps(result, indent=1))
    for tiles in options.tower_tiles:
        result["tower"][str(tiles)] = attempt(tower, tiles)
        options.out.write_text(json.dumps(result, indent=1))
    print(json.dumps({key: value for key, value in result.items() if key != "losses"}))


if __name__ == "__main__":
    main()
