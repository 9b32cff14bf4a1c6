"""Give layers that are dead new neurons: behind them nothing depends on the inputs, and no growth elsewhere is felt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.widening.choice import best_widening, widening_prospect
from relu_diag.functional.widening.network import Network
from relu_diag.functional.widening.silent import add_silent_units


def reopened(network: Network, dead: Sequence[int], X: Tensor, end: Loss, held_out: float = 0.25) -> Network:
    """The network with new neurons in its dead layers.

    All layers but the last of the dead ones get neurons that explain the loss gradient at the end of the network, in
    several ways, and outputs as torch's Linear draws them. For the way in which neurons of the last one could lower the
    loss most they are chosen by `best_widening`: the function changes by what they add alone, and the loss falls, or
    they are silent.

    Args:
        network: The network.
        dead: Blocks all of whose neurons are silent on all rows, in their order, one at least.
        X: Its inputs, shape ``(N, d)``.
        end: The loss of its outputs.
        held_out: Share of the rows that judge only, see `best_widening`.

    Returns:
        The network.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> X = torch.eye(2, dtype=torch.float64)
        >>> dead = Network.of([ShallowBlock(-X[:1], X[:1, :1])])
        >>> bool(reopened(dead, [0], X, SquaredError(X[:, :1]), held_out=0.0)(X).any())
        True
    """
    *inner, last = dead
    E = end.gradient(network(X))
    ways = [_passing(network, inner, X, E, seed) for seed in range(BUDGETS.ways_through if inner else 1)]
    # What the last one's own neurons do with their new inputs is not to be heard.
    ways = [way.with_block(last, _silenced(way.block(last))) for way in ways]
    opened = max(ways, key=lambda way: _prospect(way, last, X, end)) if inner else ways[0]
    block = opened.block(last)
    widening = best_widening(
        block, opened.inputs(X)[last], opened.loss_behind(last, end), units=len(block.W), held_out=held_out
    )
    units = len(block.W)
    new = replace(block, W=widening.new_block.W[-units:], H=widening.new_block.H[:, -units:])
    return opened.with_block(last, new)


def drawn_anew(network: Network, dead: Sequence[int], X: Tensor, seed: int) -> Network:
    """The network with random neurons in its dead layers, as torch's Linear draws them but alive, the last ones silent.

    Args:
        network: The network.
        dead: Blocks all of whose neurons are silent on all rows, in their order, one at least.
        X: Its inputs, shape ``(N, d)``.
        seed: Of the random numbers.

    Returns:
        The network, whose function is the same on these rows.

    Example:
        >>> X = torch.eye(2, dtype=torch.float64)
        >>> network = drawn_anew(Network.of([ShallowBlock(-X[:1], X[:1, :1])]), [0], X, seed=0)
        >>> bool((X @ network.W.T > 0).any()), network(X).tolist()
        (True, [[0.0], [0.0]])
    """
    draw = torch.Generator().manual_seed(seed)
    for place in dead:
        block = network.block(place)
        inputs = network.inputs(X)[place].to(block.W)
        W = _uniform(block.W, inputs.shape[1] - 1, draw)
        W = torch.where((inputs @ W.T > 0).any(dim=0)[:, None], W, -W)
        new = _silenced(replace(block, W=W))
        if place != dead[-1]:
            new = replace(new, H=_heard_outputs(block, rho(inputs @ W.T, block.slopes), draw))
        network = network.with_block(place, new)
    return network


def _silenced(block: ShallowBlock) -> ShallowBlock:
    """The block with output weights zero."""
    return replace(block, H=torch.zeros_like(block.H))


def _prospect(network: Network, place: int, X: Tensor, end: Loss) -> float:
    """How far the loss falls by new neurons of a block."""
    block = network.block(place)
    return widening_prospect(block, network.inputs(X)[place], network.loss_behind(place, end), len(block.W))


def _passing(network: Network, places: Sequence[int], X: Tensor, E: Tensor, seed: int) -> Network:
    """The network with new neurons in some blocks, by which gradients ``E (N, K)`` at its end could be followed."""
    draw = torch.Generator().manual_seed(seed)
    for place in places:
        block = network.block(place)
        inputs = network.inputs(X)[place]
        units = len(block.W)
        alone = ShallowBlock(block.W, block.W.new_zeros(E.shape[1], units), block.slopes)
        W = add_silent_units(alone, BlockSignal(inputs.to(block.W), E.to(block.W)), units, seed=seed).W[-units:]
        A = rho(inputs.to(W) @ W.T, block.slopes)
        size = A.square().mean(dim=0).sqrt()
        # How long the old ones were says nothing: they may be dead because they were long.
        size = torch.where(size > 0, size, 1.0)
        new = replace(block, W=W / size[:, None], H=_heard_outputs(block, A / size, draw))
        network = network.with_block(place, new)
    return network


def _heard_outputs(block: ShallowBlock, A: Tensor, draw: torch.Generator) -> Tensor:
    """Output weights ``(J, I)`` as torch's Linear draws them, with signs that leave most behind ``A (N, I)`` alive."""
    H = _uniform(block.H, A.shape[1], draw)
    bias = A.new_zeros(len(H)) if block.output_bias is None else block.output_bias
    heard = (A @ H.T + bias > 0).any(dim=0)
    return torch.where(heard[:, None], H, -H)


def _uniform(like: Tensor, inputs: int, draw: torch.Generator) -> Tensor:
    """Weights of the shape of others as torch's Linear draws them."""
    uniform = 2 * torch.rand(*like.shape, generator=draw, dtype=torch.float64) - 1
    return uniform.to(like) / math.sqrt(max(inputs, 1))
