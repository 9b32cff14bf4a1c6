"""Symmetric matrices turned to tridiagonal ones: a quarter of the cost of eigenvectors, and as good for a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack, solve_banded

from relu_diag.functional._arrays import Array
from relu_diag.functional.budgets import BUDGETS


@dataclass(frozen=True, slots=True, eq=False)
class Tridiagonal:
    """A symmetric matrix ``Q T Q'``, ``(n, n)``.

    Attributes:
        diagonal: Of ``T``, shape ``(n,)``.
        beside: Beside it, shape ``(n - 1,)``.
        reflectors: What ``Q`` is made of, below the diagonal, shape ``(n, n)``.
        factors: Their factors, shape ``(n - 1,)``.
    """

    diagonal: Array
    beside: Array
    reflectors: Array
    factors: Array

    def damped(self, b: Array, damp: float) -> Array:
        """``A (A^2 + damp^2)^-1 b``, the real part of ``(A + i damp)^-1 b``, shape ``(n,)``."""
        bands = np.zeros((3, len(b)), dtype=np.complex128)
        bands[0, 1:] = bands[2, :-1] = self.beside
        bands[1] = self.diagonal + 1j * damp
        turned = solve_banded((1, 1), bands, self._turned(b, "T"), check_finite=False)
        return self._turned(np.ascontiguousarray(turned.real), "N")

    def _turned(self, b: Array, which: str) -> Array:
        """``Q b``, or ``Q' b`` for "T"."""
        if len(b) < 2:
            return b
        rest = np.asfortranarray(b[1:, None])
        turned, _, info = lapack.dormqr(
            "L", which, self.reflectors[1:, :-1], self.factors, rest, BUDGETS.reduced_at_once
        )
        assert info == 0
        return np.concatenate([b[:1], turned[:, 0]])


def tridiagonal_of(A: Array) -> Tridiagonal:
    """A symmetric matrix ``(n, n)`` as a tridiagonal one."""
    reflectors, diagonal, beside, factors, info = lapack.dsytrd(A, lower=1, lwork=BUDGETS.reduced_at_once * len(A))
    assert info == 0
    return Tridiagonal(diagonal, beside, reflectors, factors)
