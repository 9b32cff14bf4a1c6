"""Choose neurons to add to a block in training: under the squared error, or under any loss by passes over the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from relu_diag.functional import GrowthProposal, ShallowBlock, classify, growth_proposals
from relu_diag.functional.tolerances import tolerances
from relu_diag.training._data import MAX_ELEMENTS, TOO_MANY
from relu_diag.training.examination import Examination
from relu_diag.training.look import Look
from relu_diag.training.rows import SquaredView, TrainingData

# Copies that are tried under any other loss, where a trial takes a dozen passes over the data.
_CANDIDATES = 4
# Relative difference up to which the gradient at the activations comes from the output alone.
_SAME = 1e-3
# How far a new neuron is turned off a kink, in widths of a kink.
_TURN = 100.0
# Binary digits of a new neuron's weights: the loss at its best weights does not feel the others.
_DIGITS = 12


class NoWidening(Exception):
    """The reason why no neuron is added."""


@dataclass(frozen=True, slots=True)
class Growth:
    """A block made wider in the middle of training.

    Attributes:
        step: Gradient steps done.
        block: Qualified name of the block's first Linear.
        before: Width before.
        after: Width after.
        embedding: What was done, one line for each new neuron.
        verdict_before: Verdict on the weights before.
        verdict_after: Verdict on the weights after.
        function_change: Largest change of an output on the data.
        predicted_drop: First-order prediction of the immediate drop of the loss.
        measured_drop: Immediate drop of the loss, evaluated.
    """

    step: int
    block: str
    before: int
    after: int
    embedding: tuple[str, ...]
    verdict_before: str
    verdict_after: str
    function_change: float
    predicted_drop: float
    measured_drop: float

    def __str__(self) -> str:
        return (
            f"step {self.step:,} {self.block or 'block'} grows from {self.before} to {self.after} neurons: "
            f"{'; '.join(self.embedding)}; {self.verdict_before} before, {self.verdict_after} after; drop predicted "
            f"{self.predicted_drop:.2g}, measured {self.measured_drop:.2g}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class WideningChoice:
    """Neurons to add, one after the other.

    Attributes:
        proposals: One proposal for each neuron, made for the block with the neurons before it.
        verdict: Kind of the widened weights; "undecided" if the loss is not the squared error.
        function_change: Largest change of an output on the data.
    """

    proposals: list[GrowthProposal]
    verdict: str
    function_change: float

    def embed(self, block: ShallowBlock, live: ShallowBlock) -> ShallowBlock:
        """Add the neurons to the live block, or in the same way to an averaged copy of it.

        Args:
            block: The block to widen.
            live: The block for which the choice was made.

        Returns:
            The wider block.
        """
        if block.W.shape == live.W.shape and torch.equal(block.W, live.W) and torch.equal(block.H, live.H):
            return self.proposals[-1].new_block
        for one in self.proposals:
            block = one.embed(block)
        return block


def choose_widening(
    trainer: Trainer, module: LightningModule, examination: Examination, count: int, embedding: str, nudge: bool
) -> WideningChoice:
    """The neurons that gain most, one after the other; the same on every rank.

    Args:
        trainer: The trainer, fitting.
        module: Its module.
        examination: The block, examined.
        count: Largest number of neurons.
        embedding: "replication", "inactive propagation", or "best".
        nudge: Whether to move the new neurons so that the loss falls at once.

    Returns:
        The choice, of one neuron at least.

    Raises:
        NoWidening: If no neuron gains anything, or the loss cannot be evaluated.
    """
    data = None if examination.data is None else _in_order(examination.data)
    squared = None if data is None else data.squared(examination.block)
    if data is not None:
        search = _search_rows(data, squared, nudge)
    elif examination.look is not None:
        search = _search(trainer, module, examination, examination.look, nudge)
    else:
        search = _search_signals(examination)
    chosen: list[GrowthProposal] = []
    block = examination.block
    for _ in range(count):
        best = next((one for one in search.propose(block) if embedding in {"best", one.kind}), None)
        if best is None:
            break
        best = _settled(best, search.X, data) if nudge else best
        chosen.append(best)
        block = best.new_block
    chosen = trainer.strategy.broadcast(chosen)
    if not chosen:
        raise NoWidening("no neuron and no direction gains anything")
    block = chosen[-1].new_block
    kind = "undecided" if squared is None else classify(block, squared.X, squared.Y).kind
    with torch.no_grad():
        change = float((block(search.X) - examination.block(search.X)).abs().max())
    return WideningChoice(chosen, kind, change)


def _in_order(data: TrainingData) -> TrainingData:
    """The same samples in an order of their own, so that a choice does not depend on how they came in."""
    order = torch.as_tensor(np.lexsort(data.X.double().cpu().numpy().T)).to(data.X.device)
    try:
        return replace(data, X=data.X[order], loss=data.loss.rows(order))
    except NotImplementedError:  # a loss that is not known as a sum over samples
        return data


def _settled(proposal: GrowthProposal, X: Tensor, data: TrainingData | None) -> GrowthProposal:
    """The proposal with a new neuron that does not depend on rounding: of a few digits, and beside every sample.

    A search ends within its own accuracy of the best weights, and on a kink rounding would decide which gradient comes
    next: in another order of the samples, or on another number of processes, another one.
    """
    block = proposal.new_block
    W = block.W.clone()
    H = block.H.clone()
    if proposal.unit is None and data is not None:
        W[-1] = _rounded(W[-1])
        H[:, -1] = _rounded(H[:, -1])
    w = W[-1]
    reach = tolerances(w.dtype).kink * float(w.norm()) * X.to(w).norm(dim=1)
    if bool((((X.to(w) @ w).abs() <= reach) & (reach > 0)).any()):
        generator = torch.Generator().manual_seed(0)
        turn = torch.randn(len(w), generator=generator, dtype=torch.float64).to(w)
        W[-1] += _TURN * tolerances(w.dtype).kink * w.norm() * turn
    new = replace(block, W=W, H=H)
    if data is None or (torch.equal(W, block.W) and torch.equal(H, block.H)):
        return replace(proposal, new_block=new)
    return replace(
        proposal,
        new_block=new,
        measured_drop=proposal.measured_drop + data.loss_of(block) - data.loss_of(new),
    )


def _rounded(values: Tensor) -> Tensor:
    """Values ``(n,)`` to so many binary digits of the largest of them."""
    largest = float(values.abs().max())
    if not largest:
        return values
    unit = 2.0 ** (math.frexp(largest)[1] - _DIGITS)
    return (values / unit).round() * unit


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """A search for neurons: the inputs of the data, shape ``(N, d)``, and the proposals for a block, best first."""

    X: Tensor
    propose: Callable[[ShallowBlock], list[GrowthProposal]]


def _search_rows(data: TrainingData, squared: SquaredView | None, nudge: bool) -> _Search:
    """The search by the rows of training steps."""
    if squared is not None and squared.scale == 1:
        return _Search(data.X, partial(growth_proposals, X=squared.X, Y=squared.Y, nudge=nudge))
    return _Search(data.X, partial(growth_proposals, X=data.X, Y=data.loss, nudge=nudge, candidates=_CANDIDATES))


def _search_signals(examination: Examination) -> _Search:
    """The search by loss gradients alone: nothing can be evaluated, so that the function is kept.

    Raises:
        NoWidening: If there are none.
    """
    signals = examination.signals
    if not signals:
        raise NoWidening(examination.no_forecast)
    X = torch.cat([signal.X for signal in signals])
    G = torch.cat([signal.G for signal in signals]) / len(signals)

    def to_first_order(outputs: Tensor) -> Tensor:
        return (G.to(outputs) * outputs).sum()

    return _Search(X, partial(growth_proposals, X=X, Y=to_first_order, nudge=False, candidates=_CANDIDATES))


def _search(trainer: Trainer, module: LightningModule, examination: Examination, look: Look, nudge: bool) -> _Search:
    """The search under the module's own loss, evaluated by passes over the data.

    Raises:
        NoWidening: If that loss is no function of the block's outputs, or the data are too many.
    """
    if trainer.world_size > 1:
        raise NoWidening(f"{examination.no_forecast}; under such a loss only a run of one process can choose")
    inputs = []
    batches = []
    elements = 0
    through_output = True
    for one in look.signals(trainer, module):
        signal = one.signal
        expected = signal.G @ examination.block.H
        through_output &= signal.C is None or bool((signal.C - expected).norm() <= _SAME * expected.norm())
        elements += signal.X.numel() + signal.G.numel()
        if elements <= MAX_ELEMENTS:
            inputs.append(signal.X)
            batches.append(one.batch)
    if elements > MAX_ELEMENTS:
        raise NoWidening(TOO_MANY)
    if not through_output:
        raise NoWidening("the loss reads the hidden activations besides the output of the block")
    X = torch.cat(inputs)
    loss = partial(look.loss_at, module, batches)
    return _Search(X, partial(growth_proposals, X=X, Y=loss, nudge=nudge, candidates=_CANDIDATES))
