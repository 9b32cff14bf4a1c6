"""The two nouns every computation starts from, and the notation of the package, said once.

Sizes: ``N`` samples, ``d`` inputs, ``I`` hidden neurons, ``J`` outputs. ``W`` holds the input weights (rows ``w_i``,
the hidden bias is its last column), ``H`` the output weights (columns ``h_i``), ``X`` the block inputs (rows ``x_k``,
with a last column of ones where ``W`` has the bias), ``Z = X W^T`` the pre-activations, ``G`` the gradient of the loss
at the block's output (rows ``e_k``) and ``C`` its gradient at the activations ``rho(Z)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, relu

from relu_diag.functional._checks import check_matrix, check_slopes, check_together, check_values
from relu_diag.functional.budgets import BUDGETS

Reduction = Literal["mean", "sum", "half_sum"]


@dataclass(frozen=True, slots=True, eq=False)
class ShallowBlock:
    """One hidden layer of ReLU-like units, ``x -> H rho(W x) + output_bias`` with ``rho(z) = s+ z`` or ``s- z``.

    Attributes:
        W: Input weights, hidden bias as last column, shape ``(I, d)``.
        H: Output weights, shape ``(J, I)``.
        slopes: The two slopes ``(s-, s+)``, finite and different.
        output_bias: Output bias, shape ``(J,)``, or None.

    Raises:
        TypeError: If a tensor is not floating point, or the slopes are not a pair of numbers.
        ValueError: If shapes, dtypes or devices do not fit, a value is not finite, or the slopes are equal.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[2.0]]))
        >>> block(torch.tensor([[3.0, 1.0], [-3.0, 1.0]]))
        tensor([[6.],
                [0.]])
    """

    W: Tensor
    H: Tensor
    slopes: tuple[float, float] = (0.0, 1.0)
    output_bias: Tensor | None = None

    def __post_init__(self) -> None:
        check_matrix("W", self.W)
        check_matrix("H", self.H)
        if self.H.shape[1] != self.W.shape[0]:
            raise ValueError(
                "`H` needs one column per hidden neuron: "
                f"W is {tuple(self.W.shape)}, H is {tuple(self.H.shape)}. Pass H as (outputs, neurons)."
            )
        check_together("H", self.H, "W", self.W)
        if self.output_bias is not None:
            check_values("output_bias", self.output_bias)
            if self.output_bias.shape != self.H.shape[:1]:
                raise ValueError(
                    f"`output_bias` needs one entry per output, shape {tuple(self.H.shape[:1])}; "
                    f"got {tuple(self.output_bias.shape)}."
                )
            check_together("output_bias", self.output_bias, "W", self.W)
        check_slopes(self.slopes)

    def __call__(self, X: Tensor) -> Tensor:
        """Outputs of the block.

        Args:
            X: Inputs, shape ``(N, d)``.

        Returns:
            Outputs, shape ``(N, J)``.
        """
        _check_inputs(self, X)
        out = rho(X @ self.W.T, self.slopes) @ self.H.T
        return out if self.output_bias is None else out + self.output_bias

    def double(self) -> ShallowBlock:
        """The block in float64, cut from any graph: what the kernel's small dense algebra starts from.

        Returns:
            The same network in float64.
        """
        return self.cast(torch.float64)

    def cast(self, dtype: torch.dtype) -> ShallowBlock:
        """The block in another dtype, cut from any graph.

        Args:
            dtype: A floating-point dtype.

        Returns:
            The block.
        """
        bias = None if self.output_bias is None else self.output_bias.detach().to(dtype)
        return ShallowBlock(self.W.detach().to(dtype), self.H.detach().to(dtype), self.slopes, bias)


@dataclass(frozen=True, slots=True, eq=False)
class BlockSignal:
    """What the loss tells a block: inputs, and loss gradients behind the activation.

    The loss's own reduction and sample weights are in ``G`` and ``C``: sums over samples are derivatives of the loss.

    Attributes:
        X: Block inputs, shape ``(N, d)``.
        G: Loss gradient at the block's output, shape ``(N, J)``.
        C: Loss gradient at ``rho(Z)`` where it is more than ``G H`` (a penalty on the activations, a second reader of
            the hidden layer), shape ``(N, I)``; None means ``G H``.
        Z: Pre-activations ``X W^T`` where a forward pass has them already, shape ``(N, I)``; None: computed on demand.
        unit: Where ``G`` is a multiple of outputs minus targets, that multiple, in which its rounding is known; None:
            unknown.

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If there is no sample, shapes, dtypes or devices do not fit, or a value is not finite.

    Example:
        >>> BlockSignal(X=torch.ones(2, 3), G=torch.ones(1, 1))
        Traceback (most recent call last):
            ...
        ValueError: `G` needs one row per sample: X is (2, 3), G is (1, 1).
    """

    X: Tensor
    G: Tensor
    C: Tensor | None = None
    Z: Tensor | None = None
    unit: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("X", self.X), ("G", self.G), ("C", self.C), ("Z", self.Z)):
            if value is None:
                continue
            check_matrix(name, value)
            if value.shape[0] != self.X.shape[0]:
                raise ValueError(
                    f"`{name}` needs one row per sample: X is {tuple(self.X.shape)}, {name} is {tuple(value.shape)}."
                )
            check_together(name, value, "X", self.X)


def rho(Z: Tensor, slopes: tuple[float, float], inplace: bool = False) -> Tensor:
    """The ReLU-like activation, ``s+ z`` for ``z >= 0`` and ``s- z`` below; at 0 autograd takes ``s-``, as torch does.

    Args:
        Z: Pre-activations, any shape.
        slopes: ``(s-, s+)``.
        inplace: Whether to overwrite ``Z``.

    Returns:
        Activations, shape of ``Z``.

    Example:
        >>> rho(torch.tensor([-2.0, 3.0]), slopes=(0.5, 1.0))
        tensor([-1.,  3.])
    """
    s_minus, s_plus = slopes
    if s_minus == 0:
        out, factor = relu(Z, inplace), s_plus
    elif s_plus == 0:
        # Not clamp: its slope at 0 is 1 before torch 2.15 and 0 from there on.
        out, factor = Z.sub_(relu(Z)) if inplace else Z - relu(Z), s_minus
    else:
        out, factor = leaky_relu(Z, s_minus / s_plus, inplace), s_plus
    if factor == 1:
        return out
    return out.mul_(factor) if inplace else out * factor


def squared_error_signal(block: ShallowBlock, X: Tensor, Y: Tensor, reduction: Reduction = "mean") -> BlockSignal:
    """The signal of the squared loss at the block's own output.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: "mean" (torch's mse_loss: over samples and outputs), "sum", or "half_sum" (one half of the sum).

    Returns:
        Signal with ``G`` the gradient of that loss at the output.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> squared_error_signal(block, torch.ones(2, 1), torch.zeros(2, 1)).G
        tensor([[1.],
                [1.]])
    """
    check_targets(block, X, Y)
    with torch.no_grad():
        factor = residual_factor(Y, reduction)
        return BlockSignal(X, factor * (chunked_outputs(block, X) - Y), unit=factor)


def residual_factor(Y: Tensor, reduction: Reduction) -> float:
    """The factor between the residual and the gradient of the squared loss at the output.

    Args:
        Y: Targets, shape ``(N, J)``.
        reduction: "mean", "sum" or "half_sum".

    Returns:
        ``2 / (N J)``, 2 or 1.

    Raises:
        ValueError: If the reduction is unknown.

    Example:
        >>> residual_factor(torch.zeros(4, 2), "mean"), residual_factor(torch.zeros(4, 2), "half_sum")
        (0.25, 1.0)
    """
    factors: dict[str, float] = {"mean": 2.0 / Y.numel(), "sum": 2.0, "half_sum": 1.0}
    if reduction not in factors:
        raise ValueError(f"`reduction` must be one of {sorted(factors)}; got {reduction!r}.")
    return factors[reduction]


def squared_loss(block: ShallowBlock, X: Tensor, Y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """The squared loss of the block.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: "mean", "sum" or "half_sum".

    Returns:
        Scalar loss.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> squared_loss(block, torch.ones(2, 1), torch.zeros(2, 1))
        tensor(1.)
    """
    check_targets(block, X, Y)
    return residual_factor(Y, reduction) / 2 * (block(X) - Y).square().sum()


def check_fit(block: ShallowBlock, signal: BlockSignal) -> None:
    """Refuse a signal that cannot belong to the block.

    Args:
        block: The network.
        signal: Its signal.

    Raises:
        ValueError: If sizes, dtypes or devices of the two differ.

    Example:
        >>> block = ShallowBlock(W=torch.ones(2, 3), H=torch.ones(1, 2))
        >>> check_fit(block, BlockSignal(X=torch.ones(5, 3), G=torch.ones(5, 4)))
        Traceback (most recent call last):
            ...
        ValueError: `G` needs 1 columns, one per output; got (5, 4).
    """
    _check_inputs(block, signal.X)
    outputs, neurons = block.H.shape
    for name, value, columns in (("G", signal.G, outputs), ("C", signal.C, neurons), ("Z", signal.Z, neurons)):
        if value is not None and value.shape[1] != columns:
            unit = "output" if name == "G" else "hidden neuron"
            raise ValueError(f"`{name}` needs {columns} columns, one per {unit}; got {tuple(value.shape)}.")


def check_targets(block: ShallowBlock, X: Tensor, Y: Tensor) -> None:
    """Refuse data that cannot be inputs and targets of the block.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.

    Raises:
        ValueError: If there is not one target per sample and output.

    Example:
        >>> check_targets(ShallowBlock(W=torch.ones(2, 3), H=torch.ones(1, 2)), X=torch.ones(5, 3), Y=torch.ones(5, 2))
        Traceback (most recent call last):
            ...
        ValueError: `Y` needs one row per sample and one column per output, (5, 1); got (5, 2).
    """
    check_matrix("X", X)
    check_matrix("Y", Y)
    _check_inputs(block, X)
    check_together("Y", Y, "X", X)
    expected = (len(X), len(block.H))
    if Y.shape != expected:
        raise ValueError(f"`Y` needs one row per sample and one column per output, {expected}; got {tuple(Y.shape)}.")


def chunk_rows(block: ShallowBlock) -> int:
    """The largest number of samples in a chunk.

    Args:
        block: The network.

    Returns:
        Number of samples that keeps a chunk near a million numbers: few enough for the cache, enough for fast products.

    Example:
        >>> chunk_rows(ShallowBlock(W=torch.ones(1024, 3), H=torch.ones(1, 1024)))
        1024
    """
    return max(64, BUDGETS.chunk // max(block.W.shape))


def chunked_outputs(block: ShallowBlock, X: Tensor) -> Tensor:
    """Outputs of the block without ever holding all its activations, in its dtype.

    Args:
        block: The network.
        X: Inputs of any dtype, shape ``(N, d)``.

    Returns:
        Outputs, shape ``(N, J)``.

    Example:
        >>> chunked_outputs(ShallowBlock(W=torch.eye(2), H=torch.ones(1, 2)), torch.ones(3, 2)).tolist()
        [[2.0], [2.0], [2.0]]
    """
    rows = chunk_rows(block)
    return torch.cat([block(X[start : start + rows].to(block.W)) for start in range(0, len(X), rows)])


def _check_inputs(block: ShallowBlock, X: Tensor) -> None:
    inputs = block.W.shape[1]
    if X.shape[-1] != inputs:
        cure = " Append a column of ones to X for the hidden bias." if X.shape[-1] == inputs - 1 else ""
        raise ValueError(f"`X` needs {inputs} columns as W {tuple(block.W.shape)}; got {tuple(X.shape)}.{cure}")
    check_together("X", X, "W", block.W)
