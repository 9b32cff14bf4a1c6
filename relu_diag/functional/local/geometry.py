"""One-sided derivatives of the loss with respect to the input weights of each neuron (Wu et al., Lemma 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.local._vertices import descend_at_vertices
from relu_diag.functional.local.chunks import chunks
from relu_diag.functional.local.steepest import steepest_descent
from relu_diag.functional.local.sums import KinkSamples, NeuronSums, neuron_sums, slopes_at
from relu_diag.functional.tolerances import BUDGETS, FLOAT64


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
        kink_count: Number of samples on the kink of each neuron, long, shape ``(I,)``.
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
    smooth: Tensor
    kinks: KinkSamples
    exact: Tensor

    def __str__(self) -> str:
        neuron = int(self.steepest.argmin())
        return (
            f"{len(self.steepest)} neurons, {int((self.kink_count > 0).sum())} on a kink; steepest tangential slope "
            f"{self.steepest[neuron]:.3g} (neuron {neuron}), largest |radial derivative| {self.radial.abs().max():.3g}"
        )


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
        1 neurons, 1 on a kink; steepest tangential slope -1 (neuron 0), largest |radial derivative| 0
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
    U = radial_directions(block.W.detach().double())
    radial = torch.einsum("id,id->i", sums.smooth, U)
    direction = tangential_part(U, sums.smooth)
    slope = direction.norm(dim=1)
    direction *= torch.where(slope > 0, -1 / slope, 0.0)[:, None]
    steepest = torch.where(slope > 0, -slope, 0.0)
    exact = torch.ones_like(steepest, dtype=torch.bool)
    _descend_kinks(U, block.slopes, sums, steepest, direction, exact)
    return NeuronGeometry(
        radial, steepest, direction, sums.output_gradient, sums.kink_count, sums.smooth, sums.kinks, exact
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


def radial_directions(W: Tensor) -> Tensor:
    """The radial directions ``w_i / ||w_i||``, zero for ``w_i = 0``.

    Args:
        W: Input weights, shape ``(I, d)``.

    Returns:
        Unit vectors or zeros, shape ``(I, d)``.

    Example:
        >>> radial_directions(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        tensor([[0., 1.],
                [0., 0.]])
    """
    norm = torch.linalg.vector_norm(W, dim=1)
    U: Tensor = W / norm[:, None]
    # The squares of small weights underflow.
    small = norm < torch.finfo(W.dtype).tiny ** 0.4
    if bool(small.any()):
        largest = W[small].abs().amax(dim=1, keepdim=True)
        scaled = torch.where(largest > 0, W[small] / largest, 0.0)
        U[small] = torch.where(largest > 0, scaled / scaled.norm(dim=1, keepdim=True), 0.0)
    return U


def tangential_part(U: Tensor, V: Tensor) -> Tensor:
    """What is left of vectors without their radial part; everything where ``w_i = 0``.

    Args:
        U: Radial directions, shape ``(..., d)``, as `V` or broadcast to it.
        V: Vectors, shape ``(..., d)``.

    Returns:
        Tangential vectors, shape of ``V``; exactly zero where ``V`` is radial up to rounding.

    Example:
        >>> tangential_part(U=torch.tensor([[1.0, 0.0]]), V=torch.tensor([[3.0, 4.0]]))
        tensor([[0., 4.]])
    """
    left = torch.addcmul(V, torch.einsum("...d,...d->...", V, U)[..., None], U, value=-1)
    # What is left of a nearly radial vector is rounding in part; a second time makes it tangential.
    again = left.norm(dim=-1) < FLOAT64.radial * V.norm(dim=-1)
    if bool(again.any()):
        rest = left[again]
        along = U.expand_as(V)[again]
        tangential = rest - (rest * along).sum(1, keepdim=True) * along
        # Where the rest was nearly radial once more, all of it was rounding, and so is what is left of it.
        rounding = tangential.norm(dim=1) < FLOAT64.radial * rest.norm(dim=1)
        left[again] = tangential.masked_fill(rounding[:, None], 0.0)
    return left


def _descend_kinks(
    U: Tensor, slopes: tuple[float, float], sums: NeuronSums, steepest: Tensor, direction: Tensor, exact: Tensor
) -> None:
    """Overwrite the neurons with kink samples: on the kink the direction decides which linear piece is entered."""
    order = sums.kinks.neuron.argsort(stable=True)
    count = torch.bincount(sums.kinks.neuron)
    kinked = count.nonzero().squeeze(1)
    count = count[kinked]
    first = count.cumsum(0) - count
    left = torch.ones_like(kinked, dtype=torch.bool)

    def parts(some: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        pairs = order[first[some, None] + torch.arange(size, device=order.device)]
        at = kinked[some]
        q = (slopes[1] - slopes[0]) / 2 * sums.kinks.c[pairs]
        return tangential_part(U[at], sums.smooth[at]), q, tangential_part(U[at, None], sums.kinks.X[pairs])

    for size in range(1, BUDGETS.vertex_kinks + 1):
        some = (count == size).nonzero().squeeze(1)
        slope, toward, proven = descend_at_vertices(*parts(some, size))
        some, at = some[proven], kinked[some[proven]]
        steepest[at], direction[at], left[some] = slope[proven], toward[proven], False
    for one in left.nonzero():
        found = steepest_descent(*(part[0].cpu().numpy() for part in parts(one, int(count[one]))))
        at = kinked[one]
        steepest[at], exact[at] = found.slope, found.exact
        direction[at] = torch.from_numpy(found.direction).to(direction)
    # Without all its kink samples nothing is known of a neuron but that standing still gives zero.
    lost = sums.lost > 0
    steepest[lost], direction[lost], exact[lost] = 0.0, 0.0, False
