"""The exact loss along a straight line of parameters (Wu et al., appendices F and G)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from relu_diag.functional.block import Reduction, ShallowBlock, rho
from relu_diag.functional.local import chunks, slopes_at
from relu_diag.functional.problem import SquaredProblem, squared_problem


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
    """The loss ``sum_m coefficients[m] eps**m`` at ``P + eps D``, exact for ``0 <= eps <= eps_max``.

    Attributes:
        coefficients: Constant (the loss at ``P``) to fourth order, float64, shape ``(5,)``.
        eps_max: Where the first pre-activation reaches its kink, infinite where none does.
        slope_terms: Sum of the absolute terms of the first-order coefficient, whose rounding is a few ``eps`` of it.

    Example:
        >>> block = ShallowBlock(W=torch.ones(1, 1), H=torch.ones(1, 1))
        >>> one = torch.ones(1, 1)
        >>> line = taylor_expansion(block, one, one, dW=one, dH=0 * one, reduction="half_sum")
        >>> line.coefficients.tolist(), line.eps_max
        ([0.0, 0.0, 0.5, 0.0, 0.0], inf)
    """

    coefficients: Tensor
    eps_max: float
    slope_terms: float = 0.0

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
        return f"slope {first:.3g}, curvature {2 * second:.3g}, exact up to {self.eps_max:.3g}"


def taylor_expansion(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor,
    dW: Tensor,
    dH: Tensor,
    reduction: Reduction = "mean",
    kink_tol: float | None = None,
) -> TaylorExpansion:
    """The squared loss along ``(W + eps dW, H + eps dH)``, a quartic until a sample crosses a kink.

    Samples on the kink take the side that ``dW`` enters.

    Source: Wu et al., appendices F and G.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        dW: Direction of the input weights, shape ``(I, d)``.
        dH: Direction of the output weights, shape ``(J, I)``.
        reduction: "mean", "sum" or "half_sum".
        kink_tol: Relative distance that counts as on the kink; None: by dtype.

    Returns:
        Coefficients and the step up to which they are exact.

    Raises:
        ValueError: If ``dW`` or ``dH`` has not the shape of the weights or is not finite.

    Example:
        >>> block = ShallowBlock(W=torch.ones(1, 1), H=torch.ones(1, 1))
        >>> one = torch.ones(1, 1)
        >>> line = taylor_expansion(block, X=one, Y=0 * one, dW=-one, dH=one)
        >>> line.coefficients.tolist(), line.eps_max  # (1 - eps)^2 (1 + eps)^2
        ([1.0, 0.0, -2.0, 0.0, 1.0], 1.0)
    """
    for name, value, like in (("dW", dW, block.W), ("dH", dH, block.H)):
        if value.shape != like.shape or not bool(torch.isfinite(value).all()):
            raise ValueError(f"`{name}` must be finite, of shape {tuple(like.shape)}; got {tuple(value.shape)}.")
    problem = squared_problem(block, X, Y, reduction, kink_tol)
    dW, dH = dW.detach().double(), dH.detach().double()
    return expand(problem, Move(dW, dH, dH.new_zeros(len(dH))))


def expand(problem: SquaredProblem, move: Move) -> TaylorExpansion:
    """The exact expansion of the loss along a move of all parameters.

    Args:
        problem: The squared loss at its parameters.
        move: The direction.

    Returns:
        Coefficients and the step up to which they are exact.

    Example:
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
