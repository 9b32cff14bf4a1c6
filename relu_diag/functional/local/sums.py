"""The sums over samples that everything about a neuron follows from: one pass over the data, then small algebra."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, chunk_rows, rho
from relu_diag.functional.local.chunks import Chunk, chunks

# A neuron with w = 0 has every sample on its kink. Beyond so many pairs of one neuron, and so many numbers in the
# inputs of all pairs together, pairs are counted but not kept.
MAX_KINKS = 1024
_KINK_ELEMENTS = 2**23


@dataclass(frozen=True, slots=True, eq=False)
class KinkSamples:
    """The pairs (neuron, sample) on the kink at which the loss has a nonzero gradient behind the activation.

    Attributes:
        neuron: Neuron of the pair, long, shape ``(M,)``.
        X: Input of the pair, float64, shape ``(M, d)``.
        c: Loss gradient at the activation, float64, shape ``(M,)``.
    """

    neuron: Tensor
    X: Tensor
    c: Tensor


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
        samples: Number of samples, long, shape ``()``.
    """

    smooth: Tensor
    output_gradient: Tensor
    kinks: KinkSamples
    lost: Tensor
    kink_count: Tensor
    z_min: Tensor
    z_max: Tensor
    activation: Tensor
    samples: Tensor

    def __add__(self, other: NeuronSums) -> NeuronSums:
        parts = [self.kinks, other.kinks]
        neuron, lost = torch.cat([part.neuron for part in parts]), self.lost + other.lost
        keep, lost = _room(neuron, lost, self.smooth.shape[1])
        return NeuronSums(
            self.smooth.double() + other.smooth,
            self.output_gradient + other.output_gradient,
            _joined([_chosen(part, keep) for part in parts]),
            lost,
            self.kink_count + other.kink_count,
            torch.minimum(self.z_min, other.z_min),
            torch.maximum(self.z_max, other.z_max),
            self.activation + other.activation,
            self.samples + other.samples,
        )

    def scaled(self, factor: float) -> NeuronSums:
        """The same sums for the loss multiplied by a factor.

        Args:
            factor: The factor.

        Returns:
            Sums in which all that is linear in the loss gradient is multiplied.
        """
        return replace(
            self,
            smooth=self.smooth * factor,
            output_gradient=self.output_gradient * factor,
            kinks=replace(self.kinks, c=self.kinks.c * factor),
        )


def neuron_sums(block: ShallowBlock, signal: BlockSignal, kink_tol: float | None = None) -> NeuronSums:
    """All sums over the samples of a signal, in chunks; the big products stay in the caller's dtype (float32 for less).

    Args:
        block: The network.
        signal: Its signal, ``N`` samples.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.

    Returns:
        The sums. Memory is ``O(I d + I J)`` plus a chunk, whatever ``N``.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> batches = [BlockSignal(torch.full((2, 1), x), torch.ones(2, 1)) for x in (3.0, -1.0)]
        >>> sums = neuron_sums(block, batches[0]) + neuron_sums(block, batches[1])
        >>> sums.smooth.item(), sums.z_min.item(), sums.samples.item()
        (6.0, -1.0, 4)
    """
    (neurons, inputs), outputs, device = block.W.shape, block.H.shape[0], block.W.device
    wide = torch.promote_types(block.W.dtype, torch.float32)
    smooth = torch.zeros(inputs, neurons, dtype=wide, device=device)  # this way round the product is faster
    behind = torch.zeros(outputs + 1, neurons, dtype=wide, device=device)  # output gradient; activations added up
    z_min = torch.full((neurons,), torch.inf, dtype=wide, device=device)
    z_max, kink_count = -z_min, torch.zeros(neurons, dtype=torch.long, device=device)
    kinks, lost = [_no_kinks(inputs, device)], kink_count
    memory = torch.empty(min(chunk_rows(block), len(signal.X)), neurons, dtype=wide, device=device)
    for chunk in chunks(block, signal, kink_tol):
        z_min, z_max = torch.minimum(z_min, chunk.Z.amin(0)), torch.maximum(z_max, chunk.Z.amax(0))
        smooth.addmm_(chunk.X.T, _input_gradient(chunk, block.slopes, memory[: len(chunk.Z)]))
        A = rho(chunk.Z, block.slopes, inplace=True)
        behind.addmm_(torch.cat([chunk.G, chunk.G.new_ones(len(A), 1)], dim=1).T, A)
        if 0 not in block.slopes:  # otherwise all activations have one sign
            behind[-1] += A.abs().sub_(A).sum(0)
        if len(chunk.kinks):
            kink_count = kink_count + torch.bincount(chunk.kinks[:, 1], minlength=neurons)
            kinks, lost = _with_pairs(kinks, lost, chunk)
    return NeuronSums(
        smooth.T,
        behind[:-1].double(),
        _joined(kinks),
        lost,
        kink_count,
        z_min.double(),
        z_max.double(),
        behind[-1].double().abs(),
        torch.tensor(len(signal.X), device=device),
    )


