"""Column generation: the neurons that are pulled most are added, all amplitudes fitted again, and bounds rise."""

from __future__ import annotations

import torch
from torch import Tensor

from relu_diag.functional.block import rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.guarantee._largest_pull import LargestPull
from relu_diag.functional.guarantee._objective import Bound, DecayedObjective
from relu_diag.functional.guarantee.amplitudes import Amplitudes, refit_amplitudes
from relu_diag.functional.tolerances import FLOAT64


def raised_bound(objective: DecayedObjective, bound: Bound, E: Tensor, largest: LargestPull, rounds: int) -> Bound:
    """The best bound of some rounds, in each of which the network becomes wider and is fitted again.

    A bound that is an estimate is no larger than the objective of any network met on the way.

    Args:
        objective: What is bounded.
        bound: The bound so far.
        E: Its dual variables, shape ``(N, J)``.
        largest: Their largest pull.
        rounds: Number of rounds at most; they end where the gap has closed.

    Returns:
        The bound.
    """
    V, start = objective.unit_neurons()
    lowest = objective.primal
    for _ in range(rounds):
        if lowest - bound.value <= FLOAT64.no_gap * abs(lowest) or len(objective.X) * len(V) > BUDGETS.refit_numbers:
            break
        V, start = _widened(objective, V, start, E, largest)
        A = rho(objective.X @ V.T, objective.block.slopes)
        start = refit_amplitudes(objective.loss, A, start, objective.mu, objective.decay_of_constants)
        outputs = A @ start.H.T + start.bias
        lowest = min(lowest, objective.cost(outputs, start))
        E = objective.dual_variables(outputs)
        largest = objective.largest_pull(E)
        bound = _better(bound, objective.scaled_bound(E, largest))
    return bound if bound.certified else Bound(min(bound.value, lowest), certified=False)


def _better(first: Bound, second: Bound) -> Bound:
    """The larger bound; a proved one before any estimate."""
    if first.certified != second.certified:
        return first if first.certified else second
    return first if first.value >= second.value else second


def _widened(
    objective: DecayedObjective, V: Tensor, start: Amplitudes, E: Tensor, largest: LargestPull
) -> tuple[Tensor, Amplitudes]:
    """Unit neurons ``(n, d)`` without those of no amplitude, and the directions met that gain more than they cost."""
    D = rho(largest.met @ objective.X.T, objective.block.slopes) @ E
    gain = D.norm(dim=1)
    order = gain.argsort(descending=True)[: BUDGETS.neurons_a_round]
    order = order[gain[order] > objective.mu]
    felt = rho(objective.X @ largest.met[order].T, objective.block.slopes)
    toward = -D[order] / gain[order, None]
    curvature = [
        float((change * objective.loss.curvature(objective.outputs, change)).sum())
        for change in (torch.outer(a, o) for a, o in zip(felt.T, toward, strict=True))
    ]
    bend = torch.tensor(curvature).to(gain)
    # As large as lowers the loss most, if nothing else moved and there were no other new neurons.
    amplitude = torch.where(bend > 0, (gain[order] - objective.mu) / torch.where(bend > 0, bend, 1.0), 1.0) / len(order)
    kept = start.H.norm(dim=0) > FLOAT64.settled * start.H.norm()
    H = torch.cat([start.H[:, kept], (amplitude[:, None] * toward).T], dim=1)
    return torch.cat([V[kept], largest.met[order]]), Amplitudes(H, start.bias)
