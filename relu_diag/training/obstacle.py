"""What keeps the loss of a step from being one of a block's outputs, as far as the step itself says."""

from __future__ import annotations

from relu_diag.capture import Sighting
from relu_diag.functional import BlockSignal, ShallowBlock
from relu_diag.training._data import SAME

ACTIVATIONS_READ = "the loss reads the hidden activations besides the outputs of the block"
# A gradient at the activations is off by the rounding of the one at the outputs, of weights, and its own.
_ROUNDED = 4
_SHARDED = "its weights are sharded over processes: its neurons are counted, and their slopes known"
_COMPUTED = "its weights are computed from others (weight_norm, pruning, batch norm), which may not follow every move"
_DROPOUT = "dropout stands behind the activations, so that the loss of a step is not the loss of the network"
_TIED = "its layers share a weight, and what holds for two that move apart need not hold for one"
_CHOSEN = "a later {} chooses what the loss is, which may be another one elsewhere"


def reads_activations(block: ShallowBlock, signal: BlockSignal, rounding: float = 0.0) -> bool:
    """Whether a loss reads the activations of a block besides its outputs.

    Args:
        block: The block.
        signal: Its signal under the loss.
        rounding: Relative rounding of the signal.

    Returns:
        Whether the gradient at the activations is another one than that through the outputs.

    Example:
        >>> import torch
        >>> block = ShallowBlock(torch.ones(3, 2), torch.ones(1, 3))
        >>> reads_activations(block, BlockSignal(torch.eye(2), torch.ones(2, 1)))
        False
        >>> sparse = torch.ones(2, 3) + 0.1  # a penalty on the activations adds to what comes through the outputs
        >>> reads_activations(block, BlockSignal(torch.eye(2), torch.ones(2, 1), sparse))
        True
    """
    if signal.C is None:
        return False
    through = signal.G @ block.H
    return bool((signal.C - through).norm() > max(SAME, _ROUNDED * rounding) * through.norm())


def obstacle_of(seen: Sighting) -> str:
    """What keeps the loss of a step from being one of the block's outputs.

    Args:
        seen: The block, as the step saw it.

    Returns:
        The reason in words; empty where nothing does.

    Example:
        >>> import torch
        >>> from relu_diag.capture import riding
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> with riding(net) as ride:
        ...     loss = net(torch.eye(2)).square().mean().clamp(min=0.1)
        ...     ride.board(loss)
        ...     loss.backward()
        ...     (seen,) = ride.end()
        >>> obstacle_of(seen)
        'a later Clamp chooses what the loss is, which may be another one elsewhere'
    """
    if seen.dropout:
        return _DROPOUT
    if seen.sharded:
        return _SHARDED
    if seen.live is None:
        return _COMPUTED
    if seen.tied:
        return _TIED
    if seen.choosing:
        return _CHOSEN.format(" and ".join(seen.choosing))
    return ACTIVATIONS_READ if reads_activations(seen.block, seen.signal, seen.rounding) else ""
