"""The two nouns every computation starts from, and the notation of the package, said once.

Sizes: ``N`` samples, ``d`` inputs, ``I`` hidden neurons, ``J`` outputs. ``W`` holds the input weights (rows ``w_i``,
the hidden bias is its last column), ``H`` the output weights (columns ``h_i``), ``X`` the block inputs (rows ``x_k``,
with a last column of ones where ``W`` has the bias), ``Z = X W^T`` the pre-activations, ``G`` the gradient of the loss
at the block's output (rows ``e_k``) and ``C`` its gradient at the activations ``rho(Z)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "half_sum"]

_KINK_TOL = {torch.float64: 1e-10, torch.float32: 1e-6}
_CHUNK_ELEMENTS = 2**20


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
        _check_matrix("W", self.W)
        _check_matrix("H", self.H)
        if self.H.shape[1] != self.W.shape[0]:
            raise ValueError(
                "`H` needs one column per hidden neuron: "
                f"W is {tuple(self.W.shape)}, H is {tuple(self.H.shape)}. Pass H as (outputs, neurons)."
            )
        _check_together("H", self.H, "W", self.W)
        if self.output_bias is not None:
            if self.output_bias.shape != self.H.shape[:1]:
                raise ValueError(
                    f"`output_bias` needs one entry per output, shape {tuple(self.H.shape[:1])}; "
                    f"got {tuple(self.output_bias.shape)}."
                )
            _check_together("output_bias", self.output_bias, "W", self.W)
            _check_finite("output_bias", self.output_bias)
        _check_slopes(self.slopes)

    def __call__(self, X: Tensor) -> Tensor:
        """Outputs of the block.

        Args:
            X: Inputs, shape ``(N, d)``.

        Returns:
            Outputs, shape ``(N, J)``.
        """
        out = rho(X @ self.W.T, self.slopes) @ self.H.T
        return out if self.output_bias is None else out + self.output_bias


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

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If there is no sample, shapes, dtypes or devices do not fit, or a value is not finite.
    """

    X: Tensor
    G: Tensor
    C: Tensor | None = None
    Z: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in (("X", self.X), ("G", self.G), ("C", self.C), ("Z", self.Z)):
            if value is None:
                continue
            _check_matrix(name, value)
            if value.shape[0] != self.X.shape[0]:
                raise ValueError(
                    f"`{name}` needs one row per sample: X is {tuple(self.X.shape)}, {name} is {tuple(value.shape)}."
                )
            _check_together(name, value, "X", self.X)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some consecutive samples of a signal, with everything the sums over samples need.

    Samples with ``x_k = 0`` are left out: no weight can move them off ``z = 0``. Entries on the kink are exactly zero.

    Attributes:
        X: Inputs, shape ``(n, d)``.
        G: Loss gradient at the output, shape ``(n, J)``.
        C: Loss gradient at ``rho(Z)``, shape ``(n, I)``.
        Z: Pre-activations, set to zero on the kink, shape ``(n, I)``.
        kinks: Row and neuron of the pairs on the kink, long, shape ``(M, 2)``.
    """

    X: Tensor
    G: Tensor
    C: Tensor
    Z: Tensor
    kinks: Tensor


def rho(Z: Tensor, slopes: tuple[float, float]) -> Tensor:
    """The ReLU-like activation, ``s+ z`` for ``z >= 0`` and ``s- z`` below; at 0 autograd takes ``s-``, as torch does.

    Args:
        Z: Pre-activations, any shape.
        slopes: ``(s-, s+)``.

    Returns:
        Activations, shape of ``Z``.
    """
    s_minus, s_plus = slopes
    if slopes == (0.0, 1.0):
        return Z.relu()
    return torch.where(Z > 0, s_plus * Z, s_minus * Z)


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
    check_fit(block, BlockSignal(X, Y))
    return BlockSignal(X, residual_factor(Y, reduction) * (block(X) - Y))


def residual_factor(Y: Tensor, reduction: Reduction) -> float:
    """The factor between the residual and the gradient of the squared loss at the output.

    Args:
        Y: Targets, shape ``(N, J)``.
        reduction: "mean", "sum" or "half_sum".

    Returns:
        ``2 / (N J)``, 2 or 1.

    Raises:
        ValueError: If the reduction is unknown.
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
    """
    return residual_factor(Y, reduction) / 2 * (block(X) - Y).square().sum()


def kink_tolerance(kink_tol: float | None, dtype: torch.dtype) -> float:
    """The relative distance below which a pair (sample, neuron) counts as on the kink.

    Args:
        kink_tol: The user's choice, or None for 1e-10 in float64, 1e-6 in float32 and 1e-2 below: a margin over the
            rounding of one inner product.
        dtype: The dtype the pre-activations are computed in.

    Returns:
        Tolerance on ``|z_ki| / (||w_i|| ||x_k||)``.

    Raises:
        ValueError: If the tolerance is not in [0, 1).
    """
    if kink_tol is None:
        return _KINK_TOL.get(dtype, 1e-2)
    if not 0.0 <= kink_tol < 1.0:
        raise ValueError(f"`kink_tol` is relative to ||w|| ||x|| and must lie in [0, 1); got {kink_tol!r}.")
    return float(kink_tol)


def check_fit(block: ShallowBlock, signal: BlockSignal) -> None:
    """Refuse a signal that cannot belong to the block.

    Args:
        block: The network.
        signal: Its signal.

    Raises:
        ValueError: If sizes, dtypes or devices of the two differ.
    """
    (neurons, inputs), outputs = block.W.shape, block.H.shape[0]
    if signal.X.shape[1] != inputs:
        cure = " Append a column of ones to X for the hidden bias." if signal.X.shape[1] == inputs - 1 else ""
        raise ValueError(f"`X` needs {inputs} columns as W {tuple(block.W.shape)}; got {tuple(signal.X.shape)}.{cure}")
    for name, value, columns in (("G", signal.G, outputs), ("C", signal.C, neurons), ("Z", signal.Z, neurons)):
        if value is not None and value.shape[1] != columns:
            raise ValueError(f"`{name}` (or the targets) needs {columns} columns; got {tuple(value.shape)}.")
    _check_together("X", signal.X, "W", block.W)


def chunks(block: ShallowBlock, signal: BlockSignal, kink_tol: float | None = None) -> Iterator[Chunk]:
    """The signal in pieces small enough that nothing of size ``N x I`` is ever made.

    Args:
        block: The network.
        signal: Its signal.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.

    Yields:
        Consecutive samples, with ``C`` and ``Z`` filled in.
    """
    check_fit(block, signal)
    tol = kink_tolerance(kink_tol, block.W.dtype)
    W, H = block.W.detach(), block.H.detach()
    reach = tol * W.norm(dim=1)
    rows = max(64, _CHUNK_ELEMENTS // W.shape[0])
    for start in range(0, signal.X.shape[0], rows):
        part = slice(start, start + rows)
        X, G = signal.X[part].detach(), signal.G[part].detach()
        C = G @ H if signal.C is None else signal.C[part].detach()
        Z = X @ W.T if signal.Z is None else signal.Z[part].detach()
        x_norm = X.norm(dim=1)
        if not bool(x_norm.all()):
            X, G, C, Z, x_norm = (value[x_norm > 0] for value in (X, G, C, Z, x_norm))
        kinks = _find_kinks(Z, reach, x_norm)
        if len(kinks):
            Z = Z.clone()
            Z[kinks[:, 0], kinks[:, 1]] = 0.0
        yield Chunk(X, G, C, Z, kinks)


def _find_kinks(Z: Tensor, reach: Tensor, x_norm: Tensor) -> Tensor:
    if not len(Z):
        return torch.empty(0, 2, dtype=torch.long, device=Z.device)
    # Almost no neuron has a sample on its kink: one reduction finds the columns worth a closer look.
    columns = (Z.abs().amin(dim=0) <= reach * x_norm.max()).nonzero().squeeze(1)
    close = Z[:, columns].abs() <= reach[columns] * x_norm[:, None]
    kinks = close.nonzero()
    kinks[:, 1] = columns[kinks[:, 1]]
    return kinks


def _check_matrix(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor; got {type(value).__name__}. Use torch.as_tensor.")
    if not value.is_floating_point():
        raise TypeError(f"`{name}` must be floating point; got {value.dtype}. Convert it with {name}.float().")
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"`{name}` must be a matrix with at least one row and column; got {tuple(value.shape)}.")
    _check_finite(name, value)


def _check_finite(name: str, value: Tensor) -> None:
    # A finite sum proves finite entries with one read; only a sum that is not needs the closer look.
    if value.device.type != "meta" and not math.isfinite(value.sum()) and not bool(torch.isfinite(value).all()):
        raise ValueError(f"`{name}` has NaN or infinite entries: the training diverged, or the data needs cleaning.")


def _check_together(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(
            f"`{name}` is on {value.device}, `{other_name}` on {other.device}: "
            f"move one, {name}.to({str(other.device)!r})."
        )
    if value.dtype != other.dtype:
        raise ValueError(
            f"`{name}` is {value.dtype}, `{other_name}` is {other.dtype}: convert one, {name}.to({other.dtype})."
        )


def _check_slopes(slopes: tuple[float, float]) -> None:
    if not (isinstance(slopes, tuple) and len(slopes) == 2 and all(isinstance(s, int | float) for s in slopes)):
        raise TypeError(f"`slopes` must be a pair of numbers (s-, s+); got {slopes!r}.")
    if not all(math.isfinite(s) for s in slopes):
        raise ValueError(f"`slopes` must be finite; got {slopes!r}.")
    if slopes[0] == slopes[1]:
        raise ValueError(f"`slopes` must differ; with {slopes!r} the block is linear and has no kink.")
