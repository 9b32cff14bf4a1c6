"""Every branch of Proposition 4.5, built by hand with neurons of every other type added at random."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.reference_interval import Network, level_loss, loss_by_quadrature, random_network, zigzag
from torch.testing import assert_close

from relu_diag import ShallowBlock, Verdict
from relu_diag import functional as F

INTERVAL = (-1.0, 2.0)
TARGETS = [(1.3, -0.4), (-0.7, 2.0)]


def verdict_of(network: Network, slope: float, intercept: float, **options: Any) -> Verdict:
    return F.classify_affine(*network.parameters, slope, intercept, network.interval, network.slopes, **options)


def inactive() -> tuple[float, float, float]:
    w = float(torch.randn(()))
    return w, -abs(w) * 2 - float(torch.rand(())) - 0.01, float(torch.randn(()))


def touching(slope: float, drawn: float) -> tuple[float, float, float]:
    """Semi-inactive, with ``f' h w`` of the given sign."""
    w = float(torch.randn(()))
    b = -w * (INTERVAL[1] if w > 0 else INTERVAL[0])
    return w, b, drawn * math.copysign(float(torch.rand(())) + 0.1, slope * w)


def idle() -> tuple[float, float, float]:
    """Flat semi-active."""
    return 0.0, float(torch.rand(())) + 0.1, 0.0


def best_constant(slope: float, intercept: float) -> Network:
    none = torch.empty(0, dtype=torch.float64)
    return Network(none, none, none, slope * sum(INTERVAL) / 2 + intercept, INTERVAL)


def check_fall(verdict: Verdict, network: Network, slope: float, intercept: float) -> None:
    """The loss at the end of the direction, by adaptive quadrature."""
    direction = verdict.direction
    assert direction is not None
    assert direction.loss_change < 0
    t = direction.step
    dc = 0.0 if direction.db is None else float(direction.db)
    w, b = (torch.stack([network.w, network.b], dim=1) + t * direction.dW).unbind(1)
    moved = replace(network, w=w, b=b, h=network.h + t * direction.dH[0], c=network.c + t * dc)
    before, after = (loss_by_quadrature(net, lambda x: slope * x + intercept) for net in (network, moved))
    assert after < before
    assert_close(after - before, direction.loss_change, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [0, 2, 4, 6])
@pytest.mark.parametrize(("slope", "intercept"), TARGETS)
def test_saddles_of_every_level_with_every_company(n: int, slope: float, intercept: float, seed: int) -> None:
    torch.manual_seed(100 * n + seed)
    network = zigzag(n, slope, intercept, INTERVAL, copies=1 + seed % 2) if n else best_constant(slope, intercept)
    company = [inactive(), touching(slope, -1), touching(slope, 1), touching(slope, 0), idle()]
    # Any company, or none; the constant needs one of those that make it a saddle.
    chosen = [neuron for neuron in company if torch.rand(()) < 0.5] if n else [*company[:2], company[2 + seed % 3]]
    network = network.with_neurons(*chosen) if chosen else network
    verdict = verdict_of(network, slope, intercept)
    assert verdict.kind == "saddle", verdict
    assert_close(verdict.loss, level_loss(n, slope, INTERVAL), rtol=1e-12, atol=0)
    check_fall(verdict, network, slope, intercept)
    if n:
        assert verdict.margins["level"] == n
        assert verdict.margins["smallest eigenvalue"] < 0
        inside = F.neuron_types(*network.parameters[:3], INTERVAL).type_2_active.nonzero().flatten()
        assert_close(verdict.neurons, inside)


@pytest.mark.parametrize("seed", range(12))
def test_witnesses_are_no_rounding(seed: int) -> None:
    """A direction of another neuron's, along which the loss is the same, is none, whatever the last bits say."""
    torch.manual_seed(seed)
    slope, intercept, n = 1.3, -0.4, 2 + 2 * (seed % 2)
    far = 2.0 + 4 * float(torch.randn(()))
    interval = (far, far + 0.2)
    network = zigzag(n, slope, intercept, interval, copies=2)
    w, _, h = touching(slope, 1)
    network = network.with_neurons((w, -w * interval[int(w > 0)], 10 * h))
    verdict = verdict_of(network, slope, intercept)
    assert verdict.kind == "saddle"
    assert verdict.direction is not None
    assert verdict.direction.loss_change < -1e-3 * verdict.loss


