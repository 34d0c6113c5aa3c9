"""Step times of `sophia plan` against real training steps on gloo ranks, and against published figures.

python -m tests.bench.bench_plan [--steps 2] [--passes 2]

The rates of this machine are fitted to a few runs (the calibration); the other runs are then predicted. Prints one JSON
line: worst relative error of the predictions, each run with its measured and its predicted seconds, and the published
figures with their errors. Fastest of the steps after the first; two ranks at most, one thread each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402

from sophia_mcore.config.schema import Batch, Config, Objective, Parallel  # noqa: E402
from sophia_mcore.model import lvlm  # noqa: E402
from sophia_mcore.plan.cost import step_time  # noqa: E402
from sophia_mcore.plan.hardware import Device  # noqa: E402
from sophia_mcore.plan.memory import Row, Setting  # noqa: E402
from sophia_mcore.pretrained.internvl.spec import ProjectorSpec, VisionSpec  # noqa: E402
from sophia_mcore.pretrained.spec import LanguageSpec, ModelSpec  # noqa: E402
from sophia_mcore.train.optim import build_optimizer, wrap_ddp  # noqa: E402
from tests.support import layouts, plan_models  # noqa: E402
from tests.support.harness import run_layout  # noqa: E402

VOCABULARY, IMAGE_TOKEN, TOKENS_PER_TILE, SIDE = 2048, 2040, 16, 112


@dataclass(frozen=True)
class Case:
    """One run. `calibrates`: its time is one of those that the rates are fitted to."""

    name: str
    layout: dict[str, Any] = field(default_factory=dict)
    data: int = 1
    length: int = 512
    hidden: int = 384
    layers: int = 4
    batches: int = 4
    tiles: int = 2
    train: dict[str, Any] = field(default_factory=dict)
    calibrates: bool = False


CASES = [
    Case("one rank", calibrates=True),
    Case("one rank, narrow", hidden=192, calibrates=True),
    Case("one rank, rows of 1024", length=1024, batches=2, calibrates=True),
    Case("tp2", {"tensor": 2}, calibrates=True),
    Case("pp2", {"pipeline": 2}, calibrates=True),
    Case("dp2", data=2, calibrates=True),
    Case("one rank, wide", hidden=512),
    Case("one rank, 8 layers", layers=8),
    Case("one rank, rows of 256", length=256, batches=8),
    Case("one rank, 8 tiles", tiles=8),
    Case("recompute full", train={"recompute": "full"}),
    Case("tp2 sp", {"tensor": 2, "sequence_parallel": True}),
    Case("tp2, 8 layers", {"tensor": 2}, layers=8),
    Case("cp2", {"context": 2}),
    Case("dp2, narrow", data=2, hidden=192),
    Case("pp2, 8 rows", {"pipeline": 2}, batches=8),
    Case("pp2, uneven", {"pipeline": 2, "layers_on_first_stage": 1, "layers_on_last_stage": 3}),
    Case("pp2 vpp2", {"pipeline": 2, "virtual_pipeline": 2}),
]


def spec(case: Case) -> ModelSpec:
    """A small InternVL."""
    vision = VisionSpec(
        hidden_size=128, num_layers=4, num_attention_heads=4, intermediate_size=512, image_size=SIDE, patch_size=14,
        num_channels=3, qkv_bias=True, qk_norm=False, norm_type="layer_norm", norm_eps=1e-6,
    )  # fmt: skip
    language = LanguageSpec(
        family="qwen2", num_layers=case.layers, hidden_size=case.hidden, intermediate_size=3 * case.hidden,
        num_attention_heads=case.hidden // 32, num_key_value_heads=2, head_dim=32, vocab_size=VOCABULARY,
        norm_eps=1e-6, rope_theta=1e4, max_positions=4096, qkv_bias=True, qk_norm=False, tied_embeddings=False,
    )  # fmt: skip
    projector = ProjectorSpec(shuffle=2, input_size=512, output_size=case.hidden)
    return ModelSpec(vision=vision, projector=projector, language=language, layout="hf", image_token_id=IMAGE_TOKEN)


def make_rows(case: Case) -> list[layouts.Row]:
    """Rows of two sequences, the first with all tiles; every second token is a target."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(case.batches * case.data):
        ids = torch.randint(0, IMAGE_TOKEN, (1, case.length), generator=generator)
        ids[0, : case.tiles * TOKENS_PER_TILE] = IMAGE_TOKEN
        targets = torch.where(torch.arange(case.length) % 2 == 0, ids.roll(-1, 1), -100)
        targets = torch.where(ids.roll(-1, 1) == IMAGE_TOKEN, -100, targets)
        boundaries = [0, case.length // 2, case.length]
        weights = (targets >= 0).float()
        tiles = torch.randn(case.tiles, 3, SIDE, SIDE, generator=generator)
        features = torch.arange(case.tiles * TOKENS_PER_TILE)
        made.append(layouts.Row(ids, targets, weights, boundaries, tiles, features))
    return made


def configuration(case: Case) -> Config:
    """fp32, log-probs by blocks."""
    config = layouts.tiny_config(Parallel(**case.layout), **case.train)
    return config.model_copy(
        update={"batch": Batch(sequence_length_tokens=case.length), "objective": Objective(chunk_tokens=256)}
    )


def fastest_step(groups: Any, backend: Any, case: Case, steps: int) -> float:
    """Seconds of the fastest real optimizer step after the first, on one rank."""
    config, model = configuration(case), spec(case)
    chunks = lvlm.build(model, config, groups, backend)
    layouts.fill(chunks, model)
    wrapped = wrap_ddp(chunks, config.train)
    optimizer = build_optimizer(wrapped, config.train)
    mine = make_rows(case)[groups.data_rank :: groups.data_size]
    taken = []
    for _ in range(steps + 1):
        torch.distributed.barrier()
        start = time.perf_counter()
        for chunk in wrapped:
            chunk.zero_grad_buffer()
        get_forward_backward_func()(
            forward_step_func=lambda data, model: layouts.forward_step(data, model, groups),
            data_iterator=[iter(mine) for _ in wrapped] if len(wrapped) > 1 else iter(mine),
            model=wrapped,
            num_microbatches=len(mine),
            seq_length=case.length,
            micro_batch_size=1,
            forward_only=False,
        )
        optimizer.step()
        torch.distributed.barrier()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def predicted(case: Case, device: Device) -> float:
    """The planner's seconds."""
    config = configuration(case)
    row = make_row(case)
    setting = Setting(
        spec=spec(case), parallel=config.parallel, train=config.train, fp8=config.fp8, objective=config.objective,
        row=row,
        data=case.data, micro_batches=case.batches, fused=False,
    )  # fmt: skip
    return step_time(setting, device).total


def make_row(case: Case) -> Row:
    half = case.length // 2
    targets = half - case.tiles * TOKENS_PER_TILE / 2
    return Row(tokens=case.length, squares=2 * half**2, targets=targets, pictures=case.tiles)


FITTED = (
    "bf16", "attention", "bandwidth", "nvlink", "layer_seconds", "message_seconds", "data_exposed", "step_seconds",
)  # fmt: skip


def calibrate(measured: dict[str, float]) -> Device:
    """Rates that explain the calibration runs best: coordinate descent on the squared log errors."""
    device = Device(
        name="cpu", memory=24 * 2**30, bf16=40e9, fp8=0, attention=20e9, peak=1e11, bandwidth=4e9, nvlink=1e9,
        network=1e9, per_node=8, kernels="plain", layer_seconds=1e-3, message_seconds=1e-3, data_exposed=1.0,
        step_seconds=5e-3, reduce_scatter=2.0,
    )  # fmt: skip
    cases = [case for case in CASES if case.calibrates]

    def badness(trial: Device) -> float:
        # a weak pull towards the starting values settles what the runs do not determine
        pull = sum(math.log(getattr(trial, name) / getattr(start, name)) ** 2 for name in FITTED)
        return sum(math.log(predicted(c, trial) / measured[c.name]) ** 2 for c in cases) + 1e-4 * pull

    start, width = device, 2.0
    best = badness(device)
    while width > 1.01:
        improved = False
        for name in FITTED:
            for factor in (width, 1 / width):
                trial = replace(device, **{name: getattr(device, name) * factor})
                value = badness(trial)
                if value < best:
                    device, best, improved = trial, value, True
        if not improved:
            width = math.sqrt(width)
    return device


def main() -> None:
    """Measure, calibrate, predict, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each run")
    parser.add_argument("--passes", type=int, default=2, help="how often all runs are made; the fastest counts")
    options = parser.parse_args()
    measured: dict[str, float] = {}
    for _ in range(options.passes):  # a neighbour that is busy for a minute does not spoil a run
        for case in CASES:
            taken = run_layout(fastest_step, Parallel(**case.layout), case, options.steps, data=case.data, timeout=300)
            measured[case.name] = min(measured.get(case.name, math.inf), max(taken))
            print(f"{case.name}: {max(taken):.4f} s", file=sys.stderr)
    device = calibrate(measured)
    guesses = {case.name: predicted(case, device) for case in CASES}
    errors = {case.name: guesses[case.name] / measured[case.name] - 1 for case in CASES}
    held_out = [abs(errors[case.name]) for case in CASES if not case.calibrates]
    published = {case.name: [round(case.estimate()), case.tflops, case.error()] for case in plan_models.PUBLISHED}
    print(
        json.dumps(
            {
                "name": "plan",
                "ours": round(max(held_out), 3),
                "peer": 0.15,
                "ratio": round(max(held_out) / 0.15, 2),
                "unit": "worst relative error of a predicted step",
                "peer_name": "goal",
                "mean_error": round(sum(held_out) / len(held_out), 3),
                "rates": {name: float(f"{getattr(device, name):.3g}") for name in FITTED},
                "runs": {
                    case.name: {
                        "seconds": round(measured[case.name], 3),
                        "predicted": round(guesses[case.name], 3),
                        "error": round(errors[case.name], 3),
                        "calibrates": case.calibrates,
                    }
                    for case in CASES
                },
                "published_tflops": {name: [a, b, round(c, 3)] for name, (a, b, c) in published.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
