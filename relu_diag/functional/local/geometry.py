"""One-sided derivatives of the loss with respect to the input weights of each neuron (Wu et al., Lemma 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.local._descents import smooth_slopes, steepest_descents
from relu_diag.functional.local._lengths import column_lengths, lengths
from relu_diag.functional.local.chunks import chunks
from relu_diag.functional.local.directions import radial_directions, tangential_part
from relu_diag.functional.local.kink_samples import KinkSamples
from relu_diag.functional.local.noise import kinks_beyond_chance, slope_noise, slope_to_noise
from relu_diag.functional.local.sums import NeuronSums, neuron_sums, slopes_at
from relu_diag.functional.tables import counted, html_table, summary_of


@dataclass(frozen=True, slots=True, eq=False)
class NeuronGeometry:
    """First-order geometry of the loss, per neuron, in float64. Slopes are loss per unit length of ``w_i``.

    When ``w_i`` moves along ``D`` the one-sided derivative is ``smooth_i . D + sum_kinks q |x . D|`` with
    ``q = (s+ - s-) / 2 * c``.

    Attributes:
        radial: Derivative along ``w_i / ||w_i||``, 0 for ``w_i = 0``, shape ``(I,)``.
        steepest: Smallest one-sided derivative over tangential unit vectors and zero, <= 0, shape ``(I,)``.
        direction: Unit tangential direction that attains it, zero where the slope is, shape ``(I, d)``.
        output_gradient: Loss gradient with respect to ``H``, shape ``(J, I)``.
        kink_count: Number of samples on the kink of each neuron, 0 where chance alone puts so many there, long, shape
            ``(I,)``.
        within: Number of samples on the kink of each neuron, those by chance as well, long, shape ``(I,)``.
        noise: Standard error of the derivative, shape ``(I,)``; a slope below it says nothing (`slope_to_noise`).
        pull: Length ``||D(w_i / ||w_i||)||`` of the derivatives of the loss by the output weights of a neuron in that
            direction, the rate at which a balanced small one grows; 0 for ``w_i = 0``, shape ``(I,)``.
        smooth: Smooth part of the derivative, shape ``(I, d)``.
        kinks: Kink samples with nonzero gradient.
        exact: Whether ``steepest`` is proven to be the minimum; where not, it is attained, shape ``(I,)``, bool.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> geometry = neuron_geometry(block, BlockSignal(X=torch.tensor([[3.0, 4.0]]), G=torch.tensor([[1.0]])))
        >>> geometry.radial.tolist(), geometry.steepest.tolist(), geometry.direction.tolist()
        ([3.0], [-4.0], [[-0.0, -1.0]])
    """

    radial: Tensor
    steepest: Tensor
    direction: Tensor
    output_gradient: Tensor
    kink_count: Tensor
    within: Tensor
    noise: Tensor
    pull: Tensor
    smooth: Tensor
    kinks: KinkSamples
    exact: Tensor

    @property
    def slope_to_noise(self) -> Tensor:
        """The steepest slope in standard errors, about 1 where only noise is there, shape ``(I,)``."""
        return slope_to_noise(self.steepest, self.noise)

    def __str__(self) -> str:
        neuron = int(self.steepest.argmin())
        return (
            f"{counted(len(self.steepest), 'neuron')}, {int((self.kink_count > 0).sum())} on a kink; "
            f"steepest tangential slope {self.steepest[neuron]:.3g} (neuron {neuron}), "
            f"largest |radial derivative| {self.radial.abs().max():.3g}"
        )

    def summary(self) -> str:
        """The geometry of the layer as a table.

        Returns:
            Text, one fact a line.
        """
        neuron = int(self.steepest.argmin())
        unproven = int((~self.exact).sum())
        rows = [
            ("neurons", str(len(self.steepest))),
            ("on a kink", str(int((self.kink_count > 0).sum()))),
            ("steepest tangential slope", f"{self.steepest[neuron]:.3g} (neuron {neuron})"),
            ("slopes proven to be the steepest", f"{len(self.exact) - unproven} of {len(self.exact)}"),
            ("largest |radial derivative|", f"{self.radial.abs().max():.3g}"),
            ("largest |output gradient|", f"{self.output_gradient.abs().max():.3g}"),
        ]
        return summary_of(rows)

    def _repr_html_(self) -> str:
        return html_table(self.summary())


@dataclass(frozen=True, slots=True, eq=False)
class NeuronSlopes:
    """The slopes of a `NeuronGeometry` without their directions: what a log of a run shows.

    Attributes:
        radial: Derivative along ``w_i / ||w_i||``, shape ``(I,)``.
        steepest: Smallest one-sided derivative over tangential unit vectors and zero, shape ``(I,)``.
        output_gradient: Loss gradient with respect to ``H``, shape ``(J, I)``.
        kink_count: Number of samples on the kink of each neuron, 0 where chance alone puts so many there, ``(I,)``.
        noise: Standard error of the derivative, shape ``(I,)``.
        pull: Rate at which a balanced small neuron in the direction of each grows, shape ``(I,)``.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> signal = BlockSignal(X=torch.tensor([[3.0, 4.0]]), G=torch.tensor([[1.0]]))
        >>> slopes = slopes_from_sums(block, neuron_sums(block, signal))
        >>> slopes.steepest.tolist(), slopes.noise.tolist(), slopes.slope_to_noise.tolist()
        ([-4.0], [5.0], [0.8])
    """

    radial: Tensor
    steepest: Tensor
    output_gradient: Tensor
    kink_count: Tensor
    noise: Tensor
    pull: Tensor

    @property
    def slope_to_noise(self) -> Tensor:
        """The steepest slope in standard errors, about 1 where only noise is there, shape ``(I,)``."""
        return slope_to_noise(self.steepest, self.noise)


def neuron_geometry(block: ShallowBlock, signal: BlockSignal, kink_tol: float | None = None) -> NeuronGeometry:
    """Radial derivative, steepest one-sided tangential slope and its direction, for every neuron.

    Source: Wu et al., Definition 3.1 and Lemma 3.2.

    Args:
        block: The network.
        signal: Inputs and loss gradients, ``N`` samples.
        kink_tol: A sample is on the kink where ``|z_ki| <= kink_tol ||w_i|| ||x_k||``; None: 1e-10 in float64, 1e-6 in
            float32.

    Returns:
        The geometry at these parameters.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> signal = BlockSignal(X=torch.tensor([[0.0, 1.0]]), G=torch.tensor([[-1.0]]))  # on the kink
        >>> print(neuron_geometry(block, signal))
        1 neuron, 1 on a kink; steepest tangential slope -1 (neuron 0), largest |radial derivative| 0
    """
    return geometry_from_sums(block, neuron_sums(block, signal, kink_tol))


def geometry_from_sums(block: ShallowBlock, sums: NeuronSums) -> NeuronGeometry:
    """The geometry that sums over samples add up to, however the samples were split.

    Args:
        block: The network at which the sums were taken.
        sums: Sums over all samples.

    Returns:
        The geometry.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> batches = [BlockSignal(torch.tensor([[1.0, x]]), torch.ones(1, 1)) for x in (2.0, 3.0)]
        >>> geometry_from_sums(block, neuron_sums(block, batches[0]) + neuron_sums(block, batches[1])).steepest.tolist()
        [-5.0]
    """
    sums = replace(sums, smooth=sums.smooth.double().contiguous())
    descents = steepest_descents(block, sums)
    return NeuronGeometry(
        radial=descents.radial,
        steepest=descents.slope,
        direction=descents.direction,
        output_gradient=sums.output_gradient.double(),
        kink_count=torch.where(kinks_beyond_chance(sums), sums.kink_count, 0),
        within=sums.kink_count,
        noise=slope_noise(sums),
        pull=_pull(block, sums),
        smooth=sums.smooth,
        kinks=sums.kinks,
        exact=descents.exact,
    )


def slopes_from_sums(block: ShallowBlock, sums: NeuronSums) -> NeuronSlopes:
    """The slopes that sums over samples add up to: those of `geometry_from_sums`, in a tenth of the time.

    Args:
        block: The network at which the sums were taken.
        sums: Sums over all samples.

    Returns:
        The slopes, in the dtype of the sums where no neuron is on a kink.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> batches = [BlockSignal(torch.tensor([[1.0, x]]), torch.ones(1, 1)) for x in (2.0, 3.0)]
        >>> slopes_from_sums(block, neuron_sums(block, batches[0]) + neuron_sums(block, batches[1])).steepest.tolist()
        [-5.0]
    """
    if len(sums.kinks.c) or bool(sums.lost.any()):
        geometry = geometry_from_sums(block, sums)
        radial = geometry.radial
        steepest = geometry.steepest
    else:
        radial, steepest = smooth_slopes(block.W.detach(), sums.smooth)
    return NeuronSlopes(
        radial=radial,
        steepest=steepest,
        output_gradient=sums.output_gradient,
        kink_count=torch.where(kinks_beyond_chance(sums), sums.kink_count, 0),
        noise=slope_noise(sums),
        pull=_pull(block, sums),
    )


def tangential_derivatives(
    block: ShallowBlock, signal: BlockSignal, V: Tensor, kink_tol: float | None = None
) -> Tensor:
    """One-sided derivatives of the loss when each ``w_i`` moves along its row of ``V``.

    ``g . v + sum_kinks q |x . v|``. The radial part of ``V`` is removed first; what is left is not normalised. With
    ``d = 1`` and ``w != 0`` nothing is left, and the derivative is 0.

    Source: Wu et al., Lemma 3.2.

    Args:
        block: The network.
        signal: Inputs and loss gradients, ``N`` samples.
        V: One direction per neuron, shape ``(I, d)``.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.

    Returns:
        Derivatives, loss per unit of ``V``, float64, shape ``(I,)``.

    Raises:
        ValueError: If ``V`` is not of the shape of ``W`` or not finite.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> signal = BlockSignal(X=torch.tensor([[0.0, 1.0]]), G=torch.tensor([[-1.0]]))  # on the kink
        >>> for v in (1.0, -1.0):  # into the active side, and into the flat one
        ...     print(tangential_derivatives(block, signal, V=torch.tensor([[0.0, v]])).item())
        -1.0
        0.0
    """
    if V.shape != block.W.shape or not bool(torch.isfinite(V).all()):
        raise ValueError(
            f"`V` needs one finite direction per neuron, shape {tuple(block.W.shape)}; got {tuple(V.shape)}."
        )
    V = tangential_part(radial_directions(block.W.detach().double()), V.detach().to(block.W.device).double())
    b = (block.slopes[1] - block.slopes[0]) / 2
    slope = torch.zeros_like(V[:, 0])
    for chunk in chunks(block, signal, kink_tol):
        smooth = (slopes_at(chunk.Z, block.slopes) * chunk.C).T @ chunk.X
        slope += (smooth.double() * V).sum(1)
        row, neuron = chunk.kinks.unbind(1)
        reach = (chunk.X[row].double() * V[neuron]).sum(1).abs()
        slope.index_add_(0, neuron, b * chunk.C[row, neuron].double() * reach)
    return slope


def _pull(block: ShallowBlock, sums: NeuronSums) -> Tensor:
    """``||D(w_i / ||w_i||)||``: what the output weights feel, ``w_i . d_ji``, per length of the input weights."""
    length = lengths(block.W.detach())
    felt = column_lengths(sums.output_gradient).to(length)
    return torch.where(length > 0, felt / length, 0.0)
