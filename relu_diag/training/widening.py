"""Choose neurons to add to a block in training: under the squared error, or under any loss by passes over the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from relu_diag.functional import (
    BlockSignal,
    Gap,
    GrowthProposal,
    ShallowBlock,
    WeightDecay,
    Widening,
    best_widening,
    classify,
    growth_proposals,
)
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.widening import add_inactive_propagation, add_silent_units
from relu_diag.training._data import MAX_ELEMENTS, TOO_MANY
from relu_diag.training._falls import Falls
from relu_diag.training._rehearsed import Rehearsal, best_in_rehearsal, random_neurons
from relu_diag.training._sample import (
    MOST_ROWS,
    affordable_rows,
    affordable_steps,
    held_out,
    rows_of_choice,
    some_in_order,
)
from relu_diag.training._settled import settled, steady, with_own_digits
from relu_diag.training._training_data import TrainingData
from relu_diag.training.examination import Examination
from relu_diag.training.felt import data_of, signal_of, some_rows
from relu_diag.training.gap import coupled_decay, decays, gap_in_training
from relu_diag.training.judge import SEARCHED_AT_ONCE, search_size
from relu_diag.training.look import Look
from relu_diag.training.obstacle import reads_activations
from relu_diag.training.ranks import of_first_rank, on_all_ranks
from relu_diag.training.widening_choice import NoWidening, WideningChoice

# Copies that are tried under any other loss, where a trial takes a dozen passes over the data.
_CANDIDATES = 4
# Numbers of the inputs, and new neurons, up to which neurons are proposed one by one besides; and numbers up to which
# they are where no set lowers the loss: more would take minutes.
_FEW_NUMBERS = 512
_FEW_NEURONS = 4
# Proposals for a single neuron that are compared by where training leads.
_PROPOSED = 9
_NUMBERS_ONE_BY_ONE = 2**13
# How often new neurons are made quieter, where they cost more than they gain.
_HALVINGS = 12
_NO_GAIN = "no neuron and no direction gains anything"


def choose_widening(
    trainer: Trainer,
    module: LightningModule,
    examination: Examination,
    count: int | Literal["auto"],
    embedding: str,
    nudge: bool,
    most: int | None = None,
) -> WideningChoice:
    """The neurons that gain most, one at least; the same on every rank. A collective: every rank must call it.

    Where the loss is known, sets of new neurons are compared by the loss after a short fit (`best_widening`), and
    where rows and neurons are few, with copies and new neurons one after the other (`growth_proposals`); weight decay
    counts. Where nothing can be evaluated, or no set lowers the loss, neurons are added whose outputs are silent.

    Args:
        trainer: The trainer, fitting.
        module: Its module.
        examination: The block, examined.
        count: Number of neurons, or "auto": as many as are worth it.
        embedding: "replication", "inactive propagation", or "best".
        nudge: Whether to move the new neurons so that the loss falls at once.
        most: Number of neurons at most, for "auto".

    Returns:
        The choice.

    Raises:
        NoWidening: If no neuron gains anything.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> from relu_diag.training import TrainingData, verdict_in_training
        >>> data = TrainingData(torch.eye(2), SquaredError(torch.tensor([[1.0], [0.0]])))
        >>> block = ShallowBlock(torch.tensor([[0.0, 1.0]]), torch.ones(1, 1))
        >>> unknown = verdict_in_training(None, "")
        >>> found = Examination(0, "net.0", None, block, 0.5, unknown, None, data, None, "", dead=False)
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> choose_widening(trainer, LightningModule(), found, 1, "best", nudge=True).units
        1
    """
    room = BUDGETS.new_units if most is None else min(most, BUDGETS.new_units)
    plan = _Plan(examination.block, count, room, embedding, nudge, examination.loss)
    found = on_all_ranks(partial(_found, trainer, module, examination, plan))
    parts = of_first_rank(trainer, found.parts)
    if isinstance(parts, NoWidening):
        raise NoWidening(str(parts))
    return on_all_ranks(partial(_choice, parts, found.falls))


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """The neurons to add, or why there are none, and what they change of the loss, where it is known."""

    parts: list[GrowthProposal | Widening] | NoWidening
    falls: Falls | None


def _found(trainer: Trainer, module: LightningModule, examination: Examination, plan: _Plan) -> _Found:
    """The neurons to add, as this process finds them."""
    data = _some_data(examination)
    falls: Falls | None = None
    try:
        if data is not None:
            decay = coupled_decay(trainer, examination) or WeightDecay()
            gap = gap_in_training(trainer, examination)
            falls = Falls.of(examination.block, data, decay)
            rehearsal = None if decays(trainer, examination) else Rehearsal.of(trainer, falls.chain)
            parts = _by_rows(replace(plan, rehearsal=rehearsal), falls, gap)
        elif examination.look is not None:
            parts = _one_by_one(plan, _search(trainer, module, examination, examination.look, plan.nudge))
        else:
            parts = _by_signals(plan, examination)
    except NoWidening as why:
        return _Found(why, falls)
    return _Found(parts, falls)


def _some_data(examination: Examination) -> TrainingData | None:
    """As many rows as a choice may cost, in an order of their own; None where the loss is not known."""
    data = data_of(examination)
    if data is None:
        return None
    most = affordable_rows(data.loss, rows_of_choice(data.X.shape[1]), BUDGETS.rows_to_compare)
    return some_in_order(data, most)


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What to add to a block of some loss: how many neurons, ``room`` at most, in which way, and by which rehearsal."""

    block: ShallowBlock
    count: int | Literal["auto"]
    room: int
    embedding: str
    nudge: bool
    loss: float
    rehearsal: Rehearsal | None = None

    @property
    def most(self) -> int:
        """Number of neurons at most."""
        return self.room if self.count == "auto" else self.count


