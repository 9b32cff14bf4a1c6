"""Amplitudes of neurons that are placed together, and what is left for them to take away."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional.block import ShallowBlock, chunk_rows, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import CrossEntropy, Loss, OutputLoss


@dataclass(frozen=True, slots=True, eq=False)
class Remainder:
    """Centred inputs ``(N, d)``, what the outputs are without the neurons ``(N, J)``, gradients, and their loss.

    Where there is an output bias, gradients are without their mean, which is the bias's to take away.
    """

    X: Tensor
    outputs: Tensor
    G: Tensor
    loss: Loss | None
    biased: bool

    @property
    def felt(self) -> Tensor:
        """The gradients that neurons are placed by, ``(N, J)``."""
        return self.G - self.G.mean(dim=0) if self.biased else self.G

    def part(self, start: int, step: int) -> Remainder:
        """Every so many samples, as if they were all."""
        index = torch.arange(start, len(self.X), step, device=self.X.device)
        weight = len(self.X) / len(index)
        loss = None if self.loss is None else self.loss.rows(index).scaled(weight)
        return Remainder(self.X[index], self.outputs[index], weight * self.G[index], loss, self.biased)

    def moved(self, change: Tensor) -> Remainder:
        """The outputs after a change."""
        outputs = self.outputs + change
        return replace(self, outputs=outputs, G=self.G if self.loss is None else self.loss.gradient(outputs))


def fitted_amplitudes(data: Remainder, A: Tensor, o: Tensor, price: float) -> Tensor:
    """Amplitudes ``(n,)``, 0 or more, near those at which the loss and the price together are lowest."""
    loss = data.loss
    assert loss is not None
    costs = price * A.abs().mean(dim=0)

    def slope(outputs: Tensor) -> Tensor:
        return ((A.T @ loss.gradient(outputs)) * o).sum(dim=1) + costs

    amplitude = torch.zeros_like(costs)
    downhill = slope(data.outputs)
    bend = _curvatures(loss, data.outputs, A, o)
    # No longer steps than ones that would bring the loss to zero were it a plane.
    alone = torch.where(downhill != 0, loss(data.outputs).abs() / downhill.square(), 0.0)
    alone = torch.where(bend > 0, torch.minimum(1 / bend, alone), alone)
    value = 0.0
    length = 1.0
    for _ in range(BUDGETS.amplitude_steps):
        tried = (amplitude - length * alone * downhill).clamp(min=0)
        step = (A * tried) @ o
        now = float(loss.change(data.outputs, step)) + float(tried @ costs)
        if now < value:
            amplitude, value = tried, now
            downhill = slope(data.outputs + step)
            length *= 1.5
        else:
            length /= 2
    return amplitude


def _curvatures(loss: Loss, outputs: Tensor, A: Tensor, o: Tensor) -> Tensor:
    """Second derivative of the loss by the amplitude of each neuron, ``(n,)``."""
    if not isinstance(loss, CrossEntropy | OutputLoss):
        # The Hessian is diagonal.
        diagonal = loss.curvature(outputs, torch.ones_like(outputs))
        alone: Tensor = ((A.square().T @ diagonal) * o.square()).sum(dim=1)
        return alone
    bends = []
    for a, direction in zip(A.T, o, strict=True):
        step = torch.outer(a, direction)
        bends.append((step * loss.curvature(outputs, step)).sum())
    return torch.stack(bends)


def size_when_active(A: Tensor) -> Tensor:
    """Size of activations ``(N, n)`` on the samples that matter to them, ``(n,)``: that of the squares' own mean."""
    square = A.square()
    return (square.square().sum(dim=0) / square.sum(dim=0).clamp(min=torch.finfo(A.dtype).tiny)).sqrt()


def usual_size_when_active(block: ShallowBlock, X: Tensor, units: Tensor) -> float:
    """How much a neuron that stays adds to the outputs when it is active, the median."""
    fourth = X.new_zeros(len(block.W))
    square = X.new_zeros(len(block.W))
    for part in torch.split(X, chunk_rows(block)):
        now = rho(part @ block.W.detach().T, block.slopes).square()
        square += now.sum(dim=0)
        fourth += now.square().sum(dim=0)
    square[units] = 0
    living = square > 0
    heard = (fourth[living] / square[living]).sqrt() * block.H.detach().norm(dim=0)[living]
    return float(heard.median()) if len(heard) else 0.0