def slopes_at(Z: Tensor, slopes: tuple[float, float]) -> Tensor:
    """The slope of the activation, and the mean of the two on the kink.

    Args:
        Z: Pre-activations, any shape.
        slopes: ``(s-, s+)``.

    Returns:
        ``s+``, ``s-`` or ``a = (s+ + s-) / 2``, shape of ``Z``.
    """
    s_minus, s_plus = slopes
    return Z.sign().mul_((s_plus - s_minus) / 2).add_((s_plus + s_minus) / 2)


def _input_gradient(chunk: Chunk, slopes: tuple[float, float], memory: Tensor) -> Tensor:
    """Loss gradient at the pre-activations, with the mean slope on the kink: ``slopes_at(Z) * C``."""
    s_minus, s_plus = slopes
    if s_plus == 0:
        return torch.mul(slopes_at(chunk.Z, slopes), chunk.C, out=memory)
    # The kernel behind autograd's leaky_relu: one pass over memory where sign, add and multiply take three.
    backward = torch.ops.aten.leaky_relu_backward.grad_input
    out: Tensor = backward(chunk.C, chunk.Z, s_minus / s_plus, False, grad_input=memory)
    at = chunk.kinks.unbind(1)
    out[at] = (s_plus + s_minus) / (2 * s_plus) * chunk.C[at]
    return out if s_plus == 1 else out.mul_(s_plus)


def _with_pairs(parts: list[KinkSamples], lost: Tensor, chunk: Chunk) -> tuple[list[KinkSamples], Tensor]:
    row, neuron = chunk.kinks.unbind(1)
    c = chunk.C[row, neuron]
    felt = c.nonzero().squeeze(1)
    if len(felt) < len(row):
        row, neuron, c = row[felt], neuron[felt], c[felt]
    before = lost
    keep, lost = _room(torch.cat([*(part.neuron for part in parts), neuron]), lost, chunk.X.shape[1])
    if lost is not before:
        parts, kept = [_chosen(part, keep) for part in parts], keep[neuron]
        # Chosen before the inputs are gathered: at W = 0 every pair is on the kink.
        row, neuron, c = row[kept], neuron[kept], c[kept]
    return [*parts, KinkSamples(neuron, chunk.X[row].double(), c.double())], lost


def _room(neuron: Tensor, lost: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """Which neurons keep their pairs, and how many pairs are lost: the most crowded neurons go first."""
    if len(neuron) <= MAX_KINKS and len(neuron) * inputs <= _KINK_ELEMENTS and not bool(lost.any()):
        return lost == 0, lost
    count = torch.bincount(neuron, minlength=len(lost))
    order = count.argsort(stable=True)
    fits = (count[order].cumsum(0) * inputs <= _KINK_ELEMENTS)[order.argsort()]
    keep = fits & (count <= MAX_KINKS) & (lost == 0)
    return keep, lost + torch.where(keep, 0, count)


def _chosen(kinks: KinkSamples, keep: Tensor) -> KinkSamples:
    chosen = keep[kinks.neuron]
    return KinkSamples(kinks.neuron[chosen], kinks.X[chosen], kinks.c[chosen])


def _joined(parts: list[KinkSamples]) -> KinkSamples:
    return KinkSamples(
        torch.cat([part.neuron for part in parts]),
        torch.cat([part.X for part in parts]),
        torch.cat([part.c for part in parts]),
    )


def _no_kinks(inputs: int, device: torch.device) -> KinkSamples:
    empty = torch.empty(0, inputs, dtype=torch.float64, device=device)
    return KinkSamples(torch.empty(0, dtype=torch.long, device=device), empty, empty[:, 0])
