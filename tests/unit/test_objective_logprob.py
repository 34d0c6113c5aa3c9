"""Values and gradients of the chunked log-probs against float64, on one rank. Over ranks: tests/dist."""

import pytest
import torch

from sophia_mcore.batch.samples import IGNORE
from sophia_mcore.objective import logprob as module
from sophia_mcore.objective.logprob import token_entropies, token_logprobs

T, H, V, PADDED = 37, 16, 101, 128


def inputs(dtype=torch.float32, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(T, H, generator=generator) * scale).to(dtype).requires_grad_()
    weight = torch.randn(PADDED, H, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (T,), generator=generator)
    targets[[0, 5, 20]] = IGNORE
    targets[8:16] = IGNORE  # a whole chunk of 8
    targets[1], targets[2] = 0, V - 1
    coefficients = torch.randn(T, generator=generator)
    return hidden, weight, targets, coefficients


def reference(hidden, weight, targets, coefficients):
    """float64, the naive way."""
    hidden = hidden.detach().double().requires_grad_()
    weight = weight.detach().double().requires_grad_()
    logprobs = torch.log_softmax(hidden @ weight[:V].T, -1)
    logprobs = logprobs.gather(1, targets.clamp_min(0)[:, None]).squeeze(1) * (targets >= 0)
    (logprobs * coefficients.double()).sum().backward()
    return logprobs.detach(), hidden.grad, weight.grad


def close(ours, reference, tolerance):
    return (ours.double() - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.fixture(params=["by_chunks", "by_blocks"], autouse=True)
def cut(request, monkeypatch):
    """Both ways to cut the matrix, whatever the chunk size."""
    monkeypatch.setattr(module, "ONE_PASS_TOKENS", 0 if request.param == "by_chunks" else 10**9)


@pytest.mark.parametrize("chunk", [1, 8, 13, 1000])
@pytest.mark.parametrize("way", ["recompute", "forward", "function"])
def test_values_and_gradients(way, chunk):
    hidden, weight, targets, coefficients = inputs()
    given = {"recompute": None, "forward": coefficients, "function": lambda logprobs, rows: coefficients[rows]}[way]
    ours = token_logprobs(hidden, weight, targets, vocab_size=V, chunk_tokens=chunk, coefficients_T=given)
    (ours * coefficients).sum().mul(3.0).backward()
    logprobs, grad_hidden, grad_weight = reference(hidden, weight, targets, 3.0 * coefficients)
    assert ours.dtype == torch.float32 and ours[targets < 0].eq(0).all()
    assert close(ours.detach(), logprobs, 1e-6)
    assert close(hidden.grad, grad_hidden, 1e-5)
    assert close(weight.grad, grad_weight, 1e-5)
    assert weight.grad[V:].eq(0).all()


@pytest.mark.parametrize("way", ["recompute", "forward"])
@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_extreme_logits(way, scale):
    hidden, weight, targets, coefficients = inputs(scale=scale)
    given = coefficients if way == "forward" else None
    ours = token_logprobs(hidden, weight, targets, vocab_size=V, chunk_tokens=8, coefficients_T=given)
    (ours * coefficients).sum().backward()
    logprobs, grad_hidden, grad_weight = reference(hidden, weight, targets, coefficients)
    assert close(ours.detach(), logprobs, 1e-6)
    assert close(hidden.grad, grad_hidden, 1e-4) and close(weight.grad, grad_weight, 1e-4)


@pytest.mark.parametrize("way", ["recompute", "forward"])
def test_bfloat16(way):
    hidden, weight, targets, coefficients = inputs(torch.bfloat16)
    given = coefficients if way == "forward" else None
    ours = token_logprobs(hidden, weight, targets, vocab_size=V, chunk_tokens=8, coefficients_T=given)
    (ours * coefficients).sum().backward()
    logprobs, grad_hidden, grad_weight = reference(hidden, weight, targets, coefficients)
    assert weight.grad.dtype == torch.bfloat16
    assert close(ours.detach(), logprobs, 1e-2)
    assert close(hidden.grad, grad_hidden, 2e-2) and close(weight.grad, grad_weight, 2e-2)


def test_bfloat16_confident_token_keeps_its_small_gradient():
    hidden = torch.zeros(1, 2, dtype=torch.bfloat16)
    hidden[0, 0] = 1.0
    hidden.requires_grad_()
    weight = torch.tensor([[9.0, 1.0], [0.0, -1.0]], dtype=torch.bfloat16, requires_grad=True)
    targets, one = torch.tensor([0]), torch.ones(1)
    token_logprobs(hidden, weight, targets, vocab_size=2, chunk_tokens=1, coefficients_T=one).sum().backward()
    expected = 2.0 * torch.sigmoid(torch.tensor(-9.0))  # (1 - p) (w_0 - w_1), second component
    assert hidden.grad[0, 1].float() == pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("way", ["recompute", "forward", "no_grad"])
def test_no_target_at_all(way):
    hidden, weight, targets, coefficients = inputs()
    targets[:] = IGNORE
    given = coefficients if way == "forward" else None
    with torch.set_grad_enabled(way != "no_grad"):
        ours = token_logprobs(hidden, weight, targets, vocab_size=V, chunk_tokens=8, coefficients_T=given)
    assert ours.eq(0).all()
    if way != "no_grad":
        ours.sum().backward()
        assert hidden.grad.eq(0).all() and weight.grad.eq(0).all()


def test_frozen_head_and_no_grad():
    hidden, weight, targets, coefficients = inputs()
    weight.requires_grad_(False)
    ours = token_logprobs(hidden, weight, targets, vocab_size=V, chunk_tokens=8, coefficients_T=coefficients)
    (ours * coefficients).sum().backward()
    assert close(hidden.grad, reference(hidden, weight, targets, coefficients)[1], 1e-5) and weight.grad is None
    with torch.no_grad():
        again = token_logprobs(hidden, weight, targets, vocab_size=V, chunk_tokens=8)
    torch.testing.assert_close(again, ours.detach())


def test_entropy():
    hidden, weight, targets, _ = inputs()
    ours = token_entropies(hidden, weight, targets, vocab_size=V, chunk_tokens=3)
    logits = (hidden @ weight[:V].T).double()
    expected = torch.distributions.Categorical(logits=logits).entropy() * (targets >= 0)
    torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=1e-5)


