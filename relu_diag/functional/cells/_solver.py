"""Stationary points inside a stratum, where the outputs are smooth: near given weights, whatever their index."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.sparse import block_diag, csr_array, eye_array
from scipy.sparse.linalg import LinearOperator, lsmr

from relu_diag.functional._arrays import Array
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.cells._decay import Decay
from relu_diag.functional.cells._fit import Coordinates, coordinates, split
from relu_diag.functional.cells._stratum import Stratum, Weights
from relu_diag.functional.cells._term import HalfSquares, LossTerm, Term
from relu_diag.functional.cells._tridiagonal import Tridiagonal, tridiagonal_of
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict import smooth_hessian

# How the damping falls after a step that gains this share of what it promised, and rises after one that gains nothing.
_FALL = 1 / 8
_GOOD = 0.75
_RISE = 4


@dataclass(frozen=True, slots=True)
class Effort:
    """What a search of several steps may do.

    Attributes:
        products: Products with a Hessian.
        reach: Distance from the start at which it gives up.
    """

    products: int
    reach: float = math.inf


def settle(stratum: Stratum, term: Term, decay: Decay, start: Weights, effort: Effort) -> Weights:
    """The stationary point of the stratum's own outputs near given weights.

    With one output the minimum in ``R_i = h_i w_i``, in which a convex loss is convex; with several, or where weights
    decay, a solution of "gradient = 0". Neither descends along the loss: beside a saddle they find the saddle. The
    point is on the kinks of the stratum; whether it has the other signs is not looked at. A search of several steps
    ends where its effort is spent.
    """
    start = replace(start, W=stratum.project(start.W))
    variables = sum(pattern.free.shape[1] for pattern in stratum.patterns) + stratum.biased
    if not variables:
        return start
    small = len(start.b) == 1 and variables * len(stratum.X) <= BUDGETS.fit_entries
    if small and not decay.any and (isinstance(term, HalfSquares) or term.convex):
        return _nearest_minimum(stratum, term, start)
    return _levenberg_marquardt(stratum, term, decay, start, effort)


def relative_gradient(stratum: Stratum, term: Term, decay: Decay, at: Weights, start: Weights) -> float:
    """The gradient over ``s ||weights|| sum_k ||e_k|| ||x_k||``, plus ``sum_k ||e_k||`` with an output bias, and decay.

    Without decay it is 0 where the term is: against the targets, and against the outputs of ``start``.
    """
    line = linearise(stratum, term, decay, at)
    large = max(term.size, float(np.linalg.norm(term.gradient(stratum.outputs(start)))))
    if not decay.any and np.linalg.norm(line.residual) <= FLOAT64.fitted * large:
        return 0.0
    error = np.linalg.norm(line.residual, axis=1)
    steepest = float(np.abs(stratum.slope).max(initial=0.0))
    scale = steepest * float(np.linalg.norm(at.flat) * (error @ np.linalg.norm(stratum.X, axis=1)))
    scale += stratum.biased * float(error.sum()) + float(np.linalg.norm(decay.gradient(at).flat))
    return line.size / scale if scale > 0 else 0.0


def _nearest_minimum(stratum: Stratum, term: Term, start: Weights) -> Weights:
    """The ``R`` of least loss nearest to the present one, and the neurons that compute it.

    Moving ``R_i`` by ``delta`` moves the weights of a balanced neuron by about ``||delta|| / sqrt(||R_i||)``: in that
    metric neurons of one pattern share a change in proportion to ``||R_i||``, and tiny ones keep their direction.
    """
    h = start.H[0]
    R = h[:, None] * start.W
    place = coordinates(stratum, np.linalg.norm(R, axis=1))
    outputs = stratum.outputs(start)
    if isinstance(term, HalfSquares):
        change = place.shortest(-term.gradient(outputs)[:, 0])
    else:
        change = _newton(place, term, outputs)
    R = stratum.project(R + place.R(change))
    there = split(R, np.copysign(1.0, h), start, start.b + place.bias(change))
    # A neuron without input weights computes nothing: its output weight stays.
    return replace(there, H=np.where(start.W.any(axis=1), there.H, start.H))


def _newton(place: Coordinates, term: LossTerm, outputs: Array) -> Array:
    """The point of least loss, by damped Newton steps from zero: what changes no output stays zero, shape ``(q,)``."""
    M = place.matrix
    samples, variables = M.shape
    # Through the samples where they are fewer: (M' D M + c)^-1 M' = M' (D M M' + c)^-1.
    gram = M @ M.T if samples < variables else None
    at = np.zeros(variables)
    here, value = outputs, term.excess(outputs)
    residual = term.gradient(here)[:, 0]
    damping = FLOAT64.damping
    for _ in range(BUDGETS.newton_in_cell):
        slope = M.T @ residual
        curvature = term.curvature(here, np.ones_like(here))
        size = float((curvature * M**2).sum())
        if not size > 0 or np.linalg.norm(slope) <= FLOAT64.cancelled * np.abs(M).T.sum() * np.abs(residual).max():
            break
        if gram is None:
            step = -np.linalg.solve(M.T @ (curvature * M) + damping * size * np.eye(variables), slope)
        else:
            step = -M.T @ np.linalg.solve(curvature * gram + damping * size * np.eye(samples), residual)
        there = here + (M @ step)[:, None]
        ahead, after = term.excess(there), term.gradient(there)[:, 0]
        closer = np.linalg.norm(M.T @ after) < np.linalg.norm(slope)
        # Near the minimum losses differ by their rounding only, and gradients tell.
        if not (ahead < value or (closer and ahead <= value * (1 + FLOAT64.settled))):
            damping *= _RISE
            if damping > FLOAT64.most_damping:
                break
            continue
        damping = max(damping * _FALL, FLOAT64.rank)
        at, here, value, residual = at + step, there, ahead, after
    return at


def _levenberg_marquardt(stratum: Stratum, term: Term, decay: Decay, start: Weights, effort: Effort) -> Weights:
    """Damped Newton steps on "gradient = 0", each the least change of the weights; only Hessian products are needed."""
    at = start
    damping = FLOAT64.damping
    here = linearise(stratum, term, decay, at)
    left = _affordable(here, effort)
    patience = BUDGETS.slow_steps if len(here.gradient) > BUDGETS.small_step else BUDGETS.products
    halved, slow = here.size, 0
    scale = float(np.linalg.norm(stratum.X) * np.linalg.norm(at.flat)) + stratum.biased * math.sqrt(len(stratum.X))
    scale *= term.size + float(np.linalg.norm(here.residual))
    while here.size > FLOAT64.cancelled * scale and left > 0 and damping < FLOAT64.most_damping and slow < patience:
        slow += 1
        step, products = here.damped_step(damping * here.size / scale, left)
        left -= products
        there = linearise(stratum, term, decay, at.like(at.flat + step))
        promised = here.size**2 - float(np.linalg.norm(here.gradient + here.product(step))) ** 2
        gained = here.size**2 - there.size**2
        if not gained > FLOAT64.taken * promised:
            damping *= _RISE
            continue
        if gained > _GOOD * promised:
            damping = max(damping * _FALL, FLOAT64.least_damping)
        at = there.at
        here = there
        if here.size <= halved / 2:
            halved, slow = here.size, 0
        if np.linalg.norm(at.flat - start.flat) > effort.reach:
            break
    return replace(at, W=stratum.project(at.W))


def _affordable(line: Linearisation, effort: Effort) -> int:
    """Products with a Hessian that a search may spend; 0 where that is too few to come near a point."""
    each = 4 * line.stratum.slope.size * (line.stratum.X.shape[1] + len(line.at.b)) or 1
    most = BUDGETS.multiplications if line.dense else BUDGETS.iterated_multiplications
    products = min(effort.products, BUDGETS.products, most // each)
    return products if line.cost <= products else 0


@dataclass(frozen=True, eq=False)
class Linearisation:
    """A term of the outputs to second order at some weights.

    Attributes:
        stratum: The stratum.
        term: The term.
        decay: The price of the weights.
        at: The weights.
        A: Activations, shape ``(N, M)``.
        outputs: Outputs, shape ``(N, J)``.
        residual: Gradient of the term at the outputs, shape ``(N, J)``.
        gradient: Its gradient inside the stratum, flat.
    """

    stratum: Stratum
    term: Term
    decay: Decay
    at: Weights
    A: Array
    outputs: Array
    residual: Array
    gradient: Array

    @property
    def size(self) -> float:
        """Length of the gradient."""
        return float(np.linalg.norm(self.gradient))

    def product(self, flat: Array) -> Array:
        """The Hessian inside the stratum times a direction."""
        stratum = self.stratum
        at = self.at
        along = at.like(flat)
        dA = stratum.activations(stratum.project(along.W))
        dE = self.term.curvature(self.outputs, self.A @ along.H.T + dA @ at.H.T + along.b * stratum.biased)
        dW = stratum.gradient(dE @ at.H + self.residual @ along.H)
        dH = dE.T @ self.A + self.residual.T @ dA
        return _with_decay(stratum, self.decay, along, Weights(dW, dH, dE.sum(0) * stratum.biased)).flat

    @property
    def dense(self) -> bool:
        """Whether the Hessian is small enough to be written down."""
        size = len(self.gradient)
        return size <= BUDGETS.dense_step and size * self.outputs.size <= BUDGETS.fit_entries

    @property
    def cost(self) -> int:
        """What the Hessian costs, in products with it; a step without it takes as many at least."""
        return 1 + len(self.gradient) // 2

    @cached_property
    def form(self) -> tuple[csr_array, Array] | None:
        """An orthonormal basis ``(n, m)`` of the stratum and the Hessian in it; None for a large one."""
        stratum, at = self.stratum, self.at
        size = len(self.gradient)
        if not self.dense:
            return None
        curved = self.term.curved(self.outputs)
        hessian = smooth_hessian(stratum.X, stratum.slope, at.W, at.H, self.residual, curved)
        hessian[np.diag_indices(size)] += self.decay.factors(at)
        free = _free_directions(stratum, at)
        return free, np.asarray(free.T @ hessian @ free)

    @cached_property
    def spectrum(self) -> tuple[Array, Array] | None:
        """Eigenvalues and eigenvectors ``(n, m)`` of the Hessian inside the stratum; None for a large one."""
        if self.form is None:
            return None
        free, hessian = self.form
        values, vectors = np.linalg.eigh(hessian)
        return values, np.asarray(free @ vectors)

    @cached_property
    def tridiagonal(self) -> Tridiagonal | None:
        """The Hessian inside the stratum, turned to a tridiagonal one; None for a large one."""
        return None if self.form is None else tridiagonal_of(self.form[1])

    def damped_step(self, damping: float, most: int) -> tuple[Array, int]:
        """The minimum of ``||gradient + Hessian step||^2 + damping^2 curvature^2 ||step||^2``, and products spent."""
        size = len(self.gradient)
        operator = LinearOperator((size, size), matvec=self.product, rmatvec=self.product, dtype=np.float64)
        curvature = float(np.linalg.norm(self.product(self.gradient))) / self.size
        damp = math.sqrt(damping) * curvature
        known = {"spectrum", "tridiagonal"} & set(vars(self))
        spent = 1 if known else self.cost
        if size > BUDGETS.small_step and self.tridiagonal is not None and self.form is not None:
            free = self.form[0]
            return np.asarray(-(free @ self.tridiagonal.damped(free.T @ self.gradient, damp))), spent
        if self.spectrum is not None:
            values, vectors = self.spectrum
            felt = np.abs(values) > FLOAT64.rank * np.abs(values).max(initial=0.0)
            over = np.divide(values, values**2 + damp**2, out=np.zeros_like(values), where=felt)
            return -vectors @ (over * (vectors.T @ self.gradient)), spent
        most_iterations = max(1, most // 2)
        step, _, iterations, *_ = lsmr(
            operator, -self.gradient, damp, FLOAT64.step, FLOAT64.step, maxiter=most_iterations
        )
        return step, 2 * iterations


def _free_directions(stratum: Stratum, at: Weights) -> csr_array:
    """Orthonormal basis of the weights of the stratum, as columns of all weights, shape ``(n, m)``."""
    blocks: list[Array | csr_array] = [np.empty((0, 0))] * len(at.W)
    for pattern in stratum.patterns:
        for i in pattern.members:
            blocks[i] = pattern.free
    biases = np.eye(len(at.b))[:, : len(at.b) * stratum.biased]
    return csr_array(block_diag([*blocks, eye_array(at.H.size), biases]))


def linearise(stratum: Stratum, term: Term, decay: Decay, at: Weights) -> Linearisation:
    """The loss to second order at weights on the kinks of a stratum."""
    A = stratum.activations(at.W)
    outputs = A @ at.H.T + at.b
    residual = term.gradient(outputs)
    of_term = Weights(stratum.gradient(residual @ at.H), residual.T @ A, residual.sum(0) * stratum.biased)
    gradient = _with_decay(stratum, decay, at, of_term).flat
    return Linearisation(stratum, term, decay, at, A, outputs, residual, gradient)


def _with_decay(stratum: Stratum, decay: Decay, at: Weights, of_term: Weights) -> Weights:
    """A gradient, or its change along a direction, with the decay of the weights, or of the direction."""
    if not decay.any:
        return of_term
    own = decay.gradient(at)
    dW = of_term.W + stratum.project(decay.W * stratum.project(at.W))
    return Weights(dW, of_term.H + own.H, of_term.b + own.b * stratum.biased)
