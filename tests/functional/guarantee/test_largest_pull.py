"""The largest pull on a neuron: no unit vector exceeds its bound, and one attains it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from relu_diag.functional.block import BlockSignal, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.guarantee import _largest_pull
from relu_diag.functional.guarantee._largest_pull import largest_pull, largest_pull_with_free_bias
from relu_diag.functional.local import enclosed_pull

SLOPES = [(0.0, 1.0), (0.2, 1.0), (-1.0, 1.0), (1.0, -0.5)]


def pulled(V: Tensor, signal: BlockSignal, slopes: tuple[float, float]) -> Tensor:
    return (rho(V @ signal.X.T, slopes) @ signal.G).norm(dim=1)


def drawn(seed: int, samples: int, inputs: int, outputs: int) -> BlockSignal:
    generator = torch.Generator().manual_seed(seed)
    X, G = (torch.randn(samples, n, generator=generator, dtype=torch.float64) for n in (inputs, outputs))
    return BlockSignal(X, G)


def climbed(signal: BlockSignal, slopes: tuple[float, float], draws: int = 2000) -> float:
    """The largest of many unit vectors, each moved uphill a little: from below, and close."""
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(draws, signal.X.shape[1], generator=generator, dtype=torch.float64)
    V = V / V.norm(dim=1, keepdim=True)
    V = V[pulled(V, signal, slopes).argsort(descending=True)[:20]]
    for step in range(120):
        near = V[:, None] + 0.1 * 0.92**step * torch.randn(20, 30, V.shape[1], generator=generator, dtype=torch.float64)
        near = torch.cat([V[:, None], near], dim=1)
        near = near / near.norm(dim=2, keepdim=True)
        values = pulled(near.flatten(0, 1), signal, slopes).reshape(20, 31)
        V = near[torch.arange(20), values.argmax(dim=1)]
    return float(pulled(V, signal, slopes).max())


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize(("samples", "inputs", "outputs"), [(60, 3, 1), (40, 3, 2), (40, 4, 1), (50, 2, 3)])
def test_the_bound_is_above_all_and_attained(
    samples: int, inputs: int, outputs: int, slopes: tuple[float, float]
) -> None:
    signal = drawn(samples + inputs, samples, inputs, outputs)
    found = largest_pull(signal, slopes, signal.X[:0], enough=0.0)
    assert found.certified
    assert_close(float(pulled(found.v[None], signal, slopes)), found.value)
    assert found.value <= found.bound <= found.value * (1 + 2e-5)
    reached = climbed(signal, slopes)
    assert reached * (1 - 1e-3) <= found.value
    assert reached <= found.bound * (1 + 1e-12)


def test_branch_and_bound_finds_the_exact_maximum_of_few_kinks() -> None:
    signal = drawn(5, 9, 3, 2)
    exact = largest_pull(signal, (0.0, 1.0), signal.X[:0], enough=0.0)
    enclosed = enclosed_pull(signal, (0.0, 1.0), value=0.0, target=0.0, most=BUDGETS.cap_numbers)
    assert enclosed.closed
    assert enclosed.value <= exact.value * (1 + 1e-12) <= enclosed.bound * (1 + 1e-12)
    assert enclosed.bound <= 1.0001 * exact.value


def test_a_bound_that_is_enough_is_not_made_smaller() -> None:
    signal = drawn(1, 50, 4, 1)
    value = largest_pull(signal, (0.0, 1.0), signal.X[:0], enough=0.0).value
    assert largest_pull(signal, (0.0, 1.0), signal.X[:0], enough=2 * value).bound == 2 * value


def test_samples_in_a_plane_of_many_dimensions_are_swept() -> None:
    plane = drawn(2, 200, 2, 1)
    basis = torch.linalg.qr(torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    inside = largest_pull(BlockSignal(plane.X @ basis.T, plane.G), (0.0, 1.0), plane.X.new_zeros(0, 20), 0.0)
    assert inside.certified
    assert_close(inside.value, largest_pull(plane, (0.0, 1.0), plane.X[:0], 0.0).value)


def test_where_too_much_would_have_to_be_searched_it_is_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    signal = drawn(3, 40, 4, 1)
    monkeypatch.setattr(_largest_pull, "BUDGETS", replace(BUDGETS, cap_numbers=1000))
    assert not largest_pull(signal, (0.0, 1.0), signal.X[:0], 0.0).certified
    many = drawn(3, 40, 8, 1)
    assert not largest_pull(many, (0.0, 1.0), many.X[:0], 0.0).certified


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("inputs", [1, 2])
def test_with_a_free_bias_no_kink_anywhere_is_pulled_more(inputs: int, slopes: tuple[float, float]) -> None:
    signal = drawn(inputs, 12, inputs + 1, 2)
    X = signal.X.clone()
    X[:, -1] = 2.0
    signal = BlockSignal(X, signal.G - signal.G.mean(dim=0))
    found = largest_pull_with_free_bias(signal, slopes, X[:0], enough=0.0)
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)[:-1]
    w = torch.stack([angle.cos(), angle.sin()], dim=1) if inputs == 2 else X.new_tensor([[1.0], [-1.0]])
    bias = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    V = torch.cat([w.repeat_interleave(len(bias), dim=0), bias.repeat(len(w))[:, None]], dim=1)
    highest = float(pulled(V, signal, slopes).max())
    assert found.certified
    assert_close(float(found.v[:-1].norm()), 1.0)
    assert highest <= found.bound * (1 + 1e-12) <= highest * 1.01


def test_with_a_free_bias_and_many_inputs_it_is_an_estimate_from_below() -> None:
    signal = drawn(7, 50, 4, 1)
    X = signal.X.clone()
    X[:, -1] = 1.0
    signal = BlockSignal(X, signal.G - signal.G.mean(dim=0))
    found = largest_pull_with_free_bias(signal, (0.0, 1.0), X[:0], enough=0.0)
    assert not found.certified
    assert_close(float(pulled(found.v[None], signal, (0.0, 1.0))), found.value)


def test_nothing_felt_is_no_pull() -> None:
    signal = BlockSignal(torch.eye(2).double(), torch.zeros(2, 1).double())
    found = largest_pull(signal, (0.0, 1.0), signal.X[:0], enough=0.0)
    assert (found.value, found.bound, found.certified) == (0.0, 0.0, True)


def test_quick_ascents_among_many_numbers_come_near_the_thorough_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(300, 12, generator=generator, dtype=torch.float64)
    signal = BlockSignal(X, X[:, :2].abs() - 0.8 + 0.1 * torch.randn(300, 2, generator=generator, dtype=torch.float64))
    thorough = largest_pull(signal, (0.0, 1.0), X[:0], 0.0)
    monkeypatch.setattr(_largest_pull, "BUDGETS", replace(BUDGETS, ascent_numbers=1000))
    quick = largest_pull(signal, (0.0, 1.0), X[:0], 0.0)
    assert not quick.certified
    assert_close(float(pulled(quick.v[None], signal, (0.0, 1.0))), quick.value)
    assert 0.95 * thorough.value <= quick.value <= 1.05 * thorough.value
