"""The steepest descent of one neuron with kinks, against cone-by-cone projections."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from support.reference import Array, steepest_by_sign_patterns, steepest_by_sweep

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import merge_collinear, steepest, steepest_descent


@st.composite
def kinked_slopes(draw: st.DrawFn, most: int = 7) -> tuple[Array, Array, Array]:
    """Smooth part, kink coefficients and inputs; duplicated, collinear, dependent and zero inputs among them."""
    rng = np.random.default_rng(draw(st.integers(0, 100_000)))
    d, m = draw(st.integers(1, 5)), draw(st.integers(0, most))
    X, q, g = rng.normal(size=(m, d)), rng.normal(size=m), rng.normal(size=d)
    for k in range(1, m):
        kind = draw(st.sampled_from(["own", "own", "copy", "opposite", "between", "zero"]))
        if kind == "copy":
            X[k] = X[0]
        if kind == "opposite":
            X[k] = -2.5 * X[0]
        if kind == "between":
            X[k] = X[0] - 0.5 * X[k - 1]
        if kind == "zero":
            X[k] = 0
    q = np.abs(q) if draw(st.booleans()) else q
    size = draw(st.sampled_from([1e-12, 1.0, 1e6]))  # of the gradients near a plateau, and far from it
    return size * draw(st.sampled_from([0.0, 0.3, 1.0, 5.0])) * g, size * q, X


def scale(g: Array, q: Array, X: Array) -> float:
    return float(np.linalg.norm(g) + np.abs(q) @ np.linalg.norm(X, axis=1))


@given(kinked_slopes())
def test_slope_is_the_minimum_over_all_cones_and_is_proven(slopes: tuple[Array, Array, Array]) -> None:
    found = steepest_descent(*slopes)
    assert found.exact
    assert_allclose(found.slope, steepest_by_sign_patterns(*slopes), atol=1e-9 * scale(*slopes))


@given(kinked_slopes())
def test_direction_is_a_unit_vector_that_attains_the_slope(slopes: tuple[Array, Array, Array]) -> None:
    g, q, X = slopes
    found = steepest_descent(g, q, X)
    v = found.direction
    assert_allclose(g @ v + q @ np.abs(X @ v), found.slope, atol=1e-12 * scale(*slopes))
    assert_allclose(np.linalg.norm(v), float(found.slope < 0), rtol=1e-12)


@given(kinked_slopes(), st.integers(1, 8))
def test_claims_hold_however_few_sign_patterns_are_tried(slopes: tuple[Array, Array, Array], patterns: int) -> None:
    g, q, X = slopes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steepest, "BUDGETS", replace(BUDGETS, patterns=patterns))
        found = steepest_descent(g, q, X)
    truth, rounding = steepest_by_sign_patterns(g, q, X), 1e-9 * scale(*slopes)
    assert_allclose(g @ found.direction + q @ np.abs(X @ found.direction), found.slope, atol=rounding)
    assert truth - rounding <= found.slope <= 0
    if found.exact:
        assert_allclose(found.slope, truth, atol=rounding)


@given(kinked_slopes())
def test_the_rays_of_the_concave_kinks_reach_every_sign_pattern_that_matters(
    slopes: tuple[Array, Array, Array],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steepest, "BUDGETS", replace(BUDGETS, few_patterns=1))
        found = steepest_descent(*slopes)
    assert found.exact
    assert_allclose(found.slope, steepest_by_sign_patterns(*slopes), atol=1e-9 * scale(*slopes))


def test_forty_kinks_in_three_dimensions_are_still_proven() -> None:
    rng = np.random.default_rng(0)
    g, q, X = 3 * rng.normal(size=3), rng.normal(size=40), rng.normal(size=(40, 3))
    found = steepest_descent(g, q, X)
    V = rng.normal(size=(200_000, 3))
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    swept = (V @ g + np.abs(V @ X.T) @ q).min()
    assert found.exact
    assert found.slope <= swept
    # 200,000 directions leave gaps of about 0.01 rad; near a maximum off the kinks that costs a 1e-4 part.
    assert_allclose(found.slope, swept, rtol=1e-2)


def test_too_many_kinks_give_an_attained_slope_that_is_not_called_proven() -> None:
    rng = np.random.default_rng(0)
    g, q, X = rng.normal(size=10), rng.normal(size=60), rng.normal(size=(60, 10))
    found = steepest_descent(g, q, X)
    assert not found.exact
    assert_allclose(g @ found.direction + q @ np.abs(X @ found.direction), found.slope, rtol=1e-12)
    V = rng.normal(size=(20_000, 10))
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    assert found.slope < (V @ g + np.abs(V @ X.T) @ q).min()


@pytest.mark.parametrize("seed", range(5))
def test_two_inputs_agree_with_a_dense_sweep(seed: int) -> None:
    rng = np.random.default_rng(seed)
    g, q, X = rng.normal(size=2), rng.normal(size=12), rng.normal(size=(12, 2))
    swept = steepest_by_sweep(lambda v: v @ g + np.abs(v @ X.T) @ q)
    # The sweep misses the minimum by at most half a step on a kink: slope scale x 2 pi / 200,000 / 2.
    assert_allclose(steepest_descent(g, q, X).slope, swept, atol=1e-3)
    assert steepest_descent(g, q, X).slope <= swept + 1e-12


def test_kinks_can_turn_every_direction_uphill_or_the_flat_point_into_a_ridge() -> None:
    x = np.eye(2)
    assert steepest_descent(np.array([0.5, 0.0]), np.array([1.0, 1.0]), x).slope == 0
    assert_allclose(steepest_descent(np.zeros(2), np.array([-1.0, -1.0]), x).slope, -np.sqrt(2), rtol=1e-12)


def test_collinear_kinks_of_either_sign_and_opposite_coefficients_cancel() -> None:
    q, X = merge_collinear(np.array([2.0, 1.0, -4.0]), np.array([[1.0, 1.0], [-2.0, -2.0], [1.0, 1.0]]))
    assert len(q) == len(X) == 0
    found = steepest_descent(np.array([0.0, 1.0]), np.array([2.0, 1.0, -4.0]), np.array([[1, 1], [-2, -2], [1, 1.0]]))
    assert_allclose(found.direction, [0, -1], atol=1e-15)


def test_least_squares_that_stop_early_are_not_called_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    g, q, X = np.array([3.0, 1.0]), np.array([1.0, 1.0]), np.eye(2)
    assert steepest_descent(g, q, X).exact
    monkeypatch.setattr(steepest, "lsq_linear", lambda columns, *_, **__: SimpleNamespace(x=np.zeros(columns.shape[1])))
    found = steepest_descent(g, q, X)
    assert not found.exact
    assert_allclose(g @ found.direction + q @ np.abs(X @ found.direction), found.slope, rtol=1e-12)


def test_nothing_to_descend_gives_zero_and_no_direction() -> None:
    found = steepest_descent(np.zeros(3), np.zeros(0), np.zeros((0, 3)))
    assert (found.slope, found.exact, np.abs(found.direction).max()) == (0, True, 0)
