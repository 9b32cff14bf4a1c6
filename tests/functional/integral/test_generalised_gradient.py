"""The generalised gradient against integrals by hand, and the strictness that Lemma 4.6 promises."""

from __future__ import annotations

import resource
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad
from support.reference_interval import Network, level_loss, random_network, zigzag
from torch import Tensor
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.functional import integral

SLOPE, INTERCEPT, INTERVAL = 1.3, -0.4, (-1.0, 2.0)


def problem_of(network: Network) -> integral.AffineProblem:
    return integral.AffineProblem(*network.parameters, slope=SLOPE, intercept=INTERCEPT, interval=network.interval)


def constant() -> Network:
    """The best constant, without a neuron."""
    none = torch.empty(0, dtype=torch.float64)
    return Network(none, none, none, SLOPE * sum(INTERVAL) / 2 + INTERCEPT, INTERVAL)


def gradient_by_quadrature(network: Network, sides: tuple[set[int], set[int]]) -> Tensor:
    """Cheridito et al., the definition of ``G^J``, for networks without flat or degenerate neurons."""
    A, B = network.interval
    w, b, h = (value.tolist() for value in network.parameters[:3])

    def integral(left: float, right: float, power: int) -> float:
        kinks = sorted(
            {min(left, right), max(left, right)}
            | {t for t in (-bj / wj for wj, bj in zip(w, b, strict=True)) if min(left, right) < t < max(left, right)}
        )
        sign = 1 if right >= left else -1
        total = sum(
            quad(lambda x: x**power * (network(x) - SLOPE * x - INTERCEPT), u, v, epsrel=1e-12)[0]
            for u, v in pairwise(kinks)
        )
        return sign * total

    rows = []
    for j, (wj, bj, hj) in enumerate(zip(w, b, h, strict=True)):
        t = -bj / wj
        if j in sides[0]:
            left, right = t, B
        elif j in sides[1]:
            left, right = A, t
        else:
            left, right = (max(A, min(t, B)), B) if wj > 0 else (A, min(B, max(t, A)))
        zeroth, first = integral(left, right, 0), integral(left, right, 1)
        rows.append((2 * hj * first, 2 * hj * zeroth, 2 * (wj * first + bj * zeroth)))
    return torch.tensor([*zip(*rows, strict=True), (2 * integral(A, B, 0),) * len(w)], dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
def test_generalised_gradient_is_its_definition(seed: int) -> None:
    network = random_network(seed, 6)
    plus, minus = (torch.tensor([(j % 3) == k for j in range(6)]) for k in (0, 1))
    found = integral.generalised_gradient(problem_of(network), (plus, minus))
    expected = gradient_by_quadrature(network, tuple(set(s.nonzero().flatten().tolist()) for s in (plus, minus)))
    assert_close(found[:-1].reshape(3, -1), expected[:3], rtol=1e-9, atol=1e-9)
    assert_close(found[-1], expected[3, 0], rtol=1e-9, atol=1e-9)


def test_lengths_that_float32_does_not_know_are_met_exactly() -> None:
    for interval in ((0.0, 0.1), (0.0, 1e60)):
        problem = problem_of(zigzag(2, SLOPE, INTERCEPT, interval))
        scale = SLOPE * interval[1] ** 2
        assert float(integral.generalised_gradient(problem).abs().max()) < 1e-14 * scale * max(1.0, interval[1])


@pytest.mark.parametrize("seed", range(3))
def test_jacobian_without_sides_is_the_hessian(seed: int) -> None:
    problem = problem_of(random_network(seed, 8))
    theta = torch.cat([problem.neurons.flatten(), problem.c.reshape(1)])
    hessian = torch.autograd.functional.hessian(lambda t: problem.loss(t[:-1].reshape(3, -1), t[-1]), theta)
    jacobian = integral.generalised_jacobian(problem)
    assert_close(jacobian, hessian)
    assert_close(jacobian, jacobian.T)


@pytest.mark.parametrize("seed", range(3))
def test_jacobian_is_that_of_differences(seed: int) -> None:
    network = random_network(seed, 4).with_neurons((1.5, -3.0, 0.7), (-0.5, -0.5, -0.4))
    problem = problem_of(network)
    sides = F.neuron_types(*network.parameters[:3], INTERVAL).semi_inactive
    sides = sides & (network.w > 0), sides & (network.w < 0)
    theta, eps = torch.cat([problem.neurons.flatten(), problem.c.reshape(1)]), 1e-6

    def at(theta: Tensor) -> Tensor:
        w, b, h = theta[:-1].reshape(3, -1)
        return integral.generalised_gradient(replace(problem, w=w, b=b, h=h, c=theta[-1]), sides)

    columns = [(at(theta + eps * e) - at(theta - eps * e)) / (2 * eps) for e in torch.eye(len(theta)).double()]
    # The second derivative jumps there: differences are off by the size of their step.
    assert_close(integral.generalised_jacobian(problem, sides), torch.stack(columns, dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [2, 4, 6, 8])
@pytest.mark.parametrize("copies", [1, 3])
def test_levels_are_strict_saddles_with_the_loss_of_the_formula(n: int, copies: int) -> None:
    torch.manual_seed(n)
    problem = problem_of(zigzag(n, SLOPE, INTERCEPT, INTERVAL, copies))
    loss = problem.loss(problem.neurons, problem.c)
    assert_close(float(loss), level_loss(n, SLOPE, INTERVAL), rtol=1e-14, atol=1e-14)
    assert_close(integral.generalised_gradient(problem), torch.zeros(3 * n * copies + 1).double(), rtol=0, atol=1e-14)
    found = integral.strictness(problem)
    assert found.asymmetry < 1e-13
    assert found.eigenvalue < -1e-3
    assert_close(integral.generalised_jacobian(problem) @ found.direction, found.eigenvalue * found.direction)
    assert_close(found.escape_factor(0.1), 1 - 0.1 * found.eigenvalue)


@pytest.mark.parametrize("n", [2, 4])
def test_descent_leaves_a_saddle_by_the_escape_factor(n: int) -> None:
    torch.manual_seed(n)
    problem = problem_of(zigzag(n, SLOPE, INTERCEPT, INTERVAL))
    found, lr, size = integral.strictness(problem), 0.05, 1e-7
    saddle = torch.cat([problem.neurons.flatten(), problem.c.reshape(1)])
    theta, steps = saddle + size * found.direction, 40
    for _ in range(steps):
        w, b, h = theta[:-1].reshape(3, -1)
        theta = theta - lr * integral.generalised_gradient(replace(problem, w=w, b=b, h=h, c=theta[-1]))
    grown = (theta - saddle) @ found.direction / size
    assert_close(float(grown), found.escape_factor(lr) ** steps, rtol=1e-4, atol=0)


def test_memory_grows_with_the_square_of_the_width() -> None:
    """1,501 x 1,501 numbers from a few matrices of that size, not from a table of three neurons."""
    torch.manual_seed(0)
    problem = problem_of(zigzag(2, SLOPE, INTERCEPT, INTERVAL, copies=250))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jacobian = integral.generalised_jacobian(problem)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000
    assert_close(jacobian, jacobian.T)


def test_lemma_4_6_determinant_of_a_flat_semi_active_neuron() -> None:
    jacobian = integral.generalised_jacobian(problem_of(constant().with_neurons((0.0, 0.8, 0.0))))
    block = jacobian[[0, 2]][:, [0, 2]]
    length = INTERVAL[1] - INTERVAL[0]
    off = -SLOPE * length**3 / 6
    assert_close(block, torch.tensor([[0.0, off], [off, 2 * 0.8**2 * length]], dtype=torch.float64))
    assert_close(float(torch.linalg.det(block)), -(SLOPE**2) * length**6 / 36)


@pytest.mark.parametrize(("w", "end"), [(0.5, 2.0), (-0.7, -1.0)])
def test_lemma_4_6_diagonal_entry_of_a_semi_inactive_neuron(w: float, end: float) -> None:
    h = 0.9 if w > 0 else -0.9  # drawn in: f' h w > 0
    problem = problem_of(constant().with_neurons((w, -w * end, h)))
    assert_close(integral.generalised_gradient(problem), torch.zeros(4).double(), rtol=0, atol=1e-14)
    jacobian = integral.generalised_jacobian(problem)
    assert_close(float(jacobian[1, 1]), -SLOPE * h / w * 3.0)
    assert integral.strictness(problem).eigenvalue < 0
    silent = torch.tensor([False]), torch.tensor([False])
    assert_close(integral.generalised_jacobian(problem, silent)[:3, :3], torch.zeros(3, 3).double())


def test_only_relu_networks_have_it() -> None:
    problem = replace(problem_of(random_network(0, 2)), slopes=(0.1, 1.0))
    with pytest.raises(ValueError, match=r"`problem` must have ReLU units; got slopes .* Map it with leaky_as_relu"):
        integral.generalised_gradient(problem)
