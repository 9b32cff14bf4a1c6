"""Neuron types against their definition, critical levels, thresholds, the leaky map, the invariant."""

from __future__ import annotations

import math

import pytest
import torch
from support.reference_interval import level_loss, random_network
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.functional import integral


def types_by_definition(w: float, b: float, h: float, A: float, B: float) -> set[str]:
    """Cheridito et al., Definition 4.1, read off ``I_j`` on a fine grid that holds the ends and the breakpoint."""
    points = sorted({A, B, *torch.linspace(A, B, 999, dtype=torch.float64).tolist()})
    where = [x for x in points if w * x + b >= 0]
    inner = [x for x in points if A < x < B]
    found = {"flat"} if h == 0 else set()
    found |= {"inactive"} if not where else set()
    found |= {"semi_inactive"} if len(where) == 1 else set()
    found |= {"semi_active"} if w == 0 < b else set()
    found |= {"active"} if w != 0 and b + max(w * A, w * B) > 0 else set()
    found |= {"type_1_active"} if w != 0 and b + min(w * A, w * B) >= 0 else set()
    found |= {"type_2_active"} if any(x in where for x in inner) and not all(x in where for x in inner) else set()
    return found | ({"degenerate"} if w == b == 0 else set())


@pytest.mark.parametrize(
    ("w", "b", "h"),
    [
        (1.0, -3.0, 1.0),  # inactive
        (1.0, -2.0, 1.0),  # touches the right end
        (-1.0, -1.0, 0.0),  # touches the left end, flat
        (0.0, 0.5, 1.0),
        (0.0, -0.5, 1.0),
        (0.0, 0.0, 1.0),
        (1.0, 1.0, 1.0),  # type 1 with its breakpoint at the left end
        (-2.0, 9.0, 0.0),
        (1.0, 0.0, 1.0),
        (-1.0, 0.7, 1.0),
    ],
)
def test_types_are_those_of_the_definition(w: float, b: float, h: float) -> None:
    row = [torch.tensor([value], dtype=torch.float64) for value in (w, b, h)]
    types = F.neuron_types(*row, (-1.0, 2.0))
    names = [name for name in types.__slots__ if name != "breakpoint"]
    assert {name for name in names if bool(getattr(types, name))} == types_by_definition(w, b, h, -1.0, 2.0)
    assert math.isnan(float(types.breakpoint)) if w == 0 else float(types.breakpoint) == -b / w


def test_types_forgive_rounding_at_the_ends_only_as_much_as_told() -> None:
    w, h = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    beside = torch.tensor([-1 + 1e-8], dtype=torch.float64)
    assert not bool(F.neuron_types(w, beside, h, (0.0, 1.0)).semi_inactive)
    assert bool(F.neuron_types(w, beside, h, (0.0, 1.0), tol=1e-7).semi_inactive)
    assert bool(F.neuron_types(w.float(), beside.float(), h.float(), (0.0, 1.0)).semi_inactive)
    assert str(F.neuron_types(w, beside, h, (0.0, 1.0))) == "1 neuron: 1 type-2-active"


@pytest.mark.parametrize("width", [1, 2, 5, 6])
def test_levels_are_the_losses_of_sawteeth(width: int) -> None:
    expected = [level_loss(n, -1.7, (-1.0, 2.0)) for n in range(0, width + 1, 2)]
    assert_close(F.critical_levels(-1.7, (-1.0, 2.0), width), torch.tensor(expected, dtype=torch.float64))


def test_nearest_level_is_nearest_by_ratio() -> None:
    levels = F.critical_levels(1.0, (0.0, 1.0), 8)
    for k, level in enumerate(levels.tolist()):
        found = integral.nearest_level(1.1 * level, 1.0, (0.0, 1.0), 8)
        assert (found.n, found.loss) == (2 * k, level)
        assert_close(found.ratio, 1.1)
    assert integral.nearest_level(0.0, 1.0, (0.0, 1.0), 8).n == 8
    with pytest.raises(ValueError, match="`slope` is 0: a constant target has no critical level"):
        integral.nearest_level(1.0, 0.0, (0.0, 1.0), 8)
    with pytest.raises(ValueError, match="`loss` must be at least 0; got nan"):
        integral.nearest_level(math.nan, 1.0, (0.0, 1.0), 8)


