"""What a neuron with ``w = 0`` can reach, and whether any network can: the pull of every function a neuron computes.

Such a neuron feels ``D(v) = sum_k e_k rho(v . x_k)`` along ``v``. Samples on one line through zero act as one
hyperplane, and ``D`` vanishes everywhere if and only if the sum over every hyperplane does, and the linear part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Array, row_space, unit_rows
from relu_diag.functional.block import BlockSignal, ShallowBlock, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import (
    OneNeuron,
    Pull,
    fan_rays,
    loudest_flat_directions,
    merge_collinear,
    radial_directions,
    slopes_at,
)
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict._weight import met_within


@dataclass(frozen=True, slots=True, eq=False)
class _Hyperplanes:
    """The samples by the hyperplane their kink is on.

    Attributes:
        pull: Sums of the kink coefficients, shape ``(m, J)``.
        terms: Sums of their absolute terms, shape ``(m,)``.
        rounding: What rounding of the residuals can add up to, shape ``(m,)``.
        energy: Sums of the squared residuals, shape ``(m,)``.
        X: Unit inputs, shape ``(m, d)``.
    """

    pull: Array
    terms: Array
    rounding: Array
    energy: Array
    X: Array

    def loud_energy(self, tol: float, unknown: bool) -> float:
        """The squared residuals on those that pull, relative to their own terms; infinite if these are not met."""
        size = np.linalg.norm(self.pull, axis=1)
        pulled = size > np.maximum(tol * self.terms, self.rounding)
        met = unknown or bool((size <= met_within(tol) * self.rounding)[pulled].all())
        return float(self.energy[pulled].sum()) if met else np.inf


def nothing_reachable(block: ShallowBlock, signal: BlockSignal, tol: float, rounding: Tensor | None = None) -> bool:
    """Whether no network of these slopes, whatever its weights, moves the outputs in a direction the loss feels.

    Every function a neuron can compute is ``rho(v . x)`` for some ``v``: then ``sum_k e_kj rho(v . x_k) = 0`` for all
    of them, and for the constant where there is an output bias. A loss that is convex in the outputs is then at its
    global minimum over all weights and widths. Each hyperplane is judged by its own terms; those that pull relative to
    them must be met up to the tolerance, and hold less of the squared residuals than its square, all together.

    Args:
        block: The network, for its slopes and its output bias.
        signal: Inputs and loss gradients.
        tol: Tolerance relative to the natural scale of a derivative.
        rounding: What each row of ``G`` may be wrong by, shape ``(N,)``; None: unknown, and so is what is met.

    Returns:
        The answer.
    """
    G = signal.G.detach().double()
    size = G.norm(dim=1)
    wrong = torch.zeros_like(size) if rounding is None else rounding
    unknown = rounding is None
    if block.output_bias is not None:
        constant = float(G.sum(0).norm())
        if constant > max(tol * float(size.sum()), float(wrong.sum())):
            return False
    energy = tol**2 * float(size.square().sum())
    moving = signal.X.any(dim=1)
    met = unknown or bool((size <= met_within(tol) * wrong)[moving].all())
    if met and float(size[moving].square().sum()) <= energy:
        return True
    X = signal.X.detach().double()
    length = max(map(abs, block.slopes)) * X.norm(dim=1)
    mean = sum(block.slopes) / 2
    linear = mean * G.T @ X
    # Almost always the linear part answers, without a look at every hyperplane.
    if float(linear.norm()) > 2 * max(tol * float(size @ length), float(wrong @ length)):
        return False
    planes = _hyperplanes(block, X, G, wrong)
    if planes.loud_energy(tol, unknown) > energy:
        return False
    if not _linear_part_vanishes(linear, X, abs(mean) * size, abs(mean) * wrong, tol):
        return False
    # Both parts hold the terms and the rounding of samples on either side; a neuron may see one side alone.
    heard, _ = _strongest(block, X, G, _tried(planes, X, G), tol, rounding)
    return heard is None


def zero_neuron_pull(block: ShallowBlock, signal: BlockSignal, tol: float, rounding: Tensor | None = None) -> Pull:
    """A loud direction of a neuron with ``w = 0`` and ``h = 0``, if there is one.

    A direction counts where its pull is more than the tolerance and the rounding of its own terms. Where the samples
    behind it are met, up to the tolerance, the fall that it promises, ``||D||^2`` over the squared activations, must be
    more than the squared tolerance of the squared residuals.

    Args:
        block: The network, for its slopes.
        signal: Inputs and loss gradients.
        tol: Tolerance relative to the natural scale of a derivative.
        rounding: What each row of ``G`` may be wrong by, shape ``(N,)``; None: nothing is known.

    Returns:
        The direction; decided where there is one, or certainly none.
    """
    X, G = signal.X.detach().double(), signal.G.detach().double()
    nothing = Pull(np.zeros(X.shape[1]), np.zeros(G.shape[1]), decided=True)
    if not bool(X.any()):
        return nothing
    s_minus, s_plus = block.slopes
    parts, kinks = ((s_plus + s_minus) / 2 * G.T @ X).cpu().numpy(), ((s_plus - s_minus) / 2 * G).cpu().numpy()
    loud = tol * max(map(abs, block.slopes)) * float(G.norm(dim=1) @ X.norm(dim=1))
    flat = OneNeuron(np.zeros(X.shape[1]), np.zeros(len(X)), parts, kinks, X.cpu().numpy())
    (loudest,) = loudest_flat_directions([flat], [0.0], [loud])
    first = torch.as_tensor(loudest.direction[None, :]).to(X)[: int(loudest.D.any())]
    best, pull = _strongest(block, X, G, first, tol, rounding)
    if best is not None and _is_clear(best, block, X, G):
        return best
    # Relative to all terms nothing is loud, or its fall is small; relative to its own terms something may be.
    planes = _hyperplanes(block, X, G, torch.zeros_like(G[:, 0]) if rounding is None else rounding)
    V = torch.cat([first, _tried(planes, X, G)])
    for _ in range(BUDGETS.ascents):
        best, pull = _strongest(block, X, G, V, tol, rounding)
        if best is not None:
            return best
        # Uphill on the length of D, which is linear on every cone for a fixed combination of the outputs.
        toward = slopes_at(X @ V.T, block.slopes).mul_(G @ radial_directions(pull).T)
        V = radial_directions(toward.T @ X)
    if nothing_reachable(replace(block, output_bias=None), signal, tol, rounding):
        return nothing
    rays = fan_rays(planes.X)
    if rays is None:
        return replace(nothing, decided=False)
    # What every ray is deaf to, and the directions outside their span, all are.
    basis = row_space(planes.X)
    linear = (G.T @ X).cpu().numpy()
    outside = unit_rows(linear - linear @ basis.T @ basis)
    best, _ = _strongest(block, X, G, torch.as_tensor(np.concatenate([outside, rays])).to(X), tol, rounding)
    return nothing if best is None else best


def pull_beside_rounding(
    block: ShallowBlock, signal: BlockSignal, neuron: int, tol: float, rounding: Tensor, kink_tol: float
) -> Pull | None:
    """A direction of slope zero on which a neuron is felt by more than the rounding of the samples it moves there.

    The loudest direction of all may be that of a long sample, whose rounding is larger than any pull: others are not.

    Args:
        block: The network.
        signal: Inputs and loss gradients.
        neuron: Number of a neuron that is stationary.
        tol: Tolerance relative to the natural scale of a derivative.
        rounding: What each row of ``G`` may be wrong by, shape ``(N,)``.
        kink_tol: Relative distance that counts as on the kink.

    Returns:
        The direction, or None where none was found.
    """
    X, G = signal.X.detach().double(), signal.G.detach().double()
    w, h = block.W[neuron].double(), block.H[:, neuron].double()
    if bool(w.any()):
        seen = _seen_off_kinks(block, X, w, kink_tol)
        V = _fitted(seen, G)
        A = seen @ V.T
    else:
        V = _tried(_hyperplanes(block, X, G, rounding), X, G)
        A = rho(X @ V.T, block.slopes)
    pull = A.T @ G
    size = torch.maximum(tol * (A.abs().T @ G.norm(dim=1)), A.abs().T @ rounding)
    flat = (pull @ h).abs() <= h.norm() * size
    return _largest_fall(V, A, pull, flat & _counts(block, X, G, A, pull, tol, rounding))


def _seen_off_kinks(block: ShallowBlock, X: Tensor, w: Tensor, kink_tol: float) -> Tensor:
    """Inputs times the slope at them, as far as input weights see them that stay on their kinks, shape ``(N, d)``."""
    Z = X @ w
    held = Z.abs() <= kink_tol * w.norm() * X.norm(dim=1)
    fixed = radial_directions(torch.cat([X[held], w[None]]))
    basis = torch.as_tensor(row_space(fixed.cpu().numpy())).to(X)
    seen: Tensor = slopes_at(Z, block.slopes)[:, None] * X * ~held[:, None]
    return seen - seen @ basis.T @ basis


def _fitted(seen: Tensor, G: Tensor) -> Tensor:
    """Unit directions in which inputs as seen ``(N, d)`` fit each output's loss gradients best, shape ``(n, d)``."""
    _, singular, rows = torch.linalg.svd(torch.linalg.qr(seen, mode="r").R, full_matrices=False)
    inverse = torch.where(singular > FLOAT64.rank * singular[0], 1 / singular, 0.0).square()
    return radial_directions((G.T @ seen @ rows.T * inverse) @ rows)


