"""How much a violation weighs: nothing where it is rounding, little where the samples behind it are all but met."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, rho
from relu_diag.functional.local import chunks, slopes_at
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict._rounding import ResidualRounding


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """The first-order conditions of every neuron, as far as they are violated, each of shape ``(I,)``.

    Attributes:
        input: Violation by the input weights, relative to its terms.
        output: Violation by the output weights, relative to its terms.
        slope: Largest slope of the input weights.
        push: Length of the derivative by the output weights.
        pull_scale: Terms of the derivative by the input weights per unit of output weight.
    """

    input: Tensor
    output: Tensor
    slope: Tensor
    push: Tensor
    pull_scale: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What neurons see, each of shape ``(n,)``.

    Attributes:
        share: Square root of the share of the squared residuals that is on the samples they see.
        pull: What rounding of the residuals adds to a derivative by the input weights, per unit of output weight.
        push: What it adds to the derivative by the output weights.
    """

    share: Tensor
    pull: Tensor
    push: Tensor


def weighed(
    block: ShallowBlock,
    signal: BlockSignal,
    kink_tol: float | None,
    tol: float,
    conditions: Conditions,
    rounding: ResidualRounding | None,
) -> tuple[Tensor, Tensor]:
    """The violation of every neuron, and whether all there is of it is hidden by a rounding that is not harmless."""
    violation = torch.maximum(conditions.input, conditions.output)
    hidden = torch.zeros_like(violation, dtype=torch.bool)
    h_norm = block.H.detach().double().norm(dim=0)
    doubtful = violation * least_share(block, signal, conditions.pull_scale) <= tol
    if rounding is not None:
        by_input = (conditions.input <= tol) | (conditions.slope <= rounding.most_pull * h_norm)
        w_norm = block.W.detach().double().norm(dim=1)
        by_output = (conditions.output <= tol) | (conditions.push <= rounding.most_pull * w_norm)
        doubtful |= by_input & by_output
    index = (doubtful & (violation > tol)).nonzero().squeeze(1)
    if not len(index):
        return violation, hidden
    seen = seen_by(block, signal, kink_tol, index, None if rounding is None else rounding.exact)
    pull = h_norm[index] * seen.pull
    slope, push = conditions.slope[index], conditions.push[index]
    rounded = torch.maximum(
        torch.where(slope <= pull, 0.0, conditions.input[index]),
        torch.where(push <= seen.push, 0.0, conditions.output[index]),
    )
    met = torch.ones_like(index, dtype=torch.bool)
    if rounding is not None:
        met = (slope <= met_within(tol) * pull) & (push <= met_within(tol) * seen.push)
    weighted = torch.where(met, rounded * seen.share, rounded)
    if rounding is not None and not rounding.harmless:
        hidden[index] = weighted <= tol
    violation[index] = weighted
    return violation, hidden


def least_share(block: ShallowBlock, signal: BlockSignal, pull_scale: Tensor) -> Tensor:
    """A lower bound of `Seen.share` that needs no look at the samples, shape ``(I,)``."""
    if signal.C is not None:
        return torch.ones_like(pull_scale)
    # Cauchy and Schwarz: the terms are at most the lengths of the residuals seen times those of the inputs.
    most = max(map(abs, block.slopes)) * signal.X.detach().double().norm() * signal.G.detach().double().norm()
    return pull_scale / positive(most)


def seen_by(
    block: ShallowBlock, signal: BlockSignal, kink_tol: float | None, index: Tensor, wrong: Tensor | None
) -> Seen:
    """What some neurons see, ``wrong`` being the rounding of each row of ``G``."""
    size = signal.G.detach().double().norm(dim=1)
    wrong = torch.zeros_like(size) if wrong is None else wrong
    W = block.W.detach().double()[index]
    some = ShallowBlock(W, W.new_zeros(2, len(W)), block.slopes)
    steep = max(map(abs, block.slopes))
    energy, pull, push = (W.new_zeros(len(W)) for _ in range(3))
    sizes = BlockSignal(signal.X.detach().double(), torch.stack([size, wrong], dim=1))
    for chunk in chunks(some, sizes, kink_tol):
        seen = slopes_at(chunk.Z, block.slopes).abs()
        seen[chunk.kinks.unbind(1)] = steep
        energy += chunk.G[:, 0].square() @ seen
        pull += (chunk.G[:, 1] * chunk.length) @ seen
        push += chunk.G[:, 1] @ rho(chunk.Z, block.slopes).abs()
    if signal.C is not None:  # the residuals are not all there is
        return Seen(torch.ones_like(energy), pull, push)
    share = (energy / (steep * positive(size.square().sum()))).sqrt()
    return Seen(share, pull, push)


def left_open_by_kinks(block: ShallowBlock, signal: BlockSignal, kink_tol: float) -> Tensor:
    """What the derivatives by output weights may hide of samples as far from a kink as counts as on it, ``(I,)``."""
    steep = max(map(abs, block.slopes))
    push = torch.zeros_like(block.W[:, 0])
    for chunk in chunks(block, signal, kink_tol):
        row, neuron = chunk.kinks.unbind(1)
        activation = steep * kink_tol * chunk.w_length[neuron] * chunk.length[row]
        push.index_add_(0, neuron, activation * chunk.G.norm(dim=1)[row])
    return push


def met_within(tol: float) -> float:
    """How many roundings a residual may be for its sample to count as met: a tolerance of its own terms."""
    return max(tol / (FLOAT64.roundings * FLOAT64.eps), 1.0)


def beyond(value: Tensor, rounding: Tensor) -> Tensor:
    """A value, 0 where it is within its rounding."""
    return torch.where(value > rounding, value, 0.0)


def positive(scale: Tensor) -> Tensor:
    """A scale to divide by: 1 where it is 0, and so is what is divided."""
    return torch.where(scale > 0, scale, 1.0)
