"""The gradient of a loss where targets are met and it has a kink: one that holds all weights, if there is one.

Where a convex loss has a kink every slope ``G_kj`` between the least and the largest there is one of its gradients, and
``loss(P') - loss(P) >= sum G (yhat' - yhat)`` for each of them. So one gradient by which the point is stationary, and
no neuron escapes, makes it a local minimum. Both are linear in the slopes that are free: with ``D_ij(v)`` what output
``j`` feels of neuron ``i`` along ``v``, ``h_i . D_i >= 0`` on the rays of the neuron's kinks, and ``D_i = 0`` where
that is no more. A linear program finds them, or proves that there are none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import null_space
from scipy.optimize import linprog
from torch import Tensor

from relu_diag.functional._arrays import Array, Index, Mask, row_space
from relu_diag.functional.block import rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import fan_rays, hyperplanes, slopes_at
from relu_diag.functional.problem import LossProblem
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict._rounding import reach, seen_terms


@dataclass(frozen=True, eq=False)
class Slopes:
    """The free slopes of a loss, and what every neuron feels of them.

    Attributes:
        problem: The loss.
        sample: Sample of every number whose slope is free, shape ``(m,)``.
        output: Its output, shape ``(m,)``.
        least: Least slope, shape ``(m,)``.
        most: Largest slope, shape ``(m,)``.
        fixed: The gradient, zero where it is free, shape ``(N, J)``.
        X: Inputs, shape ``(N, d)``.
        slope: Slope of the activations, the mean of both on kinks, shape ``(N, I)``.
        kinks: Which samples are on the kinks of which neurons, shape ``(N, I)``.
        bend: Half the difference of the two slopes of the activation.
    """

    problem: LossProblem
    sample: Index
    output: Index
    least: Array
    most: Array
    fixed: Array
    X: Array
    slope: Array
    kinks: Mask
    bend: float

    @property
    def at_best(self) -> bool:
        """Whether zero is a gradient: no outputs at all have a lower loss."""
        return not self.fixed.any() and bool(((self.least <= 0) & (self.most >= 0)).all())

    @cached_property
    def choices(self) -> list[tuple[int, int]]:
        """Pairs (sample, neuron) on whose sides the slope along a move may need different gradients.

        Those of neurons with output weights, of samples whose slopes are free, or where the slope falls to both sides.
        """
        H = self.problem.block.H.cpu().numpy()
        falls = self.bend * (self.fixed @ H) < 0
        falls[self.sample] = True
        return [(int(k), int(i)) for k, i in np.argwhere(self.kinks & falls & H.any(axis=0))]

    @cached_property
    def silent_choices(self) -> list[tuple[int, int]]:
        """The same pairs of neurons without output weights, whose escape may need different gradients."""
        free = np.isin(np.arange(len(self.X)), self.sample)
        silent = ~self.problem.block.H.any(dim=0).cpu().numpy()
        return [(int(k), int(i)) for k, i in np.argwhere(self.kinks & free[:, None] & silent)]

    def on_kink(self, i: int) -> Array:
        """The samples on the kink of a neuron, exactly orthogonal to its input weights, shape ``(n, d)``."""
        w = self.problem.block.W[i].cpu().numpy()
        X = self.X[self.kinks[:, i]]
        return X - np.outer(X @ w, w) / (float(w @ w) or 1.0)

    def felt(self, i: int, V: Array) -> Array:
        """Outputs per unit of output weight along directions ``(n, d)`` of a neuron's input weights, ``(N, n)``."""
        along = self.X @ V.T
        return np.asarray(self.slope[:, i, None] * along + self.bend * self.kinks[:, i, None] * np.abs(along))

    def pulls(self, i: int, V: Array) -> _Rows:
        """``D_ij(v)`` of a neuron along directions ``(n, d)``, ``(n, J)`` of them."""
        steep = np.abs(self.slope[:, i]) + abs(self.bend) * self.kinks[:, i]
        size = steep * np.linalg.norm(self.X, axis=1)
        return self.rows(self.felt(i, V), size[:, None] * np.linalg.norm(V, axis=1))

    def rows(self, T: Array, size: Array) -> _Rows:
        """``sum_k G_kj T_kp`` for every output and column of ``T`` (N, n), whose terms have a size ``(N, n)``."""
        count = self.fixed.shape[1]
        own = T[self.sample].T[:, None, :] * (self.output == np.arange(count)[:, None])
        largest = np.abs(self.fixed)
        largest[self.sample, self.output] = np.maximum(np.abs(self.least), np.abs(self.most))
        return _Rows(own, T.T @ self.fixed, size.T @ largest)

    def at(self, free: Array) -> LossProblem:
        """The loss with a choice of its slopes ``(m,)``, zero where they are so but for rounding."""
        G = self.fixed.copy()
        none = np.abs(free) <= FLOAT64.residual * np.maximum(np.abs(self.least), np.abs(self.most))
        G[self.sample, self.output] = np.where(none, 0.0, free)
        signal = self.problem.signal
        return replace(self.problem, signal=replace(signal, G=torch.as_tensor(G).to(signal.G)))


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Numbers linear in free slopes: factors ``(..., m)``, what the fixed ones add, and all their terms ``(...)``."""

    factors: Array
    base: Array
    terms: Array

    def weighted(self, h: Array, more: Array, size: Array) -> _Rows:
        """The sums over outputs with weights ``(J,)``, and more added to each of ``(n,)``."""
        return _Rows(
            np.einsum("njm,j->nm", self.factors, h), self.base @ h + more, self.terms @ np.abs(h) + np.abs(size)
        )

    def added(self, more: Array) -> _Rows:
        """The same with fixed parts ``(n, J)`` added."""
        return _Rows(self.factors, self.base + more, self.terms + np.abs(more))

    def flat(self) -> _Rows:
        """The same as one list, in units of the terms; without those that no sample makes."""
        terms = self.terms.ravel()
        there = terms > 0
        unit = np.where(there, terms, 1.0)
        factors = self.factors.reshape(len(terms), self.factors.shape[-1]) / unit[:, None]
        return _Rows(factors[there], (self.base.ravel() / unit)[there], terms[there])


def free_slopes(problem: LossProblem) -> Slopes | None:
    """The slopes of a loss that are free at its outputs; None where none is, or where there are too many."""
    if problem.output_loss.smooth:
        return None
    outputs = problem.outputs
    block = problem.block
    given = outputs.norm(dim=1)
    if block.output_bias is not None:
        given = given + block.output_bias.norm()

    def within(size: Tensor) -> tuple[Tensor, Tensor]:
        # A sample that no neuron sees may be met with both numbers zero.
        near = (FLOAT64.residual * size).clamp_min(torch.finfo(size.dtype).tiny)
        return problem.output_loss.slopes_within(outputs, near)

    # As if each sample saw all neurons: almost always nothing is met within that, and no look at them is needed.
    least, most = within(problem.signal.X.norm(dim=1) * reach(block) + given)
    if bool((least == most).all()):
        return None
    least, most = within(seen_terms(block, problem.signal, problem.kink_tol) + given)
    largest = float(torch.maximum(least.abs(), most.abs()).max())
    free = most - least > FLOAT64.blurred * largest
    if not bool(free.any()):
        return None
    count = int(free.sum())
    if count * block.W.numel() * len(block.H) > BUDGETS.fit_entries:
        return None
    Z = problem.signal.X @ block.W.T
    length = problem.signal.X.norm(dim=1, keepdim=True)
    kinks = (Z.abs() <= problem.kink_tol * length * block.W.norm(dim=1)) & (length > 0)
    slope = torch.where(kinks, sum(block.slopes) / 2, slopes_at(Z, block.slopes))
    sample, output = (index.cpu().numpy() for index in free.nonzero(as_tuple=True))
    return Slopes(
        problem=problem,
        sample=sample,
        output=output,
        least=least[free].cpu().numpy(),
        most=most[free].cpu().numpy(),
        fixed=torch.where(free, 0.0, problem.signal.G).cpu().numpy(),
        X=problem.signal.X.cpu().numpy(),
        slope=slope.cpu().numpy(),
        kinks=kinks.cpu().numpy(),
        bend=(block.slopes[1] - block.slopes[0]) / 2,
    )


def held_on_every_side(slopes: Slopes) -> bool:
    """Whether for moves to either side of each kink there is a gradient that holds the weights and lets none escape.

    The bound on the change of the loss then holds with the gradient of the side that a move goes to.
    """
    choices = [*slopes.choices, *slopes.silent_choices]
    if 2 ** len(choices) > BUDGETS.met_sides:
        return False
    every = (dict(zip(choices, side, strict=True)) for side in sides(len(choices)))
    return all(_Search(slopes, True, side).solved() is not None for side in every)


def sides(count: int) -> Iterator[tuple[float, ...]]:
    """Every choice of sides of kinks, +1 or -1, as many as a budget."""
    return itertools.islice(itertools.product((1.0, -1.0), repeat=count), BUDGETS.met_sides)


def held_by(slopes: Slopes, still: bool) -> LossProblem | None:
    """The loss with a gradient by which its point is stationary, and by which no neuron escapes where ``still``.

    Args:
        slopes: The slopes that are free.
        still: Whether no neuron may escape; without weight decay only.

    Returns:
        The loss; None where there is no such gradient, or the kinks of a neuron are too many to enumerate.
    """
    found = _Search(slopes, still).solved()
    return None if found is None else slopes.at(found)


def held_against(slopes: Slopes, growing: Callable[[LossProblem], tuple[Array, float] | None]) -> LossProblem | None:
    """The loss with weight decay and a gradient by which its point is stationary and no neuron without weights grows.

    Every direction in which one grows is one more inequality, ``||D(v)||`` no more than a bound: cutting planes.

    Args:
        slopes: The slopes that are free.
        growing: The direction ``(d,)`` in which a neuron grows most, and the bound there; None where none grows.

    Returns:
        The loss, by the last gradient where one keeps growing; None where no gradient holds the weights.
    """
    search = _Search(slopes, still=False)
    found = search.solved()
    if found is None:
        return None
    problem = slopes.at(found)
    for _ in range(BUDGETS.cuts):
        grows = growing(problem)
        if grows is None:
            break
        search.hold(*grows, problem)
        found = search.solved()
        if found is None:
            break
        problem = slopes.at(found)
    return problem


class _Search:
    """Equations and inequalities of all neurons, and their solution."""

    def __init__(self, slopes: Slopes, still: bool, side: dict[tuple[int, int], float] | None = None) -> None:
        self.slopes = slopes
        self.still = still
        self.side = side
        block, decay = slopes.problem.block, slopes.problem.decay
        self.W, self.H = block.W.cpu().numpy(), block.H.cpu().numpy()
        self.by_input = np.zeros(self.W.shape[1]) if decay is None else decay.by_column(block).cpu().numpy()
        self.by_output = 0.0 if decay is None else decay.H
        self.known = True
        self.equal: list[_Rows] = []
        # Slopes along rays, and what outputs feel there: nothing may, where the slope is zero.
        self.more: list[_Rows] = []
        self.pulls: list[_Rows] = []
        if block.output_bias is not None:
            price = 0.0 if decay is None else decay.output_bias
            bias = price * block.output_bias.cpu().numpy()
            ones = np.ones((len(slopes.X), 1))
            self.equal.append(slopes.rows(ones, ones).added(bias[None]).flat())
        for i in range(len(self.W)):
            self._add(i)

    def _add(self, i: int) -> None:
        """The conditions of one neuron."""
        slopes, w, h = self.slopes, self.W[i], self.H[:, i]
        on = slopes.on_kink(i)
        normals = row_space(on)
        free = null_space(normals).T if len(normals) else np.eye(len(w))
        along = slopes.pulls(i, free)
        if self.still:
            self.equal.append(along.flat())
        else:
            paid = free @ (self.by_input * w)
            self.equal.append(along.weighted(h, paid, paid).flat())
            self.equal.append(slopes.pulls(i, w[None]).added(self.by_output * h[None]).flat())
        if not len(on):
            return
        planes = hyperplanes(on)
        silent = not h.any()
        if silent and self.side is None:
            if self.still:
                self._silent(i, normals, planes.plane, planes.length)
            return
        rays = fan_rays(planes.X)
        if rays is None:
            self.known = False
            return
        rays = self._on_side(i, rays)
        if silent:
            self.equal.append(slopes.pulls(i, rays).flat())
            return
        felt = slopes.pulls(i, rays)
        paid = rays @ (self.by_input * w)
        slope = felt.weighted(h, paid, paid)
        unit = np.where(slope.terms > 0, slope.terms, 1.0)
        self.more.append(_Rows(slope.factors / unit[:, None], slope.base / unit, slope.terms))
        self.pulls += [_Rows(*(part[[r]] for part in (felt.factors, felt.base, felt.terms))) for r in range(len(rays))]

    def hold(self, v: Array, bound: float, problem: LossProblem) -> None:
        """What a neuron without weights feels along ``v``, as the outputs feel it now, is no more than a bound."""
        slopes = self.slopes
        felt = rho(slopes.problem.signal.X @ torch.as_tensor(v).to(problem.outputs), problem.block.slopes)
        D = (felt @ problem.signal.G).cpu().numpy()
        T = felt.cpu().numpy()[:, None]
        pull = slopes.rows(T, np.abs(T)).weighted(-D / np.linalg.norm(D), np.array([bound]), np.array([bound]))
        self.more.append(_Rows(pull.factors / pull.terms[:, None], pull.base / pull.terms, pull.terms))

    def _on_side(self, i: int, rays: Array) -> Array:
        """The rays of a neuron that leave no kink to another side than the one that is looked at."""
        if self.side is None:
            return rays
        kept = np.ones(len(rays), dtype=bool)
        for (k, neuron), side in self.side.items():
            x = self.slopes.X[k]
            if neuron == i:
                kept &= side * (rays @ x) >= -FLOAT64.same_side * float(np.linalg.norm(x))
        return rays[kept]

    def _silent(self, i: int, normals: Array, plane: Index, length: Array) -> None:
        """A neuron without output weights feels nothing: neither its smooth part nor any hyperplane of its kinks."""
        slopes = self.slopes
        on = np.flatnonzero(slopes.kinks[:, i])
        by_plane = np.zeros((len(slopes.X), plane.max() + 1))
        by_plane[on, plane] = slopes.bend * length
        smooth = slopes.slope[:, i, None] * (slopes.X @ normals.T)
        size = np.abs(slopes.slope[:, i, None]) * np.linalg.norm(slopes.X, axis=1)[:, None] * np.ones(len(normals))
        self.equal += [slopes.rows(smooth, size).flat(), slopes.rows(by_plane, np.abs(by_plane)).flat()]

    def solved(self) -> Array | None:
        """Free slopes ``(m,)`` that fulfil everything, as many slopes along rays above zero as can be; or None.

        Where a slope along a ray is zero for all solutions, nothing may be felt there either: one more equation.
        """
        if not self.known:
            return None
        tight = np.zeros(len(self.pulls), dtype=bool)
        while True:
            found = self._solution()
            if found is None or not self.still:
                return found
            now = tight.copy()
            if self.more:
                now |= np.concatenate([one.base + one.factors @ found for one in self.more]) <= FLOAT64.inside
            if (now == tight).all():
                return found
            self.equal += [self.pulls[r].flat() for r in np.flatnonzero(now & ~tight)]
            tight = now

    def _solution(self) -> Array | None:
        """Slopes between their bounds that solve everything, the inequalities with room wherever there is some."""
        slopes = self.slopes
        width = slopes.most - slopes.least
        A = np.concatenate([one.factors for one in self.equal]) * width
        b = np.concatenate([one.base + one.factors @ slopes.least for one in self.equal])
        point, _, rank, _ = np.linalg.lstsq(A, -b, rcond=FLOAT64.rank)
        if len(b) and np.abs(A @ point + b).max() > FLOAT64.inside:
            return None
        free = null_space(A, rcond=FLOAT64.rank) if rank else np.eye(len(width))
        rows = [one.factors * width for one in self.more]
        base = [one.base + one.factors @ slopes.least for one in self.more]
        share = _with_room(point, free, rows, base)
        return None if share is None else slopes.least + width * share


def _with_room(point: Array, free: Array, rows: list[Array], base: list[Array]) -> Array | None:
    """A point of an affine space in the unit box where ``base + rows x >= 0``, most of them above zero; or None."""
    count = sum(len(one) for one in rows)
    size = free.shape[1]
    factors = np.concatenate([np.zeros((0, len(point))), *rows])
    above = np.concatenate([np.zeros(0), *base]) + factors @ point
    if not size:
        inside = (np.abs(point - 0.5) <= 0.5 + FLOAT64.inside).all() and (above >= -FLOAT64.inside).all()
        return point if inside else None
    lines = np.concatenate([-factors @ free, free, -free])
    room = np.concatenate([np.eye(count), np.zeros((2 * len(point), count))])
    outcome = linprog(
        np.concatenate([np.zeros(size), -np.ones(count)]),
        A_ub=np.concatenate([lines, room], axis=1),
        b_ub=np.concatenate([above, 1 - point, point]),
        bounds=[(None, None)] * size + [(0.0, 1.0)] * count,
        options={"primal_feasibility_tolerance": FLOAT64.program, "dual_feasibility_tolerance": FLOAT64.program},
    )
    return np.asarray(point + free @ outcome.x[:size]) if outcome.status == 0 else None
