"""The samples on the kinks of each neuron, kept one by one: there the slope of the loss depends on the direction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class KinkSamples:
    """The pairs (neuron, sample) on the kink at which the loss has a nonzero gradient behind the activation.

    Attributes:
        neuron: Neuron of the pair, long, shape ``(M,)``.
        X: Input of the pair, float64, shape ``(M, d)``.
        c: Loss gradient at the activation, float64, shape ``(M,)``.

    Example:
        >>> import torch
        >>> kinks = KinkSamples(torch.tensor([0, 1]), X=torch.eye(2).double(), c=torch.tensor([1.0, -1.0]).double())
        >>> kinks.chosen(torch.tensor([False, True])).c.tolist()
        [-1.0]
    """

    neuron: Tensor
    X: Tensor
    c: Tensor

    def chosen(self, neurons: Tensor) -> KinkSamples:
        """The pairs of some neurons.

        Args:
            neurons: Which neurons, bool, shape ``(I,)``.

        Returns:
            Their pairs, in order.
        """
        kept = neurons[self.neuron]
        return KinkSamples(self.neuron[kept], self.X[kept], self.c[kept])
