"""How to grow at a local minimum: which embedding gives the loss a way down, how steep, and where to put the neuron.

An exact copy of a neuron that rests *beside* a kink lies in the neuron's own flat cell, and nothing ever moves it. So
the one-sided slopes are taken with every sample within reach counted as on the kink, and the copy is placed across.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional.block import Reduction, ShallowBlock, rho
from relu_diag.functional.embedding import add_inactive_propagation, replicate_unit
from relu_diag.functional.extremal import extremal_directions
from relu_diag.functional.fan import Array, one_sided, unit_rows
from relu_diag.functional.geometry import radial_directions, tangential_part
from relu_diag.functional.neurons import neuron_states
from relu_diag.functional.problem import SquaredProblem, chunked_outputs, squared_problem
from relu_diag.functional.steepest import steepest_descent
from relu_diag.functional.sums import neuron_sums

GrowthKind = Literal["replication", "inactive propagation"]

# Kinks of a neuron beyond which the steepest direction is looked for among the simple ones; and beyond which the reach
# is more than the cell of a neuron.
_MAX_KINKS, _DENSE = 12, 256
# Angles that are tried: from this power of ten of the largest, so many.
_FINEST, _TRIALS = -4, 25
# First-order drop of the loss, as a fraction, that a new neuron starts with.
_SHARE = 0.01
_ROUNDING = 1e-12


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
        predicted_drop: First-order drop of the loss that the move of the new neuron gives, 0 without a move.
        measured_drop: Drop of the loss as evaluated.
        function_change: Largest change of an output on the data.
        displacement: Move of the copy's input weights, relative to their length, shape ``(d,)``.
    """

    kind: GrowthKind
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
        """The same growth of another network of the same shape, an averaged copy for example.

        Args:
            block: The other network.

        Returns:
            It with the neuron.
        """
        if self.unit is None:
            wider = add_inactive_propagation(block, self.new_block.W[-1:])
            return replace(wider, H=torch.cat([block.H, self.new_block.H[:, -1:]], dim=1))
        return _displaced(replicate_unit(block, self.unit, self.beta, self.gamma), self.displacement)

    def __str__(self) -> str:
        what = "new neuron" if self.unit is None else f"replica of neuron {self.unit}, gamma {self.gamma}"
        moved = f"; outputs change by {self.function_change:.3g}, the loss drops by {self.measured_drop:.3g}"
        return f"{what}, gain {self.gain:.3g}{moved if self.displacement.any() or self.unit is None else ''}"


def growth_proposals(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor,
    reduction: Reduction = "mean",
    reach: float = 0.05,
    nudge: bool = True,
    gamma: tuple[float, float] = (1.5, -0.5),
) -> list[GrowthProposal]:
    """Ways to add a neuron at a point where the loss has no way down, largest gain first.

    A copy with ``gamma_l`` feels ``gamma_l L'(v)``: what is uphill for a neuron at a minimum is downhill for a copy
    with ``gamma_l < 0``. The gain of replicating a neuron is the largest ``-gamma_l L'(v)`` over the tangential unit
    directions, each sample within ``reach`` of the neuron's kink counted as on it. A new neuron gains
    ``||D(v)||`` in an extremal direction (`extremal_directions`). With ``nudge`` the neuron is moved, the copy across
    the kink, as far as lowers the loss most, the new one given a small amplitude; without, the function stays as it is.

    Source: Wu et al., sections 4.2 and 4.3, appendix N.

    Args:
        block: The network.
        X: All inputs of the loss, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: "mean", "sum" or "half_sum".
        reach: Angle within which a kink is looked at, and beyond which no copy is turned further than twice, rad.
        nudge: Whether to move the new neuron.
        gamma: Factors of the output weights of the two copies; they add up to 1.

    Returns:
        Proposals with a gain; with ``nudge`` only those that lower the loss. Empty where nothing helps.

    Raises:
        ValueError: If the reach is not in (0, pi / 4), or the factors do not add up to 1.

    Example:
        >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
        >>> Y = torch.tensor([[1.0], [-1.0]]).double()
        >>> stuck = ShallowBlock(torch.tensor([[1.0, 0.0]]).double(), torch.ones(1, 1).double())
        >>> best = growth_proposals(stuck, X, Y)[0]
        >>> print(best)
        new neuron, gain 1; outputs change by 0.005, the loss drops by 0.00499
    """
    if not 0 < reach < math.pi / 4:
        raise ValueError(f"`reach` is an angle in (0, pi / 4) rad; got {reach!r}.")
    if len(gamma) != 2 or abs(sum(gamma) - 1) > _ROUNDING:
        raise ValueError(f"`gamma` must be two factors that add up to 1; got {gamma!r}.")
    problem = squared_problem(block, X, Y, reduction)
    small = neuron_states(problem.block, problem.signal.X, Y.detach().double()).small_living
    units = (~small & block.H.any(dim=0) & block.W.any(dim=1)).nonzero().squeeze(1).tolist()
    found = [*_replications(problem, units, reach, gamma), *_propagations(problem)]
    proposals = [_proposal(problem, block, one, nudge) for one in found]
    if nudge:
        least = _ROUNDING * float(problem.loss)
        return sorted((one for one in proposals if one.measured_drop > least), key=lambda one: -one.gain)
    return sorted(proposals, key=lambda one: -one.gain)


