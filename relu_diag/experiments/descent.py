"""Plain gradient descent on a block with the analytic gradient: no graph, no allocation, few calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional import ShallowBlock
from relu_diag.functional.block import check_targets


def gradient_descent_(block: ShallowBlock, X: Tensor, Y: Tensor, rate: float, steps: int) -> Tensor:
    """Take full-batch gradient steps of the squared loss, in place.

    With ``e = H rho(W x) - y`` one step is ``H -= rate e^T rho(Z)``, ``W -= rate (rho'(Z) * (e H))^T X``. On the kink
    ``rho'(0) = s-``, 0 for ReLU: the choice of torch and of Wu et al., Corollary 4.7. On a CPU the steps run in numpy:
    a tiny network spends all its time on the overhead of calls, which is far smaller there than in torch.

    Args:
        block: The network, without output bias; its W and H are overwritten.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        rate: Learning rate times the factor between residual and loss gradient (`residual_factor`).
        steps: Number of steps.

    Returns:
        Residual ``e`` before the last step, shape ``(N, J)``.

    Raises:
        ValueError: If there are no steps, or the block has an output bias.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> residual = gradient_descent_(block, X=torch.ones(1, 1), Y=torch.zeros(1, 1), rate=0.5, steps=2)
        >>> residual.item(), block.W.item()
        (0.25, 0.4375)
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1; got {steps!r}.")
    if block.output_bias is not None:
        raise ValueError("`block` has an output bias, which these steps would not train. Give X a constant column.")
    check_targets(block, X, Y)
    tensors = [value.detach() for value in (X, Y, block.W, block.H)]
    if X.device.type != "cpu" or X.dtype not in {torch.float32, torch.float64}:
        residual: Tensor = _descend(torch, tensors, block.slopes, rate, steps)
        return residual
    with np.errstate(all="ignore"):  # The caller decides what a divergence means.
        return torch.from_numpy(_descend(np, [value.numpy() for value in tensors], block.slopes, rate, steps))


def _descend(xp: Any, arrays: list[Any], slopes: tuple[float, float], rate: float, steps: int) -> Any:
    """The steps for arrays of numpy or torch, whose functions have the same names; the last residual ``(N, J)``."""
    X, Y, W, H = arrays
    dot = np.dot if xp is np else torch.mm
    # Attribute look-ups and views are hoisted out of the loop: on a tiny network they cost as much as the products.
    maximum = xp.maximum
    sign = xp.sign
    add = xp.add
    subtract = xp.subtract
    multiply = xp.multiply
    Z = X @ W.T
    A, S, C = (xp.empty_like(Z) for _ in range(3))
    error = xp.empty_like(Y)
    G = xp.empty_like(Y)
    dW = xp.empty_like(W)
    dH = xp.empty_like(H)
    WT, HT, GT, CT = (array.T for array in (W, H, G, C))
    relu = slopes == (0.0, 1.0)
    # Kept as arrays: a Python number would be converted in every call.
    numbers = (0.0, rate, slopes[0], slopes[1] - slopes[0])
    zero, scale, s_minus, jump = (xp.full_like(Y[0, 0], number) for number in numbers)
    for _ in range(steps):
        dot(X, WT, out=Z)
        maximum(Z, zero, out=A)
        sign(A, out=S)
        if not relu:
            multiply(S, jump, out=S)
            add(S, s_minus, out=S)
            multiply(S, Z, out=A)
        dot(A, HT, out=error)
        subtract(error, Y, out=error)
        multiply(error, scale, out=G)
        dot(G, H, out=C)
        multiply(C, S, out=C)
        dot(GT, A, out=dH)
        dot(CT, X, out=dW)
        subtract(H, dH, out=H)
        subtract(W, dW, out=W)
    return error
