"""Second-order descent with several outputs: the most negative direction of the loss inside an orthant.

Along zero-slope directions the loss changes by a quadratic form: ``f/2`` times the squared change of the outputs to
first order, which is never negative, plus ``sum_ij delta h_ji D_j(delta w_i)``, which may be. Inside one orthant, where
every sample on a kink has a side, the form is an ordinary one, and its smallest eigenvalue decides.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lobpcg
from torch import Tensor

from relu_diag.functional.block import rho
from relu_diag.functional.chunks import chunks
from relu_diag.functional.escape import EscapeNeurons
from relu_diag.functional.fan import Array, row_space
from relu_diag.functional.problem import SquaredProblem
from relu_diag.functional.sums import slopes_at
from relu_diag.functional.taylor import Move
from relu_diag.functional.witness import Direction, see_fall

# Forms up to this size are diagonalised, larger ones searched by so many conjugate gradient steps.
_DENSE = 600
_STEPS = 100
_RAYS_TRIED = 16
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class _Orthant:
    """The free directions of a balanced copy of the network: all weights, but input weights only along their kinks.

    Attributes:
        problem: The squared loss of the copy with ``||w_i|| = ||h_i||``.
        biased: Whether the output bias moves.
        balance: ``delta w_i`` of the copy is this times that of the network, shape ``(I,)``.
        blocked: Per neuron with samples on kinks an orthonormal basis of their span, where it may not move freely.
        held: 0 for neurons with ``w = 0``, which have every sample on their kink, else 1, shape ``(I, 1)``.
        neuron: Neurons that may also move along a ray, long, shape ``(P,)``.
        rays: The rays, one per such neuron, shape ``(P, d)``.
    """

    problem: SquaredProblem
    biased: bool
    balance: Tensor
    blocked: dict[int, Tensor]
    held: Tensor
    neuron: Tensor
    rays: Tensor


def orthant_fall(problem: SquaredProblem, escape: EscapeNeurons) -> Direction | None:
    """A fall of second order over all output weights and all zero-slope directions of the input weights.

    Rays on which a sample leaves its kink are one-sided; with one such ray the sign of an eigenvector is free. Orthants
    are tried with none of them, with each of the strongest alone, and with all.

    Source: Wu et al., appendix F.2.1.

    Args:
        problem: The squared loss.
        escape: Its escape neurons.

    Returns:
        The direction, or None where no fall is found.
    """
    orthant = _balanced(problem, escape)
    kinked = [i for i in escape.mask.nonzero().squeeze(1).tolist() if i in orthant.blocked or not orthant.held[i]]
    strongest = sorted(kinked, key=lambda i: -float(escape.D[i].norm()))
    choices = [[], *([i] for i in strongest[:_RAYS_TRIED])]
    choices += [strongest] if len(strongest) > 1 else []
    # A witness that leaves the output bias alone is the simpler one.
    biases = [False] if problem.block.output_bias is None else [False, True]
    for biased, chosen in itertools.product(biases, choices):
        neuron = torch.tensor(chosen, dtype=torch.long, device=orthant.balance.device)
        candidate = replace(orthant, biased=biased, neuron=neuron, rays=escape.direction[neuron])
        for move in _lowest(candidate):
            fall = see_fall(problem, move)
            if fall is not None:
                return fall
    return None


def _balanced(problem: SquaredProblem, escape: EscapeNeurons) -> _Orthant:
    block = problem.block
    w_norm, h_norm = block.W.norm(dim=1), block.H.norm(dim=0)
    balance = torch.where((w_norm > 0) & (h_norm > 0), (h_norm / w_norm).sqrt(), 1.0)
    copy = replace(block, W=block.W * balance[:, None], H=block.H / balance)
    held = w_norm.gt(0)[:, None].double()
    pairs = [escape.direction.new_zeros(0, 1 + block.W.shape[1])]
    for chunk in chunks(block, problem.signal, problem.kink_tol):
        row, neuron = chunk.kinks[held[chunk.kinks[:, 1], 0] > 0].unbind(1)
        pairs.append(torch.column_stack([neuron.double(), chunk.X[row]]))
    found = torch.cat(pairs)
    blocked = {
        int(i): torch.as_tensor(row_space(found[found[:, 0] == i, 1:].cpu().numpy())).to(found)
        for i in sorted(set(found[:, 0].tolist()))
    }
    none = escape.direction[:0]
    return _Orthant(replace(problem, block=copy), False, balance, blocked, held, none[:, 0].long(), none)


def _lowest(orthant: _Orthant) -> Iterator[Move]:
    """The lowest direction of the form in both senses, rays pointing outwards, as moves of the network itself."""
    block, biased = orthant.problem.block, orthant.biased
    sizes = [block.W.numel(), block.H.numel(), len(block.H), len(orthant.rays)]

    def parts(vector: Array) -> tuple[Move, Tensor]:
        dW, dH, db, t = torch.split(torch.as_tensor(vector).to(block.W).flatten(), sizes)
        return Move(_free(dW.view_as(block.W), orthant), dH.view_as(block.H), db * biased), t

    def apply(vector: Array) -> Array:
        move, t = _hessian(orthant, *parts(vector))
        flat = torch.cat([_free(move.dW, orthant).flatten(), move.dH.flatten(), move.db * biased, t])
        return np.asarray(flat.cpu().numpy())

    value, vector = _smallest(apply, sum(sizes))
    if value >= 0:
        return
    for sign in (1.0, -1.0):
        move, t = parts(sign * vector)
        dW = move.dW.index_add(0, orthant.neuron, t.clamp(min=0)[:, None] * orthant.rays)
        yield Move(dW / orthant.balance[:, None], move.dH * orthant.balance, move.db)


def _smallest(apply: Callable[[Array], Array], size: int) -> tuple[float, Array]:
    """The smallest eigenvalue, 0 where rounding could hide its sign, with its vector; approximate for large sizes."""
    if size <= _DENSE:
        values, vectors = np.linalg.eigh(np.stack([apply(axis) for axis in np.eye(size)]))
        return float(values[0]) if values[0] < -_ROUNDING * values[-1] else 0.0, vectors[:, 0]
    operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal((size, 2))
    with warnings.catch_warnings():  # any vector with a negative value will do: accuracy is not needed
        warnings.simplefilter("ignore", UserWarning)
        values, vectors = lobpcg(operator, start, largest=False, maxiter=_STEPS, tol=1e-6)
    return float(values[0]), vectors[:, 0]


def _free(dW: Tensor, orthant: _Orthant) -> Tensor:
    dW = dW * orthant.held
    for i, basis in orthant.blocked.items():
        dW[i] -= basis.T @ (basis @ dW[i])
    return dW


def _hessian(orthant: _Orthant, move: Move, t: Tensor) -> tuple[Move, Tensor]:
    """The form applied to a direction, which is its gradient there."""
    problem, neuron = orthant.problem, orthant.neuron
    block, f = problem.block, problem.factor
    by_W, by_H = torch.zeros_like(move.dW), torch.zeros_like(move.dH)
    # Samples with x = 0 feel the bias alone.
    by_bias, by_ray = f * float((~problem.signal.X.any(dim=1)).sum()) * move.db, torch.zeros_like(t)
    for chunk in chunks(block, problem.signal, problem.kink_tol):
        slopes = slopes_at(chunk.Z, block.slopes)
        along = chunk.X @ orthant.rays.T
        ahead = torch.where(chunk.Z[:, neuron] == 0, rho(along, block.slopes), slopes[:, neuron] * along)
        dA = slopes * (chunk.X @ move.dW.T)
        dA = dA.index_add(1, neuron, ahead * t)
        A = rho(chunk.Z, block.slopes)
        dy = A @ move.dH.T + dA @ block.H.T + move.db
        back = f * (dy @ block.H + chunk.G @ move.dH)
        by_W += (back * slopes).T @ chunk.X
        by_H += f * (dy.T @ A + chunk.G.T @ dA)
        by_bias += f * dy.sum(0)
        by_ray += (back[:, neuron] * ahead).sum(0)
    return Move(by_W, by_H, by_bias), by_ray