def _is_clear(found: Pull, block: ShallowBlock, X: Tensor, G: Tensor) -> bool:
    """Whether the fall along a direction is such a part of the loss that no other one is tried for more."""
    D, v = torch.as_tensor(found.D).to(G), torch.as_tensor(found.direction).to(X)
    return float(D.norm()) > math.sqrt(FLOAT64.clear_fall) * float(rho(X @ v, block.slopes).norm() * G.norm())


def _strongest(
    block: ShallowBlock, X: Tensor, G: Tensor, V: Tensor, tol: float, rounding: Tensor | None
) -> tuple[Pull | None, Tensor]:
    """Of the directions that count the one whose fall is largest, if there is one; the pulls of all, ``(n, J)``."""
    A = rho(X @ V.T, block.slopes)
    pull = A.T @ G
    return _largest_fall(V, A, pull, _counts(block, X, G, A, pull, tol, rounding)), pull


def _largest_fall(V: Tensor, A: Tensor, pull: Tensor, counts: Tensor) -> Pull | None:
    """The direction of those that count, bool ``(n,)``, along which ``||D||^2`` over squared activations is largest."""
    if not bool(counts.any()):
        return None
    share = pull.norm(dim=1) / A.norm(dim=0)
    at = int(torch.where(counts, share, 0.0).argmax())
    return Pull(V[at].cpu().numpy(), pull[at].cpu().numpy(), decided=True)


