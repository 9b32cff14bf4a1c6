"""Rows of training data in an order of their own, and a sample of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from relu_diag.functional.output_loss import Loss
from relu_diag.functional.widening import LossThroughLayers
from relu_diag.training._training_data import TrainingData

# Inputs that are turned to float64 at once.
_COLUMNS = 64
# Rows by which neurons are chosen, fewer where inputs are long so that a choice costs no more than a few steps of
# training.
MOST_ROWS = 4096
_FEWEST = 1024
_NUMBERS = 2**19
# Products of rows with the weights behind a block, each time that neurons are tried: about a quarter of a step.
_PRODUCTS = 2**25
# Share of the rows that judges neurons where these are not all data.
_JUDGING = 0.25
# Steps for which new neurons are trained then, and how many at least where rows are no fewer.
_STEPS = 30
_FEWEST_STEPS = 5


def in_order(data: TrainingData) -> TrainingData:
    """The same samples in an order of their own, so that a choice does not depend on how they came in.

    Args:
        data: The data.

    Returns:
        They, sorted by their inputs; as they are where their loss is not known as a sum over samples.
    """
    order = _order(data.X)
    try:
        return replace(data, X=data.X[order], loss=data.loss.rows(order))
    except NotImplementedError:
        return data


def some_in_order(data: TrainingData, count: int) -> TrainingData:
    """A sample that does not depend on the order in which the samples came in, in an order of its own.

    Args:
        data: The data.
        count: Number of samples at most.

    Returns:
        The data, not complete where samples are left out; as they are where their loss is not known as a sum over
        samples.
    """
    if len(data.X) <= count:
        return in_order(data)
    order = _order(data.X)
    try:
        return _part(data, order[_drawn(data, count)])
    except NotImplementedError:
        return data


def rows_of_choice(inputs: int) -> int:
    """Number of rows by which neurons of so many inputs are chosen at most."""
    return min(MOST_ROWS, max(_FEWEST, _NUMBERS // inputs))


def held_out(data: TrainingData) -> float:
    """Share of the rows that judges neurons chosen by the others: none where these are all data."""
    return 0.0 if data.complete else _JUDGING


def affordable_rows(loss: Loss, most: int, fewest: int) -> int:
    """As many rows as may pass through the layers behind a block each time that neurons are tried.

    Args:
        loss: The loss of the outputs of the block.
        most: Number of rows at most.
        fewest: Number of rows without which nothing is known.

    Returns:
        The number.
    """
    return min(most, max(fewest, _PRODUCTS // max(weights_behind(loss), 1)))


def affordable_steps(loss: Loss, rows: int) -> int:
    """As many steps as new neurons may be trained on so many rows that pass through the layers behind a block.

    Args:
        loss: The loss of the outputs of the block.
        rows: Number of rows.

    Returns:
        The number.
    """
    products = rows * weights_behind(loss)
    return min(_STEPS, max(_FEWEST_STEPS, _STEPS * 2 * _PRODUCTS // max(products, 1)))


def weights_behind(loss: Loss) -> int:
    """Number of weights between the outputs of a block and a loss.

    Args:
        loss: The loss of the outputs of the block.

    Returns:
        The number.
    """
    return loss.weights if isinstance(loss, LossThroughLayers) else 0


def sampled(data: TrainingData, count: int) -> TrainingData:
    """No more than so many of the samples, drawn at random, the loss scaled as if they were all.

    Args:
        data: The data.
        count: The number.

    Returns:
        The data, not complete where samples are left out; all where their loss is not known as a sum over samples.
    """
    if len(data.X) <= count:
        return data
    try:
        return _part(data, _drawn(data, count))
    except NotImplementedError:
        return data


def _order(X: Tensor) -> Tensor:
    """The order of samples ``(N, d)`` along a random direction, long, shape ``(N,)``: no two that differ are alike."""
    direction = torch.randn(X.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    along = torch.zeros(len(X), dtype=torch.float64)
    # In pieces: a copy of all samples in float64 would be large. On the CPU: not every device has float64.
    for first in range(0, X.shape[1], _COLUMNS):
        some = slice(first, first + _COLUMNS)
        along += X[:, some].cpu().double() @ direction[some]
    return torch.argsort(along, stable=True).to(X.device)


def _drawn(data: TrainingData, count: int) -> Tensor:
    """Places of samples that are drawn, the same ones for data as long, shape ``(count,)``."""
    return torch.randperm(len(data.X), generator=torch.Generator().manual_seed(0))[:count].to(data.X.device)


def _part(data: TrainingData, some: Tensor) -> TrainingData:
    """Some of the samples, the loss scaled as if they were all."""
    loss = data.loss.rows(some).scaled(len(data.X) / len(some))
    return replace(data, X=data.X[some], loss=loss, complete=False)
