"""The loss along a straight line of parameters, to fourth order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relu_diag.functional.block import Reduction, ShallowBlock
from relu_diag.functional.output_loss import Loss, SquaredError, as_loss
from relu_diag.functional.problem import decayed_problem, squared_problem
from relu_diag.functional.verdict._loss_line import LossLine, loss_line
from relu_diag.functional.verdict.line import Move, TaylorExpansion, expand
from relu_diag.functional.weight_decay import WeightDecay, as_weight_decay


def taylor_expansion(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor | Loss,
    dW: Tensor,
    dH: Tensor,
    reduction: Reduction = "mean",
    kink_tol: float | None = None,
    weight_decay: float | WeightDecay = 0.0,
) -> TaylorExpansion:
    """The loss along ``(W + eps dW, H + eps dH)``, until a sample crosses a kink.

    Up to there the outputs are quadratic in ``eps``: the squared error is a quartic, of other losses the expansion ends
    after fourth order. Samples on the kink take the side that ``dW`` enters.

    Source: Wu et al., appendices F and G.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets of the squared error, shape ``(N, J)``, or a loss, such as `CrossEntropy`.
        dW: Direction of the input weights, shape ``(I, d)``.
        dH: Direction of the output weights, shape ``(J, I)``.
        reduction: "mean", "sum" or "half_sum", of the squared error.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.
        weight_decay: Factor ``mu`` of ``mu / 2`` times the squared weights, an output bias being free; or one for each
            part.

    Returns:
        Coefficients, and the step up to which no kink is crossed.

    Raises:
        ValueError: If ``dW`` or ``dH`` has not the shape of the weights or is not finite, or the loss has a kink of its
            own, as the absolute error has.

    Example:
        >>> block = ShallowBlock(W=torch.ones(1, 1), H=torch.ones(1, 1))
        >>> one = torch.ones(1, 1)
        >>> line = taylor_expansion(block, X=one, Y=0 * one, dW=-one, dH=one)
        >>> line.coefficients.tolist(), line.eps_max  # (1 - eps)^2 (1 + eps)^2
        ([1.0, 0.0, -2.0, 0.0, 1.0], 1.0)
        >>> from relu_diag.functional import Poisson
        >>> print(taylor_expansion(block, X=one, Y=Poisson(0 * one), dW=-one, dH=0 * one))
        slope -2.72, curvature 2.72, to fourth order up to 1
    """
    for name, value, like in (("dW", dW, block.W), ("dH", dH, block.H)):
        if value.shape != like.shape or not bool(torch.isfinite(value).all()):
            raise ValueError(f"`{name}` must be finite, of shape {tuple(like.shape)}; got {tuple(value.shape)}.")
    dW, dH = dW.detach().double(), dH.detach().double()
    move = Move(dW, dH, dH.new_zeros(len(dH)))
    decay = as_weight_decay(weight_decay)
    if isinstance(Y, Tensor) and not decay.any:
        return expand(squared_problem(block, X, Y, reduction, kink_tol), move)
    loss = as_loss(Y, reduction)
    if not loss.smooth:
        raise ValueError(f"`Y` must be a smooth loss; the {loss.name} has kinks of its own, where no expansion holds.")
    line = loss_line(decayed_problem(block, X, loss, decay, kink_tol), move)
    G = line.problem.signal.G
    slope_terms = float(G.norm(dim=1) @ line.terms[0]) + abs(line.price[0])
    return TaylorExpansion(_coefficients(line), line.eps_max, slope_terms, isinstance(loss, SquaredError))


def _coefficients(line: LossLine) -> Tensor:
    """Those of the loss with its decay, by one derivative after the other, shape ``(5,)``."""
    loss = line.problem.output_loss
    with torch.enable_grad():
        eps = line.first.new_zeros((), requires_grad=True)
        value = loss(line.problem.outputs + eps * (line.first + eps * line.second))
        found = [value.detach() + line.problem.loss - loss(line.problem.outputs)]
        for order in range(1, 5):
            if value.requires_grad:
                (value,) = torch.autograd.grad(value, eps, create_graph=True, materialize_grads=True)
            else:
                value = torch.zeros_like(eps)
            found.append(value.detach() / math.factorial(order))
    coefficients = torch.stack(found)
    coefficients[1:3] += coefficients.new_tensor(line.price)
    return coefficients
