"""The sums over samples that everything about a neuron follows from: one pass over the data, then small algebra."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, Chunk, ShallowBlock, chunks, rho

# A neuron with w = 0 has every sample on its kink; beyond this many, its pairs are counted but not kept.
MAX_KINKS = 4096


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
        smooth: Smooth part ``g`` of the one-sided derivative, float64, shape ``(I, d)``.
        output_gradient: Loss gradient with respect to ``H``, float64, shape ``(J, I)``.
        kinks: Kink samples with nonzero gradient.
        kink_count: Number of samples on the kink of each neuron, long, shape ``(I,)``.
        z_min: Smallest pre-activation, zero on the kink, samples with ``x_k = 0`` left out, shape ``(I,)``.
        z_max: Largest one, shape ``(I,)``.
        activation: Sum of ``|rho(z_ki)|``, float64, shape ``(I,)``.
        samples: Number of samples, long, shape ``()``.
    """

    smooth: Tensor
    output_gradient: Tensor
    kinks: KinkSamples
    kink_count: Tensor
    z_min: Tensor
    z_max: Tensor
    activation: Tensor
    samples: Tensor

    def __add__(self, other: NeuronSums) -> NeuronSums:
        pairs = (
            torch.cat([getattr(self.kinks, field.name), getattr(other.kinks, field.name)])
            for field in fields(KinkSamples)
        )
        return NeuronSums(
            self.smooth + other.smooth,
            self.output_gradient + other.output_gradient,
            KinkSamples(*pairs),
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
        kinks = KinkSamples(self.kinks.neuron, self.kinks.X, self.kinks.c * factor)
        return NeuronSums(
            self.smooth * factor,
            self.output_gradient * factor,
            kinks,
            self.kink_count,
            self.z_min,
            self.z_max,
            self.activation,
            self.samples,
        )


def neuron_sums(block: ShallowBlock, signal: BlockSignal, kink_tol: float | None = None) -> NeuronSums:
    """All sums over the samples of a signal, in chunks; the big products stay in the caller's dtype.

    Args:
        block: The network.
        signal: Its signal, ``N`` samples.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.

    Returns:
        The sums. Memory is ``O(I d + I J)`` plus a chunk, whatever ``N``.
    """
    (neurons, inputs), outputs = block.W.shape, block.H.shape[0]
    smooth, output_gradient = block.W.new_zeros(neurons, inputs), block.H.new_zeros(outputs, neurons)
    kink_count = torch.zeros(neurons, dtype=torch.long, device=block.W.device)
    z_min, z_max = block.W.new_full((neurons,), torch.inf), block.W.new_full((neurons,), -torch.inf)
    activation = torch.zeros(neurons, dtype=torch.float64, device=block.W.device)
    kinks = []
    for chunk in chunks(block, signal, kink_tol):
        if not len(chunk.X):
            continue
        A = rho(chunk.Z, block.slopes)
        smooth.addmm_(slopes_at(chunk.Z, block.slopes).mul_(chunk.C).T, chunk.X)
        output_gradient.addmm_(chunk.G.T, A)
        z_min, z_max = torch.minimum(z_min, chunk.Z.amin(0)), torch.maximum(z_max, chunk.Z.amax(0))
        activation += (A if min(block.slopes) >= 0 and block.slopes[0] == 0 else A.abs()).sum(0)
        kinks.append(_kept_pairs(chunk, kink_count))
        kink_count.index_add_(0, chunk.kinks[:, 1], torch.ones_like(chunk.kinks[:, 1]))
    return NeuronSums(
        smooth.double(),
        output_gradient.double(),
        KinkSamples(*(torch.cat(parts) for parts in zip(*kinks, strict=True))) if kinks else _no_kinks(block),
        kink_count,
        z_min.double(),
        z_max.double(),
        activation,
        torch.tensor(len(signal.X), device=block.W.device),
    )


def slopes_at(Z: Tensor, slopes: tuple[float, float]) -> Tensor:
    """The slope of the activation, and the mean of the two on the kink.

    Args:
        Z: Pre-activations, any shape.
        slopes: ``(s-, s+)``.

    Returns:
        ``s+``, ``s-`` or ``a = (s+ + s-) / 2``, shape of ``Z``.
    """
    side = torch.heaviside(Z, Z.new_tensor(0.5))
    return side if slopes == (0.0, 1.0) else side.mul_(slopes[1] - slopes[0]).add_(slopes[0])


def _kept_pairs(chunk: Chunk, kink_count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    row, neuron = chunk.kinks.unbind(1)
    c = chunk.C[row, neuron]
    keep = (c != 0) & (kink_count[neuron] < MAX_KINKS)
    row, neuron = row[keep], neuron[keep]
    return neuron, chunk.X[row].double(), c[keep].double()


def _no_kinks(block: ShallowBlock) -> KinkSamples:
    empty = torch.empty(0, block.W.shape[1], dtype=torch.float64, device=block.W.device)
    return KinkSamples(torch.empty(0, dtype=torch.long, device=empty.device), empty, empty[:, 0])
