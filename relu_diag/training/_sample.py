"""Rows of training data in an order of their own, and a sample of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from relu_diag.training.rows import TrainingData


def in_order(data: TrainingData) -> TrainingData:
    """The same samples in an order of their own, so that a choice does not depend on how they came in.

    Args:
        data: The data.

    Returns:
        They, sorted by their inputs; as they are where their loss is not known as a sum over samples.
    """
    order = torch.as_tensor(np.lexsort(data.X.double().cpu().numpy().T)).to(data.X.device)
    try:
        return replace(data, X=data.X[order], loss=data.loss.rows(order))
    except NotImplementedError:
        return data


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
    some = torch.randperm(len(data.X), generator=torch.Generator().manual_seed(0))[:count].to(data.X.device)
    try:
        loss = data.loss.rows(some).scaled(len(data.X) / count)
    except NotImplementedError:
        return data
    return replace(data, X=data.X[some], loss=loss, complete=False)
