"""Whether the gradients of steps agree: what can be said of a block whose loss is not known, by any optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relu_diag.capture import Sighting
from relu_diag.functional import BlockSignal, ShallowBlock, stationarity

# Steps below which nothing is said.
_FEW = 6
# Standard errors beyond which gradients agree, and within which they are noise.
_CERTAIN = 5.0
_NOISE = 2.0
# A slope over the sum of its absolute terms up to which a block in training stands.
_STILL = 1e-3
# Samples times weights of a block whose slopes cost less than a few steps.
_AFFORDABLE = 2**24


def agreement(block: ShallowBlock, signals: Sequence[BlockSignal]) -> float:
    """By how many standard errors the gradients of steps point the same way rather than any way.

    The mean product of the gradients by the input weights of any two steps, over its standard error. Where the
    expected gradient is zero, products of different steps have mean zero and are uncorrelated, whatever the noise.

    Args:
        block: The block.
        signals: Inputs and loss gradients of steps close to each other, three or more of them.

    Returns:
        The number; about 0 where the gradients are noise, and where all are zero.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.ones(1, 1))
        >>> signals = [BlockSignal(torch.tensor([[1.0, noise]]), torch.ones(1, 1)) for noise in (0.1, -0.2, 0.0)]
        >>> agreement(block, signals) > 5
        True
    """
    products = _products(block, signals)
    pairs = products[tuple(torch.triu_indices(len(signals), len(signals), offset=1))]
    error = pairs.std() / len(pairs) ** 0.5
    return float(pairs.mean() / error.clamp_min(torch.finfo(pairs.dtype).tiny))


def _products(block: ShallowBlock, signals: Sequence[BlockSignal]) -> Tensor:
    """Products of the gradients by the input weights of any two steps, float64, shape ``(n, n)``."""
    rows = sum(len(signal.X) for signal in signals)
    neurons, inputs = block.W.shape
    if rows * (neurons + inputs) > neurons * inputs:
        gradients = torch.stack([(_felt(block, one).mT @ one.X).flatten() for one in signals]).double()
        return gradients @ gradients.mT
    # Of few rows the products are sums over pairs of rows, and no gradient as large as the weights is formed.
    D = torch.cat([_felt(block, one) for one in signals]).double()
    X = torch.cat([one.X for one in signals]).double()
    step = torch.arange(len(signals)).repeat_interleave(torch.tensor([len(one.X) for one in signals])).to(X.device)
    own = torch.nn.functional.one_hot(step).to(X)
    return own.mT @ ((D @ D.mT) * (X @ X.mT)) @ own


def _felt(block: ShallowBlock, signal: BlockSignal) -> Tensor:
    """The gradient at the pre-activations, shape ``(N, I)``, samples on a kink at the right slope."""
    down, up = block.slopes
    Z = signal.X @ block.W.to(signal.X).mT
    return (signal.G @ block.H.to(signal.G)) * torch.where(Z >= 0, up, down)


def agreement_words(block: ShallowBlock, signals: Sequence[BlockSignal]) -> str:
    """What the gradients of steps say of a block, in words.

    Args:
        block: The block.
        signals: Inputs and loss gradients of steps close to each other.

    Returns:
        The words; empty where there are too few steps, or where they do not say.

    Example:
        >>> agreement_words(ShallowBlock(torch.ones(1, 1), torch.ones(1, 1)), [])
        ''
    """
    if len(signals) < _FEW:
        return ""
    found = agreement(block, signals)
    if found > _CERTAIN:
        return f"the block still moves: the gradients of {len(signals)} steps agree beyond their noise"
    if abs(found) < _NOISE:
        return f"stationary in this block within the noise of {len(signals)} steps"
    return ""


def first_order_words(seen: Sighting) -> str:
    """Whether a block is stationary by the slopes of a step whose batch is the whole data set, in words.

    Args:
        seen: The block, as the step saw it.

    Returns:
        The words, and whether the slopes are those of the loss; empty where the block is too large.

    Example:
        >>> from torch import nn
        >>> from relu_diag.capture import riding
        >>> net = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
        >>> with riding(net) as ride:
        ...     loss = (net(torch.eye(2)) - net(torch.eye(2)).detach()).square().mean()
        ...     ride.board(loss)
        ...     loss.backward()
        ...     (seen,) = ride.end()
        >>> first_order_words(seen)
        'stationary in this block, slopes exact'
    """
    block = seen.block
    if seen.count * len(block.W) * block.W.shape[1] > _AFFORDABLE:
        return ""
    signal = seen.signal
    own = None if signal.C is None else signal.C.to(block.W)
    found = stationarity(block, BlockSignal(signal.X.to(block.W), signal.G.to(block.W), own))
    # A neuron counts by what it is felt: one that sees a sample which is met has a slope of all its terms.
    felt = found.scale * block.W.norm(dim=1)
    shares = found.violation * felt / felt.max().clamp_min(torch.finfo(felt.dtype).tiny)
    worst = max(float(shares.max()), found.bias_violation)
    if worst > _STILL:
        return f"not stationary in this block, a slope is {worst:.1g} of its terms, slopes {seen.exactness}"
    share = "" if worst <= found.tol else f" to {worst:.0e}"
    return f"stationary in this block{share}, slopes {seen.exactness}"
