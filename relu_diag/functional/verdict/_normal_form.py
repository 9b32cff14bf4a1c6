"""The same landscape in units in which every number is near 1: what a verdict is found in, whatever units came in."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.problem import LossProblem, Problem
from relu_diag.functional.verdict.direction import Direction


@dataclass(frozen=True, slots=True, eq=False)
class NormalForm:
    """A squared loss with inputs and targets near 1, ``||w_i||`` and ``||h_i||`` alike, and a factor of 1.

    Of another loss the outputs keep their units, and its gradient is near 1.

    All units are powers of two, so the change is exact; it commutes with every rescaling by powers of two, and with
    ``(w, h) -> (c w, h / c)``. Weights whose counterpart is zero get length 1: their length has no say. Neurons
    without any weights keep their units, in which they are moved.

    Attributes:
        problem: The loss in these units; a squared one is ``sum ||e_k||^2 / 2``.
        by_W: What the input weights were multiplied by, shape ``(I, 1)``.
        by_H: What the output weights were multiplied by, shape ``(I,)``.
        by_Y: What the targets were multiplied by.
        loss: What the loss was multiplied by.
    """

    problem: Problem
    by_W: Tensor
    by_H: Tensor
    by_Y: float
    loss: float

    def outside(self, direction: Direction) -> Direction:
        """A direction in the units that came in, of length 1."""
        dW = direction.dW / self.by_W
        dH = direction.dH / self.by_H
        db = None if direction.db is None else direction.db / self.by_Y
        parts = [dW.flatten(), dH.flatten()] + ([] if db is None else [db])
        largest = max(float(part.abs().max()) for part in parts)  # their squares may leave the range of float64
        length = largest * float(torch.cat([part / largest for part in parts]).norm())
        return Direction(
            dW=dW / length,
            dH=dH / length,
            step=direction.step * length,
            loss_change=direction.loss_change / self.loss,
            db=None if db is None else db / length,
        )


def normal_form(problem: Problem) -> NormalForm:
    """A loss in its normal units."""
    if isinstance(problem, LossProblem):
        return _of_any_loss(problem)
    residual = problem.signal.G
    Y = problem.outputs - residual
    by_Y = 1 / _power_of_two(max(float(Y.norm(dim=1).max()), float(problem.outputs.norm(dim=1).max())))
    block, X, by_W, by_H = _balanced(problem, by_Y)
    normal = replace(
        problem,
        block=block,
        signal=BlockSignal(X, residual * by_Y),
        outputs=problem.outputs * by_Y,
        factor=1.0,
    )
    return NormalForm(normal, by_W, by_H, by_Y, by_Y * by_Y / problem.factor)


def _of_any_loss(problem: LossProblem) -> NormalForm:
    """Any loss: of the units only those of inputs, weights and the loss itself are free."""
    unit = 1 / _power_of_two(float(problem.signal.G.norm(dim=1).max()))
    block, X, by_W, by_H = _balanced(problem, 1.0)
    normal = replace(
        problem,
        block=block,
        signal=BlockSignal(X, problem.signal.G * unit),
        output_loss=problem.output_loss.scaled(unit),
    )
    return NormalForm(normal, by_W, by_H, 1.0, unit)


def _balanced(problem: Problem, by_Y: float) -> tuple[ShallowBlock, Tensor, Tensor, Tensor]:
    """Block and inputs in units in which inputs are near 1 and neurons balanced; what W and H were multiplied by."""
    block, X = problem.block, problem.signal.X
    by_X = 1 / _power_of_two(float(X.norm(dim=1).max()))
    w_norm = block.W.norm(dim=1) / by_X
    h_norm = block.H.norm(dim=0) * by_Y
    both = (w_norm > 0) & (h_norm > 0)
    balance = torch.where(both, (h_norm / w_norm).sqrt(), torch.where(w_norm > 0, 1 / w_norm, h_norm))
    balance = torch.where(balance > 0, balance, by_X).log2().round().exp2()
    by_W = (balance / by_X)[:, None]
    by_H = by_Y / balance
    bias = None if block.output_bias is None else block.output_bias * by_Y
    return ShallowBlock(block.W * by_W, block.H * by_H, block.slopes, bias), X * by_X, by_W, by_H


def _power_of_two(size: float) -> float:
    """The nearest power of two, 1 for zero."""
    return 2.0 ** round(math.log2(size)) if size > 0 else 1.0
