"""Second-order descent with several outputs: found on every ray there is, and local where it is claimed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.reference_stationarity import loss, stationary_problem
from support.tensors import tensor, zeros
from support.verdicts import fall_seen, two_outputs
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional.problem import squared_problem
from relu_diag.functional.verdict import _orthant as orthants
from relu_diag.functional.verdict._rounding import rounding_of_problem
from relu_diag.functional.verdict._witness import see_fall
from relu_diag.functional.verdict.line import Move, expand


def test_with_several_outputs_an_escape_neuron_is_a_saddle_where_the_form_has_a_negative_value() -> None:
    """The form size^2 t^2 + a^2 - 2 a t is negative somewhere exactly where size < 1."""
    for size, kind in ((0.5, "saddle"), (0.99, "saddle"), (1.01, "type-2 candidate"), (2.0, "type-2 candidate")):
        block, X, Y = two_outputs(size)
        verdict = F.classify(block, X, Y, "half_sum")
        assert verdict.kind == kind, size
        assert verdict.neurons.tolist() == [0]
        if kind == "saddle":
            assert fall_seen(verdict, block, X, Y, "half_sum") < 0
        else:
            assert verdict.direction is None
            assert F.perturbation_test(block, X, Y, "half_sum", draws=500).changes.min() >= 0


def test_a_witness_leaves_the_output_bias_alone_where_it_can() -> None:
    block, X, Y = two_outputs(0.5)
    biased = ShallowBlock(block.W, block.H, output_bias=zeros(2))
    verdict = F.classify(biased, X, Y, "half_sum")
    assert verdict.kind == "saddle"
    assert verdict.direction.db is None
    assert fall_seen(verdict, biased, X, Y, "half_sum") < 0


def test_copies_of_a_neuron_split_where_one_alone_is_held() -> None:
    block, X, Y = two_outputs(2.0, copies=2)
    verdict = F.classify(block, X, Y, "half_sum")
    assert verdict.kind == "saddle"
    assert fall_seen(verdict, block, X, Y, "half_sum") < 0


def test_large_forms_are_searched_without_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthants, "BUDGETS", replace(orthants.BUDGETS, dense_form=0))
    block, X, Y = two_outputs(2.0, copies=3)
    verdict = F.classify(block, X, Y, "half_sum")
    assert verdict.kind == "saddle"
    assert fall_seen(verdict, block, X, Y, "half_sum") < 0
    block, X, Y = two_outputs(2.0)
    assert F.classify(block, X, Y, "half_sum").kind == "type-2 candidate"


def test_with_several_outputs_a_one_sided_ray_leads_down() -> None:
    """The neuron may only leave its kink upwards; the second output pulls there."""
    X, W = tensor([0.0, 1.0], [1.0, -1.0], [1.0, 0.0]), tensor([1.0, 0.0])
    residual = tensor([1.0, 0.0], [1.0, 1.0], [-1.0, -1.0])
    block = ShallowBlock(W, tensor([0.1], [0.0]))
    Y = block(X) - residual
    verdict = F.classify(block, X, Y, "half_sum")
    assert verdict.kind == "saddle"
    assert verdict.direction.dW[0, 1] > 0
    assert fall_seen(verdict, block, X, Y, "half_sum") < 0


@pytest.mark.parametrize("dense", [0, 600])
def test_the_ray_that_leads_down_need_not_be_the_one_felt_most(monkeypatch: pytest.MonkeyPatch, dense: int) -> None:
    """Upwards the third sample is met as well: a little more pull, at a price of 0.25 * 100 t^2."""
    monkeypatch.setattr(orthants, "BUDGETS", replace(orthants.BUDGETS, dense_form=dense))
    block, X, Y = two_outputs(0.5)
    X, Y = torch.cat([X, tensor([0.0, 10.0])]), torch.cat([Y, tensor([0.0, -0.01])])
    verdict = F.classify(block, X, Y, "half_sum")
    assert F.escape_neurons(block, F.squared_error_signal(block, X, Y, "half_sum")).direction[0, 1] > 0
    assert verdict.kind == "saddle"
    assert verdict.direction.dW[0, 1] < 0
    assert fall_seen(verdict, block, X, Y, "half_sum") < 0


def test_rounding_to_float32_makes_no_saddle() -> None:
    """The form has zeros along every rescaling (c w, h / c), and a gradient of 1e-7 tilts them."""
    rng, seen = np.random.default_rng(0), 0
    for _ in range(120):
        problem = stationary_problem(rng)
        W, H, X, Y = (torch.as_tensor(part) for part in (problem.W, problem.H, problem.X, problem.targets))
        if F.classify(ShallowBlock(W, H, problem.slopes), X, Y).kind == "type-2 candidate":
            seen += 1
            rounded = ShallowBlock(W.float(), H.float(), problem.slopes)
            assert F.classify(rounded, X.float(), Y.float()).kind == "type-2 candidate"
    assert seen > 5


def test_a_fall_beyond_a_rise_is_no_witness() -> None:
    """The residual is (eps (1 - 10 eps), 0.3 - eps^2): the loss rises by 0.2 eps^2 and falls below its start at 0.1."""
    block, X = ShallowBlock(tensor([11.0, 1.0]), tensor([1.0])), torch.eye(2, dtype=torch.float64)
    problem = squared_problem(block, X, block(X) - tensor([0.0], [0.3]), "half_sum")
    move = Move(tensor([-10.0, -1.0]), tensor([1.0]), zeros(1))
    assert_close(expand(problem, move)(0.1), torch.tensor(0.5 * 0.29**2, dtype=torch.float64))
    assert see_fall(problem, move) is None


@pytest.mark.slow
def test_the_loss_is_lower_all_the_way_along_a_witness() -> None:
    rng, seen = np.random.default_rng(5), 0
    for _ in range(300):
        problem = stationary_problem(rng)
        if len(problem.H) == 1:
            continue
        W, H, X, Y = (torch.as_tensor(part) for part in (problem.W, problem.H, problem.X, problem.targets))
        verdict = F.classify(ShallowBlock(W, H, problem.slopes), X, Y, "half_sum")
        if verdict.kind != "saddle":
            continue
        seen += 1
        along, here = verdict.direction, loss(problem.W, problem.H, problem.X, problem.targets, problem.slopes)
        for step in along.step * np.linspace(0.02, 1, 50):
            there = problem.W + step * along.dW.numpy(), problem.H + step * along.dH.numpy()
            assert loss(*there, problem.X, problem.targets, problem.slopes) <= here * (1 + 1e-12)
    assert seen > 30


@pytest.mark.parametrize("seed", range(5))
def test_the_form_searched_is_the_second_coefficient_of_the_expansion(seed: int) -> None:
    """With a sample at zero, one on a kink that the neuron leaves along a ray, and an output bias."""
    torch.manual_seed(seed)
    W, X, ray = torch.randn(3, 3).double(), torch.randn(10, 3).double(), zeros(3, 3)
    X[0] = 0
    X[1] -= (X[1] @ W[1]) / (W[1] @ W[1]) * W[1]
    ray[1] = torch.nn.functional.normalize(X[1], dim=0)
    block = ShallowBlock(W, torch.randn(2, 3).double(), (0.1, 1.0), torch.randn(2).double())
    problem = squared_problem(block, X, torch.randn(10, 2).double(), "sum")
    seen = F.EscapeNeurons(torch.arange(3) == 1, torch.ones(3, dtype=torch.bool), ray, zeros(3, 2))
    found = F.stationarity(block, problem.loss_signal)
    orthant = orthants._balanced(problem, found, seen, rounding_of_problem(problem))
    orthant = replace(orthant, biased=True, neuron=torch.tensor([1]), rays=ray[1:2])
    move = Move(
        orthants._free(torch.randn(3, 3).double(), orthant), torch.randn(2, 3).double(), torch.randn(2).double()
    )
    t = torch.rand(1).double()
    by, by_ray = orthants._hessian(orthant, move, t)
    value = sum((one * two).sum() for one, two in ((by.dW, move.dW), (by.dH, move.dH), (by.db, move.db), (by_ray, t)))
    dW = (move.dW + t * ray) / orthant.balance[:, None]
    line = expand(problem, Move(dW, move.dH * orthant.balance, move.db))
    assert_close(value / 2, line.coefficients[2])


def test_a_neuron_without_input_weights_is_searched_along_all_its_flat_rays() -> None:
    """Stationary by construction; the one direction it escapes along does not lead down, another of its rays does."""
    W = tensor(
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [1.2622039186104002, -1.6049961896396299, -1.5663106134750953, 0.1429082936385517, 1.0453002545409644],
    )
    H = tensor(
        [0.8253787541788314, 0.43408303204077153],
        [0.7079504863374534, 0.2535161255656428],
        [0.2419662748452336, -0.4159793008743334],
        [0.3287653492391208, 0.903467426025019],
    )
    X = tensor(
        [3.0045976632717646, 13.053494169364626, 5.260080916509197, -3.174786607282317, 1.0],
        [-1.1156369252690133, 0.5535528536265247, 0.7607362533448023, -0.13479426500524339, 1.0],
        [-1.0876857369124406, 0.8379700967183036, -1.1439403995400539, -0.8344248529951667, 1.0],
        [-0.7323554889927231, -0.100295476077837, 0.2061238976054043, 0.28663070564866144, 1.0],
        [1.4109275474181269, -0.14732009544596147, 2.0352555930350738, 0.8761962493687286, 1.0],
        [-0.09396756344444782, -0.3251653736653628, 0.9406196874990302, 0.17297376988570615, 1.0],
        [0.06839125785829749, 0.335625268751836, 0.3740021978397824, -0.049983654507353474, 1.0],
        [-1.1156369252690133, 0.5535528536265247, 0.7607362533448023, -0.13479426500524339, 1.0],
    )
    Y = tensor(
        [-21.535481788652554, -12.57729858635861, 20.637329720812982, -44.82231477312184],
        [0.5602761140196317, -1.0381812200945124, 3.2661489250567284, -12.570735897471321],
        [6.13320656845217, -6.112344384302745, 0.11354593827637026, -1.1793566056956242],
        [3.026040705868497, -1.6616108459365464, -2.4474175681419843, -2.114501059734775],
        [4.094992368158714, -5.522289472863349, 2.0527126169414336, 0.5272007309050687],
        [-3.3147145701561196, 5.293017401628811, -2.62963040470875, -1.1033886799261277],
        [-0.176457542472038, 2.5364757090884082, -0.7005486871492699, -0.9495129516509628],
        [-4.835340686721059, -1.4585710761629656, 0.8306211416846471, 3.672941465307194],
    )
    block = ShallowBlock(W, H, (2.0, -0.3))
    verdict = F.classify(block, X, Y, "sum")
    assert verdict.kind == "saddle"
    assert fall_seen(verdict, block, X, Y, "sum") < 0
