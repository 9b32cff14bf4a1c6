"""Rows of ridden steps, kept for a revival."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.capture import Sighting
from relu_diag.functional.output_loss import Loss, joined


@dataclass(frozen=True, slots=True, eq=False)
class RevivalRows:
    """Rows of one step or several: inputs ``(N, d)``, gradients ``(N, J)``, their loss, and the price of activity."""

    X: Tensor
    G: Tensor
    loss: Loss | None
    price: float

    def first(self, count: int) -> RevivalRows:
        """The first rows, as if they were all."""
        weight = len(self.X) / count
        index = torch.arange(count, device=self.X.device)
        loss = None if self.loss is None else self.loss.rows(index).scaled(weight)
        return RevivalRows(self.X[:count], weight * self.G[:count], loss, self.price)

    def are_like(self, seen: Sighting) -> bool:
        """Whether they have as many inputs and outputs as those of a step."""
        return (self.X.shape[1], self.G.shape[1]) == (seen.inputs, seen.outputs)

    def are_those_of(self, seen: Sighting) -> bool:
        """Whether they are the inputs of a step."""
        X = seen.signal.X
        return self.X.shape == X.shape and torch.equal(self.X, X)


def together(steps: list[RevivalRows]) -> RevivalRows:
    """The mean over several steps as one."""
    share = [len(step.X) / sum(len(step.X) for step in steps) for step in steps]
    X = torch.cat([step.X for step in steps])
    G = torch.cat([weight * step.G for weight, step in zip(share, steps, strict=True)])
    losses = [step.loss for step in steps]
    loss = None
    if all(one is not None for one in losses):
        try:
            loss = joined([one for one in losses if one is not None], share)
        except ValueError:  # of different kinds
            loss = None
    price = sum(weight * step.price for weight, step in zip(share, steps, strict=True))
    return RevivalRows(X, G, loss, price)
