"""The sums over samples that everything about a neuron follows from: one pass over the data, then small algebra."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, chunk_rows, rho
from relu_diag.functional.local._pairs import CollectedPairs, joined, keep_pairs
from relu_diag.functional.local.chunks import Chunk, chunks
from relu_diag.functional.local.kink_samples import KinkSamples


@dataclass(frozen=True, slots=True, eq=False)
class NeuronSums:
    """Sums, minima and maxima over samples, per neuron. ``+`` adds the sums of other samples.

    Attributes:
        smooth: Smooth part ``g`` of the one-sided derivative, of the block's dtype (float32 at least) for one signal,
            float64 once added, shape ``(I, d)``.
        output_gradient: Loss gradient with respect to ``H``, float64, shape ``(J, I)``.
        kinks: Kink samples with nonzero gradient: all of a neuron's, or none where they were too many.
        lost: Number of kink samples with nonzero gradient that were too many to keep, long, shape ``(I,)``.
        kink_count: Number of samples on the kink of each neuron, long, shape ``(I,)``.
        z_min: Smallest pre-activation, zero on the kink, samples with ``x_k = 0`` left out, shape ``(I,)``.
        z_max: Largest one, shape ``(I,)``.
        activation: Sum of ``|rho(z_ki)|``, float64, shape ``(I,)``.
        terms: Sum of the absolute terms of the derivative by the input weights, over the samples the neuron sees:
            ``|s(z_ki)| ||x_k||`` times the larger of ``||h_i|| ||e_k||`` and ``|c_ki|``, with the larger slope on the
            kink. The natural scale of that derivative: it scales as the derivative does when ``(w, h)`` becomes
            ``(c w, h / c)``, and its rounding is a few ``eps`` of it. Loss per unit length, float64, shape ``(I,)``.
        terms_per_output: The same per unit of output weight, ``sum_k |s(z_ki)| ||e_k|| ||x_k||``: the scale of
            derivatives of the outputs' parts, float64, shape ``(I,)``.
        output_terms: Sum of the absolute terms of the derivative by the output weights, ``sum_k ||e_k|| |rho(z_ki)|``,
            float64, shape ``(I,)``.
        samples: Number of samples, long, shape ``()``.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0], [-1.0]]), H=torch.tensor([[1.0, 1.0]]))
        >>> sums = neuron_sums(block, BlockSignal(X=torch.tensor([[3.0]]), G=torch.tensor([[-1.0]])))
        >>> sums.terms.tolist(), sums.scaled(-2.0).terms.tolist()  # the second neuron does not see the sample
        ([3.0, 0.0], [6.0, 0.0])
    """

    smooth: Tensor
    output_gradient: Tensor
    kinks: KinkSamples
    lost: Tensor
    kink_count: Tensor
    z_min: Tensor
    z_max: Tensor
    activation: Tensor
    terms: Tensor
    terms_per_output: Tensor
    output_terms: Tensor
    samples: Tensor

    def __add__(self, other: NeuronSums) -> NeuronSums:
        kinks, lost = keep_pairs([self.kinks, other.kinks], self.lost + other.lost)
        return NeuronSums(
            smooth=self.smooth.double() + other.smooth,
            output_gradient=self.output_gradient + other.output_gradient,
            kinks=kinks,
            lost=lost,
            kink_count=self.kink_count + other.kink_count,
            z_min=torch.minimum(self.z_min, other.z_min),
            z_max=torch.maximum(self.z_max, other.z_max),
            activation=self.activation + other.activation,
            terms=self.terms + other.terms,
            terms_per_output=self.terms_per_output + other.terms_per_output,
            output_terms=self.output_terms + other.output_terms,
            samples=self.samples + other.samples,
        )

    def scaled(self, factor: float) -> NeuronSums:
        """The same sums for the loss multiplied by a factor.

        Args:
            factor: The factor.

        Returns:
            Sums in which all that is linear in the loss gradient is multiplied, sizes by the factor's.
        """
        size = abs(factor)
        return replace(
            self,
            terms=self.terms * size,
            terms_per_output=self.terms_per_output * size,
            output_terms=self.output_terms * size,
            smooth=self.smooth * factor,
            output_gradient=self.output_gradient * factor,
            kinks=replace(self.kinks, c=self.kinks.c * factor),
        )


def neuron_sums(
    block: ShallowBlock,
    signal: BlockSignal,
    kink_tol: float | None = None,
    gradients: tuple[Tensor, Tensor] | None = None,
) -> NeuronSums:
    """All sums over the samples of a signal, in chunks; the big products stay in the caller's dtype (float32 for less).

    Args:
        block: The network.
        signal: Its signal, ``N`` samples.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.
        gradients: The gradients of the loss by ``W`` and ``H`` where a backward pass has computed them, ``(I, d)`` and
            ``(J, I)``; they save the two large products.

    Returns:
        The sums. Memory is ``O(I d + I J)`` plus a chunk, whatever ``N``.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> batches = [BlockSignal(torch.full((2, 1), x), torch.ones(2, 1)) for x in (3.0, -1.0)]
        >>> sums = neuron_sums(block, batches[0]) + neuron_sums(block, batches[1])
        >>> sums.smooth.item(), sums.z_min.item(), sums.samples.item()
        (6.0, -1.0, 4)
    """
    totals = _Totals(block, signal, gradients)
    for chunk in chunks(block, signal, kink_tol):
        totals.add(chunk)
    return totals.sums(len(signal.X))


def slopes_at(Z: Tensor, slopes: tuple[float, float]) -> Tensor:
    """The slope of the activation, and the mean of the two on the kink.

    Args:
        Z: Pre-activations, any shape.
        slopes: ``(s-, s+)``.

    Returns:
        ``s+``, ``s-`` or ``a = (s+ + s-) / 2``, shape of ``Z``.

    Example:
        >>> slopes_at(torch.tensor([-2.0, 0.0, 3.0]), slopes=(0.0, 1.0))
        tensor([0.0000, 0.5000, 1.0000])
    """
    s_minus, s_plus = slopes
    return Z.sign().mul_((s_plus - s_minus) / 2).add_((s_plus + s_minus) / 2)


class _Totals:
    """What `neuron_sums` adds up, chunk by chunk, in the dtype of the products."""

    def __init__(
        self, block: ShallowBlock, signal: BlockSignal, gradients: tuple[Tensor, Tensor] | None = None
    ) -> None:
        neurons, inputs = block.W.shape
        outputs = len(block.H)
        device = block.W.device
        wide = torch.promote_types(block.W.dtype, torch.float32)
        none = torch.zeros(neurons, dtype=wide, device=device)
        self.slopes = block.slopes
        self.steep = (abs(block.slopes[0]), abs(block.slopes[1]))
        self.h_norm = block.H.detach().double().norm(dim=0)
        self.given = gradients is not None
        # This way round the product is faster.
        self.smooth = gradients[0].detach().to(wide).T if gradients else none.new_zeros(inputs, neurons)
        self.behind = none.new_zeros(outputs + 2, neurons)  # output gradient, its terms, activations
        if gradients is not None:
            self.behind[:outputs] += gradients[1].detach()
        self.terms_per_output = torch.zeros_like(self.h_norm)
        self.own_terms = torch.zeros_like(self.h_norm) if signal.C is not None else None
        self.z_min = none + torch.inf
        self.z_max = none - torch.inf
        self.kink_count = none.long()
        self.pairs = CollectedPairs(neurons, inputs, device)
        self.memory = none.new_empty(min(chunk_rows(block), len(signal.X)), neurons)

    def add(self, chunk: Chunk) -> None:
        """Add the sums of a chunk, whose pre-activations are overwritten."""
        memory = self.memory[: len(chunk.Z)]
        self.z_min = torch.minimum(self.z_min, chunk.Z.amin(0))
        self.z_max = torch.maximum(self.z_max, chunk.Z.amax(0))
        if self.given:
            self._move_onto_kinks(chunk)
        else:
            self.smooth.addmm_(chunk.X.T, _times_slopes(chunk.C, chunk, self.slopes, sum(self.slopes) / 2, memory))
        size = chunk.G.norm(dim=1)
        self._add_terms(chunk, size, memory)
        A = rho(chunk.Z, self.slopes, inplace=True)
        if not self.given:
            self.behind[:-2].addmm_(chunk.G.T, A)
        # With a zero slope all activations have one sign.
        sizes = torch.stack([size, torch.ones_like(size)])
        self.behind[-2:].addmm_(sizes, A if 0 in self.slopes else torch.abs(A, out=memory))
        if len(chunk.kinks):
            self.kink_count += torch.bincount(chunk.kinks[:, 1], minlength=len(self.kink_count))
            self.pairs.add(chunk)

    def sums(self, samples: int) -> NeuronSums:
        """The sums over so many samples."""
        own = self.own_terms
        return NeuronSums(
            smooth=self.smooth.T,
            output_gradient=self.behind[:-2].double(),
            kinks=joined(self.pairs.parts),
            lost=self.pairs.lost,
            kink_count=self.kink_count,
            z_min=self.z_min.double(),
            z_max=self.z_max.double(),
            activation=self.behind[-1].double().abs(),
            terms=self.h_norm * self.terms_per_output if own is None else own,
            terms_per_output=self.terms_per_output,
            output_terms=self.behind[-2].double().abs(),
            samples=torch.tensor(samples, device=self.kink_count.device),
        )

    def _move_onto_kinks(self, chunk: Chunk) -> None:
        """Autograd took the pairs on the kink for one of its sides, at zero for the lower one: take the mean."""
        s_minus, s_plus = self.slopes
        row, neuron = chunk.kinks.unbind(1)
        if not len(row):
            return
        off = (s_plus + s_minus) / 2 - torch.where(chunk.beside > 0, s_plus, s_minus)
        self.smooth = self.smooth.index_add(1, neuron, chunk.X[row].T * (off * chunk.C[row, neuron]).to(chunk.X))

    def _add_terms(self, chunk: Chunk, size: Tensor, memory: Tensor) -> None:
        """Add the absolute terms of the derivatives by the input weights."""
        one = chunk.Z.new_ones(1, 1).expand_as(chunk.Z)
        seen = _times_slopes(one, chunk, self.steep, max(self.steep), memory)
        self.terms_per_output += (size * chunk.length) @ seen
        if self.own_terms is not None:
            # What arrives behind the activation may be more than ``G H``, and less where that cancels.
            largest = torch.maximum(chunk.C.abs(), torch.outer(size, self.h_norm.to(size.dtype)))
            self.own_terms += chunk.length @ largest.mul_(seen)


def _times_slopes(value: Tensor, chunk: Chunk, slopes: tuple[float, float], on_kink: float, memory: Tensor) -> Tensor:
    """A value per pair times the slope of its activation, and times a given one on the kink, ``(n, I)``."""
    s_minus, s_plus = slopes
    if s_plus == 0:
        out = torch.mul(slopes_at(chunk.Z, slopes), value, out=memory)
    else:
        # The kernel behind autograd's leaky_relu: one pass over memory where sign, add and multiply take three.
        backward = torch.ops.aten.leaky_relu_backward.grad_input
        out = backward(value, chunk.Z, s_minus / s_plus, False, grad_input=memory)
        if s_plus != 1:
            out.mul_(s_plus)
    if len(chunk.kinks):
        at = chunk.kinks.unbind(1)
        out[at] = on_kink * value[at]
    return out
