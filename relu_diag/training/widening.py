"""Which neurons to add to a block in training: under the squared error, or under any loss by passes over the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from relu_diag.functional import GrowthProposal, ShallowBlock, classify, growth_proposals
from relu_diag.training.examination import Examination
from relu_diag.training.judge import MAX_ELEMENTS, TOO_MANY

# Copies that are tried where every trial is a dozen passes over the data.
_CANDIDATES = 4
_SAME = 1e-3


class NoWidening(Exception):
    """There is none, and why."""


@dataclass(frozen=True, slots=True, eq=False)
class WideningChoice:
    """Neurons to add, each on top of the ones before.

    Attributes:
        proposals: One for each neuron.
        verdict: What the grown weights are; "undecided" where the loss is not the squared error.
        function_change: Largest change of an output on the data.
    """

    proposals: list[GrowthProposal]
    verdict: str
    function_change: float

    def embed(self, block: ShallowBlock, live: ShallowBlock) -> ShallowBlock:
        """The grown block in the place of the live one, and the same growth of an averaged copy.

        Args:
            block: The one to grow.
            live: The one the choice was made for.

        Returns:
            It with the neurons.
        """
        if block.W.shape == live.W.shape and torch.equal(block.W, live.W) and torch.equal(block.H, live.H):
            return self.proposals[-1].new_block
        for one in self.proposals:
            block = one.embed(block)
        return block


def choose_widening(
    trainer: Trainer, module: LightningModule, found: Examination, count: int, embedding: str, nudge: bool
) -> WideningChoice:
    """The best growth, again and again, each on top of the one before; the same on every rank.

    Args:
        trainer: The trainer, fitting.
        module: Its module.
        found: What is known of the block.
        count: Neurons to add at most.
        embedding: "replication", "inactive propagation", or "best".
        nudge: Whether to move the new neurons.

    Returns:
        The choice, of one neuron at least.

    Raises:
        NoWidening: If nothing can be chosen.
    """
    X, propose = _squared(found, nudge) if found.data else _any_loss(trainer, module, found, nudge)
    chosen: list[GrowthProposal] = []
    block = found.block
    for _ in range(count):
        best = next((one for one in propose(block) if embedding in {"best", one.kind}), None)
        if best is None:
            break
        chosen.append(best)
        block = best.new_block
    chosen = trainer.strategy.broadcast(chosen)
    if not chosen:
        raise NoWidening("no neuron and no direction gains anything")
    block, data = chosen[-1].new_block, found.data
    with torch.no_grad():
        change = float((block(X) - found.block(X)).abs().max())
    return WideningChoice(chosen, classify(block, X, data.Y, data.reduction).kind if data else "undecided", change)


_Propose = Callable[[ShallowBlock], list[GrowthProposal]]


def _squared(found: Examination, nudge: bool) -> tuple[Tensor, _Propose]:
    assert found.data is not None
    data = found.data
    return data.X, lambda block: growth_proposals(block, data.X, data.Y, data.reduction, nudge=nudge)


def _any_loss(trainer: Trainer, module: LightningModule, found: Examination, nudge: bool) -> tuple[Tensor, _Propose]:
    """By the loss of the module itself, at other outputs of the block.

    Raises:
        NoWidening: If that loss cannot be evaluated so.
    """
    if trainer.world_size > 1:
        raise NoWidening(f"{found.no_forecast}, and then only a run of one process can choose")
    inputs, batches, alone, elements = [], [], True, 0
    for signal, _, batch in found.look.signals(trainer, module):
        through = signal.G @ found.block.H
        alone &= signal.C is None or bool((signal.C - through).norm() <= _SAME * through.norm())
        elements += signal.X.numel() + signal.G.numel()
        if elements <= MAX_ELEMENTS:
            inputs.append(signal.X)
            batches.append(batch)
    if elements > MAX_ELEMENTS:
        raise NoWidening(TOO_MANY)
    if not alone:
        raise NoWidening("the loss reads the hidden activations besides the output of the block")
    X, loss = torch.cat(inputs), partial(found.look.loss_at, module, batches)
    return X, lambda block: growth_proposals(block, X, loss, nudge=nudge, candidates=_CANDIDATES)
