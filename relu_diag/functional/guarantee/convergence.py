"""When convergence to zero loss is certain: the Lojasiewicz ratio, and a certificate over a ball around the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.block import Reduction, ShallowBlock, check_targets, residual_factor, rho
from relu_diag.functional.local import slopes_at

_MOST_OUTPUTS = 4096
_EPS = torch.finfo(torch.float64).eps
_INSIDE = 1 - 1e-9


@dataclass(frozen=True, slots=True)
class ConvergenceCertificate:
    """Whether gradient flow from here is certain to reach zero loss, and how fast.

    With ``alpha`` a lower bound of ``|grad f|^2 / f`` in the ball of ``radius`` around the weights, ``4 f < radius^2
    alpha`` keeps the flow in the ball and sends it to a point of zero loss there. A certificate that does not hold says
    nothing about what training will do.

    Attributes:
        holds: Whether convergence is certain.
        radius: Of the ball, in the norm of all parameters.
        alpha: Lower bound of the Lojasiewicz ratio in the ball.
        rate: The loss is below ``exp(-rate t)`` times its value now, per unit of time (learning rate times steps); 0
            where nothing is certain. At least ``alpha``: the flow stays in a smaller ball.
        margin: ``radius^2 alpha / (4 f)``, more than 1 where it holds.
        loss: ``f`` now.
        kink_distance: How far every parameter may move before a sample crosses a kink; infinite for smooth units.
        largest_lr: Gradient descent with a smaller learning rate converges too; 0 where nothing is certain.
        curvature: Upper bound of the Hessian's norm where descent can go.
    """

    holds: bool
    radius: float
    alpha: float
    rate: float
    margin: float
    loss: float
    kink_distance: float
    largest_lr: float
    curvature: float

    def __str__(self) -> str:
        if not self.holds:
            return f"nothing certain: the criterion is missed by a factor {1 / max(self.margin, 1e-300):.3g}"
        return f"zero loss is certain within {self.radius:.3g}: below exp(-{self.rate:.3g} t) times {self.loss:.3g}"

    def step_factor(self, lr: float) -> float:
        """What a step of gradient descent at most multiplies the loss with.

        Args:
            lr: Learning rate.

        Returns:
            The factor, 1 where nothing is certain at this rate.

        Raises:
            ValueError: If the learning rate is not positive.
        """
        if not lr > 0:
            raise ValueError(f"`lr` must be positive; got {lr!r}.")
        if lr >= self.largest_lr:
            return 1.0
        # Descent leaves out the part of a step that the curvature may undo.
        return max(0.0, 1 - (1 - lr * self.curvature / 2) * self.alpha * lr)

    def steps_to(self, fraction: float, lr: float) -> int | None:
        """How many steps of gradient descent are enough.

        Args:
            fraction: Of the loss now.
            lr: Learning rate.

        Returns:
            Number of steps, None where nothing is certain at this rate.

        Raises:
            ValueError: If the fraction is not in (0, 1).
        """
        if not 0 < fraction < 1:
            raise ValueError(f"`fraction` must lie in (0, 1); got {fraction!r}.")
        factor = self.step_factor(lr)
        if factor == 1:
            return None
        return max(1, math.ceil(math.log(fraction) / math.log(factor))) if factor > 0 else 1


def convergence_certificate(
    block: ShallowBlock, X: Tensor, Y: Tensor, reduction: Reduction = "mean"
) -> ConvergenceCertificate:
    """The certificate inside the cell of the weights: no sample crosses a kink in the ball.

    ``|grad f|^2 / f >= 4 kappa sigma^2`` for ``f = kappa ||residual||^2``, with ``sigma`` the smallest singular value
    of the outputs' Jacobian. In a cell the Jacobian is affine with Lipschitz constant ``max |s| ||X||``, so that
    ``sigma - max |s| ||X|| r`` bounds it in the ball of radius ``r``.

    Source: Chatterjee, Theorems 2.1 and 2.2, with the constant of Taylor's remainder in the latter.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: "mean", "sum" or "half_sum".

    Returns:
        The certificate.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> certificate = convergence_certificate(ShallowBlock(1.1 * one, one), X=one, Y=one)  # (w h - 1)^2
        >>> certificate.holds, round(certificate.margin ** 0.5, 2)  # (w^2 + h^2) / 4 over |w h - 1|
        (True, 5.52)
    """
    check_targets(block, X, Y)
    W, H, X, Y = (value.detach().double() for value in (block.W, block.H, X, Y))
    Z = X @ W.T
    x_norm = X.norm(dim=1)
    moving = x_norm > 0
    kink = float((Z.abs()[moving] / x_norm[moving, None]).min()) if bool(moving.any()) else math.inf
    jacobian = _spectrum(X, H, rho(Z, block.slopes), slopes_at(Z, block.slopes), block.output_bias is not None)
    bias = 0.0 if block.output_bias is None else block.output_bias.detach().double()
    residual = rho(Z, block.slopes) @ H.T + bias - Y
    lipschitz = max(map(abs, block.slopes)) * float(torch.linalg.matrix_norm(X, 2))
    return _certified(_Ball(*jacobian, lipschitz, 0.0, kink, float(residual.norm())), residual_factor(Y, reduction) / 2)


def smooth_convergence_certificate(
    block: ShallowBlock, X: Tensor, Y: Tensor, reduction: Reduction = "mean", centred: bool = False
) -> ConvergenceCertificate:
    """The certificate with the smooth leaky ReLU ``a z + (1 - a) log(1 + e^z)`` in place of the block's activation.

    There are no kinks to stay away from; the curvature of the activation, at most ``(1 - a) / 4``, adds to the
    Jacobian's Lipschitz constant, ``||X|| (1 + max |h| (1 - a) / 4 max ||x||)``.

    Source: Chatterjee, Theorems 2.1, 2.2 and Remark 4.6.

    Args:
        block: Weights, with slopes ``(a, 1)``.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: "mean", "sum" or "half_sum".
        centred: Whether the activation is shifted to 0 at 0.

    Returns:
        The certificate.

    Raises:
        ValueError: If the slopes are not ``(a, 1)`` with ``0 < a < 1``.
    """
    check_targets(block, X, Y)
    slope = block.slopes[0]
    if not (0 < slope < 1 and block.slopes[1] == 1):
        raise ValueError(
            f"`block` needs the slopes (a, 1) with 0 < a < 1 of a smooth leaky unit; got {block.slopes!r}."
        )
    W, H, X, Y = (value.detach().double() for value in (block.W, block.H, X, Y))
    Z = X @ W.T
    shift = math.log(2) if centred else 0.0
    A = slope * Z + (1 - slope) * (-torch.nn.functional.logsigmoid(-Z) - shift)
    jacobian = _spectrum(X, H, A, slope + (1 - slope) * torch.sigmoid(Z), block.output_bias is not None)
    bias = 0.0 if block.output_bias is None else block.output_bias.detach().double()
    size = float(torch.linalg.matrix_norm(X, 2))
    bend = size * (1 - slope) / 4 * float(X.norm(dim=1).max())
    lipschitz = size + float(H.abs().max()) * bend
    ball = _Ball(*jacobian, lipschitz, bend, math.inf, float((A @ H.T + bias - Y).norm()))
    return _certified(ball, residual_factor(Y, reduction) / 2)


def lojasiewicz_ratio(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """The local Lojasiewicz ratio ``|grad f|^2 / f``: the rate at which gradient flow lowers ``log f`` right now.

    Source: Chatterjee, section 2.

    Args:
        loss: A positive scalar with a graph.
        parameters: What is trained; frozen ones are left out.

    Returns:
        Scalar.

    Raises:
        ValueError: If the loss is not positive, or does not depend on any of the parameters.

    Example:
        >>> w = torch.tensor(3.0, requires_grad=True)
        >>> lojasiewicz_ratio(w**2, [w])
        tensor(4.)
    """
    if not float(loss.detach()) > 0:
        raise ValueError(f"`loss` must be positive; got {float(loss.detach())!r}.")
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    found = loss.requires_grad and trained
    gradients = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True) if found else ()
    squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
    if not squares:
        raise ValueError(
            "`loss` has no gradient with respect to `parameters`: compute it with grad enabled, from them."
        )
    return (torch.stack(squares).sum() / loss.detach().double()).to(loss.dtype)


@dataclass(frozen=True, slots=True)
class _Ball:
    """What bounds the Jacobian of the outputs around the weights.

    ``lipschitz`` holds from the centre; between two points at distance ``r`` of it ``lipschitz + bend r`` does.
    """

    smallest: float
    largest: float
    lipschitz: float
    bend: float
    kink: float
    residual: float

    def jacobian(self, r: float) -> float:
        return self.largest + self.lipschitz * r

    def error(self, r: float) -> float:
        return self.residual + self.jacobian(r) * r

    def curvature(self, r: float) -> float:
        """Half the Hessian's norm over kappa: ``J^T J`` and the residual times the outputs' own curvature."""
        return self.jacobian(r) ** 2 + self.error(r) * (self.lipschitz + self.bend * r)


def _certified(ball: _Ball, kappa: float) -> ConvergenceCertificate:
    """Maximise ``r (sigma - Lip r)`` over the radius; the criterion asks that it exceeds the norm of the residual."""
    sigma, lipschitz = ball.smallest, ball.lipschitz
    loss = kappa * ball.residual**2
    radius = min(sigma / (2 * lipschitz), _INSIDE * ball.kink) if lipschitz else 0.0
    kept = max(sigma - lipschitz * radius, 0.0)
    alpha = 4 * kappa * kept**2
    margin = (radius * kept / ball.residual) ** 2 if ball.residual else math.inf
    holds = margin > 1
    rate = largest_lr = curvature = 0.0
    if holds:
        # The smallest ball that the criterion allows gives the largest bound.
        root = math.sqrt(max(sigma**2 - 4 * lipschitz * ball.residual, 0.0))
        smallest = 2 * ball.residual / (sigma + root) if ball.residual else 0.0
        rate = 4 * kappa * (sigma - lipschitz * smallest) ** 2
        largest_lr, curvature = _descent(ball, kappa, smallest, radius)
    return ConvergenceCertificate(holds, radius, alpha, rate, margin, loss, ball.kink, largest_lr, curvature)


def _descent(ball: _Ball, kappa: float, smallest: float, radius: float) -> tuple[float, float]:
    """Largest learning rate that keeps the criterion, and the curvature it was found with.

    With ``eps = lr curvature / 2`` a step lowers the loss by ``(1 - eps) lr |grad f|^2``, so that all steps together
    are shorter than ``2 sqrt(f / alpha) / (1 - eps)``; no single one may leave where the curvature is bounded. Near a
    kink the ball is chosen between the smallest that the criterion allows and the cell, to leave room for a step.
    """
    inner = min(radius, (smallest + ball.kink) / 2)
    outer = min(2 * inner, _INSIDE * ball.kink)
    curvature = 2 * kappa * ball.curvature(outer)
    spare = 1 - ball.residual / ((ball.smallest - ball.lipschitz * inner) * inner)
    longest = 2 * kappa * ball.jacobian(inner) * ball.error(inner)
    return max(0.0, min(2 * spare / curvature, (outer - inner) / longest)), curvature


def _spectrum(X: Tensor, H: Tensor, A: Tensor, S: Tensor, bias: bool) -> tuple[float, float]:
    """Bounds of the smallest and largest singular value of the outputs' Jacobian, from its Gram matrix.

    Raises:
        ValueError: If it would be too large.
    """
    outputs, samples = len(H), len(X)
    if outputs * samples > _MOST_OUTPUTS:
        raise ValueError(
            f"`Y` has {outputs * samples} numbers; the certificate needs their Gram matrix, at most {_MOST_OUTPUTS} "
            "rows. It can hold only where there are fewer numbers than parameters: certify a part of the data."
        )
    inputs, activations = X @ X.T, A @ A.T + float(bias)
    blocks = [[inputs * ((S * H[j] * H[m]) @ S.T) for m in range(outputs)] for j in range(outputs)]
    for j in range(outputs):
        blocks[j][j] = blocks[j][j] + activations
    values = torch.linalg.eigvalsh(torch.cat([torch.cat(row, dim=1) for row in blocks]))
    # What rounding can have added to the smallest eigenvalue is taken off.
    rounding = len(values) * _EPS * float(values[-1])
    return math.sqrt(max(float(values[0]) - rounding, 0.0)), math.sqrt(float(values[-1]) + rounding)