def _by_rows(plan: _Plan, falls: Falls, gap: Gap | None) -> list[GrowthProposal | Widening]:
    """The neurons with the lowest loss on rows.

    Raises:
        NoWidening: If no neuron gains anything.
    """
    data = falls.data
    search = _Search(
        data.X, partial(growth_proposals, X=data.X, Y=data.loss, nudge=plan.nudge, weight_decay=falls.decay)
    )
    if plan.embedding == "replication" or (plan.embedding != "best" and plan.nudge):
        return _one_by_one(plan, search, falls)
    if not plan.nudge:
        return _one_by_one(plan, search) if plan.most == 1 else [_silent(plan, _signal(falls))]
    widening = _best(plan, falls)
    pulled = None if gap is None else _pulled(plan, falls, gap)
    found: list[list[GrowthProposal | Widening]] = [[one] for one in (widening, pulled) if one is not None]
    most = _FEW_NUMBERS if found else _NUMBERS_ONE_BY_ONE
    if data.X.numel() <= most and plan.most <= _FEW_NEURONS:
        if plan.count != "auto" and plan.rehearsal is not None:
            further = [*_proposed(plan, search, falls), *random_neurons(falls.block, data.X, plan.most)]
            return best_in_rehearsal(plan.rehearsal, data.place, [*found, *further])
        with suppress(NoWidening):
            found.append(_one_by_one(plan, search, falls))
    if len(found) == 1:
        return found[0]
    if found:
        return max(found, key=lambda parts: falls(parts[-1].new_block))
    if plan.count == "auto":
        raise NoWidening(_NO_GAIN)
    return [_silent(plan, _signal(falls))]


def _proposed(plan: _Plan, search: _Search, falls: Falls) -> list[list[GrowthProposal | Widening]]:
    """The neurons that gain most one by one; for one alone all proposals, if the first gains anything."""
    if plan.most > 1:
        with suppress(NoWidening):
            return [_one_by_one(plan, search, falls)]
        return []
    proposals = search.propose(steady(plan.block))[:_PROPOSED]
    settled_in = [_settled_in(plan.block, one, search.X, falls) for one in proposals]
    return [[one] for one in settled_in] if settled_in and falls(settled_in[0].new_block) > 0 else []


def _signal(falls: Falls) -> BlockSignal:
    """The inputs of the rows, and the loss gradients at the outputs."""
    data = falls.data
    return BlockSignal(data.X, data.loss.gradient(falls.outputs.to(data.X)))


def _best(plan: _Plan, falls: Falls) -> Widening | None:
    """Several neurons at once, in the place where they do not depend on rounding; None where none lowers the loss."""
    data = falls.data
    block = steady(plan.block)
    found = best_widening(
        block,
        data.X,
        data.loss,
        units=plan.count,
        held_out=held_out(data),
        steps=affordable_steps(data.loss, len(data.X)),
        most=plan.room,
        outputs=falls.outputs if block is plan.block else None,
    )
    if found.kept:
        return None
    widening = replace(found, new_block=found.embed(plan.block))
    for _ in range(_HALVINGS):
        new_block = settled(widening.new_block, widening.units, data.X, drop_digits=True)
        if falls(new_block) > 0:
            return replace(widening, new_block=new_block)
        widening = replace(widening, new_block=_quieter(widening.new_block, widening.units))
    return None


def _pulled(plan: _Plan, falls: Falls, gap: Gap) -> Widening | None:
    """The neuron of the largest pull at its best amplitude, weight decay counted; None where it lowers nothing."""
    block = plan.block
    silent = add_inactive_propagation(block, gap.neuron[None].to(block.W))
    silent.H[:, -1] = gap.output.to(silent.H)
    tried = [_quieter(silent, 1, 4.0 / 4**step) for step in range(_HALVINGS)]
    best = max((settled(one, 1, falls.data.X, drop_digits=True) for one in tried), key=falls)
    if not falls(best) > 0:
        return None
    before = float(falls.data.loss.double()(falls.outputs))
    return Widening(best, 1, "of the largest pull", before, before - falls(best), before, (), kept=False)


