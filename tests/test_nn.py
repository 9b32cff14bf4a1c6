"""Modules: activations against their formulas, the seeded draw, balancing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.reference import SLOPES, activation
from torch import nn
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag.nn import ReLULike, ShallowNet, SmoothLeakyReLU, balance_, small_init_


def as_block(net: ShallowNet) -> ShallowBlock:
    weights = [net.hidden.weight] if net.hidden.bias is None else [net.hidden.weight, net.hidden.bias[:, None]]
    slopes = net.activation.s_minus, net.activation.s_plus
    return ShallowBlock(torch.cat(weights, dim=1), net.output.weight, slopes, net.output.bias)


@pytest.mark.parametrize("slopes", SLOPES)
def test_relu_like_has_the_two_slopes(slopes: tuple[float, float]) -> None:
    Z = torch.linspace(-3, 3, 13, dtype=torch.float64)
    assert_close(ReLULike(*slopes)(Z), activation(Z, slopes))


@pytest.mark.parametrize("slopes", [(1.0, 1.0), (0.0, float("nan")), (float("inf"), 1.0)])
def test_slopes_that_make_no_kink_are_refused(slopes: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="The slopes must be finite and differ; got s-="):
        ReLULike(*slopes)
    with pytest.raises(ValueError, match="The slopes must be finite and differ"):
        ShallowNet(2, 3, slopes=slopes)


@pytest.mark.parametrize("slope", [0.01, 0.5, 0.9])
def test_smooth_leaky_relu_is_its_formula_and_stays_so_far_out(slope: float) -> None:
    near = torch.linspace(-30, 30, 241, dtype=torch.float64, requires_grad=True)
    found = SmoothLeakyReLU(slope)(near)
    assert_close(found, slope * near + (1 - slope) * torch.log1p(near.exp()), rtol=1e-14, atol=1e-14)
    (gradient,) = torch.autograd.grad(found.sum(), near)
    assert_close(gradient, slope + (1 - slope) * torch.sigmoid(near.detach()), rtol=1e-14, atol=1e-14)
    far = torch.tensor([-1e4, -800.0, 800.0, 1e4], dtype=torch.float64)
    assert_close(SmoothLeakyReLU(slope)(far), torch.where(far > 0, far, slope * far), rtol=1e-14, atol=0)


@pytest.mark.parametrize("slope", [0.0, 1.0, -0.1, float("nan")])
def test_smooth_leaky_relu_needs_a_slope_between_its_limits(slope: float) -> None:
    with pytest.raises(ValueError, match="`slope` must lie strictly between 0 and 1; got"):
        SmoothLeakyReLU(slope)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("slopes", SLOPES)
def test_shallow_net_is_its_block(slopes: tuple[float, float], bias: bool) -> None:
    net = ShallowNet(3, 5, 2, slopes, hidden_bias=bias, output_bias=bias).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    X = torch.cat([x, torch.ones(7, 1)], dim=1) if bias else x
    assert_close(net(x), as_block(net)(X))


def test_the_seeded_draw_is_input_weights_then_output_weights() -> None:
    torch.manual_seed(12)
    W = torch.randn(50, 2) * 50**-3
    H = torch.randn(1, 50) * 50**-3
    torch.manual_seed(12)
    drawn_at_once = ShallowNet(2, 50, init_scale=50**-3)
    drawn_later = ShallowNet(2, 50).double()
    torch.manual_seed(12)
    small_init_(drawn_later, 50**-3)
    generator = ShallowNet(2, 50)
    small_init_(generator, 50**-3, torch.Generator().manual_seed(12))
    for net in (drawn_at_once, generator):
        assert torch.equal(net.hidden.weight, W)
        assert torch.equal(net.output.weight, H)
    # In float64 the same float32 draws are scaled without rounding the product.
    assert_close(drawn_later.hidden.weight, W.double(), rtol=1e-6, atol=0)
    assert_close(drawn_later.output.weight, H.double(), rtol=1e-6, atol=0)


def test_the_draw_covers_biases_and_has_the_scale() -> None:
    net = ShallowNet(100, 200, 3, hidden_bias=True, output_bias=True, init_scale=1e-3)
    assert all(parameter.any() for parameter in net.parameters())
    assert float(net.hidden.weight.detach().std()) == pytest.approx(1e-3, rel=0.05)  # 20,000 draws: 0.5 %
    small_init_(net, 0.0)
    assert not any(parameter.any() for parameter in net.parameters())


def test_without_a_scale_the_initialisation_is_torchs() -> None:
    torch.manual_seed(0)
    net = ShallowNet(4, 6)
    torch.manual_seed(0)
    assert torch.equal(net.hidden.weight, nn.Linear(4, 6, bias=False).weight)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_scales_that_are_none_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="`scale` must be a finite standard deviation >= 0; got"):
        ShallowNet(2, 3, init_scale=scale)


@pytest.mark.parametrize("bias", [False, True])
def test_balancing_equalises_the_norms_and_keeps_the_function(bias: bool) -> None:
    torch.manual_seed(0)
    net = ShallowNet(3, 5, 2, slopes=(-0.5, 1.0), hidden_bias=bias, output_bias=bias).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    before = net(x)
    balance_(net)
    assert_close(net(x), before)
    block = as_block(net)
    assert_close(block.W.norm(dim=1), block.H.norm(dim=0))


def test_neurons_that_cannot_be_balanced_stay() -> None:
    net = ShallowNet(2, 3)
    with torch.no_grad():
        net.hidden.weight[0] = 0.0
        net.output.weight[:, 1] = 0.0
    before = net.hidden.weight.clone(), net.output.weight.clone()
    balance_(net)
    assert torch.equal(net.hidden.weight[:2], before[0][:2])
    assert torch.equal(net.output.weight[:, :2], before[1][:, :2])
    assert np.isfinite(net.hidden.weight.detach().numpy()).all()


def test_arguments_show_in_repr() -> None:
    assert repr(ReLULike(-1, 1)) == "ReLULike(s_minus=-1.0, s_plus=1.0)"
    assert repr(SmoothLeakyReLU(0.25)) == "SmoothLeakyReLU(slope=0.25)"
