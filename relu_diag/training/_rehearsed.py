"""Ways to grow a small network compared by where training leads: what is lower at once may lead to a higher minimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer

from relu_diag.functional import GrowthProposal, ShallowBlock, Widening
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.widening import Network, add_inactive_propagation, rehearsed_losses
from relu_diag.training._settled import settled
from relu_diag.training._training_data import Chain

# Numbers of the inputs, and of the weights, up to which networks are rehearsed.
_FEW_NUMBERS = 512
# Sets of random neurons with silent outputs that are tried: as many starts.
_STARTS = 32
# Longest step on copies, in root mean squares of the input weights.
_LONGEST = 0.05
# Losses that are as good: above the least by this share of its size, and this share of the loss before.
_ALIKE = 1e-2
_NOTHING = 1e-12

Parts = list[GrowthProposal | Widening]


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """Training of networks on copies, by steps as the trainer's optimizer takes them.

    Attributes:
        chain: What is trained, and on what.
        rate: The rate of Adam.
    """

    chain: Chain
    rate: float

    @classmethod
    def of(cls, trainer: Trainer, chain: Chain) -> Rehearsal | None:
        """The rehearsal of a small network whose optimizer is Adam, without decay that is a part of the loss.

        Plain descent leaves small neurons asleep that Adam wakes, and leads elsewhere.

        Args:
            trainer: The trainer.
            chain: The network.

        Returns:
            The rehearsal; None where it would not say where training leads.
        """
        network = chain.network
        weights = network.W.numel() + sum(layer.H.numel() for layer in network.layers)
        if max(chain.data.X.numel(), weights) > _FEW_NUMBERS or not bool(network.W.any()):
            return None
        try:
            chain.data.loss.rows(torch.arange(1).to(chain.data.X.device))
        except NotImplementedError:
            return None
        if not trainer.optimizers or any("Adam" not in type(optimizer).__name__ for optimizer in trainer.optimizers):
            return None
        size = float(network.W.square().mean().sqrt())
        rate = max(float(group["lr"]) for one in trainer.optimizers for group in one.param_groups)
        # Shorter steps would not show where they lead, and rates of some optimizers are factors of others.
        return cls(chain, min(max(rate, size / BUDGETS.rehearsal_steps), _LONGEST * size))

    def losses(self, networks: Sequence[Network]) -> list[float]:
        """The losses to which networks in the place of the chain's lead, infinite where numbers leave float64."""
        data = self.chain.data
        losses = rehearsed_losses(networks, data.X, data.loss, self.rate)
        return [math.inf if math.isnan(loss) else loss for loss in losses]

    def best(self, networks: Sequence[Network]) -> int:
        """Which network leads to the least loss, the first of those that are as good; one at least."""
        data = self.chain.data
        losses = self.losses(networks)
        before = float(data.loss.double()(self.chain.network(data.X).double()))
        # Rounding must not decide between starts that lead to one minimum. A loss may be below zero, as Poisson's.
        enough = min(losses) + _ALIKE * abs(min(losses)) + _NOTHING * abs(before)
        return next(place for place, loss in enumerate(losses) if loss <= enough)


def random_neurons(block: ShallowBlock, X: torch.Tensor, count: int, starts: int = _STARTS) -> list[Parts]:
    """Sets of neurons as torch's Linear draws them, their outputs silent.

    Args:
        block: The block to widen.
        X: Its inputs, shape ``(N, d)``.
        count: Number of neurons in a set.
        starts: Number of sets.

    Returns:
        The sets, always the same ones.
    """
    inputs = block.W.shape[1]
    draw = torch.Generator().manual_seed(0)
    found: list[Parts] = []
    for _ in range(starts):
        W = (2 * torch.rand(count, inputs, generator=draw, dtype=torch.float64) - 1) / max(inputs - 1, 1) ** 0.5
        wider = settled(add_inactive_propagation(block, W.to(block.W)), count, X, drop_digits=False)
        found.append([Widening(wider, count, "random", math.nan, math.nan, math.nan, (), kept=True)])
    return found


def best_in_rehearsal(rehearsal: Rehearsal, place: int, found: Sequence[Parts]) -> Parts:
    """The first of those after which training on copies leads lowest.

    Args:
        rehearsal: Of the network.
        place: Which of its blocks grows.
        found: What may be added; one at least.

    Returns:
        One of them.
    """
    network = rehearsal.chain.network
    return found[rehearsal.best([network.with_block(place, parts[-1].new_block) for parts in found])]
