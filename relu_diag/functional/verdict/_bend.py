"""Which way a loss with weight decay bends along the directions that cost nothing to first order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.linalg import block_diag, null_space
from torch import Tensor

from relu_diag.functional._arrays import Array, row_space
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import slopes_at
from relu_diag.functional.problem import LossProblem
from relu_diag.functional.verdict.hessian import smooth_hessian
from relu_diag.functional.verdict.line import Move


@dataclass(frozen=True, slots=True, eq=False)
class Bend:
    """The least curvature among all weights that stay on their kinks.

    Attributes:
        least: The smallest eigenvalue, of the Hessian scaled to a diagonal of ones.
        move: Its direction.
    """

    least: float
    move: Move

    def both_ways(self) -> Iterator[Move]:
        """The direction and the opposite one."""
        yield self.move
        yield self.move.scaled(-1.0)


def least_bend(problem: LossProblem, kinks: dict[int, Array]) -> Bend | None:
    """The least curvature, given the samples ``(m, d)`` on the kinks of neurons; None where there are too many weights.

    Neurons without any weights stay as they are: nothing else is felt along theirs.
    """
    block, signal, decay = problem.block, problem.signal, problem.decay
    assert decay is not None
    living = (block.W.any(dim=1) | block.H.any(dim=0)).nonzero().squeeze(1)
    outputs, inputs = len(block.H), block.W.shape[1]
    size = len(living) * (inputs + outputs) + outputs
    if size > BUDGETS.dense_form or size * signal.G.numel() > BUDGETS.fit_entries:
        return None
    W, H, X, G = (value.cpu().numpy() for value in (block.W[living], block.H[:, living], signal.X, signal.G))
    Z = signal.X @ block.W[living].T
    slope = slopes_at(Z, block.slopes)
    lengths = signal.X.norm(dim=1, keepdim=True) * block.W[living].norm(dim=1)
    slope[Z.abs() <= problem.kink_tol * lengths] = 0.0
    hessian = smooth_hessian(X, slope.cpu().numpy(), W, H, G, partial(_curved, problem))
    by_input = np.tile(decay.by_column(block).cpu().numpy(), len(living))
    price = np.concatenate([by_input, np.full(H.size, decay.H), np.full(outputs, decay.output_bias)])
    hessian[np.diag_indices(size)] += price
    free = block_diag(
        *(null_space(row_space(kinks[i])) if i in kinks else np.eye(inputs) for i in living.tolist()),
        np.eye(H.size),
        np.eye(outputs)[:, : outputs * (block.output_bias is not None)],
    )
    form = free.T @ hessian @ free
    diagonal = form.diagonal()
    unit = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(form / unit / unit[:, None])
    flat = torch.as_tensor(free @ (vectors[:, 0] / unit)).to(block.W)
    return Bend(float(values[0]), _move(problem, living, flat))


def _curved(problem: LossProblem, change: Array) -> Array:
    """What the gradient at the outputs changes by, both of shape ``(N, J)``."""
    along = torch.as_tensor(np.ascontiguousarray(change)).to(problem.outputs)
    return np.asarray(problem.output_loss.curvature(problem.outputs, along).cpu().numpy())


def _move(problem: LossProblem, living: Tensor, flat: Tensor) -> Move:
    """A direction of the weights of some neurons and of the output bias, from one vector."""
    block = problem.block
    outputs, inputs = len(block.H), block.W.shape[1]
    dW, dH, db = torch.split(flat, [len(living) * inputs, outputs * len(living), outputs])
    move = Move(torch.zeros_like(block.W), torch.zeros_like(block.H), db)
    move.dW[living] = dW.view(-1, inputs)
    move.dH[:, living] = dH.view(outputs, -1)
    return move