@pytest.mark.parametrize("scale", [1e-8, 1e3, 1e8])
def test_witnesses_do_not_depend_on_how_a_neuron_shares_its_weight(scale: float) -> None:
    torch.manual_seed(0)
    network = zigzag(4, 1.3, -0.4, INTERVAL).with_neurons(inactive(), touching(1.3, -1))
    for slopes, kind in (((0.0, 1.0), "saddle"), ((0.1, 1.0), "not stationary")):
        scaled = replace(network, w=scale * network.w, b=scale * network.b, h=network.h / scale, slopes=slopes)
        verdict = verdict_of(scaled, 1.3, -0.4)
        assert verdict.kind == kind, verdict
        assert verdict.direction is not None
        assert verdict.direction.loss_change < -1e-2 * verdict.loss


@pytest.mark.parametrize("seed", range(40))
def test_verdicts_do_not_depend_on_the_scales_of_the_problem(seed: int) -> None:
    """Intervals from 0.01 to 10 at any place, slopes from 1e-3 to 1e3, weights from 1e-2 to 1e2."""
    torch.manual_seed(seed)
    log = 2 * torch.rand(3).double() - 1
    middle, length, scale = 3 * float(torch.randn(())), float(10 ** (1.5 * log[0] - 0.5)), float(10 ** (2 * log[1]))
    slope, n = (-1) ** seed * float(10 ** (3 * log[2])), 2 * (seed % 4)
    interval = middle - length / 2, middle + length / 2
    network = zigzag(n, slope, slope, interval, copies=1 + seed % 3) if n else best_constant(slope, slope)
    network = replace(network, interval=interval, c=slope * middle + slope)
    company = []
    for w in scale * torch.randn(2).double():
        edge = interval[1] if w > 0 else interval[0]
        company += [
            (float(w), float(-w * edge - abs(w) * length), 1.0),
            (float(w), float(-w * edge), -slope / float(w)),
        ]
    network = network.with_neurons(*company)
    verdict = verdict_of(network, slope, slope)
    assert verdict.kind == ("saddle" if n else "local minimum"), verdict
    single = [value.float() for value in network.parameters]
    assert F.classify_affine(*single, slope, slope, interval).kind != "global minimum"
    edge = interval[1]
    drawn = network.with_neurons((scale, -scale * edge, (seed % 2) * slope / scale))
    assert verdict_of(drawn, slope, slope).kind == "saddle"
    assert verdict_of(network.with_neurons((0.0, scale, 0.0)), slope, slope).kind == "saddle"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("slope", "intercept"), TARGETS)
def test_local_minima_are_the_constants_that_no_neuron_leaves(slope: float, intercept: float, seed: int) -> None:
    torch.manual_seed(seed)
    company = [inactive() for _ in range(1 + seed % 3)] + [touching(slope, -1) for _ in range(seed % 4)]
    network = best_constant(slope, intercept).with_neurons(*company)
    verdict = verdict_of(network, slope, intercept)
    assert (verdict.kind, verdict.direction) == ("local minimum", None)
    assert_close(verdict.loss, level_loss(0, slope, INTERVAL))
    # And seen: nothing near is lower.
    theta = torch.stack(network.parameters[:3])
    for _ in range(50):
        w, b, h = theta + 1e-4 * torch.randn_like(theta)
        c = network.c + 1e-4 * float(torch.randn(()))
        there = F.interval_l2_loss(w, b, h, c, lambda x: slope * x + intercept, INTERVAL)
        assert float(there) >= verdict.loss - 1e-14
    assert verdict_of(network.with_neurons(touching(slope, 1)), slope, intercept).kind == "saddle"
    assert verdict_of(replace(network, c=network.c + 1e-3), slope, intercept).kind == "not stationary"


def test_global_minima() -> None:
    target = torch.tensor([[1.0, 1.0], [2.0, 5.0], [0.65, 0.65]], dtype=torch.float64)  # two lines of slope 1.3
    network = Network(*target, c=-0.4 - 0.65 * 7, interval=INTERVAL).with_neurons(inactive(), touching(1.3, 1))
    assert verdict_of(network, 1.3, -0.4).kind == "global minimum"
    flat = best_constant(0.0, 2.0).with_neurons((1.0, 0.5, 0.0))
    assert verdict_of(flat, 0.0, 2.0).kind == "global minimum"
    moved = replace(flat, c=2.1)
    assert verdict_of(moved, 0.0, 2.0).kind == "not stationary"
    check_fall(verdict_of(moved, 0.0, 2.0), moved, 0.0, 2.0)


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_random_points_are_not_stationary(seed: int, slopes: tuple[float, float]) -> None:
    network = random_network(seed, 5, slopes=slopes)
    verdict = verdict_of(network, 1.3, -0.4)
    assert verdict.kind == "not stationary"
    check_fall(verdict, network, 1.3, -0.4)


