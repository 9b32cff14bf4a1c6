"""Second-order descent with several outputs: where the loss bends down along directions of slope zero.

Along them the loss changes by a quadratic form: ``f/2`` times the squared change of the outputs to first order (the
curvature of the loss in their direction), which is never negative where the loss is convex, plus
``sum_ij delta h_ji D_j(delta w_i)``, which may be. Where input weights move orthogonally to the
samples on their kinks it is an ordinary form. Off a kink they move along rays, one-sided; on the rays ``t >= 0`` of one
cone it is an ordinary form again, and with the free directions eliminated (a Schur complement) a small one.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg, lobpcg
from torch import Tensor

from relu_diag.functional._arrays import Array, Index
from relu_diag.functional.block import ShallowBlock, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import Chunk, chunks, slopes_at
from relu_diag.functional.problem import LossProblem, Problem
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict._flat_rays import FlatRays, Mask, flat_rays
from relu_diag.functional.verdict._rounding import ResidualRounding
from relu_diag.functional.verdict._witness import see_fall
from relu_diag.functional.verdict.direction import Direction
from relu_diag.functional.verdict.escape import EscapeNeurons
from relu_diag.functional.verdict.line import Move
from relu_diag.functional.verdict.stationarity import Stationarity


@dataclass(frozen=True, slots=True, eq=False)
class _Orthant:
    """The zero-slope directions of a balanced copy of the network.

    Attributes:
        problem: The loss of the copy with ``||w_i|| = ||h_i||``.
        biased: Whether the output bias moves.
        balance: ``delta w_i`` of the copy is this times that of the network, shape ``(I,)``.
        held: 0 for neurons with ``w = 0``, which have every sample on their kink, else 1, shape ``(I, 1)``.
        flat: What the kinks block, and the rays off them.
        neuron: Neuron of every ray, long, shape ``(P,)``.
        rays: The rays, shape ``(P, d)``.
    """

    problem: Problem
    biased: bool
    balance: Tensor
    held: Tensor
    flat: FlatRays
    neuron: Tensor
    rays: Tensor


def orthant_fall(
    problem: Problem, found: Stationarity, escape: EscapeNeurons, rounding: ResidualRounding
) -> Direction | None:
    """A fall of second order over all output weights and all zero-slope directions of the input weights.

    What a gradient below the tolerance can bend the loss by is no fall of second order.

    Source: Wu et al., appendix F.2.1.

    Args:
        problem: The loss.
        found: Its stationarity.
        escape: Its escape neurons.
        rounding: What its residuals may be wrong by.

    Returns:
        The direction, or None where no fall is found.
    """
    orthant = _balanced(problem, found, escape, rounding)
    least = 2 * found.tol * float(found.pull_scale.max())
    # A witness that leaves the output bias alone is the simpler one.
    for biased in (False,) if problem.block.output_bias is None else (False, True):
        best: Direction | None = None
        for move in itertools.islice(_falling(replace(orthant, biased=biased), least), BUDGETS.moves):
            fall = see_fall(problem, move)
            if fall is not None and (best is None or fall.loss_change < best.loss_change):
                best = fall
            if best is not None and -best.loss_change >= FLOAT64.clear_fall * float(problem.loss):
                return best
        if best is not None:
            return best
    return None


def _balanced(problem: Problem, found: Stationarity, escape: EscapeNeurons, rounding: ResidualRounding) -> _Orthant:
    """The zero-slope directions at a stationary point."""
    block = problem.block
    w_norm, h_norm = block.W.norm(dim=1), block.H.norm(dim=0)
    both = (w_norm > 0) & (h_norm > 0)
    # Where one of the two is zero the length of the other has no say: it is made like those of others that are heard.
    heard = both & (found.pull_scale > 0)
    size = (w_norm * h_norm)[heard].sqrt().median() if bool(heard.any()) else 1.0
    alone = torch.where(w_norm > 0, size / w_norm, torch.where(h_norm > 0, h_norm / size, 1.0))
    balance = torch.where(both, (h_norm / w_norm).sqrt(), alone)
    copy = replace(block, W=block.W * balance[:, None], H=block.H / balance)
    flat = flat_rays(block, problem.loss_signal, found, escape, problem.kink_tol, rounding)
    neuron = torch.as_tensor(flat.neuron, device=balance.device)
    return _Orthant(
        problem=replace(problem, block=copy),
        biased=False,
        balance=balance,
        held=w_norm.gt(0)[:, None].double(),
        flat=flat,
        neuron=neuron,
        rays=torch.as_tensor(flat.rays).to(block.W),
    )


def _falling(orthant: _Orthant, least: float) -> Iterator[Move]:
    """Directions, as moves of the network itself, on which the form is below ``-least`` times their squared length."""
    block, biased = orthant.problem.block, orthant.biased
    sizes = [block.W.numel(), block.H.numel(), len(block.H), len(orthant.rays)]
    free, rays = sum(sizes[:3]), sizes[3]

    def parts(z: Array, t: Array) -> tuple[Move, Tensor]:
        dW, dH, db, along = torch.split(torch.as_tensor(np.concatenate([z.ravel(), t])).to(block.W), sizes)
        return Move(_free(dW.view_as(block.W), orthant), dH.view_as(block.H), db * biased), along

    def apply(z: Array, t: Array) -> Array:
        move, by_ray = _hessian(orthant, *parts(z, t))
        flat = torch.cat([_free(move.dW, orthant).flatten(), move.dH.flatten(), move.db * biased, by_ray])
        return np.asarray(flat.cpu().numpy())

    def moved(z: Array, t: Array) -> Move:
        move, along = parts(z, t)
        dW = move.dW.index_add(0, orthant.neuron, along[:, None] * orthant.rays)
        return Move(dW / orthant.balance[:, None], move.dH * orthant.balance, move.db)

    still, ray = np.zeros(rays), np.eye(rays)
    spectrum = _spectrum(lambda z: apply(z, still)[:free], _owners(block))
    columns = np.array([apply(np.zeros(free), axis) for axis in ray]).reshape(rays, free + rays).T
    least = max(least, FLOAT64.curvature * spectrum.largest)
    shifts = (BUDGETS.dense_shifts if free <= BUDGETS.dense_form else BUDGETS.shifts) if least > 0 else 0

    def below(shift: float) -> Iterator[Move]:
        """Moves along rays, compensated by the free directions, on which the form is below a negative curvature."""
        z = -spectrum.solve(columns[:free], shift)
        reduced = columns[free:] + shift * ray + columns[:free].T @ z
        for t in _cone_descents(reduced, orthant.flat.together):
            yield moved(z @ t, t)

    # The least curvature is the easiest to fall below: where nothing does the stronger ones are not looked for.
    if shifts and spectrum.smallest > -least and next(below(least), None) is None:
        return
    for shift in np.geomspace(max(spectrum.largest, least), least, shifts):
        if spectrum.smallest <= -shift:
            for vector in spectrum.vectors:
                yield moved(vector, still)
                yield moved(-vector, still)
            return
        yield from below(shift)


@dataclass(frozen=True, slots=True, eq=False)
class _Spectrum:
    """The ends of the spectrum of a form, approximate for large sizes.

    Attributes:
        smallest: Smallest eigenvalue.
        largest: Largest one in size.
        vectors: Eigenvector of the smallest, and those of single neurons by themselves that are negative, ``(k, n)``.
        solve: From columns and a shift to the solution of ``(form + shift) z = columns``.
    """

    smallest: float
    largest: float
    vectors: Array
    solve: Callable[[Array, float], Array]


def _spectrum(apply: Callable[[Array], Array], owner: Index) -> _Spectrum:
    """That of a form on coordinates that belong to neurons, ``(n,)``."""
    size = len(owner)
    if size <= BUDGETS.dense_form:
        form = np.stack([apply(axis) for axis in np.eye(size)])
        values, V = np.linalg.eigh(form)
        largest = max(-values[0], values[-1])
        vectors = np.stack([V[:, 0], *_alone(form, owner)])
        return _Spectrum(values[0], largest, vectors, lambda c, shift: V @ ((V.T @ c) / (values + shift)[:, None]))
    operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal((size, 2))
    with warnings.catch_warnings():  # any vector with a negative value will do: accuracy is not needed
        warnings.simplefilter("ignore", UserWarning)
        values, vectors = lobpcg(operator, start, largest=False, maxiter=BUDGETS.form_steps, tol=FLOAT64.step)
    for _ in range(BUDGETS.form_powers):
        start = apply(start[:, :1] / np.linalg.norm(start[:, 0]))[:, None]
    largest = float(np.linalg.norm(start))
    return _Spectrum(values[0], largest, vectors[:, :1].T, partial(_conjugate_gradients, apply))


def _alone(form: Array, owner: Index) -> list[Array]:
    """Vectors of single neurons at which a form is negative, lowest first: no kink of another one stops them."""
    found = []
    for i in np.unique(owner[owner >= 0]):
        own = np.flatnonzero(owner == i)
        values, V = np.linalg.eigh(form[np.ix_(own, own)])
        if values[0] < 0:
            vector = np.zeros(len(form))
            vector[own] = V[:, 0]
            found.append((values[0], vector))
    return [vector for _, vector in sorted(found, key=lambda pair: pair[0])]


def _owners(block: ShallowBlock) -> Index:
    """Neuron of every weight of a form, input weights, output weights, and -1 for the output bias."""
    neurons, inputs = block.W.shape
    outputs = len(block.H)
    every = np.arange(neurons)
    return np.concatenate([every.repeat(inputs), np.tile(every, outputs), np.full(outputs, -1)])


def _conjugate_gradients(apply: Callable[[Array], Array], columns: Array, shift: float) -> Array:
    size = len(columns)
    operator = LinearOperator((size, size), matvec=lambda z: apply(z) + shift * z.ravel(), dtype=np.float64)
    # An unfinished search for the best way to compensate a ray is good enough: every fall is evaluated.
    return (
        np
        .array([cg(operator, column, rtol=FLOAT64.power, maxiter=BUDGETS.form_steps)[0] for column in columns.T])
        .reshape(columns.shape[::-1])
        .T
    )


def _cone_descents(form: Array, together: Mask) -> Iterator[Array]:
    """Vectors ``t >= 0`` on rays that go together at which a form is negative: of one ray, then of whole cones."""
    for p in form.diagonal().argsort():
        if form[p, p] < 0:
            yield np.eye(len(form))[p]
    if len(form) < 2:
        return
    # Rays whose own curvatures differ are no obstacle in units in which they do not.
    unit = np.where(form.diagonal() > 0, np.abs(form.diagonal()), 1.0) ** -0.5
    scaled = unit[:, None] * form * unit
    t = _lowest_nearby(scaled, together, _starts(scaled, together))
    value = ((t @ scaled) * t).sum(axis=1)
    best = value.argmin()
    if value[best] < 0:
        yield unit * t[best]


def _starts(form: Array, together: Mask) -> Array:
    """Every ray, and the pairs that go together and lower a form most, shape ``(n, P)``."""
    one, other = np.nonzero(np.triu(together, 1))
    chosen = form[one, other].argsort(kind="stable")[: BUDGETS.ray_pairs]
    rays = np.eye(len(form))
    return np.concatenate([rays, rays[one[chosen]] + rays[other[chosen]]])


def _lowest_nearby(form: Array, together: Mask, t: Array) -> Array:
    """Unit vectors ``t >= 0`` on rays that go together, a form lowered from each start ray by ray, ``(n, P)``.

    In every step the one ray changes its share that lowers ``t . form t / |t|^2`` most, up to the best share.
    """
    own = form.diagonal()
    row = np.arange(len(t))
    for _ in range(BUDGETS.ray_steps):
        t = t / np.linalg.norm(t, axis=1, keepdims=True)
        slope = t @ form
        value = (slope * t).sum(axis=1, keepdims=True)
        # Without the ray the value is `rest` over `size`; with a share x of it, rest + 2 slope x + own x^2.
        rest = value - 2 * t * slope + own * t * t
        size = 1 - t * t
        slope = slope - own * t
        margin = own * size - rest
        root = np.sqrt(margin * margin + 4 * slope * slope * np.maximum(size, 0.0))
        falls = slope < -FLOAT64.no_descent
        share = np.where(falls, (margin - root) / np.where(falls, 2 * slope, 1.0), 0.0)
        left = size + share * share
        barred = (left < FLOAT64.rank) | ((t > 0) @ ~together)  # the last ray stays
        lowered = (rest + 2 * slope * share + own * share * share) / np.where(barred, 1.0, left)
        lowered[barred] = np.inf
        ray = lowered.argmin(axis=1)
        better = lowered[row, ray] < value[:, 0] - FLOAT64.no_descent
        if not better.any():
            break
        t[row[better], ray[better]] = share[row[better], ray[better]]
    return np.asarray(t / np.linalg.norm(t, axis=1, keepdims=True))


def _free(dW: Tensor, orthant: _Orthant) -> Tensor:
    dW = dW * orthant.held
    for i, basis in orthant.flat.blocked.items():
        normals = torch.as_tensor(basis).to(dW)
        dW[i] -= normals.T @ (normals @ dW[i])
    return dW


def _hessian(orthant: _Orthant, move: Move, t: Tensor) -> tuple[Move, Tensor]:
    """The form applied to a direction, which is its gradient there."""
    problem, neuron = orthant.problem, orthant.neuron
    block, f = problem.block, problem.factor
    by_W, by_H, by_ray = torch.zeros_like(move.dW), torch.zeros_like(move.dH), torch.zeros_like(t)
    curved = _curved(orthant, move, t) if isinstance(problem, LossProblem) else None
    still = ~problem.signal.X.any(dim=1)
    # Samples with x = 0 feel the bias alone.
    by_bias = f * float(still.sum()) * move.db if curved is None else curved[still].sum(0)
    moving = (~still).nonzero().squeeze(1)
    start = 0
    for chunk in chunks(block, problem.signal, problem.kink_tol):
        slopes, ahead, dA = _entered(orthant, chunk, move, t)
        A = rho(chunk.Z, block.slopes)
        if curved is None:
            dy = A @ move.dH.T + dA @ block.H.T + move.db
        else:
            dy = curved[moving[start : start + len(chunk.X)]]
            start += len(chunk.X)
        back = f * (dy @ block.H + chunk.G @ move.dH)
        by_W += (back * slopes).T @ chunk.X
        by_H += f * (dy.T @ A + chunk.G.T @ dA)
        by_bias += f * dy.sum(0)
        by_ray += (back[:, neuron] * ahead).sum(0)
    return Move(by_W, by_H, by_bias), by_ray


def _curved(orthant: _Orthant, move: Move, t: Tensor) -> Tensor:
    """The curvature of a loss applied to what a direction changes the outputs by to first order, shape ``(N, J)``."""
    problem = orthant.problem
    assert isinstance(problem, LossProblem)
    block = problem.block
    dy = move.db.expand_as(problem.outputs).clone()
    moving = problem.signal.X.any(dim=1).nonzero().squeeze(1)
    start = 0
    for chunk in chunks(block, problem.signal, problem.kink_tol):
        _, _, dA = _entered(orthant, chunk, move, t)
        here = moving[start : start + len(chunk.X)]
        start += len(chunk.X)
        dy[here] += rho(chunk.Z, block.slopes) @ move.dH.T + dA @ block.H.T
    return problem.output_loss.curvature(problem.outputs, dy)


def _entered(orthant: _Orthant, chunk: Chunk, move: Move, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes ``(n, M)``, activations per step along every ray ``(n, P)``, and their change along a move ``(n, M)``."""
    neuron, slopes = orthant.neuron, slopes_at(chunk.Z, orthant.problem.block.slopes)
    along = chunk.X @ orthant.rays.T
    ahead = torch.where(chunk.Z[:, neuron] == 0, rho(along, orthant.problem.block.slopes), slopes[:, neuron] * along)
    dA = slopes * (chunk.X @ move.dW.T)
    return slopes, ahead, dA.index_add(1, neuron, ahead * t)
