"""Escape neurons, by hand and against the definition. Agreement with linear programs: test_stationarity.py."""

from __future__ import annotations

import pytest
import torch
from support.tensors import tensor
from torch import Tensor
from torch.testing import assert_close

from relu_diag import BlockSignal, ShallowBlock
from relu_diag import functional as F


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def test_with_one_output_only_neurons_without_output_weight_escape() -> None:
    """Both see a residual orthogonal to their activation but not to their inputs."""
    X, G = tensor([1.0, 1.0], [1.0, -1.0]), tensor([1.0], [-1.0])
    block = ShallowBlock(tensor([2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]), tensor([0.0, 1.0, 0.0]))
    escape = F.escape_neurons(block, BlockSignal(X, G))
    assert escape.mask.tolist() == [True, False, True]
    assert_close(escape.direction[:2].abs(), tensor([0.0, 1.0], [0.0, 0.0]))
    assert_close(escape.D[0].abs(), tensor([2.0])[0])


def test_direction_is_tangential_costs_nothing_and_is_felt_as_reported() -> None:
    torch.manual_seed(0)
    W, H = torch.randn(6, 4, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    W[0], H[:, 0], H[:, 1] = 0.0, 0.0, 0.0
    X, G = torch.randn(40, 4, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    # G made such that no output weight and no input weight has a derivative.
    active = (X @ W.T > 0).double()
    by_H = torch.einsum("ni,jk->ijnk", active * (X @ W.T), torch.eye(2, dtype=torch.float64))
    by_W = torch.einsum("ni,nd,ji->idnj", active, X, H)
    A = torch.cat([by_H.reshape(-1, 80), by_W.reshape(-1, 80)])
    G = (G.flatten() - torch.linalg.pinv(A, rtol=1e-10) @ (A @ G.flatten())).view(40, 2)
    block, signal = ShallowBlock(W, H), BlockSignal(X, G)
    assert F.stationarity(block, signal).stationary.all()
    escape = F.escape_neurons(block, signal)
    assert escape.mask.all()
    assert_close(escape.direction.norm(dim=1), torch.ones(6, dtype=torch.float64))
    assert_close((escape.direction * W).sum(1), zeros(6))
    assert_close(F.tangential_derivatives(block, signal, escape.direction), zeros(6), atol=1e-12, rtol=0)
    for j in range(2):  # D_j is the derivative of a network that has output weight 1 to output j alone
        alone = ShallowBlock(W, torch.eye(2, dtype=torch.float64)[:, [j]].expand(2, 6))
        assert_close(escape.D[:, j], F.tangential_derivatives(alone, signal, escape.direction))


def test_kinks_that_the_loss_does_not_feel_are_felt_by_the_outputs() -> None:
    """h = 0, so c = 0 on the kink; the residual there pulls all the same."""
    X, W = tensor([0.0, 1.0], [1.0, 1.0], [1.0, -1.0]), tensor([1.0, 0.0])
    escape = F.escape_neurons(ShallowBlock(W, tensor([0.0])), BlockSignal(X, tensor([1.0], [0.0], [0.0])))
    assert escape.mask.item()
    assert_close(escape.direction, tensor([0.0, 1.0]))
    assert_close(escape.D, tensor([1.0]))


def test_zero_neuron_does_not_escape_where_collinear_samples_cancel() -> None:
    X = tensor([1.0, 2.0], [2.0, 4.0], [0.0, 0.0])
    block = ShallowBlock(zeros(1, 2), zeros(1, 1))
    assert not F.escape_neurons(block, BlockSignal(X, tensor([2.0], [-1.0], [5.0]))).mask.item()
    assert F.escape_neurons(block, BlockSignal(X, tensor([2.0], [-1.1], [5.0]))).mask.item()
    # Opposite inputs lie on one hyperplane but do not cancel for a rectifier.
    opposite = tensor([1.0, 2.0], [-1.0, -2.0])
    assert F.escape_neurons(block, BlockSignal(opposite, tensor([1.0], [-1.0]))).mask.item()
    absolute = ShallowBlock(zeros(1, 2), zeros(1, 1), slopes=(-1.0, 1.0))
    assert not F.escape_neurons(absolute, BlockSignal(opposite, tensor([1.0], [-1.0]))).mask.item()


@pytest.mark.parametrize(("margin", "escapes"), [(0.0, True), (1e-3, False)])
def test_with_several_outputs_a_kink_that_just_holds_lets_the_neuron_escape(margin: float, escapes: bool) -> None:
    """L' = (1 + margin) rho(v) - v on the only tangential line, and D = (L', -v): at margin 0 the ray v > 0 is free."""
    X, W = tensor([0.0, 1.0], [1.0, -1.0], [1.0, 0.0]), tensor([1.0, 0.0])
    G = tensor([1.0 + margin, 0.0], [1.0, 1.0], [-1.0, -1.0])
    block = ShallowBlock(W, tensor([1.0], [0.0]))
    escape = F.escape_neurons(block, BlockSignal(X, G))
    assert escape.mask.item() == escapes
    if escapes:
        assert_close(escape.direction, tensor([0.0, 1.0]))
        assert_close(escape.D, tensor([0.0, -1.0]))


def test_third_saddle_of_the_two_output_run_has_an_escape_neuron_with_output_weights() -> None:
    """The readings printed in Wu et al., appendix I (with e_12 = -0.12), good to a few per cent."""
    X = tensor([-0.3, 0.5], [1.0, 1.0], [-0.6, -1.0], [0.4, -0.4])
    G = tensor([-0.18, -0.12], [0.12, 0.08], [0.0, 0.0], [0.0, 0.0])
    block = ShallowBlock(tensor([-0.12, 0.63]), tensor([0.37], [-0.53]))
    escape = F.escape_neurons(block, BlockSignal(X, G), tol=0.05)
    assert escape.mask.item()
    assert_close(escape.direction.abs(), tensor([0.98, 0.19]), atol=0.01, rtol=0)
    assert_close(escape.D.abs(), tensor([0.18, 0.12]), atol=0.005, rtol=0)


def test_a_neuron_with_a_descent_is_no_escape_neuron() -> None:
    block = ShallowBlock(tensor([1.0, 0.0]), tensor([1.0], [0.0]))
    signal = BlockSignal(tensor([0.0, 1.0]), tensor([-1.0, 1.0]))
    assert not F.escape_neurons(block, signal).mask.item()


def test_thousands_of_samples_on_one_kink_do_not_hide_an_escape_neuron() -> None:
    """Sparse data: features that are zero for most samples put them all on the kink."""
    torch.manual_seed(0)
    X = torch.cat([zeros(3000, 1), torch.randn(3000, 2, dtype=torch.float64)], dim=1)
    block = ShallowBlock(tensor([1.0, 0.0, 0.0], [0.0, 0.0, 0.0]), zeros(1, 2))
    escape = F.escape_neurons(block, BlockSignal(X, torch.ones(3000, 1, dtype=torch.float64)))
    assert escape.decided.all()
    assert escape.mask.all()
    assert_close(escape.direction[0] @ block.W[0], zeros())


def test_result_says_itself_in_one_line() -> None:
    escape = F.escape_neurons(ShallowBlock(zeros(2, 2), zeros(1, 2)), BlockSignal(tensor([3.0, 4.0]), tensor([2.0])))
    assert str(escape) == "2 of 2 neurons are escape neurons, 0 undecided; largest |D| 10"
