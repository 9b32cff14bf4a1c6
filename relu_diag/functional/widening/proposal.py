"""How to widen a network where training is stuck: which neuron gives the loss a way down, how steep, and where."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from relu_diag.functional._checks import check_matrix, is_count, is_number
from relu_diag.functional.block import BlockSignal, Reduction, ShallowBlock, check_targets, chunked_outputs, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics import extremal_directions
from relu_diag.functional.local import neuron_states, slopes_at
from relu_diag.functional.output_loss import Loss, OutputLoss, as_loss
from relu_diag.functional.tolerances import FLOAT64, tolerances
from relu_diag.functional.weight_decay import WeightDecay, as_weight_decay
from relu_diag.functional.widening._factors import usual_length
from relu_diag.functional.widening._gain import CopyGain, copy_gains
from relu_diag.functional.widening._new_neuron import promising_directions
from relu_diag.functional.widening.embedding import add_inactive_propagation, replicate_unit

_Kind = Literal["replication", "inactive propagation"]
_Loss = Callable[[Tensor], Tensor]

# Copies turn by at most this angle, rad.
_TURN = math.pi / 4


@dataclass(frozen=True, slots=True, eq=False)
class GrowthProposal:
    """One more neuron, and what it gains.

    Attributes:
        kind: "replication": a copy of a neuron. "inactive propagation": a neuron that was not there.
        unit: The neuron that is replicated, or None.
        beta: Factors of the input weights of the two copies; empty for a new neuron.
        gamma: Factors of their output weights.
        gain: First-order rate at which the loss falls: per unit length of the copy's input weights, or per unit of a
            new neuron's amplitude ``||w|| ||h||``.
        new_block: The network with the neuron, last.
        predicted_drop: First-order drop of the loss that the move of the new neuron gives, 0 without a move; less what
            weight decay takes of the new weights.
        measured_drop: Drop of the loss as evaluated, weight decay included.
        function_change: Largest change of an output on the data.
        displacement: Move of the copy's input weights, relative to their length, shape ``(d,)``.

    Example:
        >>> X = torch.eye(2, dtype=torch.float64)
        >>> stuck = ShallowBlock(X[:1], X[:1, :1])
        >>> best = growth_proposals(stuck, X, torch.tensor([[1.0], [-1.0]]).double())[0]
        >>> best.kind, tuple(best.new_block.W.shape)
        ('inactive propagation', (2, 2))
    """

    kind: _Kind
    unit: int | None
    beta: tuple[float, ...]
    gamma: tuple[float, ...]
    gain: float
    new_block: ShallowBlock
    predicted_drop: float
    measured_drop: float
    function_change: float
    displacement: Tensor

    def embed(self, block: ShallowBlock) -> ShallowBlock:
        """The same widening of another network of the same shape, an averaged copy for example.

        Args:
            block: The other network.

        Returns:
            It with the neuron.
        """
        if self.unit is None:
            return _with_neuron(block, self.new_block.W[-1], self.new_block.H[:, -1])
        return _displaced(replicate_unit(block, self.unit, self.beta, self.gamma), self.displacement)

    @property
    def what(self) -> str:
        """Which neuron it is and its gain, without what it does to the loss."""
        neuron = "new neuron" if self.unit is None else f"replica of neuron {self.unit}, gamma {self.gamma}"
        return f"{neuron}, gain {self.gain:.3g}"

    def __str__(self) -> str:
        moved = f"; outputs change by {self.function_change:.3g}, the loss drops by {self.measured_drop:.3g}"
        return f"{self.what}{moved if self.displacement.any() or self.unit is None else ''}"


def growth_proposals(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor | Loss | _Loss,
    reduction: Reduction = "mean",
    reach: float = 0.05,
    nudge: bool = True,
    gamma: tuple[float, float] = (1.5, -0.5),
    candidates: int = 32,
    weight_decay: float | WeightDecay = 0.0,
) -> list[GrowthProposal]:
    """Ways to add a neuron at a point where the loss has no way down, the best first.

    A copy with ``gamma_l`` feels ``gamma_l L'(v)``: what is uphill for a neuron at a minimum is downhill for a copy
    with ``gamma_l < 0``. The gain of replicating a neuron is the largest ``-gamma_l L'(v)`` over the tangential unit
    directions, each sample within ``reach`` of the neuron's kink counted as on it. A new neuron gains ``||D(v)||``,
    most in the extremal directions (`extremal_directions`). With ``nudge`` the neuron is moved as far as lowers the
    loss most: the copy across the kink, the new one to an amplitude, in every extremal direction and in those that it
    turns to from there by least squares fits; without, the function stays as it is.

    Source: Wu et al., sections 4.2 and 4.3, appendix N.

    Args:
        block: The network.
        X: All inputs of the loss, shape ``(N, d)``.
        Y: Targets of the squared error, shape ``(N, J)``; or a loss of the outputs; or any differentiable function of
            the outputs ``(N, J)``, at the cost of the digits that a difference of two values loses.
        reduction: Of the squared error: "mean", "sum" or "half_sum".
        reach: Angle within which a kink is looked at, rad.
        nudge: Whether to move the new neuron.
        gamma: Factors of the output weights of the two copies; they add up to 1.
        candidates: No more than so many of a kind are evaluated: copies, of the largest gain; new neurons in extremal
            directions, and turned from them, of what promises the largest drop at the same curvature for all outputs.
        weight_decay: Factor ``mu`` of ``mu / 2`` times the squared weights, an output bias being free; or one for each
            part. It is part of the loss: drops are of both together, and a new neuron gains what its pull exceeds the
            decay by.

    Returns:
        Proposals with a gain. With ``nudge`` only those that lower the loss, largest drop first; without, largest gain
        first. Empty where nothing helps.

    Raises:
        ValueError: If the reach is not in (0, pi / 4), the factors do not add up to 1, there is no candidate, or the
            loss is not a finite number that depends on the outputs.

    Example:
        >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
        >>> Y = torch.tensor([[1.0], [-1.0]]).double()
        >>> stuck = ShallowBlock(torch.tensor([[1.0, 0.0]]).double(), torch.ones(1, 1).double())
        >>> best = growth_proposals(stuck, X, Y)[0]
        >>> print(best)
        new neuron, gain 1; outputs change by 1, the loss drops by 0.5
        >>> print(growth_proposals(stuck, X, lambda outputs: (outputs - Y).abs().sum())[0])
        new neuron, gain 1; outputs change by 1, the loss drops by 1
        >>> print(growth_proposals(stuck, X, Y, weight_decay=0.5)[0])
        new neuron, gain 0.5; outputs change by 0.5, the loss drops by 0.125
        >>> growth_proposals(stuck, X, Y, weight_decay=1.0)
        []
    """
    if not (is_number(reach) and 0 < reach < math.pi / 4):
        raise ValueError(f"`reach` is an angle in (0, pi / 4) rad; got {reach!r}.")
    if len(gamma) != 2 or abs(sum(gamma) - 1) > FLOAT64.gain:
        raise ValueError(f"`gamma` must be two factors that add up to 1; got {gamma!r}.")
    if not is_count(candidates):
        raise ValueError(f"`candidates` must be a positive number; got {candidates!r}.")
    slope = replace(_slope(block, X, Y, reduction), decay=as_weight_decay(weight_decay))
    copies = copy_gains(slope.block, slope.signal, _living(slope), reach, gamma)[:candidates]
    new = _new_neurons(slope, candidates) if nudge else _still_neurons(slope, candidates)
    moves = [*(_copy_move(slope, one, gamma) for one in copies), *new]
    proposals = [_proposal(slope, block, move, nudge) for move in moves]
    if nudge:
        helpful = [one for one in proposals if one.measured_drop > slope.rounding]
        return sorted(helpful, key=lambda one: -one.measured_drop)
    return sorted(proposals, key=lambda one: -one.gain)


@dataclass(frozen=True, slots=True, eq=False)
class _Slope:
    """A loss around the outputs of a block, in float64.

    ``drop`` says how much the loss falls under a change of the outputs, ``rounding`` what of that is none; ``decay`` is
    part of the loss besides.
    """

    block: ShallowBlock
    signal: BlockSignal
    outputs: Tensor
    loss: float
    drop: Callable[[Tensor], float]
    rounding: float
    decay: WeightDecay = field(default_factory=WeightDecay)

    def price(self, v: Tensor) -> float:
        """What a neuron of input weights along a unit vector costs, per unit of its amplitude."""
        return math.sqrt(self.decay.H * float(self.decay.by_column(self.block) @ v.square()))


def _slope(block: ShallowBlock, X: Tensor, Y: Tensor | Loss | _Loss, reduction: Reduction) -> _Slope:
    """The loss around the outputs, whatever it was given as."""
    if not isinstance(Y, Tensor | Loss) or isinstance(Y, OutputLoss):
        return _function_slope(block, X, Y)
    if isinstance(Y, Tensor):
        check_targets(block, X, Y)
    check_matrix("X", X)
    loss = as_loss(Y, reduction).double()
    wide = block.double()
    X = X.detach().double()
    outputs = chunked_outputs(wide, X)
    value = float(loss(outputs))

    def drop(change: Tensor) -> float:  # a difference of losses would cancel
        return -float(loss.change(outputs, change))

    return _Slope(wide, BlockSignal(X, loss.gradient(outputs)), outputs, value, drop, FLOAT64.gain * abs(value))


def _function_slope(block: ShallowBlock, X: Tensor, loss: _Loss) -> _Slope:
    check_matrix("X", X)
    wide = block.double()
    X = X.detach().double()
    outputs = chunked_outputs(wide, X).requires_grad_()
    with torch.enable_grad():
        value = loss(outputs)
    if value.numel() != 1 or not bool(torch.isfinite(value)) or not value.requires_grad:
        raise ValueError(f"The loss must be a finite number computed from the outputs; got {value}.")
    (G,) = torch.autograd.grad(value.reshape(()), outputs)
    at, start = outputs.detach(), float(value.detach())

    def drop(change: Tensor) -> float:
        with torch.no_grad():
            return start - float(loss(at + change))

    # A network computes with the digits of its weights, in whatever its loss is added up.
    eps = max(tolerances(dtype).eps for dtype in (value.dtype, block.W.dtype))
    return _Slope(wide, BlockSignal(X, G), at, start, drop, max(FLOAT64.gain, 8 * eps) * abs(start))


def _living(slope: _Slope) -> list[int]:
    block, X = slope.block, slope.signal.X
    small = neuron_states(block, X, slope.outputs).small_living
    units: list[int] = (~small & block.H.any(dim=0) & block.W.any(dim=1)).nonzero().squeeze(1).tolist()
    return units


@dataclass(frozen=True, slots=True, eq=False)
class _Move:
    """A neuron of input weights ``w`` and output weights ``h`` beside those there are, and how the outputs change.

    ``gamma`` has the factor of the copy that moves last; it is empty for a new neuron.
    """

    gain: float
    unit: int | None
    gamma: tuple[float, ...]
    w: Tensor
    h: Tensor
    outputs: Tensor


def _copy_move(slope: _Slope, copy: CopyGain, gamma: tuple[float, float]) -> _Move:
    """The copy turned by the angle that lowers the loss most."""
    block, X = slope.block, slope.signal.X
    w = block.W[copy.unit]
    u, length, h, before = w / w.norm(), w.norm(), copy.factor * block.H[:, copy.unit], rho(X @ w, block.slopes)

    def turned(angle: float) -> tuple[Tensor, Tensor]:
        there = length * (math.cos(angle) * u + math.sin(angle) * copy.direction)
        return there, torch.outer(rho(X @ there, block.slopes) - before, h)

    there, outputs = turned(_best_step(lambda angle: slope.drop(turned(angle)[1]), _TURN))
    return _Move(copy.gain, copy.unit, gamma if copy.factor == gamma[1] else gamma[::-1], there, h, outputs)


def _new_neurons(slope: _Slope, candidates: int) -> list[_Move]:
    """New neurons in extremal directions, and turned to where they lower the loss most, each of its best amplitude."""
    signal, slopes = slope.signal, slope.block.slopes
    found = extremal_directions(signal.X, signal.G, slopes, slope.block.W)
    terms = signal.X.norm(dim=1) * signal.G.norm(dim=1)
    moves = []
    for v in promising_directions(found.v, signal, slopes, candidates):
        Z = signal.X @ v
        felt = rho(Z, slopes)
        D = felt @ signal.G
        gain = float(D.norm())
        price = slope.price(v)
        if gain - price <= FLOAT64.gain * float(slopes_at(Z, slopes).abs() @ terms):  # all rounding
            continue
        o = -D / gain
        outputs = torch.outer(felt, o)
        # To first order the whole loss is gone at a quarter of this amplitude, or outputs change by 1 where it is 0.
        first = 4 * abs(slope.loss) / gain if slope.loss else 1 / float(felt.abs().max())
        amplitude = _best_amplitude(partial(_drop_at, slope, outputs, price), first)
        root = math.sqrt(amplitude)
        # Of an amplitude the cheapest split has both weights cost the same.
        share = price / slope.decay.H if price > 0 else 1.0
        w, h = root * v / math.sqrt(share), root * o * math.sqrt(share)
        moves.append(_Move(gain - price, None, (), w, h, amplitude * outputs))
    return moves


def _still_neurons(slope: _Slope, candidates: int) -> list[_Move]:
    """New neurons in the extremal directions of largest gain, with output weights of 0."""
    signal, slopes = slope.signal, slope.block.slopes
    found = extremal_directions(signal.X, signal.G, slopes, slope.block.W)
    silent = torch.zeros_like(slope.outputs)
    felt = [
        _Move(float(gain) - slope.price(v), None, (), usual_length(slope.block) * v, torch.zeros_like(o), silent)
        for v, gain, o in zip(found.v[:candidates], found.gain, found.o, strict=False)
    ]
    return [move for move in felt if move.gain > 0]


def _drop_at(slope: _Slope, outputs: Tensor, price: float, amplitude: float) -> float:
    return slope.drop(amplitude * outputs) - price * amplitude


def _best_amplitude(drop: Callable[[float], float], first: float) -> float:
    """The amplitude of the largest drop, the drop being concave as under a convex loss."""
    drops = {first: drop(first)}
    step = first
    while len(drops) < BUDGETS.amplitudes and (drops[step] <= 0 or step == max(drops, key=drops.__getitem__)):
        step /= 2
        drops[step] = drop(step)
    step = first
    # Towards infinity a convex loss may fall for ever, by less and less.
    while len(drops) < BUDGETS.amplitudes and drops[step] > (1 + FLOAT64.still_worth) * drops[step / 2]:
        step *= 2
        drops[step] = drop(step)
    steps = sorted(drops, reverse=True)
    return _top(drop, steps, [drops[step] for step in steps])


def _best_step(drop: Callable[[float], float], largest: float) -> float:
    """The step with the largest drop among those halved again and again."""
    steps: list[float] = [largest / 2**k for k in range(BUDGETS.halvings)]
    return _top(drop, steps, [drop(step) for step in steps])


def _top(drop: Callable[[float], float], steps: list[float], drops: list[float]) -> float:
    """The top of the parabola through the best of some falling steps and its neighbours, if that is higher."""
    best = max(range(len(steps)), key=drops.__getitem__)
    lowest = max(best - 1, 0)
    a, b, c = (*steps[lowest : best + 2], 0.0)[:3]
    fa, fb, fc = (*drops[lowest : best + 2], 0.0)[:3]
    left, right = (b - a) * (fb - fc), (b - c) * (fb - fa)
    if left == right:
        return steps[best]
    top = b - ((b - a) * left - (b - c) * right) / (2 * (left - right))
    return top if 0 < top <= steps[0] and drop(top) > drops[best] else steps[best]


def _proposal(slope: _Slope, block: ShallowBlock, move: _Move, nudge: bool) -> GrowthProposal:
    displacement = torch.zeros_like(move.w)
    if move.unit is None:
        kind: _Kind = "inactive propagation"
        beta: tuple[float, ...] = ()
        new = _with_neuron(block, move.w, move.h)
    else:
        kind, beta = "replication", (1.0, 1.0)
        w = slope.block.W[move.unit]
        displacement = (move.w - w) / w.norm() if nudge else displacement
        new = _displaced(replicate_unit(block, move.unit, beta, move.gamma), displacement)
    change = chunked_outputs(new, slope.signal.X.to(block.W)).double() - slope.outputs
    cost = float(slope.decay.cost(new.double()) - slope.decay.cost(slope.block))
    return GrowthProposal(
        kind,
        move.unit,
        beta,
        move.gamma,
        move.gain,
        new,
        (float(-(slope.signal.G * move.outputs).sum()) if nudge else 0.0) - cost,
        (slope.drop(move.outputs) if nudge else 0.0) - cost,
        float(change.abs().max()),
        displacement,
    )


def _with_neuron(block: ShallowBlock, w: Tensor, h: Tensor) -> ShallowBlock:
    """The block with a neuron of weights ``(d,)`` and ``(J,)`` behind the last."""
    wider = add_inactive_propagation(block, w[None].to(block.W))
    wider.H[:, -1] = h.to(wider.H)
    return wider


def _displaced(block: ShallowBlock, displacement: Tensor) -> ShallowBlock:
    """The last neuron, a copy, moved by a multiple of the length of its input weights."""
    W = block.W.clone()
    W[-1] += W[-1].norm() * displacement.to(W)
    return replace(block, W=W)
