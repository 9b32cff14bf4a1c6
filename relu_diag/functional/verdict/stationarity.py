"""Exact stationarity where the loss has kinks: no direction goes down, to first order (Wu et al., Definition 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.local import (
    NeuronGeometry,
    all_fan_rays,
    geometry_from_sums,
    kink_groups,
    neuron_sums,
    radial_directions,
    tangential_part,
)
from relu_diag.functional.tolerances import FLOAT64, derivative_tolerance, kink_tolerance, tolerances
from relu_diag.functional.verdict._rounding import ResidualRounding, rounding_of_signal
from relu_diag.functional.verdict._weight import Conditions, beyond, positive, seen_by, weighed


@dataclass(frozen=True, slots=True, eq=False)
class Stationarity:
    """Which neurons are stationary, and by how much.

    A derivative is judged relative to its natural scale, the sum of the absolute terms it is made of, over the samples
    that the neuron sees: ``||h_i|| sum_k |s(z_ki)| ||e_k|| ||x_k||`` for input weights (more where a signal has its own
    ``C``), ``sum_k ||e_k|| |rho(z_ki)|`` for output weights, ``sum_k ||e_k||`` for the output bias. A derivative within
    the rounding of its terms counts as zero. Where these samples are met, up to the tolerance, a violation counts by
    the square root of their share of the squared residuals: no more of the loss is to be gained there.

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
        pull_scale: The same per unit of output weight: the scale of the derivatives ``D_j``, shape ``(I,)``.
        tol: Relative tolerance used.
        geometry: The first-order geometry behind it.
        samples: Number of samples.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> found = stationarity(block, BlockSignal(torch.tensor([[0.0, 1.0]]), G=torch.tensor([[1.0]])))
        >>> found.slope.item(), found.margin.item()  # on the kink, up by 1 at least on both sides
        (0.0, 0.0)
    """

    stationary: Tensor
    decided: Tensor
    violation: Tensor
    bias_violation: float
    residual: Tensor
    margin: Tensor
    scale: Tensor
    pull_scale: Tensor
    tol: float
    geometry: NeuronGeometry
    samples: int

    @property
    def within_noise(self) -> Tensor:
        """Whether the slope is no more than random samples leave at a stationary point, bool, shape ``(I,)``."""
        slope = torch.maximum(self.geometry.radial.abs(), -self.geometry.steepest)
        return slope <= FLOAT64.standard_errors * self.geometry.noise

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
            f"tolerance {self.tol:.3g}{self._noise()}"
        )

    def _noise(self) -> str:
        """How many neurons would look like that at a stationary point, in words."""
        more = int((self.within_noise & ~self.stationary).sum())
        if not more or self.samples < FLOAT64.enough:
            return ""
        return f"; {more} more stationary within the noise of {self.samples:,} samples"


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


def assess(
    block: ShallowBlock,
    signal: BlockSignal,
    kink_tol: float | None,
    tol: float,
    rounding: ResidualRounding | None = None,
) -> Stationarity:
    """`stationarity` with a tolerance already chosen, and what is known of the rounding of the residuals.

    Args:
        block: The network.
        signal: Inputs and loss gradients.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.
        tol: Tolerance on derivatives relative to their natural scale.
        rounding: What the residuals may be wrong by; None: what the signal says of it.

    Returns:
        The answer per neuron, with margins.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> signal = BlockSignal(X=torch.tensor([[1.0, 0.0], [1.0, 0.0]]), G=torch.tensor([[1.0], [-0.9]]))
        >>> found = assess(block, signal, kink_tol=None, tol=0.1)
        >>> found.stationary.item(), round(found.violation.item(), 4)  # 0.1 of terms that add up to 1.9
        (True, 0.0526)
    """
    kink_tol = kink_tolerance(kink_tol, block.W.dtype)
    eps = FLOAT64.roundings * tolerances(block.W.dtype).eps
    if rounding is None:
        rounding = rounding_of_signal(block, signal, kink_tol)
    sums = neuron_sums(block, signal, kink_tol)
    geometry = geometry_from_sums(block, sums)
    slope = torch.maximum(geometry.radial.abs(), -geometry.steepest)
    push = geometry.output_gradient.norm(dim=0)
    # The rounding of a pre-activation is one of the lengths it is made of, however small it is itself.
    of_Z = block.W.detach().double().norm(dim=1) * sums.terms_per_output
    conditions = Conditions(
        input=beyond(slope, eps * sums.terms) / positive(sums.terms),
        output=beyond(push, eps * of_Z) / positive(sums.output_terms),
        slope=slope,
        push=push,
        pull_scale=sums.terms_per_output,
    )
    violation, hidden = weighed(block, signal, kink_tol, tol, conditions, rounding)
    bias_violation = _bias_violation(block, signal, rounding)
    residual, margin = _margins(block, geometry)
    broken = (violation > tol) | (bias_violation > tol)
    held = margin >= -tol * sums.terms
    if rounding is not None:
        open_ones = (~geometry.exact & ~held & margin.isfinite()).nonzero().squeeze(1)
        if len(open_ones):  # what is within the rounding of the residuals lets no kink go
            pull = seen_by(block, signal, kink_tol, open_ones, rounding.usable).pull
            held[open_ones] = margin[open_ones] >= -pull * block.H.detach().double().norm(dim=0)[open_ones]
    decided = broken | ((geometry.exact | held) & ~hidden)
    return Stationarity(
        stationary=~broken & decided,
        decided=decided,
        violation=violation,
        bias_violation=bias_violation,
        residual=residual,
        margin=margin,
        scale=sums.terms,
        pull_scale=sums.terms_per_output,
        tol=tol,
        geometry=geometry,
        samples=len(signal.X),
    )


def _bias_violation(block: ShallowBlock, signal: BlockSignal, rounding: ResidualRounding | None) -> float:
    """The sum of the residuals over the sum of their lengths, 0 without an output bias or within rounding."""
    if block.output_bias is None:
        return 0.0
    G = signal.G.detach().double()
    total = float(G.sum(0).norm())
    if rounding is not None and total <= float(rounding.most.sum()) and total <= float(rounding.usable.sum()):
        return 0.0
    return total / (float(G.norm(dim=1).sum()) or 1.0)


def _margins(block: ShallowBlock, geometry: NeuronGeometry) -> tuple[Tensor, Tensor]:
    """What no kink could hold, and the smallest slope along the rays of the kinks."""
    residual = tangential_part(radial_directions(block.W.detach().double()), geometry.smooth).norm(dim=1)
    # Kinks that were too many to keep are in no group: nothing is known then.
    margin = torch.full_like(residual, torch.inf).masked_fill(~geometry.exact, torch.nan)
    groups = kink_groups(block, geometry.smooth, geometry.kinks)
    for group, rays in zip(groups, all_fan_rays([group.X for group in groups]), strict=True):
        outside = torch.from_numpy(group.g - group.g @ group.basis.T @ group.basis)
        residual[group.neurons] = outside.norm(dim=1).to(residual)
        margin[group.neurons] = torch.nan if rays is None else torch.from_numpy(group.lowest(rays)).to(margin)
    return residual, margin
