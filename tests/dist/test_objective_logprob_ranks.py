"""Vocab-parallel log-probs on gloo ranks: values and gradients, element by element, against float64 on one rank."""

import pytest
import torch
from megatron.core.tensor_parallel import mappings

from sophia_mcore.batch.samples import IGNORE
from sophia_mcore.config.schema import Parallel
from sophia_mcore.objective import logprob as module
from sophia_mcore.objective.logprob import token_entropies, token_logprobs
from tests.support.harness import run_layout

T, H = 24, 8


def inputs(vocab, padded, size):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(T, H, generator=generator)
    weight = torch.randn(padded, H, generator=generator)
    targets = torch.randint(0, vocab, (T,), generator=generator)
    targets[3:11] = IGNORE
    targets[0], targets[1] = min(padded // size - 1, vocab - 1), min(padded // size, vocab - 1)  # a shard's edge
    return hidden, weight, targets, torch.randn(T, generator=generator)


def on_rank(groups, backend, vocab, padded, sequence_parallel):
    size, rank, group = groups.tensor_size, groups.tensor_rank, groups.tensor
    hidden, weight, targets, coefficients = inputs(vocab, padded, size)
    shard = weight[rank * padded // size : (rank + 1) * padded // size]
    found = []
    for given, one_pass in ((None, 0), (coefficients, 0), (coefficients, 10**9)):
        module.ONE_PASS_TOKENS = one_pass  # this forked rank only
        local = hidden[rank * T // size : (rank + 1) * T // size] if sequence_parallel else hidden
        local, local_weight = local.clone().requires_grad_(), shard.clone().requires_grad_()
        if sequence_parallel:
            full = mappings.gather_from_sequence_parallel_region(local, tensor_parallel_output_grad=True, group=group)
        else:
            full = mappings.copy_to_tensor_model_parallel_region(local, group=group)
        ours = token_logprobs(
            full, local_weight, targets, group=group, vocab_size=vocab, chunk_tokens=5, coefficients_T=given
        )
        (ours * coefficients).sum().backward()
        found.append((ours.detach(), local.grad, local_weight.grad))
    entropy = token_entropies(hidden, shard, targets, group=group, vocab_size=vocab, chunk_tokens=5)
    return found, entropy


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize(
    ("size", "vocab", "padded"),
    [(2, 30, 32), (4, 29, 32), (4, 15, 32)],  # padding inside the last shard, and shards that are padding only
)
def test_over_tensor_parallel_ranks(size, vocab, padded, sequence_parallel):
    hidden, weight, targets, coefficients = inputs(vocab, padded, size)
    answers = run_layout(on_rank, Parallel(tensor=size), vocab, padded, sequence_parallel)
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    full = torch.log_softmax(hidden @ weight[:vocab].T, -1)
    logprobs = full.gather(1, targets.clamp_min(0)[:, None]).squeeze(1) * (targets >= 0)
    (logprobs * coefficients).sum().backward()
    near = {"atol": 1e-5, "rtol": 1e-5}
    for way in (0, 1, 2):
        values, hidden_parts, weight_parts = zip(*(found[way] for found, _ in answers), strict=True)
        for value in values:
            torch.testing.assert_close(value.double(), logprobs.detach(), **near)
            assert torch.equal(value, values[0])  # bit for bit the same on every rank
        for part in [torch.cat(hidden_parts)] if sequence_parallel else hidden_parts:
            torch.testing.assert_close(part.double(), hidden.grad, **near)
        torch.testing.assert_close(torch.cat(weight_parts).double(), weight.grad, **near)
    entropy = -(full.exp() * full).sum(-1).detach() * (targets >= 0)
    for _, own in answers:
        torch.testing.assert_close(own.double(), entropy, **near)
