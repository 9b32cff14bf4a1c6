"""The exact loss along a straight line of parameters, and random perturbations (Wu et al., appendices F to H)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from relu_diag.functional.block import Reduction, ShallowBlock, rho
from relu_diag.functional.local import chunks, slopes_at
from relu_diag.functional.problem import SquaredProblem, squared_problem

_DRAW_ELEMENTS = 2**22
_ROWS = 2**12
# Noise is at most this share of the largest weight, however far the kinks are.
_NOISE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """A direction in the space of all parameters.

    Attributes:
        dW: Input weights, shape ``(I, d)``.
        dH: Output weights, shape ``(J, I)``.
        db: Output bias, zero for a block without one, shape ``(J,)``.
    """

    dW: Tensor
    dH: Tensor
    db: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TaylorExpansion:
    """The loss ``sum_m coefficients[m] eps**m`` at ``P + eps D``, exact for ``0 <= eps <= eps_max``.

    Attributes:
        coefficients: Constant (the loss at ``P``) to fourth order, float64, shape ``(5,)``.
        eps_max: Where the first pre-activation reaches its kink, infinite where none does.
    """

    coefficients: Tensor
    eps_max: float

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


@dataclass(frozen=True, slots=True, eq=False)
class PerturbationTest:
    """Loss changes under small uniform noise on all parameters.

    Attributes:
        changes: Loss change of every draw, shape ``(draws,)``.
        zeta: Half width of the noise: no sample off a kink can cross it.
    """

    changes: Tensor
    zeta: float

    def __str__(self) -> str:
        falls = int((self.changes < 0).sum())
        return f"{falls} of {len(self.changes)} perturbations up to {self.zeta:.3g} lower the loss"


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
    """
    block, residual = problem.block, problem.signal.G
    # Samples with x = 0 feel the bias alone.
    still = residual[~problem.signal.X.any(dim=1)]
    coefficients = torch.zeros(5, dtype=torch.float64, device=residual.device)
    coefficients[0] = residual.square().sum() / 2
    coefficients[1] = (still @ move.db).sum()
    coefficients[2], eps_max = len(still) * move.db.square().sum() / 2, torch.inf
    for chunk in chunks(block, problem.signal, problem.kink_tol):
        dZ = chunk.X @ move.dW.T
        dA = _entered(chunk.Z, dZ, block.slopes)
        first, second = rho(chunk.Z, block.slopes) @ move.dH.T + dA @ block.H.T + move.db, dA @ move.dH.T
        coefficients[1] += (chunk.G * first).sum()
        coefficients[2] += (chunk.G * second).sum() + first.square().sum() / 2
        coefficients[3] += (first * second).sum()
        coefficients[4] += second.square().sum() / 2
        root = -chunk.Z / dZ
        eps_max = min(eps_max, float(torch.where(root > 0, root, torch.inf).amin()))
    return TaylorExpansion(problem.factor * coefficients, eps_max)


def perturbation_test(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor,
    reduction: Reduction = "mean",
    draws: int = 5000,
    generator: torch.Generator | None = None,
) -> PerturbationTest:
    """Loss changes under uniform noise on all parameters, too small for any sample off a kink to cross it.

    At a local minimum none is negative. The changes are differences of outputs, not of losses, so changes far below the
    rounding of the loss are seen.

    Source: Wu et al., appendix H.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: "mean", "sum" or "half_sum".
        draws: Number of perturbations.
        generator: Source of randomness, on the CPU; None: torch's global one.

    Returns:
        The changes, and the width of the noise.

    Raises:
        ValueError: If there is not at least one draw.

    Example:
        >>> block = ShallowBlock(W=torch.ones(1, 1), H=torch.ones(1, 1))
        >>> print(perturbation_test(block, torch.ones(1, 1), torch.ones(1, 1)))  # zero loss
        0 of 5000 perturbations up to 0.001 lower the loss
    """
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1; got {draws!r}.")
    problem = squared_problem(block, X, Y, reduction)
    zeta = _noise_width(problem)
    at_once = max(1, _DRAW_ELEMENTS // (min(len(X), _ROWS) * len(block.W)))
    changes = []
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        shapes = block.W.shape, block.H.shape, block.H.shape[:1]
        dW, dH, db = (
            (zeta * (2 * torch.rand(count, *shape, generator=generator, dtype=torch.float64) - 1)).to(block.W.device)
            for shape in shapes
        )
        changes.append(_changes(problem, dW, dH, db if block.output_bias is not None else torch.zeros_like(db)))
    return PerturbationTest(torch.cat(changes), zeta)


def _noise_width(problem: SquaredProblem) -> float:
    """Below the distance, in the largest component, of any neuron from any kink it is not on."""
    block, nearest = problem.block, torch.inf
    for chunk in chunks(block, problem.signal, problem.kink_tol):
        distance = chunk.Z.abs() / chunk.X.abs().sum(1, keepdim=True)
        off = distance[chunk.Z != 0]
        nearest = min(nearest, float(off.min())) if len(off) else nearest
    largest = max(float(block.W.abs().max()), float(block.H.abs().max()))
    return min(0.99 * nearest, _NOISE * (largest or 1.0))


def _changes(problem: SquaredProblem, dW: Tensor, dH: Tensor, db: Tensor) -> Tensor:
    """Loss changes of many moves that cross no kink, as differences of outputs; a first dimension counts the moves."""
    block, residual = problem.block, problem.signal.G
    still = residual[~problem.signal.X.any(dim=1)]
    change = (db[:, None] * (2 * still + db[:, None])).sum((1, 2))
    for chunk in chunks(block, problem.signal, problem.kink_tol):
        for start in range(0, len(chunk.X), _ROWS):
            Z, G, X = (part[start : start + _ROWS] for part in (chunk.Z, chunk.G, chunk.X))
            dA = _entered(Z, X @ dW.mT, block.slopes)
            dy = dA @ (block.H + dH).mT + rho(Z, block.slopes) @ dH.mT + db[:, None]
            change += (dy * (2 * G + dy)).sum((1, 2))
    return problem.factor / 2 * change


def _entered(Z: Tensor, dZ: Tensor, slopes: tuple[float, float]) -> Tensor:
    """Change of the activations on the linear piece that the change enters."""
    return torch.where(Z == 0, rho(dZ, slopes), slopes_at(Z, slopes) * dZ)
