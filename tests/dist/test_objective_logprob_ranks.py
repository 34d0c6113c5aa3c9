"""Vocab-parallel log-probs on gloo ranks: values and gradients, element by element, against float64 on one rank."""

import multiprocessing
import tempfile

import pytest
import torch
from megatron.core.tensor_parallel import mappings  # imported once here, the forked ranks share it
from torch import distributed as dist

from sophia_mcore.objective.logprob import IGNORE, token_entropies, token_logprobs

T, H = 24, 8


def inputs(vocab, padded):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(T, H, generator=generator)
    weight = torch.randn(padded, H, generator=generator)
    targets = torch.randint(0, vocab, (T,), generator=generator)
    targets[3:11] = IGNORE
    return hidden, weight, targets, torch.randn(T, generator=generator)


def rank_main(rank, size, store, vocab, padded, sequence_parallel, results):
    torch.set_num_threads(1)
    torch.cuda.current_device = lambda: torch.device("cpu")  # this forked rank only; megatron-core asks for it
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    group, rows = dist.group.WORLD, padded // size
    hidden, weight, targets, coefficients = inputs(vocab, padded)
    shard = slice(rank * rows, (rank + 1) * rows)
    targets[0], targets[1] = min(rows - 1, vocab - 1), min(rows, vocab - 1)  # both sides of a shard's edge
    found = []
    for given in (None, coefficients):
        local = hidden[rank * T // size : (rank + 1) * T // size] if sequence_parallel else hidden
        local = local.clone().requires_grad_()
        local_weight = weight[shard].clone().requires_grad_()
        if sequence_parallel:
            full = mappings.gather_from_sequence_parallel_region(local, tensor_parallel_output_grad=True, group=group)
        else:
            full = mappings.copy_to_tensor_model_parallel_region(local, group=group)
        ours = token_logprobs(
            full, local_weight, targets, group=group, vocab_size=vocab, chunk_tokens=5, coefficients_T=given
        )
        (ours * coefficients).sum().backward()
        found.append((ours.detach(), local.grad, local_weight.grad))
    entropy = token_entropies(hidden, weight[shard], targets, group=group, vocab_size=vocab, chunk_tokens=5)
    results.put((rank, [[x.tolist() for x in way] for way in found], entropy.tolist(), targets.tolist()))
    dist.destroy_process_group()


def run_ranks(size, *arguments):
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        results = context.Queue()
        ranks = [
            context.Process(target=rank_main, args=(rank, size, f"{folder}/store", *arguments, results))
            for rank in range(size)
        ]
        for process in ranks:
            process.start()
        answers = sorted(results.get(timeout=60) for _ in ranks)
        for process in ranks:
            process.join()
    return answers


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize(
    ("size", "vocab", "padded"),
    [(2, 30, 32), (4, 29, 32), (4, 15, 32)],  # padding inside the last shard, and shards that are padding only
)
def test_over_tensor_parallel_ranks(size, vocab, padded, sequence_parallel):
    hidden, weight, _, coefficients = (x.double() for x in inputs(vocab, padded))
    answers = run_ranks(size, vocab, padded, sequence_parallel)
    targets = torch.tensor(answers[0][3])
    hidden.requires_grad_(), weight.requires_grad_()
    full = torch.log_softmax(hidden @ weight[:vocab].T, -1)
    logprobs = full.gather(1, targets.clamp_min(0)[:, None]).squeeze(1) * (targets >= 0)
    (logprobs * coefficients).sum().backward()
    for way in (0, 1):
        for rank in range(size):
            ours = torch.tensor(answers[rank][1][way][0]).double()
            torch.testing.assert_close(ours, logprobs.detach(), atol=1e-5, rtol=1e-5)
            assert answers[rank][1][way][0] == answers[0][1][way][0]  # bit for bit the same on every rank
        hidden_parts = [torch.tensor(answer[1][way][1]).double() for answer in answers]
        weight_parts = [torch.tensor(answer[1][way][2]).double() for answer in answers]
        for part in [torch.cat(hidden_parts)] if sequence_parallel else hidden_parts:
            torch.testing.assert_close(part, hidden.grad, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat(weight_parts), weight.grad, atol=1e-5, rtol=1e-5)
    entropy = -(full.exp() * full).sum(-1).detach() * (targets >= 0)
    for answer in answers:
        torch.testing.assert_close(torch.tensor(answer[2]).double(), entropy, atol=1e-5, rtol=1e-5)
