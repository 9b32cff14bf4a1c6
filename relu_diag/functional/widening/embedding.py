"""A network inside a wider one that computes the same: unit replication, inactive units, inactive propagation.

What is returned is cut from the graph of the weights that were given: a wider network starts a graph of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, SupportsIndex, get_args

import torch
from torch import Tensor

from relu_diag.functional._checks import check_matrix, check_together
from relu_diag.functional.block import BlockSignal, ShallowBlock, check_fit
from relu_diag.functional.tolerances import FLOAT64, tolerances
from relu_diag.functional.widening._factors import check_factors, check_unit, usual_length
from relu_diag.functional.widening._sidedness import most_negative_direction, orthogonal_directions

_InactiveKind = Literal["negative", "positive", "orthogonal"]

_ONE_SIDED = (
    "every direction has a sample on the other side or within rounding of its kink, by a linear program. With a hidden "
    "bias, a constant column of X, there always is one"
)
_WHY_NONE: dict[str, str] = {
    "negative": _ONE_SIDED,
    "positive": _ONE_SIDED,
    "orthogonal": "the inputs span all dimensions. With s- = 0 and a hidden bias negative units exist",
}


def replicate_unit(
    block: ShallowBlock, unit: SupportsIndex, beta: Sequence[float] | Tensor, gamma: Sequence[float] | Tensor
) -> ShallowBlock:
    """The network in which copies ``(beta_l w, gamma_l h)`` take the place of a unit ``(w, h)``.

    ``sum_l gamma_l h rho(beta_l w . x) = h rho(w . x)`` for every ``x``, as ``beta_l > 0`` and
    ``sum_l beta_l gamma_l = 1``: the function is the same everywhere. `replication_preserves` says what becomes of a
    stationary point.

    Source: Wu et al., section 4.3; Fukumizu et al. 2019.

    Args:
        block: The network.
        unit: Index of the hidden neuron.
        beta: Factors of the input weights, shape ``(L,)``.
        gamma: Factors of the output weights, shape ``(L,)``; what rounding left of ``sum beta gamma - 1`` is divided
            out of them.

    Returns:
        Network of width ``I + L - 1``: the first copy in the unit's place, the others behind the last neuron.

    Raises:
        ValueError: If there is no such unit, a ``beta`` is not positive, or ``sum beta gamma`` is not 1.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0], [0.0, 1.0]]), H=torch.tensor([[2.0, 3.0]]))
        >>> wider = replicate_unit(block, unit=0, beta=(1.0, 1.0), gamma=(1.5, -0.5))
        >>> wider.W
        tensor([[1., 0.],
                [0., 1.],
                [1., 0.]])
        >>> wider.H
        tensor([[ 3.,  3., -1.]])
    """
    unit = check_unit(block, unit)
    beta, gamma = check_factors("beta", beta), check_factors("gamma", gamma)
    if len(beta) != len(gamma):
        raise ValueError(f"`beta` and `gamma` need one entry per copy each; got {len(beta)} and {len(gamma)}.")
    if not bool((beta > 0).all()):
        raise ValueError(
            f"`beta` must be positive, so that no copy sees a sample from the other side; got {beta.tolist()}. "
            "Signs go into `gamma`."
        )
    total = float(beta @ gamma)
    if abs(total - 1) > FLOAT64.one * float((beta * gamma).abs().sum()):
        raise ValueError(
            f"`sum(beta * gamma)` must be 1 for the function to stay; got {total:.8g}. Divide gamma by that number."
        )
    block = _cut(block)
    W, H = block.W.clone(), block.H.clone()
    W_copies = (beta.to(W.device)[:, None] * W[unit].double()).to(W.dtype)
    H_copies = ((gamma / total).to(W.device) * H[:, unit, None].double()).to(H.dtype)
    W[unit], H[:, unit] = W_copies[0], H_copies[:, 0]
    return replace(block, W=torch.cat([W, W_copies[1:]]), H=torch.cat([H, H_copies[:, 1:]], dim=1))


def add_inactive_units(
    block: ShallowBlock, X: Tensor, count: int, kind: _InactiveKind = "negative", H_new: Tensor | None = None
) -> ShallowBlock:
    """The network with units that no sample activates: the function is the same on the data, whatever their ``H``.

    "negative" units have ``w . x_k < 0`` and "positive" ones ``w . x_k > 0`` for every sample ``x_k != 0``; they need
    the slope there to be 0. A direction exists iff a linear program is feasible, and always where ``X`` has a constant
    column; the one taken has the largest margin in it, the others are within half of that margin. "orthogonal" units
    have ``w . x_k = 0`` and exist iff the inputs do not span the space. Their length is the median of the present ones.

    Units on the flat side keep a stationary point stationary and a local minimum a local minimum. What orthogonal ones
    do depends on their output weights: `addition_preserves`.

    Source: Wu et al., appendix M; Fukumizu et al. 2019.

    Args:
        block: The network.
        X: All inputs, shape ``(N, d)``.
        count: Number of units, at least 1.
        kind: "negative", "positive" or "orthogonal".
        H_new: Their output weights, shape ``(J, count)``; None: zero, which keeps the function off the data, too.

    Returns:
        Network of width ``I + count``, the new units last.

    Raises:
        ValueError: If there is no such unit: the slope on that side is not 0, the inputs are on all sides, or span the
            space; if the kind is unknown; or if ``count`` or the shape of ``H_new`` does not fit.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> X = torch.tensor([[-2.0, 1.0], [0.5, 1.0]])  # with the constant 1 of a bias
        >>> wider = add_inactive_units(block, X, count=2, H_new=torch.ones(1, 2))
        >>> bool((X @ wider.W[1:].T < 0).all()), torch.equal(wider(X), block(X))
        (True, True)
    """
    check_matrix("X", X)
    check_fit(block, BlockSignal(X, X.new_zeros(len(X), len(block.H))))
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"`count` must be a whole number of units, at least 1; got {count!r}.")
    if kind not in get_args(_InactiveKind):
        raise ValueError(f"`kind` must be one of {list(get_args(_InactiveKind))}; got {kind!r}.")
    if (kind == "negative" and block.slopes[0] != 0) or (kind == "positive" and block.slopes[1] != 0):
        raise ValueError(
            f"`kind` {kind!r} needs a slope of 0 on that side, or the units are not inactive; the slopes (s-, s+) are "
            f"{block.slopes}. 'orthogonal' units work for any slopes."
        )
    points = X.detach().double()
    directions = _orthogonal(points, count) if kind == "orthogonal" else _one_sided(block, points, count, kind)
    if not len(directions):
        raise ValueError(f"No {kind} unit exists: {_WHY_NONE[kind]}.")
    H_new = block.H.new_zeros(len(block.H), count) if H_new is None else H_new
    return _widened(block, (usual_length(block) * directions).to(block.W), H_new)


def add_inactive_propagation(block: ShallowBlock, W_new: Tensor) -> ShallowBlock:
    """The network with units that nothing reads, ``h = 0``: the function is the same everywhere.

    A stationary point stays one for ``w = 0`` and ``w = beta w_i``, ``beta > 0``; otherwise the output weights feel
    ``dL/dh_j = w . d_j``, most along an extremal direction (`extremal_directions`).

    Source: Wu et al., appendix N; Fukumizu et al. 2019.

    Args:
        block: The network.
        W_new: Input weights of the new units, shape ``(n, d)``.

    Returns:
        Network of width ``I + n``, the new units last.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[2.0]]))
        >>> add_inactive_propagation(block, W_new=torch.tensor([[0.0, 1.0]])).H
        tensor([[2., 0.]])
    """
    check_matrix("W_new", W_new)
    return _widened(block, W_new, W_new.new_zeros(len(block.H), len(W_new)))


def _widened(block: ShallowBlock, W_new: Tensor, H_new: Tensor) -> ShallowBlock:
    """The block with units of input weights ``(n, d)`` and output weights ``(J, n)`` behind the last.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit.
    """
    check_matrix("H_new", H_new)
    for name, value, expected in (
        ("W_new", W_new, (len(W_new), block.W.shape[1])),
        ("H_new", H_new, (len(block.H), len(W_new))),
    ):
        check_together(name, value, "W", block.W)
        if value.shape != expected:
            raise ValueError(f"`{name}` needs the shape {expected}, one unit each; got {tuple(value.shape)}.")
    block = _cut(block)
    return replace(block, W=torch.cat([block.W, W_new.detach()]), H=torch.cat([block.H, H_new.detach()], dim=1))


def _cut(block: ShallowBlock) -> ShallowBlock:
    """The block without the graph of its weights."""
    bias = block.output_bias
    if bias is not None and bias.requires_grad:
        bias = bias.detach()
    return replace(block, W=block.W.detach(), H=block.H.detach(), output_bias=bias)


def _one_sided(block: ShallowBlock, X: Tensor, count: int, kind: _InactiveKind) -> Tensor:
    """Unit vectors that see every sample from the flat side, two roundings off the kink at least; or none."""
    direction, margin = most_negative_direction(X if kind == "negative" else -X) or (X[0], 0.0)
    if margin <= 4 * tolerances(block.W.dtype).eps:
        return X[:0]
    axes = torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
    axis = torch.arange(count - 1, device=X.device)
    sign = 1.0 - 2.0 * (axis // len(axes) % 2)
    # Equal units would stay equal in training.
    others = direction + margin / 2 * sign[:, None] * axes[axis % len(axes)]
    return torch.cat([direction[None], others / others.norm(dim=1, keepdim=True)])


def _orthogonal(X: Tensor, count: int) -> Tensor:
    """Unit vectors orthogonal to all samples: a basis, its negative, and so on; or none."""
    basis = orthogonal_directions(X)
    index = torch.arange(count if len(basis) else 0, device=X.device)
    return basis[index % max(len(basis), 1)] * (1.0 - 2.0 * (index // max(len(basis), 1) % 2))[:, None]
