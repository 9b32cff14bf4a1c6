"""New neurons that nothing reads yet, chosen for what their output weights will feel together."""

from __future__ import annotations

from typing import Literal

import torch

from relu_diag.functional.block import BlockSignal, ShallowBlock, check_fit, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.widening._factors import usual_length
from relu_diag.functional.widening._greedy import filled, greedy_choice
from relu_diag.functional.widening._pools import POOLS, Situation, has_constant
from relu_diag.functional.widening.embedding import add_inactive_propagation


def add_silent_units(
    block: ShallowBlock,
    signal: BlockSignal,
    units: int | Literal["auto"] = "auto",
    most: int = BUDGETS.new_units,
    seed: int = 0,
) -> ShallowBlock:
    """The network with neurons of output weights zero that explain most of the loss gradient together.

    The function is the same everywhere, and nothing has to be evaluated: this is the way to grow where only the loss
    gradient is known, inside a deep network for example. Input weights are made in all ways of `best_widening`, and
    chosen greedily, each for the part of the gradient that those before do not explain: no two of them are alike.

    Args:
        block: The network.
        signal: Its inputs, and the loss gradients at its outputs.
        units: Number of neurons, or "auto": as many as explain more than 1 % of the squared gradient each, at least 1.
        most: Number of neurons at most, for "auto".
        seed: Of the random numbers.

    Returns:
        The wider network, the new neurons last, their input weights as long as is usual in it.

    Example:
        >>> X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> block = ShallowBlock(X[:2], torch.zeros(1, 2).double())
        >>> wider = add_silent_units(block, BlockSignal(X, -X[:, :1].relu()), units=2)
        >>> tuple(wider.W.shape), torch.equal(wider(X), block(X))
        ((4, 3), True)
    """
    check_fit(block, signal)
    dtype = torch.promote_types(block.W.dtype, torch.float32)
    wide = block.cast(dtype)
    own = BlockSignal(signal.X.detach().to(dtype), signal.G.detach().to(dtype))
    situation = Situation(wide, own, has_constant(own.X), torch.Generator().manual_seed(seed))
    count = most if units == "auto" else units
    V = torch.cat([pool(situation, max(BUDGETS.pool, BUDGETS.pool_for_one * count)) for pool in POOLS.values()])
    choice = greedy_choice(rho(own.X @ V.T, wide.slopes), own.G, count)
    index = choice.index
    if units == "auto":
        worthwhile = choice.explained > FLOAT64.worth_a_neuron * float(own.G.square().sum())
        index = index[: max(1, int(worthwhile.cumprod(dim=0).sum()))]
    index = filled(index, 1 if units == "auto" else units, len(V))
    new = torch.nn.functional.normalize(V[index])
    return add_inactive_propagation(block, (usual_length(block) * new).to(block.W))
