"""Blocks and signals: what they compute, and what they refuse."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from support.reference import SLOPES, activation, kinked_problem
from torch import Tensor, nn
from torch.testing import assert_close

from relu_diag import BlockSignal, ShallowBlock, functional
from relu_diag.functional import block as block_module
from relu_diag.functional import neuron_geometry, neuron_states, rho, squared_error_signal, squared_loss
from relu_diag.functional.block import residual_factor
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import chunks, neuron_sums
from relu_diag.functional.tolerances import kink_tolerance


def block(dtype: torch.dtype = torch.float32) -> ShallowBlock:
    return ShallowBlock(torch.ones(3, 2, dtype=dtype), torch.ones(1, 3, dtype=dtype))


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("inplace", [False, True])
def test_activation_has_the_two_slopes(slopes: tuple[float, float], inplace: bool) -> None:
    Z = torch.tensor([-2.0, -1e-300, 0.0, 1e-300, 3.0], dtype=torch.float64)
    expected, given = activation(Z, slopes), Z.clone()
    assert_close(rho(given, slopes, inplace=inplace), expected, rtol=1e-15, atol=0)
    assert_close(given, expected if inplace else Z, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("slopes", "module"), [((0.0, 1.0), nn.ReLU()), ((0.1, 1.0), nn.LeakyReLU(0.1)), ((-1.0, 1.0), nn.LeakyReLU(-1.0))]
)
def test_activation_and_its_slope_at_zero_are_torchs_own(slopes: tuple[float, float], module: nn.Module) -> None:
    Z = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    for activate in (module, lambda z: rho(z, slopes)):
        Z.grad = None
        activate(Z).sum().backward()
        assert Z.grad is not None
        assert Z.grad.tolist() == pytest.approx([slopes[0], slopes[0], slopes[1]])
    assert torch.equal(rho(Z, slopes), module(Z))


@pytest.mark.parametrize("slopes", SLOPES)
def test_outputs_are_a_sum_over_neurons(slopes: tuple[float, float]) -> None:
    problem = kinked_problem(0, slopes, outputs=2)
    bias = torch.tensor([0.5, -1.0], dtype=torch.float64)
    net = ShallowBlock(problem.block.W, problem.block.H, slopes, bias)
    by_hand = [
        [
            bias[j] + sum(net.H[j, i] * activation(x @ net.W[i], slopes) for i in range(len(net.W)))
            for j in range(len(net.H))
        ]
        for x in problem.X
    ]
    assert_close(net(problem.X), torch.tensor(by_hand, dtype=torch.float64))


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1 / 32), ("sum", 1.0), ("half_sum", 0.5)])
def test_squared_loss_and_its_signal_are_autograds(reduction: Any, factor: float) -> None:
    problem = kinked_problem(0, outputs=2, neurons=3)  # 16 samples of 2 outputs
    outputs = problem.block(problem.X).requires_grad_()
    loss = factor * (outputs - problem.Y).square().sum()
    loss.backward()
    assert_close(squared_loss(problem.block, problem.X, problem.Y, reduction), loss.detach())
    assert_close(squared_error_signal(problem.block, problem.X, problem.Y, reduction).G, outputs.grad)
    if reduction == "mean":
        assert_close(loss.detach(), nn.functional.mse_loss(problem.block(problem.X), problem.Y))


def test_signal_of_a_squared_loss_needs_no_matrix_of_all_samples_and_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = kinked_problem(0, neurons=20, kinks=5)
    whole = squared_error_signal(problem.block, problem.X, problem.Y).G
    sizes: list[int] = []
    monkeypatch.setattr(block_module, "BUDGETS", replace(BUDGETS, chunk=1))
    monkeypatch.setattr(block_module, "rho", lambda Z, slopes: sizes.append(len(Z)) or rho(Z, slopes))
    assert torch.equal(squared_error_signal(problem.block, problem.X, problem.Y).G, whole)
    assert sizes == [64, 46]


def test_signal_of_a_model_in_training_carries_no_graph() -> None:
    layers = nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)
    net = ShallowBlock(layers[0].weight, layers[1].weight)
    assert not squared_error_signal(net, torch.ones(4, 2), torch.ones(4, 1)).G.requires_grad
    squared_loss(net, torch.ones(4, 2), torch.zeros(4, 1)).backward()
    assert layers[0].weight.grad is not None


def test_blocks_and_signals_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        block().W = torch.zeros(3, 2)  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        BlockSignal(torch.ones(1, 2), torch.ones(1, 1)).C = None  # type: ignore[misc]


def test_large_finite_numbers_are_not_mistaken_for_infinite_ones() -> None:
    """Their sum overflows; each of them is fine."""
    ShallowBlock(torch.full((2, 2), 3e38), torch.ones(1, 2))


def test_chunks_hold_every_sample_once_with_kinks_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_module, "BUDGETS", replace(BUDGETS, chunk=1))
    problem = kinked_problem(1, d=3, neurons=40, kinks=2, penalty=0.7)
    Z = problem.X @ problem.block.W.T
    on_kink = Z.abs() < 1e-12
    seen = 0
    for chunk in chunks(problem.block, problem.signal):
        part = slice(seen, seen + len(chunk.X))
        assert_close(chunk.X, problem.X[part])
        assert_close(chunk.Z, Z[part].masked_fill(on_kink[part], 0.0))
        assert_close(chunk.C, problem.signal.C[part])
        assert chunk.kinks.tolist() == on_kink[part].nonzero().tolist()
        seen += len(chunk.X)
    assert seen == len(problem.X) == 90


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float64, 1e-10), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_kink_tolerance_is_a_margin_over_rounding(dtype: torch.dtype, expected: float) -> None:
    assert kink_tolerance(None, dtype) == expected
    assert kink_tolerance(0.5, dtype) == 0.5


NAN = torch.tensor([[1.0, float("nan")]])
TALL = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"W": [[1.0, 2.0]]}, TypeError, r"`W` must be a torch.Tensor; got list. Use torch.as_tensor"),
        (
            {"W": torch.ones(3, 2).long()},
            TypeError,
            r"`W` must be floating point; got torch.int64. Convert it with W.fl",
        ),
        ({"H": torch.ones(1, 3).int()}, TypeError, r"`H` must be floating point; got torch.int32"),
        ({"W": torch.ones(3)}, ValueError, r"`W` must be a matrix with at least one row and column; got \(3,\)"),
        ({"W": torch.ones(0, 2), "H": torch.ones(1, 0)}, ValueError, r"`W` must be a matrix with at least one row"),
        ({"H": torch.ones(3, 1)}, ValueError, r"`H` needs one column per hidden neuron: W is \(3, 2\), H is \(3, 1\)"),
        (
            {"H": torch.ones(1, 3).double()},
            ValueError,
            r"`H` is torch.float64, `W` is torch.float32: convert one, H.to",
        ),
        ({"H": torch.ones(1, 3, device="meta")}, ValueError, r"`H` is on meta, `W` on cpu: move one, H.to\('cpu'\)"),
        ({"W": torch.full((3, 2), torch.nan)}, ValueError, r"`W` has NaN or infinite entries: the training diverged"),
        ({"H": torch.full((1, 3), -torch.inf)}, ValueError, r"`H` has NaN or infinite entries"),
        ({"output_bias": torch.ones(3)}, ValueError, r"`output_bias` needs one entry per output, shape \(1,\); got"),
        ({"output_bias": [1.0]}, TypeError, r"`output_bias` must be a torch.Tensor; got list"),
        ({"output_bias": torch.ones(1).long()}, TypeError, r"`output_bias` must be floating point; got torch.int64"),
        ({"output_bias": torch.ones(1).double()}, ValueError, r"`output_bias` is torch.float64, `W` is torch.float32"),
        ({"output_bias": torch.full((1,), torch.nan)}, ValueError, r"`output_bias` has NaN or infinite entries"),
        ({"slopes": (1.0, 1.0)}, ValueError, r"`slopes` must differ; with \(1.0, 1.0\) the block is linear"),
        ({"slopes": (0.0, float("inf"))}, ValueError, r"`slopes` must be finite"),
        ({"slopes": (0.0, float("nan"))}, ValueError, r"`slopes` must be finite"),
        ({"slopes": 0.1}, TypeError, r"`slopes` must be a pair of numbers \(s-, s\+\); got 0.1"),
        ({"slopes": (0.0, 1.0, 2.0)}, TypeError, r"`slopes` must be a pair of numbers"),
        ({"slopes": ("0", "1")}, TypeError, r"`slopes` must be a pair of numbers"),
    ],
)
def test_blocks_that_make_no_sense_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ShallowBlock(**{"W": torch.ones(3, 2), "H": torch.ones(1, 3), **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": [[1.0]]}, TypeError, r"`X` must be a torch.Tensor; got list"),
        ({"X": torch.ones(4, 2).long()}, TypeError, r"`X` must be floating point; got torch.int64"),
        ({"G": torch.ones(4, 1).bool()}, TypeError, r"`G` must be floating point; got torch.bool"),
        ({"X": torch.ones(0, 2), "G": torch.ones(0, 1)}, ValueError, r"`X` must be a matrix with at least one row"),
        (
            {"X": torch.ones(4)},
            ValueError,
            r"`X` must be a matrix .* got \(4,\). A vector v becomes one as v\[:, No",
        ),
        ({"X": torch.full((4, 2), torch.inf)}, ValueError, r"`X` has NaN or infinite entries: .* the data needs clean"),
        ({"G": torch.full((4, 1), torch.nan)}, ValueError, r"`G` has NaN or infinite entries"),
        ({"C": torch.full((4, 3), torch.nan)}, ValueError, r"`C` has NaN or infinite entries"),
        ({"Z": torch.full((4, 3), torch.nan)}, ValueError, r"`Z` has NaN or infinite entries"),
        ({"G": torch.ones(3, 1)}, ValueError, r"`G` needs one row per sample: X is \(4, 2\), G is \(3, 1\)"),
        ({"C": torch.ones(5, 3)}, ValueError, r"`C` needs one row per sample"),
        ({"Z": torch.ones(1, 3)}, ValueError, r"`Z` needs one row per sample"),
        ({"G": torch.ones(4, 1).double()}, ValueError, r"`G` is torch.float64, `X` is torch.float32"),
        ({"C": torch.ones(4, 3, device="meta")}, ValueError, r"`C` is on meta, `X` on cpu"),
    ],
)
def test_signals_that_make_no_sense_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BlockSignal(**{"X": torch.ones(4, 2), "G": torch.ones(4, 1), **change})


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (BlockSignal(torch.ones(4, 1), torch.ones(4, 1)), r"`X` needs 2 columns .* Append a column of ones to X"),
        (BlockSignal(torch.ones(4, 5), torch.ones(4, 1)), r"`X` needs 2 columns as W \(3, 2\); got \(4, 5\).$"),
        (BlockSignal(torch.ones(4, 2), torch.ones(4, 2)), r"`G` needs 1 columns, one per output; got \(4, 2\)"),
        (BlockSignal(torch.ones(4, 2), torch.ones(4, 1), C=torch.ones(4, 2)), r"`C` needs 3 columns, one per hidden"),
        (BlockSignal(torch.ones(4, 2), torch.ones(4, 1), Z=torch.ones(4, 2)), r"`Z` needs 3 columns, one per hidden"),
        (BlockSignal(torch.ones(4, 2).double(), torch.ones(4, 1).double()), r"`X` is torch.float64, `W` is torch.flo"),
        (BlockSignal(*(torch.ones(4, n, device="meta") for n in (2, 1))), r"`X` is on meta, `W` on cpu"),
    ],
)
def test_signals_of_another_block_are_refused(signal: BlockSignal, message: str) -> None:
    for measure in (neuron_geometry, neuron_sums):
        with pytest.raises(ValueError, match=message):
            measure(block(), signal)


@pytest.mark.parametrize(
    ("X", "Y", "error", "message"),
    [
        (torch.ones(4, 2), torch.ones(4), ValueError, r"`Y` must be a matrix .* becomes one as v\[:, None\]"),
        (torch.ones(4, 2), torch.ones(4, 2), ValueError, r"`Y` needs one row per sample .* \(4, 1\); got \(4, 2\)"),
        (torch.ones(4, 2), torch.ones(1, 1), ValueError, r"`Y` needs one row per sample .* \(4, 1\); got \(1, 1\)"),
        (torch.ones(4, 2), torch.ones(4, 1).long(), TypeError, r"`Y` must be floating point; got torch.int64"),
        (torch.ones(4, 2), torch.full((4, 1), torch.nan), ValueError, r"`Y` has NaN or infinite entries"),
        (torch.full((4, 2), torch.nan), torch.ones(4, 1), ValueError, r"`X` has NaN or infinite entries"),
        (torch.ones(4, 2), torch.ones(4, 1).double(), ValueError, r"`Y` is torch.float64, `X` is torch.float32"),
        (torch.ones(4, 2), torch.ones(4, 1, device="meta"), ValueError, r"`Y` is on meta, `X` on cpu"),
        (torch.ones(4, 1), torch.ones(4, 1), ValueError, r"`X` needs 2 columns .* Append a column of ones"),
        (torch.ones(0, 2), torch.ones(0, 1), ValueError, r"`X` must be a matrix with at least one row"),
    ],
)
def test_targets_that_do_not_fit_are_refused(X: Tensor, Y: Tensor, error: type[Exception], message: str) -> None:
    for measure in (squared_error_signal, squared_loss):
        with pytest.raises(error, match=message):
            measure(block(), X, Y)


def test_unknown_reduction_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"`reduction` must be one of \['half_sum', 'mean', 'sum'\]; got 'max'"):
        residual_factor(torch.ones(1, 1), "max")  # type: ignore[arg-type]


@pytest.mark.parametrize("tol", [-1e-9, 1.0, float("nan"), float("inf")])
def test_kink_tolerance_out_of_range_is_refused(tol: float) -> None:
    X, Y = torch.ones(4, 2), torch.ones(4, 1)
    for measure in (
        lambda: neuron_geometry(block(), BlockSignal(X, Y), kink_tol=tol),
        lambda: functional.tangential_derivatives(block(), BlockSignal(X, Y), torch.ones(3, 2), kink_tol=tol),
        lambda: neuron_states(block(), X, Y, kink_tol=tol),
    ):
        with pytest.raises(ValueError, match=r"`kink_tol` is relative to \|\|w\|\| \|\|x\|\| and must lie in \[0, 1\)"):
            measure()


@pytest.mark.parametrize("X", [torch.ones(4, 1), torch.ones(4, 3, 7)])
def test_inputs_of_another_width_are_refused(X: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`X` needs 2 columns as W \(3, 2\)"):
        block()(X)
