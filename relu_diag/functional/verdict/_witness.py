"""Falls of the loss: moves proposed by the derivatives, evaluated, and kept where the loss is seen lower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, chunked_outputs, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import chunks, radial_directions, slopes_at
from relu_diag.functional.problem import LossProblem, Problem, SquaredProblem
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.verdict._loss_line import moving_part, see_fall_of_loss
from relu_diag.functional.verdict._path import falling_stretch
from relu_diag.functional.verdict._reach import zero_neuron_pull
from relu_diag.functional.verdict._rounding import reach, seen_terms
from relu_diag.functional.verdict.direction import Direction
from relu_diag.functional.verdict.escape import EscapeNeurons, silent_escapes
from relu_diag.functional.verdict.line import Move, entered, expand
from relu_diag.functional.verdict.stationarity import Stationarity


def see_fall(problem: Problem, move: Move, rounding: Tensor | None = None) -> Direction | None:
    """A step along a move at which the loss is lower by more than its rounding, if one is seen.

    The loss never rises on the way: the step ends where the exact loss along the move, kinks included, first does.

    Args:
        problem: The loss.
        move: The direction, of any length.
        rounding: What each residual may be wrong by, shape ``(N,)``; where given, a fall of a squared loss counts that
            the loss evaluated at both ends would hide, if the loss along the move shows it beyond the rounding of its
            terms.

    Returns:
        The direction at unit length with the step and the fall, or None.
    """
    length = move.length
    if length == 0:
        return None
    move = move.scaled(1 / length)
    if isinstance(problem, LossProblem):
        return see_fall_of_loss(problem, move)
    part, along = moving_part(problem, move)
    slack = 0.0 if rounding is None else _slope_rounding(part, along, rounding)
    stretch = falling_stretch(part, along, expand(part, along), slack)
    if stretch.step == 0:
        return None
    change = _change(problem, move, stretch.step)
    if change == 0 and rounding is not None:
        hidden = stretch.rounding + _hidden(part, along, stretch.step, rounding)
        change = stretch.change if -stretch.change > 2 * hidden else 0.0
    if change >= 0:
        return None
    return Direction(move.dW, move.dH, stretch.step, change, move.db if bool(move.db.any()) else None)


def first_order_fall(problem: Problem, found: Stationarity, rounding: Tensor | None = None) -> Direction | None:
    """The fall along the steepest descent of all neurons that are not stationary, or of the worst of them alone.

    Args:
        problem: The loss.
        found: Its stationarity.
        rounding: As in `see_fall`.

    Returns:
        The direction, or None where no fall exceeds the rounding of the loss.
    """
    falls = (see_fall(problem, move, rounding) for move in _descents(problem, found))
    return next((fall for fall in falls if fall is not None), None)


def _descents(problem: Problem, found: Stationarity) -> Iterator[Move]:
    """Descents of first order: of all neurons that are not stationary, and of the worst of them by themselves."""
    geometry = found.geometry
    dW = -geometry.steepest[:, None] * geometry.direction
    dW -= geometry.radial[:, None] * radial_directions(problem.block.W)
    dH = -geometry.output_gradient
    broken = found.violation > found.tol
    none = torch.zeros_like(problem.loss_signal.G[0])
    yield Move(dW * broken[:, None], dH * broken, none)
    if found.bias_violation > found.tol:
        yield Move(dW * broken[:, None], dH * broken, -problem.loss_signal.G.sum(0))
        yield Move(0 * dW, 0 * dH, -problem.loss_signal.G.sum(0))
    worst = found.violation.argsort(descending=True)[: min(BUDGETS.neurons_tried, int(broken.sum()))]
    for i in worst:
        alone = torch.zeros_like(broken).index_fill(0, i, True)
        yield Move(dW * alone[:, None], dH * alone, none)
        yield Move(dW * alone[:, None], 0 * dH, none)
        yield Move(0 * dW, dH * alone, none)


def whitened_fall(problem: Problem, found: Stationarity) -> Direction | None:
    """The fall along the steepest descents as seen by inputs of unit covariance, where the inputs are far from that.

    Directions that only short inputs see are as good as any there, and drown in the scale of long ones elsewhere.

    Args:
        problem: The loss.
        found: Its stationarity.

    Returns:
        The direction, or None where the inputs are even, or no fall exceeds the rounding of the loss.
    """
    X = problem.signal.X
    _, singular, rows = torch.linalg.svd(torch.linalg.qr(X, mode="r").R, full_matrices=False)
    present = singular > len(singular) * FLOAT64.eps * singular[0]
    if float(singular[present].min() / singular[0]) ** 2 >= FLOAT64.even:
        return None
    inverse = torch.where(present, 1 / singular, 0.0).square()
    dW = -(found.geometry.smooth @ rows.T * inverse) @ rows
    h_norm = problem.block.H.norm(dim=0)
    dW = torch.where(h_norm > 0, 1 / h_norm.square(), 0.0)[:, None] * dW
    return see_fall(problem, Move(dW, torch.zeros_like(problem.block.H), torch.zeros_like(problem.block.H[:, 0])))


def silent_escape_fall(problem: Problem, escape: EscapeNeurons, rounding: Tensor | None = None) -> Direction | None:
    """The fall that an escape neuron with ``h_i = 0`` opens: output weights against ``D``, input weights along ``v``.

    With ``delta h_i = -a D / ||D||`` and ``delta w_i = t v`` the loss changes by ``f/2 a^2 ||rho(z_i)||^2 - a t ||D||``
    to second order, negative for ``t > f ||rho(z_i)||^2 a / (2 ||D||)``; ``f`` is the curvature of the loss there.

    Source: Wu et al., Corollary 4.4.

    Args:
        problem: The loss.
        escape: Its escape neurons.
        rounding: As in `see_fall`.

    Returns:
        The direction, or None where there is no such neuron or no fall exceeds the rounding of the loss.
    """
    pull = escape.D.norm(dim=1) * silent_escapes(problem.block, escape)
    loudest = pull.argsort(descending=True)[: min(BUDGETS.neurons_tried, int((pull > 0).sum()))].tolist()
    moves = (
        _growing(problem, i, escape.direction[i], escape.D[i], float(problem.block.W[i].norm()) or 1.0) for i in loudest
    )
    falls = (see_fall(problem, move, rounding) for move in moves)
    return next((fall for fall in falls if fall is not None), None)


def fall_of_tiny_neuron(problem: Problem, found: Stationarity, rounding: Tensor) -> Direction | None:
    """The fall of a neuron that is not stationary and so small that nobody sees it, along the way from no weights.

    The descent of a neuron of 1e-30 leads nowhere before it has turned; what it grows into is seen at once.

    Args:
        problem: The loss, in its normal form.
        found: Its stationarity.
        rounding: What the residuals may be wrong by, shape ``(N,)``.

    Returns:
        The direction, or None where there is no such neuron or no fall exceeds the rounding of the loss.
    """
    block = problem.block
    size = torch.maximum(block.W.norm(dim=1), block.H.norm(dim=0))
    tiny = (size <= FLOAT64.eps) & (found.violation > found.tol)
    if not bool(tiny.any()):
        return None
    pull = zero_neuron_pull(block, problem.loss_signal, found.tol, rounding)
    if not pull.D.any():
        return None
    gone = replace(problem, block=replace(block, W=block.W * ~tiny[:, None], H=block.H * ~tiny))
    v, D = torch.as_tensor(pull.direction).to(block.W), torch.as_tensor(pull.D).to(block.W)
    return see_fall(gone, _growing(gone, int(tiny.nonzero()[0]), v, D, 1.0))


def _growing(problem: Problem, i: int, v: Tensor, D: Tensor, t: float) -> Move:
    """Input weights of a neuron along ``t v``, output weights against ``D``, as far as the loss bends there."""
    block, X = problem.block, problem.signal.X
    pull = D.norm()
    now, ahead = (_bend(problem, rho(X @ w, block.slopes), D / pull) for w in (block.W[i], v))
    bend = now + t**2 * ahead
    a = t * pull / bend if bend > 0 else t
    move = Move(torch.zeros_like(block.W), torch.zeros_like(block.H), torch.zeros_like(D))
    move.dW[i] = t * v
    move.dH[:, i] = -a * D / pull
    return move


def _bend(problem: Problem, A: Tensor, along: Tensor) -> Tensor:
    """Curvature of the loss where activations ``(N,)`` are added along a unit vector of outputs ``(J,)``."""
    if isinstance(problem, SquaredProblem):
        return problem.factor * A.square().sum()
    change = A[:, None] * along
    return (change * problem.output_loss.curvature(problem.outputs, change)).sum()


def _change(problem: SquaredProblem, move: Move, step: float) -> float:
    """Loss change at the moved point as a difference of outputs, 0 where rounding could hide its sign."""
    block, X, residual = problem.block, problem.signal.X, problem.signal.G
    part, along = moving_part(problem, move)
    before = replace(part.block, output_bias=None)
    there = ShallowBlock(before.W + step * along.dW, before.H + step * along.dH, block.slopes)
    change = step * move.db + chunked_outputs(there, X) - chunked_outputs(before, X)
    difference = problem.factor / 2 * float((change * (2 * residual + change)).sum())
    weight = residual.norm(dim=1) + change.norm(dim=1)
    given = residual.norm(dim=1) + step * move.db.norm()
    if block.output_bias is not None:
        given = given + block.output_bias.norm()
    # Every output is a sum of terms, and each carries a unit roundoff.
    resolution = FLOAT64.roundings * FLOAT64.eps * problem.factor
    most = given + X.norm(dim=1) * (reach(block) + reach(there))
    if abs(difference) > resolution * float(weight @ most):
        return difference
    seen = sum(seen_terms(one, problem.signal, problem.kink_tol) for one in (block, there))
    rounding = resolution * float(weight @ (given + seen))
    return difference if abs(difference) > rounding else 0.0


def _slope_rounding(problem: SquaredProblem, move: Move, rounding: Tensor) -> float:
    """What the first-order change of the loss along a move may be wrong by."""
    block = problem.block
    wrong = FLOAT64.roundings * FLOAT64.eps * problem.signal.G.norm(dim=1) + rounding
    total = float(wrong.sum() * move.db.norm())
    signal = replace(problem.signal, G=wrong[:, None].expand_as(problem.signal.G))
    for chunk in chunks(block, signal, problem.kink_tol):
        along = entered(chunk.Z, chunk.X @ move.dW.T, block.slopes) @ block.H.T
        along += rho(chunk.Z, block.slopes) @ move.dH.T
        total += float(chunk.G[:, 0] @ along.norm(dim=1))
    return problem.factor * total


def _hidden(problem: SquaredProblem, move: Move, step: float, rounding: Tensor) -> float:
    """What the loss change along a move, to any order and across kinks, may be wrong by."""
    block = problem.block
    eps = FLOAT64.roundings * FLOAT64.eps
    steep = max(map(abs, block.slopes))
    bend = abs(block.slopes[1] - block.slopes[0])
    w, h = block.W.norm(dim=1), block.H.norm(dim=0)
    dw, dh = step * move.dW.norm(dim=1), step * move.dH.norm(dim=0)
    wrong = BlockSignal(problem.signal.X, torch.stack([problem.signal.G.norm(dim=1), rounding], dim=1))
    some = ShallowBlock(block.W, block.H.new_zeros(2, len(w)), block.slopes)
    given = step * float(move.db.norm())
    still = wrong.G[~wrong.X.any(dim=1)]
    total = given * float((eps * (still[:, 0] + given) + still[:, 1]).sum())
    for chunk in chunks(some, wrong, problem.kink_tol):
        dZ = step * chunk.X @ move.dW.T
        slopes = slopes_at(chunk.Z, block.slopes).abs()
        slopes[chunk.Z * (chunk.Z + dZ) <= 0] = steep
        # By how much the outputs change at most, and the terms whose rounding that change carries.
        change = given + (slopes * chunk.Z.abs()) @ dh + (slopes * dZ.abs()) @ (h + dh)
        terms = given + chunk.length * (slopes @ (w * dh + dw * (h + dh)))
        error, of_error = chunk.G.unbind(1)
        total += float((of_error * change + eps * (error + change) * terms).sum())
        # Samples on the kink start beside it, within its tolerance.
        row, neuron = chunk.kinks.unbind(1)
        beside = chunk.beside.abs()
        moved = steep * beside * dh[neuron] + bend * torch.minimum(beside, dZ[row, neuron].abs()) * (h + dh)[neuron]
        total += float((moved * (error + change)[row]).sum())
    return problem.factor * total
