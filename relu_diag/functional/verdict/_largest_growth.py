"""Whether a neuron without weights grows against weight decay: exact in two dimensions, enclosed in a few more."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Array, row_space, unit_rows
from relu_diag.functional.block import BlockSignal, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import enclosed_pull
from relu_diag.functional.problem import LossProblem
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """The direction in which ``||D(v)||^2 - mu_H v . M v`` is largest of those found.

    Attributes:
        v: Unit input weights, shape ``(d,)``.
        grows: Whether it is positive there, beyond the tolerance.
        certified: Whether nothing larger exists.
    """

    v: Tensor
    grows: bool
    certified: bool


def largest_growth(problem: LossProblem, by_input: Tensor, by_output: float, tol: float) -> Growth:
    """The largest growth of a neuron without weights, given the decay of its input weights, ``(d,)``, and output."""
    X, G = problem.signal.X, problem.signal.G
    slopes = problem.block.slopes
    plane = X.shape[1] <= 2
    V = torch.as_tensor(_sectors(X, G, by_input, by_output, slopes) if plane else _ascents(X, G, slopes)).to(X)
    D = rho(X @ V.T, slopes).T @ G
    gain = D.square().sum(1) - by_output * (V.square() @ by_input)
    best = int(gain.argmax())
    # What a pull as large as the decay gains if it is off by its tolerance, which is that of its terms.
    blur = FLOAT64.unseen * tol * max(map(abs, slopes)) * float(G.norm(dim=1) @ X.norm(dim=1))
    allowed = blur * (2 * math.sqrt(by_output * float(by_input.max())) + blur)
    if plane or float(gain[best]) > allowed:
        return Growth(V[best], float(gain[best]) > allowed, certified=plane)
    if not bool(by_input.gt(0).all()):
        return Growth(V[best], grows=False, certified=False)
    return _in_the_span(problem, by_input, math.sqrt(by_output + allowed / float(by_input.max())), V[best])


def _in_the_span(problem: LossProblem, by_input: Tensor, target: float, v: Tensor) -> Growth:
    """Whether neurons that cost the same in every direction they see feel more than a target; if not, ``v``."""
    X, G = problem.signal.X, problem.signal.G
    slopes = problem.block.slopes
    felt = G.any(dim=1) & X.any(dim=1)
    if not bool(felt.any()):
        return Growth(v, grows=False, certified=True)
    scaled = X[felt] / by_input.sqrt()
    basis = torch.as_tensor(row_space(scaled.cpu().numpy())).to(X)
    signal = BlockSignal(scaled @ basis.T, G[felt])
    if len(basis) > 2:
        enclosed = enclosed_pull(signal, slopes, 0.0, target, BUDGETS.growth_numbers)
        certified, highest, value = enclosed.closed, enclosed.v, enclosed.value
    else:
        around = _sectors(signal.X, signal.G, torch.ones_like(basis[:, 0]), 1.0, slopes)
        V = torch.as_tensor(around).to(X)
        pull = (rho(signal.X @ V.T, slopes).T @ signal.G).norm(dim=1)
        certified, highest, value = True, V[int(pull.argmax())], float(pull.max())
    if highest is None or value <= target:
        return Growth(v, grows=False, certified=certified)
    there = (highest @ basis) / by_input.sqrt()
    return Growth(there / there.norm(), grows=True, certified=False)


def _sectors(X: Tensor, G: Tensor, by_input: Tensor, by_output: float, slopes: tuple[float, float]) -> Array:
    """Directions among which the largest is, one input or two: kinks, and the best inside each sector, ``(n, d)``."""
    points = X[X.any(dim=1)].cpu().numpy()
    if X.shape[1] == 1:
        return np.array([[1.0], [-1.0]])
    normals = unit_rows(np.stack([-points[:, 1], points[:, 0]], axis=1))
    rays = np.concatenate([normals, -normals, np.eye(2), -np.eye(2)])
    angles = np.unique(np.arctan2(rays[:, 1], rays[:, 0]))
    middle = (angles + np.diff(angles, append=angles[0] + 2 * np.pi) / 2)[:, None]
    inside = torch.as_tensor(np.concatenate([np.cos(middle), np.sin(middle)], axis=1)).to(X)
    tilted = []
    for v in inside:
        slope = torch.where(X @ v > 0, slopes[1], slopes[0])
        A = (slope[:, None] * G).T @ X
        _, vectors = torch.linalg.eigh(A.T @ A - by_output * torch.diag(by_input))
        tilted.append(vectors[:, -1])
    found = torch.stack(tilted).cpu().numpy()
    # An eigenvector outside its own sector is another direction, and as good as any.
    return np.concatenate([rays, found, -found])


def _ascents(X: Tensor, G: Tensor, slopes: tuple[float, float]) -> Array:
    """Directions that ascents of ``||D(v)||`` lead to, from the samples and from random ones, ``(n, d)``."""
    random = torch.randn(BUDGETS.starts, X.shape[1], generator=torch.Generator().manual_seed(0), dtype=X.dtype)
    strong = X[G.norm(dim=1).argsort(descending=True)[: BUDGETS.starts]]
    V = torch.nn.functional.normalize(torch.cat([random.to(X), strong, -strong, (G.T @ X), -(G.T @ X)]))
    seen = [V]
    for _ in range(BUDGETS.rounds):
        Z = X @ V.T
        D = rho(Z, slopes).T @ G
        slope = torch.where(Z > 0, slopes[1], slopes[0])
        V = torch.nn.functional.normalize((slope * (G @ torch.nn.functional.normalize(D).T)).T @ X)
        seen.append(V)
    return np.asarray(torch.cat(seen).cpu().numpy())
