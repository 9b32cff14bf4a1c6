"""Random perturbations of the parameters, too small for a sample to cross a kink (Wu et al., appendix H)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from relu_diag.functional._checks import is_count, is_number
from relu_diag.functional.block import Reduction, ShallowBlock, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import chunks
from relu_diag.functional.output_loss import Loss, as_loss
from relu_diag.functional.problem import LossProblem, decayed_problem
from relu_diag.functional.tables import counted
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict._loss_line import price_of
from relu_diag.functional.verdict.line import Move, entered
from relu_diag.functional.weight_decay import WeightDecay, as_weight_decay


@dataclass(frozen=True, slots=True, eq=False)
class PerturbationTest:
    """Loss changes under small uniform noise on all parameters.

    Attributes:
        changes: Loss change of every draw, shape ``(draws,)``.
        zeta: Half width of the noise: of every parameter, or relative to its neuron's weights.
        relative: Whether the noise is relative: every neuron is moved in proportion to its own weights.
        narrowed: Number of neurons that move less than that, because a sample off their kink would cross it.
        crossing: Number of neurons whose kink a sample can cross, 0 unless the width was given.

    Example:
        >>> block = ShallowBlock(W=torch.ones(1, 1), H=torch.ones(1, 1))
        >>> test = perturbation_test(block, torch.ones(1, 1), torch.ones(1, 1), draws=100)
        >>> test.relative, bool((test.changes >= 0).all())
        (True, True)
    """

    changes: Tensor
    zeta: float
    relative: bool = False
    narrowed: int = 0
    crossing: int = 0

    def __str__(self) -> str:
        falls = int((self.changes < 0).sum())
        width = f"up to {self.zeta:.3g}" + (" of each neuron's weights" if self.relative else "")
        less = f" ({counted(self.narrowed, 'neuron')} less: a kink is near)" if self.narrowed else ""
        cross = f" (samples may cross the kinks of {counted(self.crossing, 'neuron')})" if self.crossing else ""
        return f"{falls} of {len(self.changes)} perturbations {width}{less}{cross} lower the loss"


def perturbation_test(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor | Loss,
    reduction: Reduction = "mean",
    draws: int = 5000,
    generator: torch.Generator | None = None,
    zeta: float | None = None,
    weight_decay: float | WeightDecay = 0.0,
) -> PerturbationTest:
    """Loss changes under uniform noise on all parameters, by default too small for a sample off a kink to cross it.

    At a local minimum none is negative. The changes are differences of outputs, not of losses, so changes far below the
    rounding of the loss are seen.

    By default each neuron moves relative to itself, its input weights by a share of their largest and its output
    weights by a share of theirs, so that neither a tiny neuron nor one beside a kink makes the noise of the others
    vanish. Weights that are all zero move as those of the median neuron.

    Source: Wu et al., appendix H.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets of the squared error, shape ``(N, J)``, or a loss, such as `CrossEntropy`.
        reduction: "mean", "sum" or "half_sum", of the squared error.
        draws: Number of perturbations.
        generator: Source of randomness, on the CPU; None: torch's global one.
        zeta: Half width of the noise, the same for every parameter, as in the paper; samples may then cross kinks, and
            the result says of how many neurons. None: relative to each neuron.
        weight_decay: Factor ``mu`` of ``mu / 2`` times the squared weights, an output bias being free; or one for each
            part.

    Returns:
        The changes, and the width of the noise.

    Raises:
        ValueError: If there is not at least one draw, or the width is not positive and finite.

    Example:
        >>> block = ShallowBlock(W=torch.ones(1, 1), H=torch.ones(1, 1))
        >>> print(perturbation_test(block, torch.ones(1, 1), torch.ones(1, 1)))  # zero loss
        0 of 5000 perturbations up to 0.001 of each neuron's weights lower the loss
        >>> print(perturbation_test(block, torch.ones(1, 1), torch.ones(1, 1), zeta=0.5))
        0 of 5000 perturbations up to 0.5 lower the loss
    """
    if not is_count(draws):
        raise ValueError(f"`draws` must be at least 1; got {draws!r}.")
    if zeta is not None and not (is_number(zeta) and 0 < zeta < torch.inf):
        raise ValueError(f"`zeta` is the half width of the noise and must be positive and finite; got {zeta!r}.")
    problem = decayed_problem(block, X, as_loss(Y, reduction), as_weight_decay(weight_decay))
    room = _room(problem)
    if zeta is None:
        width = _relative_width(problem.block)
        narrowed = int((room < width.dW[:, 0]).sum())
        width = replace(width, dW=torch.minimum(width.dW, room[:, None]))
        described = partial(PerturbationTest, zeta=FLOAT64.noise, relative=True, narrowed=narrowed)
    else:
        width = _same_width(problem.block, zeta)
        described = partial(PerturbationTest, zeta=zeta, crossing=int((room < zeta).sum()))
    hidden, outputs = min(len(X), BUDGETS.draw_rows) * len(block.W), problem.outputs.numel()
    at_once = max(1, BUDGETS.draw_numbers // max(hidden, outputs))
    changes = []
    for start in range(0, draws, at_once):
        noise = _noise(width, min(at_once, draws - start), generator)
        changes.append(_changes(problem, noise))
    return described(torch.cat(changes))


def _room(problem: LossProblem) -> Tensor:
    """Largest change of any input weight of a neuron at which no sample off its kink reaches it, shape ``(I,)``."""
    room = problem.block.W.new_full((len(problem.block.W),), torch.inf)
    for chunk in chunks(problem.block, problem.signal, problem.kink_tol):
        distance = chunk.Z.abs() / chunk.X.abs().sum(1, keepdim=True)
        room = torch.minimum(room, torch.where(chunk.Z != 0, distance, torch.inf).amin(0))
    return FLOAT64.short_of_kink * room


def _relative_width(block: ShallowBlock) -> Move:
    """Half widths of the noise, relative to each neuron."""
    of_W = _sizes(block.W.abs().amax(1))[:, None].expand_as(block.W)
    of_H = _sizes(block.H.abs().amax(0)).expand_as(block.H)
    of_bias = torch.zeros_like(block.H[:, 0])
    if block.output_bias is not None:
        of_bias = of_bias + _sizes(block.output_bias.abs().amax(0, keepdim=True))
    return Move(of_W, of_H, of_bias).scaled(FLOAT64.noise)


def _sizes(size: Tensor) -> Tensor:
    """Sizes of weights, zero ones replaced by the median of the others, or 1; shape of ``size``."""
    present = size[size > 0]
    typical = float(present.median()) if len(present) else 1.0
    return torch.where(size > 0, size, typical)


def _same_width(block: ShallowBlock, zeta: float) -> Move:
    """The same half width for every parameter."""
    bias = zeta if block.output_bias is not None else 0.0
    return Move(torch.full_like(block.W, zeta), torch.full_like(block.H, zeta), torch.full_like(block.H[:, 0], bias))


def _noise(width: Move, count: int, generator: torch.Generator | None) -> Move:
    """Uniform draws within half widths; a first dimension counts them."""
    parts = []
    for part in (width.dW, width.dH, width.db):
        uniform = torch.rand(count, *part.shape, generator=generator, dtype=torch.float64)
        parts.append((2 * uniform - 1).to(part.device) * part)
    return Move(*parts)


def _changes(problem: LossProblem, noise: Move) -> Tensor:
    """Loss changes of many moves, shape ``(draws,)``."""
    changes = []
    for step, *parts in zip(_output_steps(problem, noise), noise.dW, noise.dH, noise.db, strict=True):
        linear, square = price_of(problem, Move(*parts))
        changes.append(problem.output_loss.change(problem.outputs, step) + linear + square)
    return torch.stack(changes)


def _output_steps(problem: LossProblem, noise: Move) -> Tensor:
    """What many moves change the outputs by, in digits of the changes, shape ``(draws, N, J)``."""
    block = problem.block
    steps = noise.db[:, None].repeat(1, len(problem.outputs), 1)
    moving = problem.signal.X.any(dim=1).nonzero().squeeze(1)
    for chunk in chunks(block, problem.signal, problem.kink_tol):
        for Z, X in zip(*(torch.split(part, BUDGETS.draw_rows) for part in (chunk.Z, chunk.X)), strict=True):
            here, moving = moving[: len(X)], moving[len(X) :]
            dZ = X @ noise.dW.mT
            crossed = Z * (Z + dZ) < 0
            dA = torch.where(crossed, rho(Z + dZ, block.slopes) - rho(Z, block.slopes), entered(Z, dZ, block.slopes))
            steps[:, here] += dA @ (block.H + noise.dH).mT + rho(Z, block.slopes) @ noise.dH.mT
    return steps