def test_never_a_full_matrix():
    """No tensor of T x V elements is made, in either way, nor for the entropy."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.size = max(self.size, out.numel())
            return out

    for given in (True, False):
        hidden, weight, targets, coefficients = inputs()
        with Largest() as largest:
            kind = coefficients if given else None
            ours = token_logprobs(hidden, weight, targets, vocab_size=V, chunk_tokens=4, coefficients_T=kind)
            (ours * coefficients).sum().backward()
            token_entropies(hidden, weight, targets, vocab_size=V, chunk_tokens=4)
        assert largest.size <= max(PADDED * H, 4 * PADDED) < T * V


def test_misuse_is_refused():
    hidden, weight, targets, coefficients = inputs()
    ours = token_logprobs(hidden, weight, targets, vocab_size=V, chunk_tokens=8, coefficients_T=coefficients)
    with pytest.raises(RuntimeError, match="multiple of coefficients"):
        ours.sum().backward()
    ours = token_logprobs(hidden, weight, targets, vocab_size=V, chunk_tokens=8, coefficients_T=coefficients)
    loss = (ours * coefficients).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward only"):
        loss.backward()
    with pytest.raises(ValueError, match="not below the vocabulary size"):
        token_logprobs(hidden, weight, targets, vocab_size=V - 1, chunk_tokens=8)
    with pytest.raises(ValueError, match="chunk_tokens"):
        token_logprobs(hidden, weight, targets, vocab_size=V, chunk_tokens=0)
    with pytest.raises(ValueError, match=r"must be \[T\]"):
        token_logprobs(hidden, weight, targets[:-1], vocab_size=V, chunk_tokens=8)
