"""A damped step by a tridiagonal matrix is the one by the matrix itself."""

import numpy as np
import pytest

from relu_diag.functional.cells._tridiagonal import tridiagonal_of


@pytest.mark.parametrize("size", [2, 3, 60])
@pytest.mark.parametrize("damp", [1e-6, 0.3])
def test_the_damped_step_solves_its_normal_equations(size: int, damp: float) -> None:
    draw = np.random.default_rng(size)
    A = draw.standard_normal((size, size))
    A = A + A.T
    b = draw.standard_normal(size)
    expected = A @ np.linalg.solve(A @ A + damp**2 * np.eye(size), b)
    np.testing.assert_allclose(tridiagonal_of(A).damped(b, damp), expected, rtol=1e-7, atol=1e-7)
