"""When convergence to zero loss is certain: the Lojasiewicz ratio, and a certificate over a ball around the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from relu_diag.functional.assumptions import Assumptions, checked
from relu_diag.functional.block import Reduction, ShallowBlock, check_targets, residual_factor, rho
from relu_diag.functional.guarantee._ball import Ball, jacobian_spectrum
from relu_diag.functional.local import slopes_at

# Keeps a margin of 0 out of the denominator of a message.
_LEAST = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, slots=True)
class ConvergenceCertificate:
    """Whether gradient flow from here is certain to reach zero loss, and how fast.

    With ``alpha`` a lower bound of ``|grad f|^2 / f`` in the ball of ``radius`` around the weights, ``4 f < radius^2
    alpha`` keeps the flow in the ball and sends it to a point of zero loss there. A certificate that does not hold says
    nothing about what training will do. A point of exactly zero loss has arrived: the certificate holds there whatever
    the bounds are, and its rate may be 0.

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
        assumptions: What the statement assumes; where one is broken, nothing is certain.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> certificate = convergence_certificate(ShallowBlock(1.1 * one, one), X=one, Y=one)
        >>> print(certificate)
        zero loss is certain within 0.743: below exp(-8.02 t) times 0.01
        >>> certificate.steps_to(fraction=0.01, lr=0.05)
        79
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
    assumptions: Assumptions = field(compare=False)

    def __str__(self) -> str:
        if not self.holds:
            missed = f"nothing certain: the criterion is missed by a factor {1 / max(self.margin, _LEAST):.3g}"
            return "; broken: ".join([missed, *self.assumptions.broken])
        if self.loss == 0:
            return f"zero loss is certain within {self.radius:.3g}: the loss is zero already"
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
        if factor == 0:
            return 1
        return max(1, math.ceil(math.log(fraction) / math.log(factor)))


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
    own = block.double()
    X, Y = X.detach().double(), Y.detach().double()
    Z = X @ own.W.T
    A = rho(Z, own.slopes)
    x_norm = X.norm(dim=1)
    moving = x_norm > 0
    kink = float((Z.abs()[moving] / x_norm[moving, None]).min()) if bool(moving.any()) else math.inf
    ball = Ball(
        jacobian_spectrum(X, own.H, A, slopes_at(Z, own.slopes), own.output_bias is not None),
        lipschitz=max(map(abs, own.slopes)) * float(torch.linalg.matrix_norm(X, 2)),
        bend=0.0,
        kink=kink,
        residual=_error(own, A, Y),
        kappa=residual_factor(Y, reduction) / 2,
    )
    return _certified(ball)


def smooth_convergence_certificate(
    block: ShallowBlock, X: Tensor, Y: Tensor, reduction: Reduction = "mean", centred: bool = False
) -> ConvergenceCertificate:
    """The certificate with the smooth leaky ReLU ``a z + (1 - a) log(1 + e^z)`` in place of the block's activation.

    There are no kinks to stay away from; the curvature of the activation, at most ``(1 - a) / 4``, adds to the
    Jacobian's Lipschitz constant, ``||X|| (1 + max_i ||h_i|| (1 - a) / 4 max_k ||x_k||)``: neurons move independently,
    so the longest column of ``H`` counts.

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

    Example:
        >>> zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        >>> block = ShallowBlock(W=zero, H=10 * one, slopes=(0.5, 1.0))
        >>> smooth_convergence_certificate(block, X=one, Y=one, centred=True).holds
        True
    """
    check_targets(block, X, Y)
    slope = block.slopes[0]
    if not (0 < slope < 1 and block.slopes[1] == 1):
        raise ValueError(
            f"`block` needs the slopes (a, 1) with 0 < a < 1 of a smooth leaky unit; got {block.slopes!r}."
        )
    own = block.double()
    X, Y = X.detach().double(), Y.detach().double()
    Z = X @ own.W.T
    A = smooth_leaky_relu(Z, slope, centred)
    size = float(torch.linalg.matrix_norm(X, 2))
    bend = size * (1 - slope) / 4 * float(X.norm(dim=1).max())
    ball = Ball(
        jacobian_spectrum(X, own.H, A, slope + (1 - slope) * torch.sigmoid(Z), own.output_bias is not None),
        lipschitz=size + float(own.H.norm(dim=0).max()) * bend,
        bend=bend,
        kink=math.inf,
        residual=_error(own, A, Y),
        kappa=residual_factor(Y, reduction) / 2,
    )
    return _certified(ball)


def smooth_leaky_relu(Z: Tensor, slope: float, centred: bool = False) -> Tensor:
    """The smooth leaky ReLU ``a z + (1 - a) log(1 + e^z)``, exact to rounding everywhere.

    Source: Chatterjee, section 4.

    Args:
        Z: Pre-activations, any shape.
        slope: ``a``, in (0, 1).
        centred: Whether to subtract the value at 0.

    Returns:
        Activations, shape of ``Z``.

    Example:
        >>> smooth_leaky_relu(torch.tensor([0.0, 100.0]), slope=0.5)
        tensor([  0.3466, 100.0000])
    """
    shift = math.log(2.0) if centred else 0.0
    # torch's softplus cuts off at 20.
    return slope * Z - (1.0 - slope) * (logsigmoid(-Z) + shift)


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
    gradients: Iterable[Tensor | None] = ()
    if loss.requires_grad and trained:
        gradients = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
    squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
    if not squares:
        raise ValueError(
            "`loss` has no gradient with respect to `parameters`: compute it with grad enabled, from them."
        )
    return (torch.stack(squares).sum() / loss.detach().double()).to(loss.dtype)


def _error(block: ShallowBlock, A: Tensor, Y: Tensor) -> float:
    """Norm of the residual of the activations ``A``, shape ``(N, I)``, against the targets, shape ``(N, J)``."""
    bias = 0.0 if block.output_bias is None else block.output_bias
    return float((A @ block.H.T + bias - Y).norm())


def _certified(ball: Ball) -> ConvergenceCertificate:
    """The certificate that the bounds in a ball give."""
    radius = ball.radius
    margin = ball.margin(radius)
    holds = margin > 1
    rate = largest_lr = curvature = 0.0
    if holds:
        # The smallest ball that the criterion allows gives the largest bound.
        rate = ball.ratio(ball.smallest_radius)
        largest_lr, curvature = ball.descent()
    assumptions = Assumptions({"full data set": "assumed", "all weights and biases are trained": "assumed"})
    if ball.residual != 0:
        assumptions |= {
            "no sample on a kink": checked(ball.kink > 0),
            "Jacobian of full rank": checked(ball.spectrum.smallest > 0),
        }
    return ConvergenceCertificate(
        holds, radius, ball.ratio(radius), rate, margin, ball.loss, ball.kink, largest_lr, curvature, assumptions
    )