def _quieter(block: ShallowBlock, units: int, factor: float = 0.5) -> ShallowBlock:
    """The last neurons at another amplitude, half of theirs for example."""
    W = block.W.clone()
    H = block.H.clone()
    W[-units:] *= math.sqrt(factor)
    H[:, -units:] *= math.sqrt(factor)
    return replace(block, W=W, H=H)


def _one_by_one(plan: _Plan, search: _Search, falls: Falls | None = None) -> list[GrowthProposal | Widening]:
    """The neurons that gain most, one after the other.

    Raises:
        NoWidening: If no neuron gains anything.
    """
    enough = FLOAT64.worth_a_neuron * abs(plan.loss) if plan.count == "auto" else 0.0
    chosen: list[GrowthProposal | Widening] = []
    block = plan.block
    for _ in range(plan.most if plan.nudge or plan.count != "auto" else 1):
        proposals = search.propose(steady(block) if plan.nudge else block)
        best = next((one for one in proposals if plan.embedding in {"best", one.kind}), None)
        if best is None:
            break
        if plan.nudge:
            best = _settled_in(block, best, search.X, falls)
            drop = best.measured_drop if falls is None else falls(best.new_block) - falls(block)
            if not drop > enough:
                break
        chosen.append(best)
        block = best.new_block
    if not chosen:
        raise NoWidening(_NO_GAIN)
    return chosen


def _by_signals(plan: _Plan, examination: Examination) -> list[GrowthProposal | Widening]:
    """The neurons by loss gradients alone: nothing can be evaluated, so that the function is kept.

    Raises:
        NoWidening: If there are none.
    """
    signal = signal_of(examination)
    if signal is None:
        raise NoWidening(examination.no_forecast)
    if plan.embedding != "replication":
        return [_silent(plan, signal)]

    def to_first_order(outputs: Tensor) -> Tensor:
        return (signal.G.to(outputs) * outputs).sum()

    search = _Search(
        signal.X, partial(growth_proposals, X=signal.X, Y=to_first_order, nudge=False, candidates=_CANDIDATES)
    )
    return _one_by_one(replace(plan, nudge=False), search)


def _silent(plan: _Plan, signal: BlockSignal) -> Widening:
    """Neurons with silent outputs, which feel the loss gradient most.

    Raises:
        NoWidening: If there is no gradient to feel.
    """
    if not bool(signal.G.any()):
        raise NoWidening(_NO_GAIN)
    signal = some_rows(signal, MOST_ROWS)
    wider = add_silent_units(plan.block, signal, plan.count, plan.room)
    units = len(wider.W) - len(plan.block.W)
    new_block = settled(wider, units, signal.X, drop_digits=False)
    return Widening(new_block, units, "of the largest gradient", math.nan, math.nan, math.nan, (), kept=True)


def _choice(parts: list[GrowthProposal | Widening], falls: Falls | None) -> WideningChoice:
    """The choice, and what it does to the loss on the rows that it was made by."""
    new = parts[-1].new_block
    if falls is None:
        proposals = [part for part in parts if not isinstance(part, Widening)]
        change = max((one.function_change for one in proposals), default=0.0)
        predicted = sum(one.predicted_drop for one in proposals)
        measured = sum(one.measured_drop for one in proposals)
        return WideningChoice(tuple(parts), "undecided", change, predicted, measured)
    data = falls.data
    small = search_size(new, data) <= SEARCHED_AT_ONCE and data.loss.convex
    step = falls.change(new)
    return WideningChoice(
        parts=tuple(parts),
        verdict=classify(new.cast(data.X.dtype), data.X, data.loss).kind if small else "undecided",
        function_change=float(step.abs().max()),
        predicted_drop=falls.to_first_order(step),
        measured_drop=falls.of_loss(step),
    )


def _settled_in(block: ShallowBlock, proposal: GrowthProposal, X: Tensor, falls: Falls | None) -> GrowthProposal:
    """The proposal for a block, with a neuron that does not depend on rounding."""
    wider = with_own_digits(proposal.new_block, block, proposal.unit)
    new = settled(wider, 1, X, drop_digits=falls is not None and proposal.unit is None)
    if falls is None:
        return replace(proposal, new_block=new)
    lost = falls(wider) - falls(new)
    return replace(proposal, new_block=new, measured_drop=proposal.measured_drop - lost)


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """A search for neurons: the inputs of the data, shape ``(N, d)``, and the proposals for a block, best first."""

    X: Tensor
    propose: Callable[[ShallowBlock], list[GrowthProposal]]


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
        through_output &= not reads_activations(examination.block, signal)
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
