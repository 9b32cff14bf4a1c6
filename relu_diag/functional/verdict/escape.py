"""Escape neurons: where the loss is flat to first order and yet some output pulls (Wu et al., Definition 4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import (
    OneNeuron,
    loudest_flat_directions,
    radial_directions,
    tangential_part,
)
from relu_diag.functional.tolerances import kink_tolerance
from relu_diag.functional.verdict._flat import flat_within
from relu_diag.functional.verdict._output_parts import output_parts
from relu_diag.functional.verdict._reach import pull_beside_rounding, zero_neuron_pull
from relu_diag.functional.verdict._rounding import ResidualRounding, rounding_of_signal
from relu_diag.functional.verdict._weight import least_share, met_within, positive, seen_by
from relu_diag.functional.verdict.stationarity import Stationarity, stationarity


@dataclass(frozen=True, slots=True, eq=False)
class EscapeNeurons:
    """Neurons whose input weights can move at no first-order cost along a direction that some output feels.

    Attributes:
        mask: Whether neuron ``i`` is an escape neuron, bool, shape ``(I,)``.
        decided: Whether that is proven either way; an undecided neuron is not in the mask, bool, shape ``(I,)``.
        direction: A unit tangential direction that shows it, zero elsewhere, shape ``(I, d)``.
        D: Derivatives ``D_j`` of the loss along it per unit of output weight ``h_ji``, shape ``(I, J)``.

    Example:
        >>> block = ShallowBlock(W=torch.zeros(1, 2), H=torch.zeros(1, 1))
        >>> signal = BlockSignal(X=torch.tensor([[1.0, 0.0]]), G=torch.tensor([[-1.0]]))
        >>> escape_neurons(block, signal).mask
        tensor([True])
    """

    mask: Tensor
    decided: Tensor
    direction: Tensor
    D: Tensor

    def __str__(self) -> str:
        return (
            f"{int(self.mask.sum())} of {len(self.mask)} neurons are escape neurons, "
            f"{int((~self.decided).sum())} undecided; largest |D| {self.D.norm(dim=1).max():.3g}"
        )


def escape_neurons(
    block: ShallowBlock, signal: BlockSignal, kink_tol: float | None = None, tol: float | None = None
) -> EscapeNeurons:
    """The neurons with a tangential direction along which the loss has slope zero and some ``D_j`` has not.

    The definition speaks of stationary points. Elsewhere the answer is that of the neuron's own input weights; where
    those have a descent it is no.

    Source: Wu et al., Definition 4.1.

    Args:
        block: The network.
        signal: Inputs and loss gradients, ``N`` samples.
        kink_tol: Relative distance that counts as on the kink; None: 1e-10 in float64, 1e-6 in float32.
        tol: Tolerance on derivatives relative to their natural scale; None: 1e-9 in float64, 1e-5 in float32.

    Returns:
        Escape neurons, each with a direction.

    Example:
        >>> block = ShallowBlock(W=torch.zeros(1, 2), H=torch.zeros(1, 1))
        >>> signal = BlockSignal(X=torch.tensor([[1.0, 0.0]]), G=torch.tensor([[-1.0]]))
        >>> print(escape_neurons(block, signal))
        1 of 1 neurons are escape neurons, 0 undecided; largest |D| 1
    """
    return escapes_at(block, signal, stationarity(block, signal, kink_tol, tol), kink_tol)


def escapes_at(
    block: ShallowBlock,
    signal: BlockSignal,
    found: Stationarity,
    kink_tol: float | None = None,
    rounding: ResidualRounding | None = None,
) -> EscapeNeurons:
    """The escape neurons, given the first-order answer at the same parameters.

    Args:
        block: The network.
        signal: Its signal.
        found: Its stationarity.
        kink_tol: The tolerance for kinks used there.
        rounding: What is known of the rounding of the residuals.

    Returns:
        Escape neurons, each with a direction.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.zeros(1, 1))
        >>> signal = BlockSignal(X=torch.tensor([[0.0, 1.0]]), G=torch.tensor([[-1.0]]))
        >>> escapes_at(block, signal, stationarity(block, signal)).direction  # up, where the sample is
        tensor([[0., 1.]], dtype=torch.float64)
    """
    kink_tol = kink_tolerance(kink_tol, block.W.dtype)
    if rounding is None:
        rounding = rounding_of_signal(block, signal, kink_tol)
    neurons, inputs = block.W.shape
    outputs = len(block.H)
    direction = found.slope.new_zeros(neurons, inputs)
    D = found.slope.new_zeros(neurons, outputs)
    loud = found.tol * found.pull_scale
    # A slope that counts as rounding is none here either.
    descends = (found.slope < -found.tol * found.scale) & ~found.stationary
    decided = found.decided | descends
    silent = ~block.H.any(dim=0) & (signal.C is None)
    zero = silent & ~block.W.any(dim=1)
    asked = ~zero & ~descends & decided
    if outputs == 1 and signal.C is None:
        asked &= silent  # L' = h D: where h != 0 both vanish together
    if bool(zero.any()):  # one neuron stands for all of them
        pull = zero_neuron_pull(block, signal, found.tol, None if rounding is None else rounding.most)
        if rounding is not None and not pull.D.any():  # a closer bound may leave something
            pull = zero_neuron_pull(block, signal, found.tol, rounding.usable)
        direction[zero], D[zero] = torch.as_tensor(pull.direction).to(D), torch.as_tensor(pull.D).to(D)
        decided[zero] = pull.decided
    numbers = (outputs + found.geometry.within) * inputs
    decided &= ~asked | (numbers <= BUDGETS.neuron_numbers)
    for index in _groups((asked & decided).nonzero().squeeze(1), numbers):
        direction[index], D[index], decided[index] = _loudest(block, signal, found, index, kink_tol, rounding)
    strength = D.norm(dim=1)
    mask = torch.where(zero, strength > 0, strength > loud)
    mask &= zero | _weighty(block, signal, found, strength, mask & ~zero, kink_tol, rounding)
    if rounding is not None:
        hidden = torch.where(mask | ~decided | (strength <= loud), 0.0, strength)
        for i in hidden.argsort(descending=True)[: min(BUDGETS.neurons_tried, int(hidden.count_nonzero()))].tolist():
            beside = pull_beside_rounding(block, signal, i, found.tol, rounding.exact, kink_tol)
            if beside is not None:
                mask[i] = True
                direction[i], D[i] = torch.as_tensor(beside.direction).to(D), torch.as_tensor(beside.D).to(D)
    return EscapeNeurons(mask, decided, torch.where(mask[:, None], direction, 0.0), torch.where(mask[:, None], D, 0.0))


def silent_escapes(block: ShallowBlock, escape: EscapeNeurons) -> Tensor:
    """The escape neurons without output weights: what makes a saddle for any number of outputs.

    Args:
        block: The network.
        escape: Its escape neurons.

    Returns:
        Mask, bool, shape ``(I,)``.

    Example:
        >>> block = ShallowBlock(W=torch.zeros(1, 2), H=torch.zeros(1, 1))
        >>> signal = BlockSignal(X=torch.tensor([[1.0, 0.0]]), G=torch.tensor([[-1.0]]))
        >>> silent_escapes(block, escape_neurons(block, signal))
        tensor([True])
    """
    return escape.mask & ~block.H.any(dim=0)


def _weighty(
    block: ShallowBlock,
    signal: BlockSignal,
    found: Stationarity,
    strength: Tensor,
    asked: Tensor,
    kink_tol: float,
    rounding: ResidualRounding | None,
) -> Tensor:
    """Which of the pulls asked about are more than rounding, on samples that are not all but met, bool ``(I,)``."""
    weighty = asked.clone()
    relative = strength / positive(found.pull_scale)
    doubtful = relative * least_share(block, signal, found.pull_scale) <= found.tol
    if rounding is not None:
        doubtful |= strength <= rounding.most_pull
    index = (asked & doubtful).nonzero().squeeze(1)
    if len(index):
        seen = seen_by(block, signal, kink_tol, index, None if rounding is None else rounding.usable)
        loud = relative[index] * seen.share > found.tol
        if rounding is not None:
            loud |= strength[index] > met_within(found.tol) * seen.pull
        weighty[index] = loud & (strength[index] > seen.pull)
    return weighty


def _groups(index: Tensor, numbers: Tensor) -> Iterator[Tensor]:
    """Consecutive neurons, as many as fit into memory together."""
    group: list[int] = []
    total = 0
    for i, size in zip(index.tolist(), numbers[index].tolist(), strict=True):
        if group and (total + size > BUDGETS.neuron_numbers or len(group) == BUDGETS.neurons_at_once):
            yield index.new_tensor(group)
            group, total = [], 0
        group.append(i)
        total += size
    if group:
        yield index.new_tensor(group)


def _loudest(
    block: ShallowBlock,
    signal: BlockSignal,
    found: Stationarity,
    index: Tensor,
    kink_tol: float,
    rounding: ResidualRounding | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Direction, ``D`` and decidedness of some neurons whose loss has no negative slope."""
    some = replace(block, W=block.W[index], H=block.H[:, index])
    signal = BlockSignal(signal.X, signal.G, None if signal.C is None else signal.C[:, index])
    parts, neuron, kinks, c, X = output_parts(some, signal, kink_tol)
    U = radial_directions(some.W.detach().double())
    loud = (found.tol * found.pull_scale[index]).tolist()
    direction, D = _loudest_smooth(parts)
    decided = torch.ones_like(index, dtype=torch.bool)
    b = (block.slopes[1] - block.slopes[0]) / 2
    g = tangential_part(U, found.geometry.smooth[index])
    kinked = sorted(set(neuron.tolist()))
    problems = []
    for i in kinked:
        own = neuron == i
        x = tangential_part(U[i].expand(int(own.sum()), -1), X[own])
        problems.append(OneNeuron(*(part.cpu().numpy() for part in (g[i], b * c[own], parts[i], b * kinks[own], x))))
    flat = flat_within(block, signal, found, index[kinked], kink_tol, rounding).tolist()
    for i, pull in zip(kinked, loudest_flat_directions(problems, flat, [loud[i] for i in kinked]), strict=True):
        decided[i] = pull.decided
        direction[i] = torch.as_tensor(pull.direction).to(D)
        D[i] = torch.as_tensor(pull.D).to(D)
    return direction, D, decided


def _loudest_smooth(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Without kinks every tangential direction is flat: downhill for the output that feels it most."""
    norm, output = parts.norm(dim=2).max(dim=1)
    steepest = parts[torch.arange(len(parts), device=parts.device), output]
    direction = -steepest / torch.where(norm > 0, norm, 1.0)[:, None]
    return direction, (parts @ direction[:, :, None]).squeeze(2)
