"""classify_affine attacked with structure: what changes no landscape changes no verdict, and witnesses are exact."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rational_interval import AffineCase

from relu_diag import Verdict
from relu_diag import functional as F
from relu_diag.functional.budgets import BUDGETS

Neuron = tuple[float, float, float]
SLOPES = [(0.0, 2.0), (0.0, -2.0), (1.0, 0.0), (0.5, 3.0), (3.0, 0.5), (-0.5, -3.0)]


def standard(neurons: list[Neuron], c: float = 0.0, slopes: tuple[float, float] = (0.0, 1.0)) -> AffineCase:
    """Neurons (w, b, h) on [-1/2, 1/2] against x."""
    w, b, h = torch.tensor(neurons, dtype=torch.float64).T
    return AffineCase(w, b, h, c, 1.0, 0.0, (-0.5, 0.5), slopes)


def zigzag(n: int, split: tuple[float, ...] = (1.0,)) -> list[Neuron]:
    signs = [1.0 if i % 2 else -1.0 for i in range(1, n + 1)]
    places = [-0.5 + i / (n + 1) for i in range(1, n + 1)]
    neurons = zip(signs, places, strict=True)
    return [(w, -w * t, part * 2 / (n + 1) / w) for w, t in neurons for part in split]


def leaky_zigzag(n: int, zeta: float, split: tuple[float, ...] = (1.0,)) -> tuple[list[Neuron], float]:
    """A critical point of leaky units with ``n`` kinks, the first to the right, and its output bias.

    With P the second antiderivative of the error from the right, P is 1 at the left end and 0 at the right one,
    ``-zeta / (1 - zeta)`` at kinks with ``w > 0`` and ``1 / (1 - zeta)`` at the others, its slope 0 at all of them.
    """
    signs = [(-1.0) ** i for i in range(n)]
    levels = [1.0, *(-zeta / (1 - zeta) if sign > 0 else 1 / (1 - zeta) for sign in signs), 0.0]
    drops = [after - before for before, after in pairwise(levels)]
    lengths = [math.sqrt(abs(drop)) for drop in drops]
    lengths = [length / sum(lengths) for length in lengths]
    edges = [-0.5 + sum(lengths[:i]) for i in range(n + 2)]
    starts = [6 * drop / length**2 for drop, length in zip(drops, lengths, strict=True)]
    bends = [-2 * start / length for start, length in zip(starts, lengths, strict=True)]
    loud = [(bends[i + 1] - bends[i]) / (1 - zeta) for i in range(n)]
    steep = sum(h * w * (1 if w < 0 else zeta) for h, w in zip(loud, signs, strict=True))
    scale = 1 / (steep - bends[0])
    neurons = [(w, -w * t, scale * h) for w, t, h in zip(signs, edges[1:], loud, strict=False)]
    left = sum(h * max(z, zeta * z) for w, b, h in neurons for z in [b - w / 2])
    return [(w, b, part * h) for w, b, h in neurons for part in split], scale * starts[0] - 0.5 - left


DEAD = (1.0, -0.7, 2.0)
TOUCHING = {sign: (-1.0, -0.5, -sign) for sign in (-1.0, 0.0, 1.0)}
RELU = {
    "minimum": (standard([DEAD, TOUCHING[-1.0], (0.0, -1.0, 3.0)]), "local minimum"),
    "idle": (standard([DEAD, (0.0, 1.0, 0.0)]), "saddle"),
    "nearly idle": (standard([DEAD, (1e-6, 1.0, 0.0)]), "not stationary"),
    "drawn": (standard([TOUCHING[-1.0], TOUCHING[1.0]]), "saddle"),
    "flat and touching": (standard([DEAD, TOUCHING[0.0]]), "saddle"),
    "off": (standard([DEAD], c=1e-4), "not stationary"),
    "zigzag": (standard([*zigzag(2), DEAD, TOUCHING[1.0]]), "saddle"),
    "shared zigzag": (standard([*zigzag(4, (0.7, 0.3, 0.0)), TOUCHING[-1.0]]), "saddle"),
    "opposed zigzag": (standard(zigzag(6, (1.5, -0.5))), "saddle"),
    "zigzag with a whisper": (standard(zigzag(4, (1.0, 1e-31))), "saddle"),
    "asleep": (standard([*zigzag(2), (0.0, 0.0, 0.0)]), "saddle"),
    "awake": (standard([DEAD, (0.0, 0.0, -1e9)]), "not stationary"),
    "fitted": (standard([(1.0, 0.75, 1.0), DEAD, (0.3, 0.1, 0.0)], c=-0.75), "global minimum"),
    "fitted by two": (standard([(1.0, 0.75, 40.0), (1.0, 0.75, -39.0)], c=-0.75), "global minimum"),
    "sliver": (standard([DEAD, (1.0, -0.49999, 0.0)]), "not stationary"),
}
LEAKY = {
    "idle": (standard([(0.0, 1.0, 0.0), (0.0, -1.0, 0.0)]), "saddle"),
    "one kink": (standard(*leaky_zigzag(1, 0.5)), "saddle"),
    "three kinks": (standard(*leaky_zigzag(3, 0.5, (0.6, 0.4))), "saddle"),
    "a whisper": (standard(*leaky_zigzag(4, 0.5, (1.0, 1e-31))), "saddle"),
    "dead for ReLU": (standard([DEAD]), "not stationary"),
    "asleep": (standard([(0.0, 1.0, 0.0), (0.0, 0.0, 0.0)]), "saddle"),
    "fitted": (standard([(1.0, 0.75, 1.0)], c=-0.75), "global minimum"),
    "nearly idle": (standard([(1e-6, 1.0, 0.0)]), "not stationary"),
}


def verdict_of(case: AffineCase) -> Verdict:
    return F.classify_affine(*case.arguments)  # type: ignore[arg-type]


def moved(case: AffineCase, scale: float, place: float, high: float, up: float) -> AffineCase:
    """The same landscape for ``x' = scale (x + place)`` and ``y' = high y + up``."""
    ends = tuple(scale * (end + place) for end in case.interval)
    w = case.w / scale
    b = case.b - case.w * place
    slope = case.slope * high / scale
    intercept = high * (case.intercept - case.slope * place) + up
    interval = (min(ends), max(ends))
    return replace(
        case, w=w, b=b, h=high * case.h, c=high * case.c + up, slope=slope, intercept=intercept, interval=interval
    )


def with_slopes(case: AffineCase, slopes: tuple[float, float]) -> AffineCase:
    """The same function by units with other slopes of the same ratio, or its inverse."""
    s_minus, s_plus = slopes
    if abs(s_minus) > abs(s_plus):
        return replace(case, w=-case.w, b=-case.b, h=-case.h / s_minus, slopes=slopes)
    return replace(case, h=case.h / s_plus, slopes=slopes)


def check_witness(case: AffineCase, verdict: Verdict) -> None:
    """The fall in rational numbers, and no rise on the way."""
    direction = verdict.direction
    if verdict.kind not in {"saddle", "not stationary"}:
        assert direction is None
        return
    assert direction is not None
    assert verdict.loss == pytest.approx(float(case.loss()), rel=1e-9)
    losses = [case.loss(direction, direction.step * k / 11) for k in range(12)]
    assert float(losses[-1] - losses[0]) == pytest.approx(direction.loss_change, rel=1e-3)
    assert losses[-1] < losses[0]
    rises = [float((after - before) / losses[0]) for before, after in pairwise(losses)]
    assert max(rises) < 1e-12


cases = st.sampled_from([*RELU.values(), *((replace(case, slopes=(0.5, 1.0)), kind) for case, kind in LEAKY.values())])
powers = st.floats(-8.0, 8.0).map(lambda exponent: 10.0**exponent)
signs = st.sampled_from([-1.0, 1.0])


@settings(deadline=None, max_examples=25)
@given(cases, powers, st.floats(-5.0, 5.0), powers, signs, signs, st.floats(-3.0, 3.0))
def test_no_scale_or_place_of_interval_and_target_changes_a_verdict(
    given_case: tuple[AffineCase, str], scale: float, place: float, high: float, turn: float, flip: float, up: float
) -> None:
    case, kind = given_case
    other = moved(case, turn * scale, place, flip * high, up * high)
    verdict = verdict_of(other)
    assert verdict.kind == kind, verdict
    check_witness(other, verdict)


@settings(deadline=None, max_examples=25)
@given(cases, st.data())
def test_no_rescaling_or_order_of_neurons_changes_a_verdict(given_case: tuple[AffineCase, str], data: Any) -> None:
    case, kind = given_case
    width = len(case.w)
    factors = torch.tensor([data.draw(powers) for _ in range(width)], dtype=torch.float64)
    order = torch.tensor(data.draw(st.permutations(range(width))))
    rows = (case.w * factors, case.b * factors, case.h / factors)
    w, b, h = (row[order] for row in rows)
    other = replace(case, w=w, b=b, h=h)
    verdict = verdict_of(other)
    assert verdict.kind == kind, verdict
    assert sorted(order[verdict.neurons].tolist()) == verdict_of(case).neurons.tolist()
    check_witness(other, verdict)


@pytest.mark.parametrize("slopes", SLOPES)
def test_no_common_factor_of_the_slopes_changes_a_verdict_and_neither_do_mirrored_units(
    slopes: tuple[float, float],
) -> None:
    zeta = min(map(abs, slopes)) / max(map(abs, slopes))
    for case, kind in (
        RELU.values() if zeta == 0 else [LEAKY[name] for name in ("idle", "dead for ReLU", "asleep", "fitted")]
    ):
        own = replace(case, slopes=(zeta, 1.0))
        other = with_slopes(own, slopes)
        verdict = verdict_of(other)
        assert (verdict_of(own).kind, verdict.kind) == (kind, kind), (slopes, verdict)
        check_witness(other, verdict)


@pytest.mark.parametrize("zeta", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_every_critical_point_of_leaky_units_is_a_saddle(n: int, zeta: float) -> None:
    for split in ((1.0,), (0.3, 0.7, 1e-31)):
        neurons, c = leaky_zigzag(n, zeta, split)
        case = standard([*neurons, (0.0, -1.0, 0.0)], c, (zeta, 1.0))
        verdict = verdict_of(case)
        assert verdict.kind == "saddle", verdict
        check_witness(case, verdict)


@pytest.mark.parametrize("giant", [1e6, 1e12, 1e15])
def test_what_a_giant_hides_is_not_called_zero(giant: float) -> None:
    """Cancelling giants, and giants that touch the interval: the loss is that of a constant, 1/12."""
    pair = [(1.0, 0.7, giant), (1.0, 0.7, -giant)]
    touching = [(giant, -giant / 2, -1.0), (1.0, -0.5, -giant)]
    for neurons, kinds in ((pair, {"not stationary", "undecided"}), (touching, {"local minimum"})):
        verdict = verdict_of(standard(neurons))
        assert verdict.kind in kinds, verdict
    assert verdict_of(standard([*touching, (0.0, 1.0, 0.0)])).kind == "saddle"


@pytest.mark.parametrize("place", [1e3, 1e9, 1e300])
def test_far_away_a_verdict_is_right_or_missing(place: float) -> None:
    for case, kind in RELU.values():
        other = moved(case, 1.0, place, 1.0, 0.0)
        if other.interval[0] < other.interval[1]:
            verdict = verdict_of(other)
            # Rounding of the biases moves kinks: what was stationary need not be any more.
            assert verdict.kind in ({kind, "undecided"} if place > 1e3 else {kind}) | {"not stationary"}, (
                place,
                verdict,
            )


@pytest.mark.parametrize("scale", [1e-300, 1e160])
@pytest.mark.parametrize("name", ["minimum", "drawn", "zigzag", "off"])
def test_out_of_range_there_is_a_verdict_all_the_same(name: str, scale: float) -> None:
    case, kind = RELU[name]
    for other in (moved(case, scale, 0.0, 1.0, 0.0), moved(case, 1.0, 0.0, scale, 0.0)):
        assert verdict_of(other).kind in {kind, "undecided"}
    louder = (replace(case, w=scale * case.w, b=scale * case.b), replace(case, h=scale * case.h))
    for other in louder:
        assert verdict_of(other).kind != "global minimum"


@pytest.mark.parametrize("name", [name for name in RELU if name not in {"sliver", "nearly idle"}])
def test_numbers_of_float32_are_judged_to_their_rounding(name: str) -> None:
    case, kind = RELU[name]
    w, b, h = (row.float() for row in (case.w, case.b, case.h))
    assert verdict_of(replace(case, w=w, b=b, h=h)).kind == kind


def test_a_nearly_constant_unit_in_float32_is_not_taken_for_a_critical_one() -> None:
    case = standard([(1e-5, 1.0, 0.0), (-1e-5, -1.0, 0.0)], slopes=(0.5, 1.0))
    w, b, h = (row.float() for row in (case.w, case.b, case.h))
    assert verdict_of(replace(case, w=w, b=b, h=h)).kind == "not stationary"


def test_a_constant_target_has_no_minimum_above_zero() -> None:
    for c, kind in ((2.0, "global minimum"), (2.0 + 1e-6, "not stationary"), (-1.0, "not stationary")):
        for neurons in ([DEAD], [(1.0, 0.1, 0.0)], [(0.0, 1.0, 0.0), (0.0, 0.0, 0.0)]):
            case = replace(standard(neurons, c), slope=0.0, intercept=2.0)
            verdict = verdict_of(case)
            assert verdict.kind == kind, verdict
            check_witness(case, verdict)
    assert verdict_of(replace(standard([DEAD]), slope=0.0)).kind == "global minimum"


@pytest.mark.parametrize("slopes", [(-1.0, 1.0), (0.5, -1.0), (-1e-9, 1.0)])
def test_slopes_of_two_signs_are_refused(slopes: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="`slopes` must be those of ReLU or leaky units, or mirrored ones"):
        verdict_of(standard([DEAD], slopes=slopes))


def test_an_output_bias_of_several_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="`c` must be one number"):
        verdict_of(replace(standard([DEAD]), c=torch.ones(2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("zeta", [0.0, 0.3])
def test_neurons_that_a_hessian_has_no_room_for_are_judged_by_the_loudest(
    zeta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among thousands that are silent."""
    monkeypatch.setattr("relu_diag.functional.integral._bend.BUDGETS", replace(BUDGETS, bent_neurons=16))
    split = tuple(k / (20 * 21 / 2) for k in range(1, 21))
    neurons, c = (zigzag(2, split), 0.0) if zeta == 0 else leaky_zigzag(2, zeta, split)
    dead = [DEAD] * 2000 if zeta == 0 else []
    verdict = verdict_of(standard([*neurons, *dead], c, (zeta, 1.0)))
    assert verdict.kind == "saddle", verdict
    assert verdict.margins["smallest eigenvalue"] < 0
    assert verdict.direction is not None
    assert verdict.direction.loss_change < -1e-6 * verdict.loss
