"""What an embedding does to a stationary point: whether it stays one, and whether a local minimum stays one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import SupportsIndex

from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, check_fit
from relu_diag.functional.local import geometry_from_sums, neuron_sums
from relu_diag.functional.tolerances import derivative_tolerance
from relu_diag.functional.verdict import Stationarity, assess, escapes_at
from relu_diag.functional.widening._factors import check_factors, check_unit


@dataclass(frozen=True, slots=True, eq=False)
class Preservation:
    """What an embedding keeps of a stationary point, and of a local minimum without escape neurons ("type-1").

    Attributes:
        stationarity: A stationary point stays one.
        local_minimality: A type-1 local minimum stays one.
        decided: Whether both are proven either way; what is not proven is not called kept.
        stationary: Whether the unit is proven to be stationary now. Where not, there is nothing to keep.
        slope: Largest one-sided derivative ``max_v |L'(v)|`` of the loss along a tangential unit vector, over the units
            it is about, loss per unit length.
        scale: Natural scale of that derivative.

    Example:
        >>> import torch
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> signal = BlockSignal(X=torch.tensor([[0.0, 1.0]]), G=torch.tensor([[1.0]]))
        >>> replication_preserves(block, signal, unit=0, gamma=(1.0, 0.0)).stationarity
        True
    """

    stationarity: bool
    local_minimality: bool
    decided: bool
    stationary: bool
    slope: float
    scale: float

    def __str__(self) -> str:
        if not self.stationary:
            return "nothing to keep: the unit is not stationary, or not provably"
        stationarity, minimality = (
            "kept" if keeps else "lost" if self.decided else "undecided"
            for keeps in (self.stationarity, self.local_minimality)
        )
        return (
            f"stationarity {stationarity}, local minimality {minimality}; "
            f"largest tangential slope {self.slope:.3g}, scale {self.scale:.3g}"
        )


def replication_preserves(
    block: ShallowBlock,
    signal: BlockSignal,
    unit: SupportsIndex,
    gamma: Sequence[float] | Tensor,
    kink_tol: float | None = None,
    tol: float | None = None,
) -> Preservation:
    """What replicating a unit of a stationary point keeps, before it is done.

    The copy with ``gamma_l`` feels ``gamma_l L'(v)``. So with a tangential derivative of the unit that is not 0,
    stationarity is kept iff all ``gamma_l >= 0``, and type-1 local minimality iff all ``gamma_l > 0``; without one,
    both are kept whatever ``gamma`` is. ``beta`` does not matter.

    Source: Wu et al., Proposition 4.9.

    Args:
        block: The network, at a stationary point.
        signal: Inputs and loss gradients of the whole data set.
        unit: Index of the hidden neuron.
        gamma: Factors of the output weights of its copies, shape ``(L,)``.
        kink_tol: Relative distance that counts as on the kink; None: 1e-10 in float64, 1e-6 in float32.
        tol: Tolerance on derivatives relative to their natural scale; None: 1e-9 in float64, 1e-5 in float32.

    Returns:
        The prediction.

    Example:
        >>> import torch
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> signal = BlockSignal(X=torch.tensor([[0.0, 1.0]]), G=torch.tensor([[1.0]]))  # on the kink, up on one side
        >>> print(replication_preserves(block, signal, unit=0, gamma=(1.5, -0.5)))
        stationarity lost, local minimality lost; largest tangential slope 1, scale 1
        >>> print(replication_preserves(block, signal, unit=0, gamma=(1.0, 0.0)))
        stationarity kept, local minimality lost; largest tangential slope 1, scale 1
    """
    check_fit(block, signal)
    i = check_unit(block, unit)
    factors = check_factors("gamma", gamma)
    tol = derivative_tolerance(tol, kink_tol, block.W.dtype)
    found = assess(block, signal, kink_tol, tol)
    # Without a descent of the loss, nor of its negative, there is no slope but rounding.
    upwards = assess(block, _negative(signal), kink_tol, tol)
    steep = bool(upwards.violation[i] > tol) or bool(found.violation[i] > tol)
    flat = bool(upwards.decided[i]) and not steep
    lowest = float(factors.min())
    return Preservation(
        stationarity=flat or lowest >= 0,
        local_minimality=flat or lowest > 0,
        decided=bool(found.decided[i]) and (flat or steep or lowest > 0),
        stationary=bool(found.stationary[i]),
        slope=0.0 if flat else 0.0 - min(float(upwards.slope[i]), float(found.slope[i])),
        scale=float(found.scale[i]),
    )


def addition_preserves(
    wider: ShallowBlock, signal: BlockSignal, added: int, kink_tol: float | None = None, tol: float | None = None
) -> Preservation:
    """What units added without a change of the outputs keep of a stationary point: inactive units and propagation.

    The signal stays, so the units that were there before feel what they felt; the new ones must be stationary, and for
    type-1 local minimality no escape neurons. Negative units keep both. Orthogonal units and inactive propagation may
    not: with ``w . x_k = 0`` every sample is on their kink, with ``h = 0`` the output weights feel ``w . d_j``.

    Source: Wu et al., Proposition M.1, appendices M.1 and N.

    Args:
        wider: The network with the new units last.
        signal: Inputs and loss gradients of the whole data set.
        added: Number of new units.
        kink_tol: Relative distance that counts as on the kink; None: 1e-10 in float64, 1e-6 in float32.
        tol: Tolerance on derivatives relative to their natural scale; None: 1e-9 in float64, 1e-5 in float32.

    Returns:
        The prediction; ``stationary`` is True, as nothing is asked of the other units.

    Raises:
        ValueError: If the network has not as many units.

    Example:
        >>> import torch
        >>> wider = ShallowBlock(W=torch.tensor([[1.0, 0.0], [0.0, 1.0]]), H=torch.tensor([[1.0, 0.0]]))
        >>> signal = BlockSignal(X=torch.tensor([[0.0, 1.0]]), G=torch.tensor([[1.0]]))
        >>> print(addition_preserves(wider, signal, added=1))  # h = 0 feels the sample
        stationarity lost, local minimality lost; largest tangential slope 0, scale 0
    """
    check_fit(wider, signal)
    if not 1 <= added <= len(wider.W):
        raise ValueError(f"`added` must be a number of units of the network, 1 to {len(wider.W)}; got {added!r}.")
    new = ShallowBlock(wider.W[-added:], wider.H[:, -added:], wider.slopes)
    signal = BlockSignal(signal.X, signal.G, None if signal.C is None else signal.C[:, -added:])
    found = assess(new, signal, kink_tol, derivative_tolerance(tol, kink_tol, wider.W.dtype))
    escape = escapes_at(new, signal, found, kink_tol)
    # A violation, or an escape neuron, settles it whatever the undecided units are.
    broken, settled = bool((found.violation > found.tol).any()), bool(found.decided.all())
    stationarity = settled and not broken
    escapes, known = bool(escape.mask.any()), bool(escape.decided.all())
    return Preservation(
        stationarity=stationarity,
        local_minimality=stationarity and known and not escapes,
        decided=broken or (settled and (known or escapes)),
        stationary=True,
        slope=_largest_slope(new, signal, found, kink_tol)[0],
        scale=float(found.scale.max()),
    )


def _negative(signal: BlockSignal) -> BlockSignal:
    """The signal of the negative loss."""
    return replace(signal, G=-signal.G, C=None if signal.C is None else -signal.C)


def _largest_slope(
    block: ShallowBlock, signal: BlockSignal, found: Stationarity, kink_tol: float | None
) -> tuple[float, bool]:
    """``max_v |L'(v)|`` over all units, and whether it is proven; where not, it is attained."""
    upwards = geometry_from_sums(block, neuron_sums(block, signal, kink_tol).scaled(-1.0))
    slope = 0.0 - min(float(upwards.steepest.min()), float(found.slope.min()))
    return slope, bool((upwards.exact & found.geometry.exact).all())