@dataclass(frozen=True, slots=True, eq=False)
class _Growth:
    """A gain, and how the outputs and the new neuron change on the way to the best place for it."""

    gain: float
    unit: int | None
    gamma: tuple[float, ...]
    w: Tensor
    h: Tensor
    outputs: Tensor


def _replications(
    problem: SquaredProblem, units: list[int], reach: float, gamma: tuple[float, float]
) -> Iterator[_Growth]:
    """For each neuron the copy that gains most, turned by the angle that lowers the loss most."""
    block, X = problem.block, problem.signal.X
    sums = neuron_sums(block, problem.loss_signal, kink_tol=math.sin(reach))
    while bool((sums.kink_count[units] > _DENSE).any()):
        reach /= 4
        sums = neuron_sums(block, problem.loss_signal, kink_tol=math.sin(reach))
    U, angles = radial_directions(block.W), 2 * reach * torch.logspace(_FINEST, 0, _TRIALS, dtype=torch.float64)
    b = (block.slopes[1] - block.slopes[0]) / 2
    for unit in units:
        own, u = sums.kinks.neuron == unit, U[unit, None]
        g, X_kinks = (tangential_part(u, part).cpu().numpy() for part in (sums.smooth[unit, None], sums.kinks.X[own]))
        q = b * sums.kinks.c[own].cpu().numpy()
        falls = [(*_steepest(factor * g[0], factor * q, X_kinks), factor) for factor in gamma]
        slope, direction, factor = min(falls, key=lambda fall: fall[0])
        if slope >= -_ROUNDING * float(block.H[:, unit].norm() * problem.loss_signal.G.norm() * X.norm()):
            continue
        turned = angles.cos()[:, None] * u + angles.sin()[:, None] * torch.as_tensor(direction).to(u)
        w, h = block.W[unit].norm() * turned, factor * block.H[:, unit]
        moves = rho(w @ X.T, block.slopes) - rho(X @ block.W[unit], block.slopes)
        drop = [float(_drop(problem, torch.outer(move, h))[1]) for move in moves]
        best = int(np.argmax(drop))
        # The copy that moves is the last one.
        ordered = gamma if factor == gamma[1] else gamma[::-1]
        yield _Growth(-slope, unit, ordered, w[best], h, torch.outer(moves[best], h))


def _steepest(g: Array, q: Array, X: Array) -> tuple[float, Array]:
    """Where there are too many kinks to be exact, the best of the simple directions: a slope that is attained."""
    if len(q) <= _MAX_KINKS:
        found = steepest_descent(g, q, X)
        return found.slope, found.direction
    V = unit_rows(np.concatenate([-g[None], -(g + q @ X)[None], -(g - q @ X)[None], X, -X]))
    values = one_sided(V, g, q, X)
    return float(values.min()), V[values.argmin()]


def _propagations(problem: SquaredProblem) -> Iterator[_Growth]:
    """A new neuron in the best extremal direction, as large as lowers the loss by a hundredth to first order."""
    signal, block = problem.loss_signal, problem.block
    found = extremal_directions(signal.X, signal.G, block.slopes, block.W)
    if not len(found.gain) or float(found.gain[0]) <= 0:
        return
    outputs = torch.outer(rho(signal.X @ found.v[0], block.slopes), found.o[0])
    gain = float(found.gain[0])
    amplitude = min(_SHARE * float(problem.loss) / gain, gain / (problem.factor * float(outputs.square().sum())))
    root = math.sqrt(amplitude)
    yield _Growth(gain, None, (), root * found.v[0], root * found.o[0], amplitude * outputs)


def _drop(problem: SquaredProblem, change: Tensor) -> tuple[Tensor, Tensor]:
    """How much the loss drops under a change of the outputs: to first order, and exactly."""
    first = -problem.factor * (problem.signal.G * change).sum()
    return first, first - problem.factor / 2 * change.square().sum()


def _proposal(problem: SquaredProblem, block: ShallowBlock, growth: _Growth, nudge: bool) -> GrowthProposal:
    displacement = torch.zeros_like(growth.w)
    if growth.unit is None:
        kind: GrowthKind = "inactive propagation"
        length = float(problem.block.W.norm(dim=1).median()) / float(growth.w.norm())
        W_new, h = (growth.w if nudge else length * growth.w)[None], growth.h if nudge else 0 * growth.h
        beta: tuple[float, ...] = ()
        new = add_inactive_propagation(block, W_new.to(block.W))
        new = replace(new, H=torch.cat([block.H, h[:, None].to(block.H)], dim=1))
    else:
        kind, beta, w = "replication", (1.0, 1.0), problem.block.W[growth.unit]
        displacement = (growth.w - w) / w.norm() if nudge else displacement
        new = _displaced(replicate_unit(block, growth.unit, beta, growth.gamma), displacement)
    change = chunked_outputs(new, problem.signal.X.to(block.W)).double() - problem.outputs
    first, exact = _drop(problem, growth.outputs if nudge else 0 * change)
    return GrowthProposal(
        kind,
        growth.unit,
        beta,
        growth.gamma,
        growth.gain,
        new,
        float(first),
        float(exact),
        float(change.abs().max()),
        displacement,
    )


def _displaced(block: ShallowBlock, displacement: Tensor) -> ShallowBlock:
    """The last neuron, a copy, moved by a multiple of the length of its input weights."""
    W = block.W.clone()
    W[-1] += W[-1].norm() * displacement.to(W)
    return replace(block, W=W)
