"""Amplitudes of neurons that are placed together, and what is left for them to take away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional.block import ShallowBlock, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import CrossEntropy, Loss, OutputLoss, SquaredError
from relu_diag.functional.tolerances import FLOAT64


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

    @property
    def is_off_centre(self) -> bool:
        """Whether a mean of the gradients is there for an output bias to take away."""
        mean = self.G.mean(dim=0).square().sum() * len(self.G)
        return bool(mean > FLOAT64.off_centre * self.G.square().sum())

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


class AmplitudeFit:
    """Looks for the amplitudes of neurons at which the loss and the price together are lowest.

    Takes activations ``A (N, n)``, output weights ``o (n, J)``, and the price of a unit of mean activation.
    """

    def __init__(self, data: Remainder, A: Tensor, o: Tensor, price: float) -> None:
        assert data.loss is not None
        self._costs = price * A.abs().mean(dim=0)
        self._data = data
        self._A = A
        self._o = o
        self._first = self._felt(data.outputs)
        # A squared error is known everywhere by its slopes and bends here: sums over pairs of neurons, not samples.
        self._bends = _pair_curvatures(data, A, o) if _is_quadratic(data.loss) else None
        bend = _curvatures(data.loss, data.outputs, A, o) if self._bends is None else self._bends.diagonal()
        slope = self._first + self._costs
        # No longer steps than ones that would bring the loss to zero were it a plane.
        alone = torch.where(slope != 0, data.loss(data.outputs).abs() / slope.square(), 0.0)
        self._alone = torch.where(bend > 0, torch.minimum(1 / bend, alone), alone)

    def best(self, among: Tensor) -> Tensor:
        """Amplitudes ``(n,)``, 0 or more near the lowest, 0 outside some neurons, bool ``(n,)``."""
        amplitude = torch.zeros_like(self._costs)
        downhill = self._first + self._costs
        value = 0.0
        length = 1.0
        for _ in range(BUDGETS.amplitude_steps):
            tried = (amplitude - length * self._alone * downhill).clamp(min=0) * among
            change, slope = self._moved(tried)
            now = change + float(tried @ self._costs)
            if now < value:
                settled = value - now < FLOAT64.settled_fit * -now
                amplitude, value = tried, now
                if settled:
                    break
                downhill = slope() + self._costs
                length *= 1.5
            else:
                length /= 2
        return amplitude

    def _moved(self, amplitude: Tensor) -> tuple[float, Callable[[], Tensor]]:
        """The change of the loss at some amplitudes, and what computes its slopes there, ``(n,)``."""
        if self._bends is not None:
            felt = self._bends @ amplitude
            return float(amplitude @ (self._first + felt / 2)), lambda: self._first + felt
        loss, outputs = self._data.loss, self._data.outputs
        assert loss is not None
        step = (self._A * amplitude) @ self._o
        return float(loss.change(outputs, step)), lambda: self._felt(outputs + step)

    def _felt(self, outputs: Tensor) -> Tensor:
        """Slopes of the loss by the amplitudes, ``(n,)``."""
        assert self._data.loss is not None
        slope: Tensor = ((self._A.T @ self._data.loss.gradient(outputs)) * self._o).sum(dim=1)
        return slope


def _is_quadratic(loss: Loss) -> bool:
    """Whether it is a squared error whose weights, if there are any, are of whole samples."""
    return isinstance(loss, SquaredError) and (loss.weight is None or loss.weight.shape[1] == 1)


def _pair_curvatures(data: Remainder, A: Tensor, o: Tensor) -> Tensor:
    """Second derivatives of such a loss by the amplitudes of pairs of neurons, ``(n, n)``."""
    assert data.loss is not None
    of_sample = data.loss.curvature(data.outputs, torch.ones_like(data.outputs))[:, :1]
    return ((of_sample * A).T @ A) * (o @ o.T)


def _curvatures(loss: Loss, outputs: Tensor, A: Tensor, o: Tensor) -> Tensor:
    """Second derivative of the loss by the amplitude of each neuron, ``(n,)``."""
    if not isinstance(loss, CrossEntropy | OutputLoss):
        # The Hessian is diagonal.
        diagonal = loss.curvature(outputs, torch.ones_like(outputs))
        alone: Tensor = ((A.square().T @ diagonal) * o.square()).sum(dim=1)
        return alone
    here = loss.at(outputs)
    classes = outputs.shape[1]
    if isinstance(loss, CrossEntropy) and classes < len(o) and outputs.numel() * classes <= BUDGETS.numbers_alike:
        columns = [here.curvature(unit.expand_as(outputs)) for unit in torch.eye(classes).to(outputs)]
        pairs = o[:, :, None] * o[:, None, :]
        felt = torch.stack(columns, dim=1).flatten(1) @ pairs.flatten(1).T
        return (A.square() * felt).sum(dim=0)
    bends = []
    for a, direction in zip(A.T, o, strict=True):
        step = torch.outer(a, direction)
        bends.append((step * here.curvature(step)).sum())
    return torch.stack(bends)


def size_when_active(A: Tensor) -> Tensor:
    """Size of activations ``(N, n)`` on the samples that matter to them, ``(n,)``: that of the squares' own mean."""
    square = A.square()
    return (square.square().sum(dim=0) / square.sum(dim=0).clamp(min=torch.finfo(A.dtype).tiny)).sqrt()


def usual_size_when_active(block: ShallowBlock, X: Tensor, units: Tensor) -> float:
    """How much a neuron that stays adds to the outputs when it is active, the median over some of them."""
    stay = torch.ones(len(block.W), dtype=torch.bool, device=block.W.device)
    stay[units] = False
    some = stay.nonzero().squeeze(1)
    some = some[:: max(1, len(some) // BUDGETS.usual_neurons)]
    X = X[:: max(1, len(X) // BUDGETS.usual_samples)]
    A = rho(X @ block.W[some].detach().T, block.slopes)
    heard = (size_when_active(A) * block.H[:, some].detach().norm(dim=0))[A.any(dim=0)]
    return float(heard.median()) if len(heard) else 0.0
