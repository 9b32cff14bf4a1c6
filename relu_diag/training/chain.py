"""Blocks that follow one another up to the loss: each inner one gets the loss as a function of its own outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from relu_diag.capture import Sighting
from relu_diag.functional import ShallowBlock
from relu_diag.functional.widening import LossThroughLayers, Network
from relu_diag.training._chained import chain_from, followers_of, name_of_chain
from relu_diag.training._sample import affordable_rows, some_in_order
from relu_diag.training._settled import steady
from relu_diag.training._training_data import Chain, TrainingData
from relu_diag.training.ranks import of_all_ranks, on_all_ranks
from relu_diag.training.rows import KeptRows

# Rows of a chain: as many as neurons are chosen by, or more.
_ROWS = 4096
_FEWEST = 384


def data_of_chains(
    seen: Mapping[str, Sighting], blocks: Mapping[str, ShallowBlock], kept: Mapping[str, KeptRows]
) -> dict[str, TrainingData]:
    """Rows and loss of every block of a chain whose last one has a known loss. A collective: every rank must call it.

    The hidden layer of each block in a chain is what the block before it outputs, and nothing else reads it. Inputs are
    computed from those of the first block, at the weights of now.

    Args:
        seen: The last sighting of every block.
        blocks: The blocks at the weights of now.
        kept: Rows of the blocks, and of chains as one by the names of all their blocks (`name_of_chain`).

    Returns:
        The data by names of blocks; without those that stand alone.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from relu_diag.capture import riding
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)).double()
        >>> X, Y = torch.randn(40, 2).double(), torch.randn(40, 1).double()
        >>> kept = {"0": KeptRows(), "2": KeptRows()}
        >>> with riding(net) as ride:
        ...     loss = nn.functional.mse_loss(net(X), Y)
        ...     ride.board(loss)
        ...     loss.backward()
        ...     seen = {one.hidden: one for one in ride.end()}
        >>> for name, one in seen.items():
        ...     kept[name].keep(one, loss.item(), (X, Y), step=0)
        >>> blocks = {name: one.block for name, one in seen.items()}
        >>> sorted(data_of_chains(seen, blocks, kept))
        ['0', '2']
    """
    followers = on_all_ranks(lambda: followers_of(seen))
    everyone = of_all_ranks((followers, set(kept)))
    followers = {name: after for name, after in followers.items() if all(one.get(name) == after for one, _ in everyone)}
    everywhere = set.intersection(*(names for _, names in everyone))
    chains: list[tuple[list[str], TrainingData]] = []
    for first in seen:
        names = chain_from(first, followers)
        if first in followers.values() or len(names) == 1:
            continue
        together = name_of_chain(names)
        data = kept[together].data() if together in everywhere else kept[names[-1]].on_rows_of(kept[first])
        if data is not None:
            chains.append((names, data))
    return on_all_ranks(
        lambda: dict(pair for names, data in chains for pair in along([blocks[name] for name in names], names, data))
    )


def along(
    blocks: Sequence[ShallowBlock], names: Sequence[str], data: TrainingData
) -> Iterator[tuple[str, TrainingData]]:
    """The data of each block of a chain, by those of the first with the loss of the last.

    In an order of their own and by weights of few digits, so that activations are the same to the bit in any order.

    Args:
        blocks: The blocks, in their order.
        names: Their names.
        data: Inputs of the first, and the loss of the outputs of the last.

    Yields:
        Name and data of every block.

    Example:
        >>> import torch
        >>> from relu_diag.functional import SquaredError
        >>> blocks = [ShallowBlock(torch.eye(2), torch.eye(2)), ShallowBlock(torch.eye(2), torch.ones(1, 2))]
        >>> data = TrainingData(torch.eye(2), SquaredError(torch.ones(2, 1)))
        >>> [(name, one.loss.name) for name, one in along(blocks, ["a", "b"], data)]
        [('a', 'squared error through 1 further layers'), ('b', 'squared error')]
    """
    network = Network.of([steady(block) for block in blocks])
    data = some_in_order(data, affordable_rows(LossThroughLayers(data.loss, network.layers), _ROWS, _FEWEST))
    chain = Chain(tuple(names), network, data)
    for place, (name, X) in enumerate(zip(names, network.inputs(data.X), strict=True)):
        yield name, TrainingData(X, network.loss_behind(place, data.loss), data.complete, chain, place)