def _counts(
    block: ShallowBlock, X: Tensor, G: Tensor, A: Tensor, pull: Tensor, tol: float, rounding: Tensor | None
) -> Tensor:
    """Whether the pull ``(n, J)`` on activations ``(N, n)`` of unit input weights is more than rounding, ``(n,)``."""
    size = G.norm(dim=1)
    strength = pull.norm(dim=1)
    share = strength / (A.norm(dim=0) * size.norm())
    # Samples orthogonal to a direction feel nothing but the rounding of their inner products.
    of_A = FLOAT64.roundings * FLOAT64.eps * max(map(abs, block.slopes)) * float(size @ X.norm(dim=1))
    counts: Tensor = (strength > tol * (A.abs().T @ size)) & (strength > of_A)
    if rounding is None:
        counts &= share > tol
    else:
        rounded = A.abs().T @ rounding
        counts &= (strength > rounded) & ((share > tol) | (strength > met_within(tol) * rounded))
    return counts


def _hyperplanes(block: ShallowBlock, X: Tensor, G: Tensor, wrong: Tensor) -> _Hyperplanes:
    """The samples merged by hyperplane."""
    bend = abs(block.slopes[1] - block.slopes[0]) / 2
    moving = X.any(dim=1)
    X, G, wrong = X[moving], G[moving], wrong[moving]
    length = X.norm(dim=1, keepdim=True)
    size = G.norm(dim=1, keepdim=True)
    # What is merged is multiplied by the length; the last column counts the samples, so that no hyperplane is dropped.
    columns = [bend * G, bend * size, bend * wrong[:, None], size.square() / length, 1 / length]
    units = [float((column * length).abs().max()) or 1.0 for column in columns]
    scaled = torch.cat([column / unit for column, unit in zip(columns, units, strict=True)], dim=1)
    merged, unit_X = merge_collinear(scaled.cpu().numpy(), X.cpu().numpy())
    outputs = G.shape[1]
    terms, rounding, energy = (merged[:, outputs + k] * units[1 + k] for k in range(3))
    return _Hyperplanes(merged[:, :outputs] * units[0], terms, rounding, energy, unit_X)


def _linear_part_vanishes(linear: Tensor, X: Tensor, size: Tensor, wrong: Tensor, tol: float) -> bool:
    """Whether it does in every direction, each judged by the samples that lie in it."""
    _, singular, rows = torch.linalg.svd(X, full_matrices=False)
    kept = singular > FLOAT64.rank * singular[0]
    whiten = rows[kept].T / singular[kept]
    reach = (X @ whiten).norm(dim=1)
    return float((linear @ whiten).norm()) <= max(tol * float(size @ reach), float(wrong @ reach))


def _tried(planes: _Hyperplanes, X: Tensor, G: Tensor) -> Tensor:
    """Unit directions to start from, each with its opposite, shape ``(n, d)``."""
    chosen = {
        int(k) for key in (np.linalg.norm(planes.pull, axis=1), planes.energy) for k in key.argsort()[-BUDGETS.starts :]
    }
    linear = (G.T @ X).cpu().numpy()
    fitted = _fitted(X, G).cpu().numpy()
    rows = np.concatenate([unit_rows(linear), planes.X])
    mixed = np.random.default_rng(0).standard_normal((BUDGETS.starts, len(rows))) @ rows
    V = unit_rows(np.concatenate([linear, fitted, planes.X[sorted(chosen)], mixed]))
    return torch.as_tensor(np.concatenate([V, -V])).to(X)
