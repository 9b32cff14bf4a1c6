"""What the neurons of a block do on some rows, and which of them do nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.capture import Sighting
from relu_diag.functional import ShallowBlock, rho
from relu_diag.functional.block import chunk_rows
from relu_diag.functional.local import repeated_neurons
from relu_diag.functional.widening import output_length

# Pairs of neurons times inputs up to which a CPU looks for duplicates.
_PAIRS_ON_CPU = 2**36
# Rows by which it is first seen whether there is anything to do.
_FIRST = 256
# Share of a layer from which on dormant neurons alone are worth a search: they live, and may learn by themselves.
_WORTH = 0.05
# Share of a layer up to which neurons that have become idle wait for more to join them, where others are in vain.
_FEW = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Activity:
    """What the neurons of a block do on some rows.

    Attributes:
        active: Whether each was active on some row, bool, shape ``(I,)``.
        total: Sum of its activations, float64, shape ``(I,)``.
        outputs: Outputs of the block, shape ``(N, J)``.
    """

    active: Tensor
    total: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, block: ShallowBlock, X: Tensor) -> Activity:
        """The activity in one pass over the rows.

        Args:
            block: The block.
            X: Inputs, shape ``(N, d)``.

        Returns:
            The activity.
        """
        active = torch.zeros(len(block.W), dtype=torch.bool, device=block.W.device)
        total = torch.zeros(len(block.W), dtype=torch.float64, device=block.W.device)
        outputs = []
        for part in torch.split(X, chunk_rows(block)):
            A = rho(part.to(block.W) @ block.W.T, block.slopes)
            active |= A.any(dim=0)
            total += A.abs().sum(dim=0)
            outputs.append(A @ block.H.T if block.output_bias is None else A @ block.H.T + block.output_bias)
        return cls(active, total, torch.cat(outputs))

    @classmethod
    def of_first_rows(cls, seen: Sighting) -> Activity:
        """The activity on the first rows of a step.

        Args:
            seen: The block.

        Returns:
            The activity.
        """
        return cls.of(seen.block, seen.signal.X[:_FIRST])


@dataclass(frozen=True, slots=True, eq=False)
class IdleNeurons:
    """Neurons that do nothing.

    Attributes:
        dead: Those that were never active, long.
        dormant: Those that are next to silent, the least active first, long.
        duplicate: Those that repeat another one, long.
        repeated: The ones that they repeat, long.
        width: Number of all neurons.
    """

    dead: Tensor
    dormant: Tensor
    duplicate: Tensor
    repeated: Tensor
    width: int

    @classmethod
    def of(cls, block: ShallowBlock, activity: Activity, alive: Tensor, tau: float) -> IdleNeurons:
        """The neurons that do nothing.

        Args:
            block: The block.
            activity: What its neurons do on some rows.
            alive: Those that are known to be active besides, bool, shape ``(I,)``.
            tau: Activation over the mean of all neurons up to which one is dormant.

        Returns:
            The neurons.
        """
        # A neuron that was active in other rows than these is rare, and not small.
        small = activity.active & (activity.total <= tau * activity.total.mean())
        into = torch.full_like(alive, -1, dtype=torch.long)
        affordable = block.W.is_cuda or block.W.numel() * len(alive) <= _PAIRS_ON_CPU
        # Where all output weights are kept at one length, none can take over another's.
        if affordable and output_length(block) is None:
            into = repeated_neurons(block, activity.active & ~small)
        dead = (~alive & ~activity.active).nonzero().squeeze(1)
        duplicate = (into >= 0).nonzero().squeeze(1)
        dormant = small.nonzero().squeeze(1)
        dormant = dormant[activity.total[dormant].argsort(stable=True)]
        return cls(dead, dormant, duplicate, into[duplicate], len(alive))

    @property
    def silent(self) -> Tensor:
        """The neurons without which the function would be the same, long."""
        return torch.cat([self.dead, self.duplicate])

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of each kind: dead, dormant, duplicate."""
        return len(self.dead), len(self.dormant), len(self.duplicate)

    @property
    def little_to_do(self) -> bool:
        """Whether nobody is silent, and few are dormant: not worth a search."""
        return len(self.silent) == 0 and len(self.dormant) < _WORTH * self.width

    def without(self, placed: Tensor) -> Tensor:
        """Those of them for which there was no place.

        Args:
            placed: Neurons that were placed anew, long.

        Returns:
            bool, shape ``(I,)``.
        """
        left = torch.zeros(self.width, dtype=torch.bool, device=placed.device)
        left[self.silent] = True
        left[self.dormant] = True
        left[placed] = False
        return left

    def few_besides(self, known: Tensor) -> bool:
        """Whether few do nothing but those that are known to, bool, shape ``(I,)``.

        Args:
            known: Those that are known, bool, shape ``(I,)``.

        Returns:
            Whether others are too few to be worth a search.
        """
        silent = int((~known[self.silent]).sum())
        dormant = int((~known[self.dormant]).sum())
        return silent <= _FEW * self.width and dormant < _WORTH * self.width
