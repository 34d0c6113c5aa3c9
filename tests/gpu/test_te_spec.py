"""Transformer Engine's layers against plain torch parts on the same weights, on one GPU: log-probs and gradients.

Not yet run on a GPU. Transformer Engine multiplies fp32 matrices in TF32 (10 bits), hence that tolerance.
"""

from __future__ import annotations

import pytest
import torch

from tests.gpu.gpu_world import needs_te, one_rank, packed, with_train

TOLERANCE = {"float32": 5e-3, "bfloat16": 4e-2}  # relative Frobenius error of a tensor


def outcome(transformer_engine: bool, dtype: str, sequences: bool, family: str) -> dict[str, torch.Tensor]:
    """Log-probs of a row and the gradients of all parameters by canonical name, on the CPU."""
    from sophia_mcore.config.schema import Parallel
    from sophia_mcore.model import lvlm
    from sophia_mcore.model.names import canonical_parameters
    from tests.support import layouts

    spec = layouts.tiny_spec(family)
    config = with_train(layouts.tiny_config(Parallel()), dtype=dtype, train_vision_tower=True, train_projector=True)
    row = layouts.rows(2)[0]
    # apex adds weight gradients to main_grad, which only DistributedDataParallel makes
    with one_rank(transformer_engine, fused_weight_gradient=False) as (groups, backend):
        chunks = lvlm.build(spec, config, groups, backend)
        layouts.fill(chunks, spec)
        slopes = -row.weights.cuda()
        logprobs = chunks[0](
            row.input_ids.cuda(), None, packed([32, 8, 24]) if sequences else None, row.pixel_values.cuda(),
            row.feature_index.cuda(), row.targets.cuda(), slopes,
        ).logprobs  # fmt: skip
        (logprobs * slopes).sum().backward()
        found = {name: p.grad.float().cpu() for name, p, _ in canonical_parameters(chunks, spec) if p.grad is not None}
        return {"logprobs": logprobs.detach().float().cpu(), **found}


@needs_te
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("sequences", [False, True], ids=["unpacked", "packed"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_transformer_engine_equals_plain_parts(dtype: str, sequences: bool, family: str) -> None:
    plain = outcome(False, dtype, sequences, family)
    try:
        fused = outcome(True, dtype, sequences, family)
    except ValueError as error:  # which attention kernels there are for packed fp32 depends on the version
        if dtype == "float32" and sequences and "No dot product attention" in str(error):
            pytest.skip(f"no packed attention in fp32 in this Transformer Engine, other versions may have it: {error}")
        raise
    assert fused.keys() == plain.keys() and len(plain) > 40
    errors = {name: float((fused[name] - value).norm() / value.norm().clamp_min(1e-6)) for name, value in plain.items()}
    print(f"worst error, {dtype}: {max(errors.values()):.1e} (at most {TOLERANCE[dtype]:.0e})")  # check.py shows it
    assert max(errors.values()) <= TOLERANCE[dtype], sorted(errors.items(), key=lambda item: -item[1])[:5]
