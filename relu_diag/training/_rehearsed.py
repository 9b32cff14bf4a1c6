"""Ways to grow a small network compared by where training leads: what is lower at once may lead to a higher minimum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer

from relu_diag.functional import GrowthProposal, ShallowBlock, WeightDecay, Widening
from relu_diag.functional.widening import Network, add_inactive_propagation, rehearsed_losses
from relu_diag.training._falls import Falls
from relu_diag.training._settled import settled
from relu_diag.training._training_data import Chain

# Numbers of the inputs, and of the weights, up to which networks are rehearsed.
_FEW_NUMBERS = 512
# Sets of random neurons with silent outputs that are tried: as many starts.
_STARTS = 32
# Rate of training on copies, in root mean squares of the input weights.
_RATE = 0.05
# Losses that are as good: above the least by this share of its size, and this share of the loss before.
_ALIKE = 1e-2
_NOTHING = 1e-12

Parts = list[GrowthProposal | Widening]


def can_be_rehearsed(trainer: Trainer, chain: Chain, decay: WeightDecay) -> bool:
    """Whether a rehearsal by Adam says where training leads: it steps as Adam does, and the loss alone is what falls.

    Plain descent leaves small neurons asleep that Adam wakes, and leads elsewhere.

    Args:
        trainer: The trainer.
        chain: The network.
        decay: Weight decay that is a part of the loss.

    Returns:
        Whether it is, and the network is small.
    """
    network = chain.network
    weights = network.W.numel() + sum(layer.H.numel() for layer in network.layers)
    if max(chain.X.numel(), weights) > _FEW_NUMBERS:
        return False
    try:
        chain.loss.rows(torch.arange(1).to(chain.X.device))
    except NotImplementedError:
        return False
    adaptive = all("Adam" in type(optimizer).__name__ for optimizer in trainer.optimizers)
    return adaptive and bool(trainer.optimizers) and not (decay.W or decay.H) and bool(network.W.any())


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


def rehearsed(networks: Sequence[Network], chain: Chain) -> list[float]:
    """The losses to which networks in the place of a chain's lead, infinite where numbers leave float64.

    Args:
        networks: The networks.
        chain: What they are trained on.

    Returns:
        The losses.
    """
    rate = _RATE * float(chain.network.W.square().mean().sqrt())
    losses = rehearsed_losses(networks, chain.X, chain.loss, rate)
    return [math.inf if math.isnan(loss) else loss for loss in losses]


def best_in_rehearsal(falls: Falls, found: Sequence[Parts]) -> Parts:
    """The first of those after which training on copies leads lowest.

    Args:
        falls: Of the block.
        found: What may be added; one at least.

    Returns:
        One of them.
    """
    chain = falls.chain
    networks = [chain.network.with_block(falls.data.place, parts[-1].new_block) for parts in found]
    return found[first_of_the_best(rehearsed(networks, chain), chain)]


def first_of_the_best(losses: Sequence[float], chain: Chain) -> int:
    """The place of the first loss that is as good as the least one.

    Args:
        losses: Losses, one at least.
        chain: The network before.

    Returns:
        The place.
    """
    before = float(chain.loss.double()(chain.network(chain.X).double()))
    # Rounding must not decide between starts that lead to one minimum. A loss may be below zero, as Poisson's.
    enough = min(losses) + _ALIKE * abs(min(losses)) + _NOTHING * abs(before)
    return next(place for place, loss in enumerate(losses) if loss <= enough)
