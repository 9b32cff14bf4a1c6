"""How far a network is from the best of any width: a lower bound on the loss with weight decay, by duality.

With decay ``mu_W`` and ``mu_H`` a neuron costs at least ``mu ||w|| ||h||``, ``mu = sqrt(mu_W mu_H)``. For any numbers
``E`` of the shape of the outputs the loss is at least ``<E, outputs> - l*(E)``, with ``l*`` its conjugate, and where no
unit ``v`` has ``||D(v)|| > mu``, ``D_j(v) = sum_k e_kj rho(v . x_k)``, every neuron's share of ``<E, outputs>`` is at
least minus its cost. So no network of any width has an objective below

    -l*(E) - ||sum_k e_k||^2 / (2 mu_b),

``mu_b`` the decay of the output bias; without such a bias there is no second term, and one that is free of decay asks
for ``sum_k e_k = 0``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional._checks import is_count
from relu_diag.functional.block import BlockSignal, Reduction, ShallowBlock, rho
from relu_diag.functional.dynamics import extremal_directions
from relu_diag.functional.guarantee._duals import silent_part
from relu_diag.functional.guarantee._generation import raised_bound
from relu_diag.functional.guarantee._objective import Bound, DecayedObjective, decayed_objective
from relu_diag.functional.output_loss import Loss, as_loss
from relu_diag.functional.tables import html_table, summary_of
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.weight_decay import WeightDecay, as_weight_decay


@dataclass(frozen=True, slots=True, eq=False)
class Gap:
    """How much less the loss with weight decay of a network of any width can be.

    Attributes:
        primal: Loss of the block, decay included.
        dual: What no network of any width goes below.
        gap: ``primal - dual``, 0 where rounding makes it negative: the most that growing, restarting or training on can
            gain.
        neuron: Unit input weights of the neuron with the largest pull, the one to add, shape ``(d,)``; zero where none
            is felt.
        output: Its unit output weights, shape ``(J,)``.
        pull: ``||D||`` of that neuron over the decay: added small, it grows where this exceeds 1. Infinite without
            decay.
        certified: Whether the bound is proved; else no larger pull was found, and the gap is an estimate.

    Example:
        >>> X = torch.eye(2, dtype=torch.float64)
        >>> block = ShallowBlock(X[:1], X[:1, :1])
        >>> gap = optimality_gap(block, X, X[:, :1], weight_decay=0.5)
        >>> gap.pull, gap.certified
        (0.0, True)
    """

    primal: float
    dual: float
    gap: float
    neuron: Tensor
    output: Tensor
    pull: float
    certified: bool

    @property
    def share(self) -> float:
        """The gap over the bound: by what share of the best loss this one may exceed it; infinite where that is 0."""
        if self.gap == 0:
            return 0.0
        return self.gap / self.dual if self.dual > 0 else math.inf

    def __str__(self) -> str:
        estimate = "" if self.certified else "estimate: "
        if self.share <= FLOAT64.no_gap:
            return f"{estimate}a global minimum of every width"
        if self.share < 1:
            return f"{estimate}within {100 * self.share:.2g} % of the best network of any width"
        return f"{estimate}the best network of any width may gain {self.gap:.3g} of {self.primal:.3g}"

    def summary(self) -> str:
        """The gap as a table.

        Returns:
            Text, one fact a line.
        """
        rows = [
            ("loss", f"{self.primal:.6g}"),
            ("no network of any width below", f"{self.dual:.6g}"),
            ("gap", f"{self.gap:.3g}"),
            ("pull over decay", f"{self.pull:.3g}"),
            ("bound", "proved" if self.certified else "an estimate"),
        ]
        return summary_of(rows)

    def _repr_html_(self) -> str:
        return html_table(self.summary())


def optimality_gap(
    block: ShallowBlock,
    X: Tensor,
    loss: Tensor | Loss,
    weight_decay: float | WeightDecay = 0.0,
    reduction: Reduction = "mean",
    rounds: int = 8,
) -> Gap:
    """How much a network of any width could gain at most, training on included.

    The objective is the loss plus ``mu / 2`` times the squares of what decays, as SGD's `weight_decay` has it; the loss
    must be convex and have a conjugate. The loss's gradient at the outputs, shifted by a constant to the best one where
    a bias is free of decay, is scaled until no neuron is pulled by more than ``mu``. Then the neurons with the largest
    pull are added, all amplitudes fitted again, and the same is done there: the best bound counts. At a stationary
    point where the largest pull is ``mu`` the gap is 0, a global minimum over all widths.

    The largest pull is exact where the samples span at most two dimensions, or are few; in up to about six dimensions
    branch and bound encloses it to 1e-5; elsewhere ascents look for it, quick ones where the data are large, and the
    gap is an estimate. Without decay the bound is proved in any dimension, as no neuron feels its dual variables;
    for the squared error it is then the best loss itself.

    Where the hidden bias, the last column of `W` for a constant one of `X`, is free of decay, so are constants, and the
    length of a neuron leaves its bias out: then the largest pull is certified for one input besides, and for two where
    samples are few.

    Source: Fenchel duality; Pilanci and Ergen 2020, theorem 1, for the squared error.

    Args:
        block: The network.
        X: All inputs of the loss, shape ``(N, d)``.
        loss: Targets of the squared error, shape ``(N, J)``, or a convex loss of the outputs.
        weight_decay: Factor ``mu`` of input and output weights, an output bias being free of decay; or one for each
            part.
        reduction: Of the squared error: "mean", "sum" or "half_sum".
        rounds: How often, at most, the network is made wider and fitted again in search of a better bound; 0: that of
            its own gradient.

    Returns:
        The gap, and the neuron to add.

    Raises:
        ValueError: If the number of rounds is negative, or no number.

    Example:
        >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> Y = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        >>> stuck = ShallowBlock(X[:1], X[:1, :1])  # fits the first sample
        >>> gap = optimality_gap(stuck, X, Y, weight_decay=0.01)
        >>> print(gap)
        the best network of any width may gain 0.49 of 0.51
        >>> gap.neuron.tolist(), gap.output.tolist(), gap.certified
        ([0.0, 1.0], [-1.0], True)
    """
    if not is_count(rounds, 0):
        raise ValueError(f"`rounds` must not be negative, a whole number; got {rounds!r}.")
    objective = decayed_objective(block, X, as_loss(loss, reduction), as_weight_decay(weight_decay))
    E = objective.dual_variables(objective.outputs)
    if objective.mu == 0:
        felt = extremal_directions(objective.X, E, block.slopes, objective.block.W)
        v = felt.v[0] if len(felt.v) else torch.zeros_like(objective.X[0])
        silent = silent_part(BlockSignal(objective.X, E), block.slopes, objective.constants_free)
        return _gap(objective, E, v, Bound(objective.bound(silent, math.inf), certified=True))
    largest = objective.largest_pull(E)
    first = objective.scaled_bound(E, largest)
    return _gap(objective, E, largest.v, raised_bound(objective, first, E, largest, rounds))


def _gap(objective: DecayedObjective, E: Tensor, v: Tensor, bound: Bound) -> Gap:
    """The result for the neuron of scaled input weights ``v`` under the pull of ``E``."""
    D = rho(objective.X @ v, objective.block.slopes) @ E
    gain = float(D.norm())
    w = objective.stretch * v
    length = float(w.norm()) or 1.0
    pull = 0.0
    if gain > 0:
        pull = gain / objective.mu if objective.mu > 0 else math.inf
    gap = max(objective.primal - bound.value, 0.0)
    return Gap(objective.primal, bound.value, gap, w / length, -D / (gain or 1.0), pull, bound.certified)
