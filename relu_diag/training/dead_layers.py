"""Layers all of whose neurons are dead, before a network grows: they get new neurons, or no growth would be felt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from lightning.pytorch import Trainer

from relu_diag.functional import ShallowBlock
from relu_diag.functional.widening import Network, drawn_anew, reopened
from relu_diag.training._dead import all_dead
from relu_diag.training._rehearsed import Rehearsal
from relu_diag.training._sample import MOST_ROWS, held_out, some_in_order
from relu_diag.training._settled import settled, steady
from relu_diag.training._training_data import Chain
from relu_diag.training.chain import along
from relu_diag.training.examination import Examination
from relu_diag.training.felt import data_of
from relu_diag.training.gap import decays

# Samples on which a layer is to be silent before it is taken for dead, where these are not all.
_ENOUGH = 1000
# Rows that are looked at together: the first of them tell that a layer lives.
_ROWS_AT_ONCE = 256
# Random ways to bring dead layers back that are rehearsed.
_STARTS = 48


@dataclass(frozen=True, slots=True, eq=False)
class NewNeurons:
    """What dead layers get.

    Attributes:
        blocks: By names of dead blocks, their new weights.
        chain: Names of all blocks up to the loss: none of them has felt a gradient.
        drop: By how much it falls; 0 where the function is kept.

    Example:
        >>> NewNeurons({"net.0": ShallowBlock(torch.eye(2), torch.ones(1, 2))}, ("net.0",), drop=0.5).line
        'net.0 was dead: its 2 neurons are placed anew; drop 0.5'
    """

    blocks: Mapping[str, ShallowBlock]
    chain: tuple[str, ...]
    drop: float

    @property
    def line(self) -> str:
        """What is done, in words."""
        names = ", ".join(self.blocks)
        count = sum(len(block.W) for block in self.blocks.values())
        were, their = ("was", "its") if len(self.blocks) == 1 else ("were", "their")
        placed = "neuron is" if count == 1 else f"{count} neurons are"
        return f"{names} {were} dead: {their} {placed} placed anew; drop {self.drop:.2g}"


def for_dead_layers(trainer: Trainer, examinations: Sequence[Examination]) -> list[NewNeurons]:
    """New neurons for the dead layers of every chain of blocks.

    Args:
        trainer: The trainer, fitting.
        examinations: The blocks, examined.

    Returns:
        Them; none where no layer is dead, or one of the dead ones is no pair of Linear layers.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> from relu_diag.capture import BlockLocation
        >>> from relu_diag.functional import SquaredError
        >>> from relu_diag.nn import ShallowNet
        >>> from relu_diag.training import TrainingData, verdict_in_training
        >>> module, trainer = LightningModule(), Trainer(barebones=True, accelerator="cpu")
        >>> module.net = ShallowNet(2, 1)
        >>> trainer.strategy.connect(module)
        >>> trainer.optimizers = [torch.optim.Adam(module.parameters())]
        >>> place = BlockLocation("net.hidden", "net.output", (0.0, 1.0))
        >>> data = TrainingData(torch.eye(2), SquaredError(torch.tensor([[1.0], [0.0]])), complete=True)
        >>> block, unknown = ShallowBlock(-torch.ones(1, 2), torch.ones(1, 1)), verdict_in_training(None, "")
        >>> found = Examination(0, "net.hidden", place, block, 0.5, unknown, None, data, None, "", dead=True)
        >>> [one.line.split(";")[0] for one in for_dead_layers(trainer, [found])]
        ['net.hidden was dead: its neuron is placed anew']
    """
    places = {one.name: one.location for one in examinations}
    found = []
    for chain in _chains(examinations):
        dead = _dead_layers(chain)
        if not dead or any(places[chain.names[place]] is None for place in dead):
            continue
        # Under decay a dead layer may be the best one, and more weights than the dead ones have cost something.
        if any(decays(trainer, one) for one in examinations if one.name in chain.names):
            continue
        found.append(_new_neurons(chain, dead, Rehearsal.of(trainer, chain)))
    return found


def _chains(examinations: Sequence[Examination]) -> list[Chain]:
    """The chains of blocks, one that stands alone being one too; without those whose loss is not known."""
    found: dict[tuple[str, ...], Chain] = {}
    for one in examinations:
        data = data_of(one)
        if data is None:
            continue
        chain = data.chain or Chain((one.name,), Network.of([steady(one.block)]), data)
        found[chain.names] = chain
    names = {one.name for one in examinations}
    return [chain for chain in found.values() if names.issuperset(chain.names)]


def _dead_layers(chain: Chain) -> list[int]:
    """The blocks all of whose neurons are silent on enough samples."""
    if not chain.data.complete and len(chain.data.X) < _ENOUGH:
        return []
    network = chain.network
    dead = [*range(len(network))]
    for X in torch.split(chain.data.X, _ROWS_AT_ONCE):
        inputs = network.inputs(X)
        dead = [place for place in dead if all_dead(network.block(place), [inputs[place]])]
        if not dead:
            break
    return dead


def _new_neurons(chain: Chain, dead: Sequence[int], rehearsal: Rehearsal | None) -> NewNeurons:
    """What the dead layers of a chain get."""
    data = some_in_order(chain.data, MOST_ROWS)
    network = chain.network
    if rehearsal is not None:
        ways = [drawn_anew(network, dead, data.X, seed) for seed in range(_STARTS)]
        opened = ways[rehearsal.best(ways)]
    else:
        opened = reopened(network, dead, data.X, data.loss, held_out=held_out(data))
    for place in dead:
        block = opened.block(place)
        new = settled(block, len(block.W), opened.inputs(data.X)[place], drop_digits=True)
        opened = opened.with_block(place, new)
    blocks = {chain.names[place]: opened.block(place) for place in dead}
    drop = float(data.loss(network(data.X))) - float(data.loss(opened(data.X)))
    return NewNeurons(blocks, chain.names, drop)


def at_blocks_of_now(examinations: Sequence[Examination], now: Mapping[str, ShallowBlock]) -> list[Examination]:
    """The examinations with blocks as they are now, and with what follows for the inputs of those behind them.

    Args:
        examinations: The blocks, examined.
        now: The blocks at the weights of now, by their names.

    Returns:
        The examinations; verdicts stay those of before.

    Example:
        >>> from relu_diag.training import verdict_in_training
        >>> unknown = verdict_in_training(None, "")
        >>> block = ShallowBlock(-torch.eye(2), torch.ones(1, 2))
        >>> found = Examination(0, "net.0", None, block, 0.5, unknown, None, None, None, "", dead=True)
        >>> (after,) = at_blocks_of_now([found], {"net.0": ShallowBlock(torch.eye(2), torch.ones(1, 2))})
        >>> after.block.W.trace().item()
        2.0
    """
    found = {one.name: replace(one, block=now[one.name]) for one in examinations}
    for chain in _chains(examinations):
        if len(chain.names) > 1:
            for name, own in along([now[name] for name in chain.names], chain.names, chain.data):
                found[name] = replace(found[name], deep_data=own)
    return list(found.values())
