"""Which of several blocks to grow, before neurons are chosen for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch import Trainer

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.widening import LossThroughLayers, widening_prospect
from relu_diag.training._rehearsed import Rehearsal, random_neurons
from relu_diag.training._sample import affordable_rows, some_in_order
from relu_diag.training._settled import steady
from relu_diag.training.examination import Examination
from relu_diag.training.felt import data_of, growth_gain
from relu_diag.training.gap import decays

# Share of the largest drop with which the growth of an earlier block is as good. Of 66 runs of deep classifiers 11
# ended elsewhere than with a half, lower by a quarter in the geometric mean; with a tenth the mean was higher again.
_AS_GOOD = 0.25
# Sets of random neurons for each block by which blocks are compared in a rehearsal.
_STARTS = 12


def growth_prospects(examinations: Sequence[Examination], units: int | None) -> list[float]:
    """What blocks would gain by new neurons, for a small part of what it costs to choose them.

    Args:
        examinations: The blocks, examined.
        units: Number of neurons that each would get; None: as many as are worth it.

    Returns:
        How far the loss falls with some neurons, one number for each block, or how fast (`growth_gain`) where that of
        one of them cannot be evaluated.

    Example:
        >>> import torch
        >>> from relu_diag.functional import ShallowBlock, SquaredError
        >>> from relu_diag.training import TrainingData, verdict_in_training
        >>> data = TrainingData(torch.eye(2), SquaredError(torch.tensor([[1.0], [0.0]])))
        >>> block = ShallowBlock(torch.tensor([[0.0, 1.0]]), torch.ones(1, 1))
        >>> unknown = verdict_in_training(None, "")
        >>> found = Examination(0, "net.0", None, block, 0.5, unknown, None, data, None, "", dead=False)
        >>> [gain > 0 for gain in growth_prospects([found], 1)]
        [True]
    """
    known = [data_of(one) for one in examinations]
    data = [one for one in known if one is not None]
    if len(data) < len(known):
        return [growth_gain(one) for one in examinations]
    most = BUDGETS.rows_to_compare
    few = [some_in_order(one, affordable_rows(one.loss, most, most // 2)) for one in data]
    return [
        widening_prospect(steady(one.block), rows.X, rows.loss, units)
        for one, rows in zip(examinations, few, strict=True)
    ]


def most_promising_first(examinations: Sequence[Examination], gains: Sequence[float]) -> list[int]:
    """The order in which blocks are to be tried.

    Early neurons have more to learn than late ones: their input weights are many, and all layers behind follow them,
    which a short fit does not show. So of those that gain as much, but for a factor, the earliest.

    Args:
        examinations: Blocks, examined; one at least.
        gains: What each would gain.

    Returns:
        Their places.

    Example:
        >>> import torch
        >>> from relu_diag.functional import ShallowBlock
        >>> from relu_diag.training import verdict_in_training
        >>> block, unknown = ShallowBlock(torch.eye(2), torch.ones(1, 2)), verdict_in_training(None, "")
        >>> one = Examination(0, "net.0", None, block, 0.5, unknown, None, None, None, "", dead=False)
        >>> most_promising_first([one, one, one], [0.1, 0.3, 0.2])
        [1, 2, 0]
    """
    largest = max(gains)
    # Where functions are kept, gains are rounding and may be below zero.
    least = largest - (1 - _AS_GOOD) * abs(largest)

    def rank(place: int) -> tuple[bool, int, float]:
        as_good = gains[place] >= least
        return as_good, _layers_behind(examinations[place]) if as_good else 0, gains[place]

    return sorted(range(len(gains)), key=rank, reverse=True)


def _layers_behind(examination: Examination) -> int:
    """How many further layers are known to stand behind a block."""
    data = data_of(examination)
    return len(data.loss.layers) if data is not None and isinstance(data.loss, LossThroughLayers) else 0


def growth_order(trainer: Trainer, examinations: Sequence[Examination], units: int | Literal["auto"]) -> list[int]:
    """The order in which blocks are to be tried: by where training leads, where that is seen, or by what each gains.

    Args:
        trainer: The trainer.
        examinations: The blocks, examined; one at least.
        units: Number of neurons that each would get.

    Returns:
        Their places, the most promising first.

    Example:
        >>> import torch
        >>> from relu_diag.functional import ShallowBlock
        >>> from relu_diag.training import verdict_in_training
        >>> block, unknown = ShallowBlock(torch.eye(2), torch.ones(1, 2)), verdict_in_training(None, "")
        >>> one = Examination(0, "net.0", None, block, 0.5, unknown, None, None, None, "", dead=False)
        >>> growth_order(Trainer(barebones=True, accelerator="cpu"), [one, one], units=1)
        [0, 1]
    """
    order = None if units == "auto" else _order_in_rehearsal(trainer, examinations, units)
    if order is not None:
        return order
    return most_promising_first(examinations, growth_prospects(examinations, None if units == "auto" else units))


def _order_in_rehearsal(trainer: Trainer, examinations: Sequence[Examination], units: int) -> list[int] | None:
    """The order by the lowest loss to which random neurons lead; None where blocks are not of one small network."""
    data = [data_of(one) for one in examinations]
    known = [one for one in data if one is not None and one.chain is not None]
    chain = known[0].chain if known else None
    if chain is None or len(known) < len(data) or any(one.chain is not chain for one in known):
        return None
    if any(decays(trainer, one) for one in examinations):
        return None
    rehearsal = Rehearsal.of(trainer, chain)
    if rehearsal is None:
        return None
    networks = [
        chain.network.with_block(one.place, parts[-1].new_block)
        for one in known
        for parts in random_neurons(chain.network.block(one.place), one.X, units, _STARTS)
    ]
    losses = torch.tensor(rehearsal.losses(networks), dtype=torch.float64).view(len(known), -1).amin(dim=1)
    order: list[int] = losses.argsort(stable=True).tolist()
    return order
