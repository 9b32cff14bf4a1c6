"""The gap in training: how far a block is from the best of any width, the optimizer's decay being part of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from lightning.pytorch import Trainer

from relu_diag.functional import Gap, ShallowBlock, WeightDecay, optimality_gap
from relu_diag.functional.block import rho
from relu_diag.training._sample import sampled
from relu_diag.training._training_data import TrainingData
from relu_diag.training.examination import Examination
from relu_diag.training.penalty import penalty_of
from relu_diag.training.report import Report
from relu_diag.training.story import tell_event

# Rows by which the gap is bounded; and numbers of inputs up to which a better bound is searched before growing.
_ROWS = 1024
_FEW_NUMBERS = 2048
_ROUNDS = 4
# Growing is not worth it where the loss is within this share of the best of any width.
_WORTH = 0.01
# How much more than the decay a new neuron must feel: at a minimum the neurons there are feel as much.
_PULL = 1.001
# The same of a neuron that is there: if it feels more, it grows by itself and training goes on.
_MOVES = 1.1


def gap_in_training(trainer: Trainer, examination: Examination, rounds: int = 0) -> Gap | None:
    """How much less the loss with weight decay could be with a block of any width, the layers before it as they are.

    Args:
        trainer: The trainer, fitting.
        examination: The block, examined.
        rounds: Rounds of `relu_diag.functional.optimality_gap` in search of a better bound.

    Returns:
        The gap, certified only where it is that of all data; None where the loss is not known or not convex, or where
        the weights have no decay that is part of the loss, as under AdamW.

    Example:
        >>> import torch
        >>> from relu_diag import ShallowBlock
        >>> from relu_diag.training import verdict_in_training
        >>> unknown = verdict_in_training(None, "the loss was not recognised")
        >>> block = ShallowBlock(torch.eye(2), torch.ones(1, 2))
        >>> found = Examination(0, "net.0", None, block, 1.0, unknown, None, None, None, "", dead=False)
        >>> gap_in_training(Trainer(barebones=True, accelerator="cpu"), found) is None
        True
    """
    data = examination.data
    decay = coupled_decay(trainer, examination)
    return None if data is None or decay is None else gap_with_decay(examination.block, data, decay, rounds)


def tell_gap(trainer: Trainer, examination: Examination, reports: Iterable[Report]) -> Gap | None:
    """Log and say how far a block is from the best of any width.

    Args:
        trainer: The trainer, fitting.
        examination: The block, examined.
        reports: Where it is logged, as ``gap``.

    Returns:
        The gap; None where there is none, see `gap_in_training`.

    Example:
        >>> from relu_diag import ShallowBlock
        >>> from relu_diag.training import verdict_in_training
        >>> import torch
        >>> unknown = verdict_in_training(None, "the loss was not recognised")
        >>> block = ShallowBlock(torch.eye(2), torch.ones(1, 2))
        >>> found = Examination(0, "net.0", None, block, 1.0, unknown, None, None, None, "", dead=False)
        >>> tell_gap(Trainer(barebones=True, accelerator="cpu"), found, ()) is None
        True
    """
    gap = gap_in_training(trainer, examination)
    if gap is not None:
        for report in reports:
            report.log_scalars(trainer, examination.step, {"gap": gap.gap})
        tell_event(trainer, examination.step, examination.verdict.kind, str(gap))
    return gap


def gap_with_decay(block: ShallowBlock, data: TrainingData, decay: WeightDecay, rounds: int = 0) -> Gap | None:
    """How much less the loss with a weight decay could be with a block of any width, by the rows of a run.

    Args:
        block: The block.
        data: What it is trained on.
        decay: Weight decay that is part of its loss.
        rounds: Rounds of `relu_diag.functional.optimality_gap` in search of a better bound.

    Returns:
        The gap, certified only where it is that of all data; None where the loss is not convex, or not all weights
        decay.

    Example:
        >>> import torch
        >>> from relu_diag.functional import SquaredError
        >>> data = TrainingData(torch.eye(2), SquaredError(torch.ones(2, 1)), complete=True)
        >>> block = ShallowBlock(torch.zeros(2, 2), torch.zeros(1, 2))
        >>> print(gap_with_decay(block, data, WeightDecay(W=10.0, H=10.0)))
        a global minimum of every width
    """
    if not data.loss.convex or not (decay.W > 0 and decay.H > 0):
        return None
    some = sampled(data, _ROWS)
    try:
        gap = optimality_gap(block, some.X, some.loss, decay, rounds=rounds)
    except (NotImplementedError, ValueError):  # a loss without conjugate, a bias free of decay that is no constant
        return None
    return replace(gap, certified=gap.certified and some.complete)


def against_growing(trainer: Trainer, examination: Examination, gap: Gap) -> str:
    """Why a new neuron would not help: the gap is closed, or training on closes it.

    Args:
        trainer: The trainer, fitting.
        examination: The block, examined.
        gap: Its gap.

    Returns:
        The reason; empty where the gap exceeds 1 % of the best loss, a new neuron would grow, and none that is there
        does.

    Example:
        >>> import torch
        >>> from relu_diag.functional import ShallowBlock, SquaredError
        >>> from relu_diag.training import verdict_in_training
        >>> unknown = verdict_in_training(None, "")
        >>> block = ShallowBlock(torch.zeros(2, 2), torch.zeros(1, 2))
        >>> found = Examination(0, "net.0", None, block, 1.0, unknown, None, None, None, "", dead=False)
        >>> gap = optimality_gap(block, torch.eye(2), SquaredError(torch.ones(2, 1)), weight_decay=10.0)
        >>> against_growing(Trainer(barebones=True, accelerator="cpu"), found, gap)
        'a global minimum of every width'
    """
    if not _is_wide(gap):
        return str(gap)
    if _moves(trainer, examination):
        return "neurons that are there grow by themselves"
    data = examination.data
    if data is None or data.X.numel() > _FEW_NUMBERS:
        return ""
    # The gap of the present gradient alone is a large one beside a minimum.
    better = gap_in_training(trainer, examination, _ROUNDS)
    return "" if better is None or _is_wide(better) else str(better)


def _is_wide(gap: Gap) -> bool:
    return gap.pull > _PULL and gap.share > _WORTH


def _moves(trainer: Trainer, examination: Examination) -> bool:
    """Whether a neuron of the block is pulled by clearly more than its decay."""
    data = examination.data
    decay = coupled_decay(trainer, examination)
    if data is None or decay is None:
        return False
    some = sampled(data, _ROWS)
    block = examination.block.double()
    X = some.X.double()
    G = some.loss.double().gradient(block(X))
    D = rho(X @ block.W.T, block.slopes).T @ G
    pull = D.norm(dim=1) / (math.sqrt(decay.W * decay.H) * block.W.norm(dim=1))
    return bool((pull > _MOVES).any())


def coupled_decay(trainer: Trainer, examination: Examination) -> WeightDecay | None:
    """The weight decay of a block as a penalty on its parts.

    Args:
        trainer: The trainer, fitting.
        examination: The block, examined.

    Returns:
        The decay; None where it is no gradient of a loss, as under AdamW, or parts of the block are not decayed as they
        are: computed weights, raw parameters.

    Example:
        >>> from relu_diag.capture import BlockLocation, read_block
        >>> from relu_diag.functional import SquaredError
        >>> from relu_diag.nn import ShallowNet
        >>> from relu_diag.training import TrainingData, verdict_in_training
        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> module = LightningModule()
        >>> module.net = ShallowNet(2, 3, hidden_bias=False, output_bias=False)
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> trainer.strategy.connect(module)
        >>> trainer.optimizers = [torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.01)]
        >>> place = BlockLocation("net.hidden", "net.output", (0.0, 1.0))
        >>> data = TrainingData(torch.eye(2), SquaredError(torch.ones(2, 1)), complete=True)
        >>> unknown = verdict_in_training(None, "")
        >>> block = read_block(module, place)
        >>> found = Examination(0, "net.hidden", place, block, 1.0, unknown, None, data, None, "", dead=False)
        >>> coupled_decay(trainer, found)
        WeightDecay(W=0.01, H=0.01, hidden_bias=None, output_bias=0.0)
    """
    return None if examination.location is None else penalty_of(trainer, examination.location)


def decays(trainer: Trainer, examination: Examination) -> bool:
    """Whether the decay of a block's weights is a part of the loss (`coupled_decay`).

    Args:
        trainer: The trainer, fitting.
        examination: The block, examined.

    Returns:
        Whether it is.

    Example:
        >>> import torch
        >>> from relu_diag.training import verdict_in_training
        >>> unknown = verdict_in_training(None, "")
        >>> block = ShallowBlock(torch.eye(2), torch.ones(1, 2))
        >>> found = Examination(0, "net.0", None, block, 1.0, unknown, None, None, None, "", dead=False)
        >>> decays(Trainer(barebones=True, accelerator="cpu"), found)
        False
    """
    decay = coupled_decay(trainer, examination)
    return decay is not None and bool(decay.W or decay.H)