@pytest.mark.parametrize("n", [0, 2])
def test_neurons_at_zero_wake_up(n: int) -> None:
    """Degenerate neurons, which the proposition leaves out: at h = 0 a saddle, else no stationary point."""
    torch.manual_seed(n)
    network = zigzag(n, 1.3, -0.4, INTERVAL) if n else best_constant(1.3, -0.4)
    asleep = network.with_neurons((0.0, 0.0, 0.0))
    verdict = verdict_of(asleep, 1.3, -0.4)
    assert verdict.kind == "saddle"
    assert verdict.assumptions["no degenerate neuron"] == "broken"
    check_fall(verdict, asleep, 1.3, -0.4)
    for h in (-0.8, 0.8):
        kinked = network.with_neurons((0.0, 0.0, h))
        verdict = verdict_of(kinked, 1.3, -0.4)
        assert verdict.kind == "not stationary"
        check_fall(verdict, kinked, 1.3, -0.4)


def test_leaky_units_have_saddles_where_relu_units_have_minima() -> None:
    network = replace(best_constant(1.3, -0.4).with_neurons((0.0, -0.7, 0.0)), slopes=(0.2, 1.0))
    assert verdict_of(replace(network, slopes=(0.0, 1.0)), 1.3, -0.4).kind == "local minimum"
    verdict = verdict_of(network, 1.3, -0.4)
    assert verdict.kind == "saddle"
    assert verdict.margins["smallest eigenvalue"] < 0
    check_fall(verdict, network, 1.3, -0.4)


def test_kinks_a_little_off_the_level_are_not_stationary() -> None:
    network = zigzag(4, 1.3, -0.4, INTERVAL)
    for name in ("w", "b", "h"):
        moved = replace(network, **{name: getattr(network, name) * (1 + 1e-6)})
        verdict = verdict_of(moved, 1.3, -0.4)
        assert verdict.kind in {"not stationary", "undecided"}, (name, verdict)  # the fall is below rounding
        assert verdict_of(moved, 1.3, -0.4, tol=1e-4).kind == "saddle"


@pytest.mark.parametrize(
    "company",
    [[idle()], [inactive(), touching(1.3, -1)], [inactive(), idle()], [(1.0, 0.5, 0.3)]],
    ids=["idle", "minimum", "inactive and idle", "active"],
)
def test_agrees_with_classify_on_a_fine_grid(company: list[tuple[float, float, float]]) -> None:
    """Where the kinks are not between the nodes of a grid, its loss is stationary where the integral is."""
    network = best_constant(1.3, -0.4).with_neurons(*company)
    nodes = INTERVAL[0] + 3 * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    X, Y = torch.stack([nodes, torch.ones_like(nodes)], dim=1), (1.3 * nodes - 0.4)[:, None]
    w, b, h, c = network.parameters
    block = ShallowBlock(torch.stack([w, b], dim=1), h[None], output_bias=c[None])
    assert F.classify(block, X, Y).kind == verdict_of(network, 1.3, -0.4).kind


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"slope": torch.sin}, TypeError, "`slope` must be a number of the affine target .* affine_coefficients"),
        ({"slope": math.nan}, ValueError, "`slope` must be finite; got nan"),
        ({"interval": (1.0, 0.0)}, ValueError, "`interval` must be"),
        ({"slopes": (-1.0, 1.0)}, ValueError, "`slopes` must be those of ReLU or leaky units"),
        ({"h": torch.ones(3)}, ValueError, "`h` must be a vector with one entry per neuron"),
    ],
)
def test_what_is_no_affine_problem_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    one = torch.ones(1)
    given = {"w": one, "b": one, "h": one, "c": 0.0, "slope": 1.0, "intercept": 0.0, "interval": (0.0, 1.0)}
    with pytest.raises(error, match=message):
        F.classify_affine(**(given | change))
