"""The exact loss along a straight line of parameters (Wu et al., appendices F and G)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from relu_diag.functional.block import rho
from relu_diag.functional.local import chunks, slopes_at
from relu_diag.functional.problem import SquaredProblem


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """A direction in the space of all parameters.

    Attributes:
        dW: Input weights, shape ``(I, d)``.
        dH: Output weights, shape ``(J, I)``.
        db: Output bias, zero for a block without one, shape ``(J,)``.

    Example:
        >>> move = Move(dW=torch.zeros(1, 2), dH=torch.ones(1, 1), db=torch.zeros(1))
        >>> move.length
        1.0
    """

    dW: Tensor
    dH: Tensor
    db: Tensor

    @property
    def length(self) -> float:
        """Its Euclidean length over all parameters."""
        return float(torch.cat([part.flatten() for part in (self.dW, self.dH, self.db)]).norm())

    def scaled(self, factor: float) -> Move:
        """The same direction at another length.

        Args:
            factor: What every entry is multiplied by.

        Returns:
            The move.
        """
        return Move(self.dW * factor, self.dH * factor, self.db * factor)


@dataclass(frozen=True, slots=True, eq=False)
class TaylorExpansion:
    """The loss ``sum_m coefficients[m] eps**m`` at ``P + eps D``, for ``0 <= eps <= eps_max``.

    Attributes:
        coefficients: Constant (the loss at ``P``) to fourth order, float64, shape ``(5,)``.
        eps_max: Where the first pre-activation reaches its kink, infinite where none does.
        slope_terms: Sum of the absolute terms of the first-order coefficient, whose rounding is a few ``eps`` of it.
        exact: Whether the loss is this quartic, as the squared error is; else it agrees to fourth order in ``eps``.

    Example:
        >>> line = TaylorExpansion(torch.tensor([1.0, 0.0, -2.0, 0.0, 1.0]).double(), eps_max=1.0)
        >>> print(line)
        slope 0, curvature -4, exact up to 1
        >>> float(line(0.5)), [round(step, 6) for step in line.minima]
        (0.5625, [1.0])
    """

    coefficients: Tensor
    eps_max: float
    slope_terms: float = 0.0
    exact: bool = True

    def __call__(self, eps: Tensor | float) -> Tensor:
        """The quartic.

        Args:
            eps: Steps along the direction, any shape.

        Returns:
            Loss, shape of ``eps``.
        """
        eps = torch.as_tensor(eps, dtype=self.coefficients.dtype, device=self.coefficients.device)
        powers = torch.arange(5, device=eps.device)
        return (self.coefficients * eps[..., None] ** powers).sum(-1)

    @property
    def minima(self) -> list[float]:
        """Steps > 0 to the quartic's local minima below its start, nearest first; some may be beyond ``eps_max``."""
        change = np.polynomial.Polynomial([0.0, *self.coefficients[1:].tolist()])
        slope = change.deriv()
        # Coefficients that are mere rounding put roots at 1e15: a grid over all scales loses none of the others.
        grid = np.logspace(-30, 30, 2401)
        falling = slope(grid) < 0
        rises = np.flatnonzero(falling[:-1] & ~falling[1:])
        steps = [float(brentq(slope, grid[i], grid[i + 1])) for i in rises]
        return [step for step in steps if change(step) < 0]

    def __str__(self) -> str:
        first, second = self.coefficients[1:3].tolist()
        how = "exact" if self.exact else "to fourth order"
        return f"slope {first:.3g}, curvature {2 * second:.3g}, {how} up to {self.eps_max:.3g}"


def expand(problem: SquaredProblem, move: Move) -> TaylorExpansion:
    """The exact expansion of the loss along a move of all parameters.

    Args:
        problem: The squared loss at its parameters.
        move: The direction.

    Returns:
        Coefficients and the step up to which they are exact.

    Example:
        >>> from relu_diag import ShallowBlock
        >>> from relu_diag.functional.problem import squared_problem
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> problem = squared_problem(ShallowBlock(one, one, output_bias=one[0]), X=one, Y=one, reduction="sum")
        >>> expand(problem, Move(0 * one, 0 * one, db=-one[0])).coefficients.tolist()  # (1 - eps)^2
        [1.0, -2.0, 1.0, 0.0, 0.0]
    """
    block, residual = problem.block, problem.signal.G
    # Samples with x = 0 feel the bias alone.
    still = residual[~problem.signal.X.any(dim=1)]
    coefficients = torch.zeros(5, dtype=torch.float64, device=residual.device)
    coefficients[0] = residual.square().sum() / 2
    coefficients[1] = (still @ move.db).sum()
    coefficients[2] = len(still) * move.db.square().sum() / 2
    eps_max = torch.inf
    slope_terms = float(still.norm(dim=1).sum() * move.db.norm())
    for chunk in chunks(block, problem.signal, problem.kink_tol):
        dZ = chunk.X @ move.dW.T
        dA = entered(chunk.Z, dZ, block.slopes)
        first = rho(chunk.Z, block.slopes) @ move.dH.T + dA @ block.H.T + move.db
        second = dA @ move.dH.T
        coefficients[1] += (chunk.G * first).sum()
        slope_terms += float(chunk.G.norm(dim=1) @ first.norm(dim=1))
        coefficients[2] += (chunk.G * second).sum() + first.square().sum() / 2
        coefficients[3] += (first * second).sum()
        coefficients[4] += second.square().sum() / 2
        root = -chunk.Z / dZ
        eps_max = min(eps_max, float(torch.where(root > 0, root, torch.inf).amin()))
    return TaylorExpansion(problem.factor * coefficients, eps_max, problem.factor * slope_terms)


def entered(Z: Tensor, dZ: Tensor, slopes: tuple[float, float]) -> Tensor:
    """The change of the activations on the linear piece that a change of the pre-activations enters.

    Args:
        Z: Pre-activations, exactly zero on the kink, any shape.
        dZ: Their change, of a shape that broadcasts with it.
        slopes: ``(s-, s+)``.

    Returns:
        Change of ``rho``, exact until a kink is crossed.

    Example:
        >>> entered(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([2.0, -2.0, -2.0]), slopes=(0.0, 1.0))
        tensor([ 2.,  0., -2.])
    """
    return torch.where(Z == 0, rho(dZ, slopes), slopes_at(Z, slopes) * dZ)
