"""Ways to grow a small block compared by where training leads: what is lower at once may lead to a higher minimum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer

from relu_diag.functional import GrowthProposal, Widening
from relu_diag.functional.widening import add_inactive_propagation, rehearsed_losses
from relu_diag.training._falls import Falls
from relu_diag.training._settled import settled

# Sets of random neurons with silent outputs that are tried: as many starts.
_STARTS = 32
# Rate of training on copies, in root mean squares of the input weights.
_RATE = 0.05
# Losses that are as good: above the least by this share of its size, and this share of the loss before.
_ALIKE = 1e-2
_NOTHING = 1e-12

Parts = list[GrowthProposal | Widening]


def can_be_rehearsed(trainer: Trainer, falls: Falls) -> bool:
    """Whether a rehearsal by Adam says where training leads: it steps as Adam does, and the loss alone is what falls.

    Plain descent leaves small neurons asleep that Adam wakes, and leads elsewhere.

    Args:
        trainer: The trainer.
        falls: Of the block.

    Returns:
        Whether it is.
    """
    decay = falls.decay
    try:
        falls.data.loss.rows(torch.arange(1).to(falls.data.X.device))
    except NotImplementedError:
        return False
    adaptive = all("Adam" in type(optimizer).__name__ for optimizer in trainer.optimizers)
    return adaptive and bool(trainer.optimizers) and not (decay.W or decay.H) and bool(falls.block.W.any())


def random_neurons(falls: Falls, count: int) -> list[Parts]:
    """Sets of neurons as torch's Linear draws them, their outputs silent.

    Args:
        falls: Of the block to widen.
        count: Number of neurons in a set.

    Returns:
        The sets, always the same ones.
    """
    block = falls.block
    inputs = block.W.shape[1]
    draw = torch.Generator().manual_seed(0)
    found: list[Parts] = []
    for _ in range(_STARTS):
        W = (2 * torch.rand(count, inputs, generator=draw, dtype=torch.float64) - 1) / max(inputs - 1, 1) ** 0.5
        wider = settled(add_inactive_propagation(block, W.to(block.W)), count, falls.data.X, drop_digits=False)
        found.append([Widening(wider, count, "random", math.nan, math.nan, math.nan, (), kept=True)])
    return found


def best_in_rehearsal(falls: Falls, found: Sequence[Parts]) -> Parts:
    """The first of those after which training on copies leads lowest.

    Args:
        falls: Of the block.
        found: What may be added; one at least.

    Returns:
        One of them.
    """
    data = falls.data
    rate = _RATE * float(falls.block.W.square().mean().sqrt())
    rehearsed = rehearsed_losses([parts[-1].new_block for parts in found], data.X, data.loss, rate)
    losses = [math.inf if math.isnan(loss) else loss for loss in rehearsed]
    before = float(data.loss.double()(falls.outputs))
    # Rounding must not decide between starts that lead to one minimum. A loss may be below zero, as Poisson's.
    enough = min(losses) + _ALIKE * abs(min(losses)) + _NOTHING * abs(before)
    return next(parts for parts, loss in zip(found, losses, strict=True) if loss <= enough)
