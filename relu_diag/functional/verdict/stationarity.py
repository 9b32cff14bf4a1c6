"""Exact stationarity where the loss has kinks: no direction goes down, to first order (Wu et al., Definition 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.linalg import vector_norm

from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.local import (
    NeuronGeometry,
    all_fan_rays,
    kink_groups,
    neuron_geometry,
    radial_directions,
    tangential_part,
)
from relu_diag.functional.tolerances import FLOAT64, derivative_tolerance


@dataclass(frozen=True, slots=True, eq=False)
class Stationarity:
    """Which neurons are stationary, and by how much.

    Derivatives are judged relative to their natural scale: ``s ||h_i|| S`` for input weights, ``s ||w_i|| S`` for
    output weights, ``sum_k ||e_k||`` for the output bias, with ``S = sum_k ||e_k|| ||x_k||`` and ``s`` the larger
    absolute slope. (Where a signal has its own ``C``, that of input weights is at least ``s sum_k |c_ki| ||x_k||``.)

    Attributes:
        stationary: Every derivative vanishes or, on a kink, points upwards: output weights, radial, all tangential
            directions, and the output bias, which counts for every neuron; bool, shape ``(I,)``.
        decided: Whether that is proven either way; an undecided neuron is not called stationary, bool, shape ``(I,)``.
        violation: Largest violation of the conditions on the neuron's own weights, relative to its scale, to be
            compared with ``tol``, shape ``(I,)``.
        bias_violation: The same for the output bias, 0 without one.
        residual: Part of the derivative that no kink could hold (``||r||``), loss per unit length, shape ``(I,)``.
        margin: Smallest one-sided slope along the rays of the neuron's kinks: how far its kinks are from letting go,
            negative where they do; infinite without kinks, nan where the rays are too many, shape ``(I,)``.
        scale: Natural scale of the derivative by the input weights, loss per unit length, shape ``(I,)``.
        tol: Relative tolerance used.
        geometry: The first-order geometry behind it.
    """

    stationary: Tensor
    decided: Tensor
    violation: Tensor
    bias_violation: float
    residual: Tensor
    margin: Tensor
    scale: Tensor
    tol: float
    geometry: NeuronGeometry

    @property
    def slope(self) -> Tensor:
        """Smallest one-sided tangential derivative, <= 0, shape ``(I,)``."""
        return self.geometry.steepest

    @property
    def direction(self) -> Tensor:
        """Unit tangential direction that attains the slope, zero where the slope is, shape ``(I, d)``."""
        return self.geometry.direction

    def __str__(self) -> str:
        worst = int(self.violation.argmax())
        return (
            f"{int(self.stationary.sum())} of {len(self.stationary)} neurons stationary, "
            f"{int((~self.decided).sum())} undecided; largest violation {self.violation[worst]:.3g} (neuron {worst}), "
            f"tolerance {self.tol:.3g}"
        )


def stationarity(
    block: ShallowBlock, signal: BlockSignal, kink_tol: float | None = None, tol: float | None = None
) -> Stationarity:
    """Whether each neuron is stationary: no direction of its weights lowers the loss to first order.

    For the input weights ``g . v + sum_kinks q |x . v| >= 0`` for every ``v``: exact for any kinks in two dimensions,
    for linearly independent kinks, for convex ones, and for as many others as can be enumerated.

    Source: Wu et al., Definition 3.3.

    Args:
        block: The network.
        signal: Inputs and loss gradients, ``N`` samples.
        kink_tol: Relative distance that counts as on the kink; None: 1e-10 in float64, 1e-6 in float32.
        tol: Tolerance on derivatives relative to their natural scale; None: 1e-9 in float64, 1e-5 in float32.

    Returns:
        The answer per neuron, with margins.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> kink = torch.tensor([[0.0, 1.0]])
        >>> stationarity(block, BlockSignal(kink, G=torch.tensor([[1.0]]))).stationary  # up on both sides
        tensor([True])
        >>> stationarity(block, BlockSignal(kink, G=torch.tensor([[-1.0]]))).stationary  # down on one
        tensor([False])
    """
    return assess(block, signal, kink_tol, derivative_tolerance(tol, kink_tol, block.W.dtype))


def assess(block: ShallowBlock, signal: BlockSignal, kink_tol: float | None, tol: float) -> Stationarity:
    """`stationarity` with a tolerance already chosen.

    Args:
        block: The network.
        signal: Inputs and loss gradients.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.
        tol: Tolerance on derivatives relative to their natural scale.

    Returns:
        The answer per neuron, with margins.
    """
    block, signal = without_rounding(block, signal)
    geometry = neuron_geometry(block, signal, kink_tol)
    scale = input_scale(block, signal)
    output_scale = block.W.double().norm(dim=1) * derivative_scale(block, signal)
    violation = torch.maximum(
        _relative(torch.maximum(geometry.radial.abs(), -geometry.steepest), scale),
        _relative(geometry.output_gradient.abs().amax(dim=0), output_scale),
    )
    bias_violation = _bias_violation(block, signal)
    residual, margin = _margins(block, geometry)
    broken = (violation > tol) | (bias_violation > tol)
    decided = broken | geometry.exact | (margin >= -tol * scale)
    return Stationarity(~broken & decided, decided, violation, bias_violation, residual, margin, scale, tol, geometry)


def derivative_scale(block: ShallowBlock, signal: BlockSignal) -> Tensor:
    """The scale of a derivative by an input weight, for an output weight of 1.

    Args:
        block: The network.
        signal: Its signal.

    Returns:
        ``max(|s-|, |s+|) sum_k ||e_k|| ||x_k||``, float64, shape ``()``.
    """
    G_norm, X_norm = (vector_norm(value.detach(), dim=1, dtype=torch.float64) for value in (signal.G, signal.X))
    lengths: Tensor = G_norm @ X_norm
    return lengths * max(map(abs, block.slopes))


def input_scale(block: ShallowBlock, signal: BlockSignal) -> Tensor:
    """The natural scale of the derivative by each neuron's input weights.

    Args:
        block: The network.
        signal: Its signal.

    Returns:
        Loss per unit length, float64, shape ``(I,)``.
    """
    scale: Tensor = block.H.detach().double().norm(dim=0) * derivative_scale(block, signal)
    if signal.C is None:
        return scale
    lengths = signal.X.detach().norm(dim=1) @ signal.C.detach().abs()
    return torch.maximum(scale, max(map(abs, block.slopes)) * lengths.double())


def without_rounding(block: ShallowBlock, signal: BlockSignal) -> tuple[ShallowBlock, BlockSignal]:
    """Block and signal in which weights that are zero up to rounding are zero.

    Args:
        block: The network.
        signal: Its signal.

    Returns:
        The same, with the ``w_i`` and ``h_i`` below 1e-14 of the largest set to zero.
    """
    W, H = block.W.detach(), block.H.detach()
    w_norm, h_norm = W.norm(dim=1, keepdim=True), H.norm(dim=0)
    W_kept = torch.where(w_norm > FLOAT64.small_weight * w_norm.max(), W, 0.0)
    H_kept = torch.where(h_norm > FLOAT64.small_weight * h_norm.max(), H, 0.0)
    if not torch.equal(W, W_kept):
        signal = replace(signal, Z=None)
    return replace(block, W=W_kept, H=H_kept), signal


def _relative(value: Tensor, scale: Tensor) -> Tensor:
    return value / torch.where(scale > 0, scale, 1.0)


def _bias_violation(block: ShallowBlock, signal: BlockSignal) -> float:
    if block.output_bias is None:
        return 0.0
    G = signal.G.detach().double()
    return float(_relative(G.sum(0).abs().max(), G.norm(dim=1).sum()))


def _margins(block: ShallowBlock, geometry: NeuronGeometry) -> tuple[Tensor, Tensor]:
    """What no kink could hold, and the smallest slope along the rays of the kinks."""
    residual = tangential_part(radial_directions(block.W.double()), geometry.smooth).norm(dim=1)
    # Kinks that were too many to keep are in no group: nothing is known then.
    margin = torch.full_like(residual, torch.inf).masked_fill(~geometry.exact, torch.nan)
    groups = kink_groups(block, geometry.smooth, geometry.kinks)
    for group, rays in zip(groups, all_fan_rays([group.X for group in groups]), strict=True):
        outside = torch.from_numpy(group.g - group.g @ group.basis.T @ group.basis)
        residual[group.neurons] = outside.norm(dim=1).to(residual)
        margin[group.neurons] = torch.nan if rays is None else torch.from_numpy(group.lowest(rays)).to(margin)
    return residual, margin