@pytest.mark.parametrize("width", [2, 3, 6, 7])
def test_theorem_1_2_threshold_and_the_weaker_one_for_odd_widths(width: int) -> None:
    guarantee = F.convergence_threshold(2.0, (0.0, 3.0), width)
    base = 4.0 * 27 / 12
    assert_close(guarantee.threshold, base / (width - 1) ** 4 if width % 2 == 0 else base / width**4)
    assert ("Theorem 1.2" in guarantee.theorem) == (width % 2 == 0)
    assert ("the width is odd, so Theorem 1.2 does not apply" in str(guarantee)) == (width % 2 == 1)
    assert ("almost every learning rate" in guarantee.assumptions) == (width % 2 == 0)
    assert guarantee.assumptions["the target is affine and not constant"] == "holds"
    assert guarantee.assumptions["the steps converge"] == "assumed"


def test_leaky_units_need_no_threshold_but_living_neurons() -> None:
    guarantee = F.convergence_threshold(2.0, (0.0, 3.0), 3, slopes=(0.1, 1.0))
    assert guarantee.threshold == math.inf
    assert "no neuron degenerates in the limit" in guarantee.assumptions
    for slopes in ((-0.1, 1.0), (1.0, 0.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="`slopes` must be those of ReLU or leaky units"):
            F.convergence_threshold(2.0, (0.0, 3.0), 3, slopes)


def test_leaky_units_have_critical_levels_of_their_own() -> None:
    """A unit of slope ratio 1/4, its kink where the error has mean 0 on both sides: loss 1/108, not on the ladder."""
    neuron = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (1.0, -2 / 3, 2.0, 0.5)]
    loss = F.interval_l2_loss(*neuron, lambda x: x, (0.0, 1.0), slopes=(0.25, 1.0))
    assert_close(float(loss.detach()), 1 / 108)
    assert_close(torch.cat(torch.autograd.grad(loss, neuron)), torch.zeros(4).double(), rtol=0, atol=1e-15)
    assert all(abs(108 * level - 1) > 0.5 for level in F.critical_levels(1.0, (0.0, 1.0), width=2).tolist())
    w, b, h, c = (value.detach() for value in neuron)
    assert F.classify_affine(w, b, h, c, 1.0, 0.0, (0.0, 1.0), slopes=(0.25, 1.0)).kind == "saddle"


def test_leaky_map_keeps_the_function() -> None:
    network = random_network(0, 7)
    w, b, h, c = network.parameters
    leaky = F.interval_l2_loss(w, b, h, c, torch.sin, (-1.0, 2.0), slopes=(0.2, 1.5))
    relu = F.interval_l2_loss(*integral.leaky_as_relu(w, b, h, (0.2, 1.5)), c, torch.sin, (-1.0, 2.0))
    assert_close(leaky, relu)


def test_invariant_is_conserved_by_the_gradient() -> None:
    network = random_network(2, 9)
    parameters = [value.requires_grad_() for value in network.parameters]
    loss = F.interval_l2_loss(*parameters, lambda x: x, network.interval)
    gradients = torch.autograd.grad(loss, parameters)[:3]
    _, rate = torch.autograd.functional.jvp(integral.invariant, tuple(parameters[:3]), gradients)
    assert_close(rate, torch.zeros_like(rate))


def test_affine_targets_are_recognised_and_others_refused() -> None:
    assert_close(integral.affine_coefficients(lambda x: 3 - 0.5 * x, (-1.0, 4.0)), (-0.5, 3.0))
    assert_close(integral.affine_coefficients(torch.zeros_like, (-1.0, 4.0)), (0.0, 0.0))
    with pytest.raises(ValueError, match=r"`target` is not affine on \[-1, 4\]: it is off its chord by up to"):
        integral.affine_coefficients(lambda x: x + 1e-3 * x**2, (-1.0, 4.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0, (1.0, 0.0), 2), ValueError, "`interval` must be"),
        ((1.0, (0.0, 1.0), 0), ValueError, "`width` must be at least 1; got 0"),
        ((math.nan, (0.0, 1.0), 2), ValueError, "`slope` must be finite"),
    ],
)
def test_levels_refuse_what_is_no_problem(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        F.critical_levels(*arguments)
