"""Inputs of a block and the loss of its outputs, kept while riding along: what a verdict needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from relu_diag.capture import Sighting
from relu_diag.functional import BlockSignal, ShallowBlock
from relu_diag.functional.block import chunked_outputs
from relu_diag.functional.output_loss import Loss, joined, recognise
from relu_diag.training._data import MAX_ELEMENTS, SAME, TOO_MANY
from relu_diag.training.evidence import Evidence
from relu_diag.training.ranks import of_all_ranks
from relu_diag.training.recipe import Recipe

NOT_SEEN = "no step of the training was seen yet"
# Steps whose rows are kept of a loss that is not known.
_STEPS = 32
_ACTIVATIONS = "the loss reads the hidden activations besides the outputs of the block"
_DROPOUT = "dropout stands behind the activations, so that the loss of a step is not the loss of the network"
_CHANGES = "the loss changes from batch to batch"


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """What a block is trained on.

    Attributes:
        X: Block inputs, shape ``(N, d)``.
        loss: The loss of its outputs.
        complete: Whether these are all samples of an epoch.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> data = TrainingData(torch.eye(2), SquaredError(torch.ones(2, 1)), complete=True)
        >>> data.loss_of(ShallowBlock(torch.ones(1, 2), torch.ones(1, 1)))
        0.0
    """

    X: Tensor
    loss: Loss
    complete: bool = False

    def loss_of(self, block: ShallowBlock) -> float:
        """The training loss of a block on the data, computed in float64.

        Args:
            block: The block.

        Returns:
            Loss.
        """
        return float(self.loss.double()(chunked_outputs(block.double(), self.X)))


class KeptRows:
    """Keeps the rows of one epoch, and their loss where it is recognised as one of the block's outputs.

    Args:
        max_samples: Keep no more than so many; None: as many as memory allows.
        expected: Number of samples that will pass, among which those kept are spread evenly; 0: unknown.
        reason: Why there is no loss, where that is known before.

    Attributes:
        complete: Whether every sample of an epoch was kept.
        full: Whether no more rows are to be kept.
        reason: Why there is no loss, empty where there is.
        recipe: How to read rows off a batch without riding along; None where that is not known.

    Example:
        >>> from torch import nn
        >>> from relu_diag.capture import riding
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> X, Y = torch.eye(2), torch.ones(2, 1)
        >>> with riding(net) as ride:
        ...     loss = (net(X) - Y).square().mean()
        ...     ride.board(loss)
        ...     loss.backward()
        ...     (seen,) = ride.end()
        >>> rows = KeptRows()
        >>> rows.keep(seen, loss.item(), (X, Y))
        >>> rows.data().loss.name
        'squared error'
    """

    def __init__(self, max_samples: int | None = None, expected: int = 0, reason: str = NOT_SEEN) -> None:
        self.max_samples = None if expected and max_samples and expected <= max_samples else max_samples
        self.expected = expected
        self.complete = False
        self.full = False
        self.reason = reason
        self.recipe: Recipe | None = None
        self._inputs: list[Tensor] = []
        self._kept = 0
        self._losses: list[Loss] = []
        self._signals: list[BlockSignal] = []
        self._passed = 0
        self._evidence = Evidence()
        # What the loss of the evidence is not, so far.
        self._unknown = NOT_SEEN

    def keep(self, seen: Sighting, loss: float | None, batch: Any) -> None:
        """Keep the rows of a step.

        Args:
            seen: The block, as the step saw it.
            loss: The loss of the step.
            batch: Its batch, among whose tensors the targets are.
        """
        if self.full:
            return
        if not self.reason or self.reason == NOT_SEEN:
            self.reason = _obstacle(seen)
            if not self.reason:
                self._evidence.add(seen, loss, tensors_of(batch))
                self.reason = self._recognise()
            if not self.reason:
                return
        # The loss is not known: first-order facts are all there is.
        self._losses.clear()
        if self._room(seen.signal.X, seen.block.H.shape[0]):
            self._inputs.append(seen.signal.X.clone())
            self._kept += len(seen.signal.X)
            if self.reason != _ACTIVATIONS:
                self._signals.append(seen.signal)
            self.full = len(self._inputs) >= _STEPS
            self._passed += len(seen.signal.X)

    def take(self, batch: Any) -> bool:
        """Keep the rows of a batch by the recipe, nothing being ridden.

        Args:
            batch: A batch.

        Returns:
            Whether it could be read.
        """
        rows = None if self.recipe is None else self.recipe.rows(tensors_of(batch))
        if rows is None:
            return False
        if not self.full:
            self._add(*rows)
        return True

    @property
    def waiting(self) -> bool:
        """Whether the loss may yet be recognised by further steps."""
        return not self.reason and not self._losses

    def finish(self, complete: bool) -> None:
        """Keep no more.

        Args:
            complete: Whether every sample of an epoch has passed by since the first one was kept.
        """
        if self._inputs and not self.full:
            self.complete = complete and self._passed == self._kept
            self.full = True

    def inputs(self) -> list[Tensor]:
        """The inputs kept by this rank.

        Returns:
            Batches of rows, shape ``(N, d)`` each.
        """
        return self._inputs

    def signals(self) -> list[BlockSignal]:
        """Inputs and loss gradients of the steps, at their weights, where the loss is not known.

        Returns:
            Signals, batch by batch.
        """
        return self._signals

    def data(self) -> TrainingData | None:
        """The rows of all ranks. A collective: every rank must call it.

        Returns:
            The data; None where there are none, `reason` says why.
        """
        everyone = of_all_ranks((self._inputs, self._losses, self.reason, self.complete))
        inputs = [X for theirs, *_ in everyone for X in theirs]
        losses = [loss for _, theirs, *_ in everyone for loss in theirs]
        self.reason = next((reason for *_, reason, _ in everyone if reason), "")
        if self.reason:
            return None
        if not losses or not inputs:
            self.reason = self._unknown
            return None
        device = self._inputs[0].device if self._inputs else inputs[0].device
        X = torch.cat([rows.to(device) for rows in inputs])
        try:
            loss = joined([one.to(device) for one in losses], [len(rows) / len(X) for rows in inputs])
        except ValueError:
            self.reason = _CHANGES
            return None
        return TrainingData(X, loss, all(complete for *_, complete in everyone))

    def _recognise(self) -> str:
        """Keep the rows of steps whose loss is recognised, and wait where more of them may tell; or what it is not."""
        evidence = self._evidence
        part = ""
        for found in self._candidates():
            if evidence.is_all(found):
                self._recognised(found)
                return ""
            part = part or f"the loss has a part besides the {found.name}"
        return part or ("" if evidence.few else self._unknown)

    def _candidates(self) -> Iterator[Loss]:
        """Losses with that gradient: where outputs are small, only the value tells targets from weights."""
        evidence = self._evidence
        leaves, outputs, G = evidence.leaves(), evidence.outputs(), evidence.G()
        known = None if self.recipe is None else self.recipe.loss_with_gradient(leaves, outputs, G)
        if known is not None:
            yield known
        for order in (leaves, leaves[::-1]):
            recognition = recognise(outputs, G, order)
            self._unknown = recognition.reason
            if recognition.loss is None:
                return
            yield recognition.loss

    def _recognised(self, found: Loss) -> None:
        """Keep the rows of the evidence."""
        evidence = self._evidence
        if self.recipe is None:
            self.recipe = Recipe.of(evidence.X(), found, evidence.leaves(), evidence.count)
        for X, own in evidence.steps(found):
            self._add(X, own)
        self._evidence = Evidence()

    def _add(self, X: Tensor, loss: Loss) -> None:
        """Keep rows, no more than there is room for."""
        if not self._room(X, 1):
            self.reason = TOO_MANY
            self._inputs.clear()
            self._kept = 0
            self._losses.clear()
            return
        self._passed += len(X)
        room = len(X)
        if self.max_samples is not None:
            wanted = math.ceil(min(1.0, self._passed / max(self.expected, 1)) * self.max_samples)
            room = min(len(X), wanted - self._kept)
            self.full = self._kept + room >= self.max_samples
        if 0 < room < len(X):  # evenly spaced: data may be in order
            chosen = torch.arange(room, device=X.device) * len(X) // room
            loss = loss.rows(chosen).scaled(len(X) / room)
            X = X[chosen]
        if room:
            self._inputs.append(X.clone())
            self._kept += len(X)
            self._losses.append(loss)

    def _room(self, X: Tensor, outputs: int) -> bool:
        """Whether memory allows more rows."""
        return (self._kept + len(X)) * (X.shape[1] + outputs) <= MAX_ELEMENTS


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors in a batch, in order.

    Args:
        batch: Whatever a loader yields.

    Returns:
        Its tensors.

    Example:
        >>> tensors_of({"x": torch.zeros(2), "targets": (torch.ones(1), "a name")})
        [tensor([0., 0.]), tensor([1.])]
    """
    found: list[Tensor] = []
    apply_to_collection(batch, Tensor, found.append)
    return found


def reads_activations(block: ShallowBlock, signal: BlockSignal) -> bool:
    """Whether a loss reads the activations of a block besides its outputs.

    Args:
        block: The block.
        signal: Its signal under the loss.

    Returns:
        Whether the gradient at the activations is another one than that through the outputs.

    Example:
        >>> block = ShallowBlock(torch.ones(3, 2), torch.ones(1, 3))
        >>> reads_activations(block, BlockSignal(torch.eye(2), torch.ones(2, 1)))
        False
        >>> sparse = torch.ones(2, 3) + 0.1  # a penalty on the activations adds to what comes through the outputs
        >>> reads_activations(block, BlockSignal(torch.eye(2), torch.ones(2, 1), sparse))
        True
    """
    if signal.C is None:
        return False
    through = signal.G @ block.H
    return bool((signal.C - through).norm() > SAME * through.norm())


def _obstacle(seen: Sighting) -> str:
    """What keeps the loss of a step from being one of the block's outputs."""
    if seen.dropout:
        return _DROPOUT
    return _ACTIVATIONS if reads_activations(seen.block, seen.signal) else ""
