"""Emulated FP8 products against float64 written from the definitions: nearest number of the grid, scale by block."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sophia_mcore.config.precision import Fp8
from sophia_mcore.model.fp8_linear import E4M3, E5M2, Rounding, Scaling, fp8_linear, round_blocks, round_tensor
from tests.support.configs import make_config

T, K, N = 37, 150, 131  # none divides by 128
GRIDS = {
    dtype: np.unique(grid[np.isfinite(grid)])
    for dtype in (E4M3, E5M2)
    for grid in [torch.arange(256, dtype=torch.uint8).view(dtype).double().numpy()]
}


def nearest(values, dtype):
    """The grid's number next to each value; the even one of two (float64)."""
    grid = GRIDS[dtype]
    place = np.searchsorted(grid, values).clip(1, len(grid) - 1)
    low, high = grid[place - 1], grid[place]
    even_low = (place - 1 - len(grid) // 2) % 2 == 0  # 0 stands in the middle and is even
    up = (values - low > high - values) | ((values - low == high - values) & ~even_low)
    return np.where(up, high, low)


def slow_blocks(values, dtype, rows, columns, power_of_two):
    out = np.zeros_like(values)
    largest = GRIDS[dtype][-1]
    for top in range(0, values.shape[0], rows):
        for left in range(0, values.shape[1], columns):
            block = values[top : top + rows, left : left + columns]
            amax = np.abs(block).max()
            scale = np.float64(np.float32(largest) / np.float32(amax)) if amax > 0 else 1.0
            if power_of_two:
                scale = 2.0 ** np.floor(np.log2(scale))
            scaled = np.clip(np.float64(np.float32(block) * np.float32(scale)), -largest, largest)
            out[top : top + rows, left : left + columns] = nearest(scaled, dtype) / scale
    return out


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(T, K, generator=generator) * torch.logspace(-3, 2, T)[:, None]
    weight = torch.randn(N, K, generator=generator) * 0.05
    grad = torch.randn(T, N, generator=generator) * 1e-4
    x[5] = 0.0
    x[:, 128:] = 0.0  # blocks of zeros alone
    return x, weight, grad


def slow_product(x, weight, grad, recipe, gradient_dtype):
    """y, dx, dw in float64."""
    x, weight, grad = (value.double().numpy() for value in (x, weight, grad))
    if recipe == "blockwise":
        rounded_x, x_for_weight = slow_blocks(x, E4M3, 1, 128, True), slow_blocks(x, E4M3, 128, 1, True)
        rounded_weight = slow_blocks(weight, E4M3, 128, 128, True)
        for_x = slow_blocks(grad, gradient_dtype, 1, 128, True)
        for_weight = slow_blocks(grad, gradient_dtype, 128, 1, True)
    else:
        rounded_x = x_for_weight = slow_blocks(x, E4M3, *x.shape, False)
        rounded_weight = slow_blocks(weight, E4M3, *weight.shape, False)
        for_x = for_weight = slow_blocks(grad, gradient_dtype, *grad.shape, False)
    return rounded_x @ rounded_weight.T, for_x @ rounded_weight, for_weight.T @ x_for_weight


@pytest.mark.parametrize("recipe", ["tensorwise", "delayed", "blockwise"])  # delayed: the first pass has no history
@pytest.mark.parametrize("form", ["hybrid", "e4m3"])
def test_value_and_both_gradients(recipe, form):
    x, weight, grad = inputs()
    x.requires_grad_(), weight.requires_grad_()
    scaling = Scaling.of(recipe, Fp8(format=form))
    out = fp8_linear(x.view(1, T, K), weight, Rounding(scaling)).view(T, N)
    out.backward(grad)
    expected = slow_product(x.detach(), weight.detach(), grad, recipe, E5M2 if form == "hybrid" else E4M3)
    for ours, wanted in zip((out, x.grad, weight.grad), expected, strict=True):
        wanted = torch.from_numpy(wanted)
        assert (ours.double() - wanted).abs().max() < 1e-5 * wanted.abs().max()
    exact = x.detach().double() @ weight.detach().double().T
    assert 1e-4 < (out - exact).abs().max() / exact.abs().max() < 0.1  # it is rounded, and not far off


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_the_grid_itself_stays(dtype):
    grid = torch.from_numpy(GRIDS[dtype]).float()
    assert torch.equal(round_tensor(grid, dtype), grid)
    assert round_tensor(torch.zeros(3), dtype).eq(0).all()
    assert round_tensor(torch.tensor([1e-40, 0.0]), dtype).isfinite().all()
    assert round_tensor(torch.tensor([3e38, 1.0]), dtype).isfinite().all()


def test_blocks_do_not_see_each_other():
    values = torch.ones(2, 256)
    values[0, 0] = 1e6
    rounded = round_blocks(values, E4M3, 1, 128)
    assert rounded[0, 1] == 0.0  # lost beside the large one
    assert rounded[0, 128:].eq(1).all() and rounded[1].eq(1).all()


def test_zero_rows_change_nothing():
    """Padding that is zero takes no part in any scale."""
    x, weight, _ = inputs()
    for recipe in ("tensorwise", "blockwise"):
        longer = torch.cat([x, torch.zeros(11, K)])
        grad = torch.cat([inputs(1)[2], torch.zeros(11, N)])
        results = []
        for rows, slope in ((x, grad[:T]), (longer, grad)):
            leaf, head = rows.clone().requires_grad_(), weight.clone().requires_grad_()
            out = fp8_linear(leaf, head, Rounding(Scaling(recipe=recipe)))
            out.backward(slope)
            results.append((out[:T], leaf.grad[:T], head.grad))
        for short, long in zip(*results, strict=True):
            torch.testing.assert_close(short, long, rtol=1e-6, atol=1e-7)


def test_delayed_scales_come_from_the_past():
    rounding = Rounding(Scaling(recipe="delayed", history=2))
    weight = torch.eye(2)

    def passed(value, grad=True):
        with torch.set_grad_enabled(grad):
            return float(fp8_linear(torch.tensor([[value, 0.0]]), weight, rounding)[0, 0])

    assert passed(1.0) == 1.0  # nothing past: its own amax
    assert passed(4.0) == 1.0  # saturates at the amax of the pass before
    assert passed(4.0, grad=False) == 4.0  # a measurement is not remembered
    assert passed(3.0) == pytest.approx(3.0, rel=0.07)
    assert passed(0.5) == pytest.approx(0.5, rel=0.07)  # the last two: 4, 3
    assert passed(4.0) == pytest.approx(3.0)  # the last two: 3, 0.5
    recent = Rounding(Scaling(recipe="delayed", history=2, most_recent=True))
    rounding = recent
    assert [passed(8.0), passed(1.0), passed(8.0)] == [8.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("fp8", "message"),
    [
        ({"recipe": "delayed", "layers_at_end_in_bf16": 1}, "none can stay in bf16"),
        ({"recipe": "delayed", "attention_in_bf16": True}, "none can stay in bf16"),
        ({"recipe": "tensorwise", "layers_in_bf16": [-1]}, "counted from 0"),
        ({"recipe": "rowwise"}, "fp8.recipe"),
        ({"recipe": "tensorwise", "backend": "emulate"}, "fp8.backend"),
    ],
)
def test_impossible_settings_are_named(fp8, message):
    with pytest.raises(ValidationError, match=message):
        make_config(fp8=fp8)


def test_which_layers_stay():
    settings = Fp8(layers_at_start_in_bf16=1, layers_at_end_in_bf16=2, layers_in_bf16=(3,))
    assert [settings.in_bf16(layer, 8) for layer in range(8)] == [True, False, False, True, False, False, True, True]
