"""Which loss a training step uses, read off the outputs, the gradient at them and the tensors of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss._fits import Evidence, fits_of_labels, fits_of_numbers
from relu_diag.functional.output_loss.loss import Loss
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class Recognition:
    """The loss that a gradient is of, or why none is known.

    Attributes:
        loss: The loss, scaled so that its gradient is the one given; None where nothing fits, or two losses do.
        candidates: Every loss that fits.
        reason: Why there is no loss, empty where there is.

    Example:
        >>> Recognition(loss=None, candidates=(), reason="the gradient is zero")
        Recognition(loss=None, candidates=(), reason='the gradient is zero')
    """

    loss: Loss | None
    candidates: tuple[Loss, ...]
    reason: str


def recognise(outputs: Tensor, G: Tensor, batch: Any) -> Recognition:
    """The loss, with targets and weights from the batch, whose gradient at the outputs is a multiple of the one given.

    Squared, absolute and Huber's error, Poisson's loss, binary cross-entropy and cross-entropy are tried with every
    tensor of the batch as targets, smoothed, with weights of classes, outputs, or of samples that the batch holds.
    Gradients must agree to the rounding of their numbers, also where those have passed through 16 bits.

    Args:
        outputs: Outputs of the block, shape ``(N, J)``.
        G: Gradient of the loss at them, shape ``(N, J)``.
        batch: Tensors or arrays, or tuples, lists, dicts and dataclasses of them.

    Returns:
        The loss, or why it is not known.

    Example:
        >>> X, labels = torch.ones(3, 4), torch.tensor([0, 1, 1])
        >>> outputs = torch.tensor([[0.0, 1.0], [2.0, 0.5], [0.3, -0.3]], requires_grad=True)
        >>> torch.nn.functional.cross_entropy(outputs, labels).backward()
        >>> found = recognise(outputs.detach(), outputs.grad, (X, labels))
        >>> found.loss.name, len(found.candidates)
        ('cross-entropy', 1)
    """
    outputs, G = outputs.detach(), G.detach()
    if not bool(torch.isfinite(G).all()) or not bool(torch.isfinite(outputs).all()):
        return Recognition(None, (), "the gradient at the outputs is not finite")
    if not bool(G.any()):
        return Recognition(None, (), "the gradient at the outputs is zero: every loss fits that")
    leaves = [leaf.to(outputs.device) for leaf in _leaves(batch)][-BUDGETS.leaves :]
    shaped = [leaf for leaf in leaves if leaf.numel() in {len(outputs), outputs.numel()}]
    if not shaped:
        shape = tuple(outputs.shape)
        return Recognition(None, (), f"no tensor of the batch has the shape of targets for outputs of shape {shape}")
    for evidence in Evidence.of(outputs, G):
        found = _distinct(list(_fits(evidence, shaped)), outputs)
        if len(found) == 1:
            return Recognition(found[0], found, "")
        if found:
            names = " and ".join(sorted({loss.name for loss in found}))
            return Recognition(None, found, f"several losses have this gradient: {names}; more samples would tell")
    names = "squared, absolute, Huber's, Poisson's error, binary cross-entropy or cross-entropy"
    return Recognition(None, (), f"the loss is not a {names} of the block's outputs and a tensor of the batch")


def _fits(evidence: Evidence, leaves: list[Tensor]) -> Iterator[Loss]:
    """All losses that fit; with weights only where none fits without."""
    samples, numbers = evidence.outputs.shape[0], evidence.outputs.numel()
    for weight in (None, *_weights(leaves, samples, evidence.outputs)):
        found = False
        for leaf in leaves:
            tried: list[Loss] = []
            if leaf.numel() == numbers:
                tried += fits_of_numbers(evidence, leaf.reshape(evidence.outputs.shape), weight)
            if numbers > samples and (weight is None or weight.shape[1] == 1):
                labels = leaf.reshape(samples, -1)
                tried += fits_of_labels(evidence, labels, None if weight is None else weight[:, 0])
            yield from tried
            found = found or bool(tried)
        if found:
            return


def _weights(leaves: list[Tensor], samples: int, outputs: Tensor) -> Iterator[Tensor]:
    """Weights and masks that a batch may hold, shape ``(N, 1)`` or ``(N, J)``; of a mask the other side too."""
    for leaf in leaves:
        weight = leaf.to(outputs.dtype)
        weight = weight.reshape(samples, 1) if leaf.numel() == samples else weight.reshape(outputs.shape)
        known = ~weight.isnan()
        if not bool(known.all()):
            yield known.to(outputs.dtype)
            continue
        if bool((weight < 0).any()) or bool((weight == weight[0, 0]).all()):
            continue
        yield weight
        if bool(((weight == 0) | (weight == 1)).all()):
            yield 1 - weight


def _distinct(losses: list[Loss], outputs: Tensor) -> tuple[Loss, ...]:
    """Losses that differ, the first of those that are one: the same kind, and the same curvature and value here."""
    kept: list[Loss] = []
    for loss in losses:
        if not any(type(loss) is type(other) and _same(loss, other, outputs) for other in kept):
            kept.append(loss)
    return tuple(kept)


def _same(loss: Loss, other: Loss, outputs: Tensor) -> bool:
    """Whether two losses of a kind whose gradients agree at the outputs agree a step away as well."""
    step = torch.ones_like(outputs)
    ours = loss.gradient(outputs + step)
    return bool((ours - other.gradient(outputs + step)).norm() <= FLOAT64.explained * ours.norm())


def _leaves(batch: Any) -> list[Tensor]:
    """The tensors of a nested batch, in order."""
    if isinstance(batch, Tensor):
        return [] if batch.is_complex() or batch.is_sparse else [batch.detach()]
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "biuf":
        return [torch.as_tensor(batch)]
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif isinstance(batch, list | tuple):
        parts = list(batch)
    elif is_dataclass(batch) and not isinstance(batch, type):
        parts = [getattr(batch, field.name) for field in fields(batch)]
    else:
        return []
    return [leaf for part in parts for leaf in _leaves(part)]
