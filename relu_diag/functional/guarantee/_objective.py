"""A convex loss with weight decay, as the problem of duality that all widths share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional._checks import check_matrix
from relu_diag.functional.block import BlockSignal, ShallowBlock, chunked_outputs
from relu_diag.functional.guarantee._duals import balanced_gradient, best_scale
from relu_diag.functional.guarantee._largest_pull import LargestPull, largest_pull, largest_pull_with_free_bias
from relu_diag.functional.guarantee.amplitudes import Amplitudes
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.weight_decay import WeightDecay


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound on the objective of every width, and whether it is proved."""

    value: float
    certified: bool


@dataclass(frozen=True, slots=True, eq=False)
class DecayedObjective:
    """A block under a loss with weight decay, in float64, input weights scaled so that all of them decay alike.

    ``X`` has the inputs of scaled neurons ``w / stretch``, a hidden bias free of decay left as it is. ``mu`` is what a
    neuron costs per unit of ``||w|| ||h||``. ``bias_decay`` is that of the output bias, None without one.
    """

    block: ShallowBlock
    X: Tensor
    stretch: Tensor
    loss: Loss
    outputs: Tensor
    primal: float
    mu: float
    bias_decay: float | None
    hidden_bias_free: bool

    @property
    def constants_free(self) -> bool:
        """Whether a constant added to the outputs costs nothing; that of neurons with a free hidden bias does not."""
        return self.hidden_bias_free or self.bias_decay == 0

    @property
    def decay_of_constants(self) -> float | None:
        """Decay of a constant added to the outputs, None where there is none."""
        return 0.0 if self.hidden_bias_free else self.bias_decay

    def dual_variables(self, outputs: Tensor) -> Tensor:
        """The loss gradient at outputs ``(N, J)``, at their best constant where that is free."""
        return balanced_gradient(self.loss, outputs) if self.constants_free else self.loss.gradient(outputs)

    def largest_pull(self, E: Tensor) -> LargestPull:
        """The largest pull of loss gradients ``(N, J)`` on a scaled neuron."""
        search = largest_pull_with_free_bias if self.hidden_bias_free else largest_pull
        return search(BlockSignal(self.X, E), self.block.slopes, self.block.W / self.stretch, self.mu)

    def scaled_bound(self, E: Tensor, largest: LargestPull) -> Bound:
        """The bound of dual variables scaled until no neuron gains more than it costs."""
        scale = self.mu / largest.bound if largest.bound > 0 else math.inf
        return Bound(self.bound(E, scale), largest.certified)

    def bound(self, E: Tensor, largest: float) -> float:
        """The best lower bound of ``s E``, ``0 <= s <= largest``, where no neuron gains more than it costs."""
        total = float(E.sum(dim=0).square().sum())
        against_bias = total / (2 * self.bias_decay) if self.bias_decay else 0.0

        def value(scale: float) -> float:
            return -float(self.loss.conjugate(scale * E)) - scale**2 * against_bias

        return best_scale(value, min(largest, FLOAT64.scaled_up))

    def unit_neurons(self) -> tuple[Tensor, Amplitudes]:
        """The scaled neurons at unit length and their amplitudes; those that compute constants are in the bias."""
        W = self.block.W / self.stretch
        length = (W[:, :-1] if self.hidden_bias_free else W).norm(dim=1)
        kept = length > 0
        H = self.block.H * length
        bias = torch.zeros_like(self.outputs[0]) if self.block.output_bias is None else self.block.output_bias
        return W[kept] / length[kept, None], Amplitudes(H[:, kept], bias)

    def cost(self, outputs: Tensor, amplitudes: Amplitudes) -> float:
        """The objective of unit neurons at these outputs, their decay at the best balance."""
        decay = self.mu * amplitudes.H.norm(dim=0).sum()
        return float(self.loss(outputs) + decay + (self.decay_of_constants or 0.0) / 2 * amplitudes.bias.square().sum())


def decayed_objective(block: ShallowBlock, X: Tensor, loss: Loss, decay: WeightDecay) -> DecayedObjective:
    """The problem that is bounded.

    Raises:
        ValueError: If the loss is not convex, or the decay leaves out a hidden bias that is none.
    """
    check_matrix("X", X)
    if not loss.convex:
        raise ValueError(f"`loss` must be convex for a bound over all widths; the {loss.name} is not known to be.")
    own = block.double()
    X = X.detach().double()
    outputs = chunked_outputs(own, X)
    loss = loss.double()
    last = decay.last_column
    free = decay.W > 0 and decay.H > 0 and last == 0
    if free and not bool((X[:, -1] == X[0, -1]).all() and X[0, -1] != 0):
        raise ValueError(
            "`weight_decay` leaves out the hidden bias, the last column of W: then the last column of X must be "
            "constant. Append a column of ones, or let `hidden_bias` be the decay of W."
        )
    stretch = torch.ones_like(X[0])
    if decay.W > 0 and last > 0:
        stretch[-1] = math.sqrt(decay.W / last)
    primal = float(loss(outputs)) + float(decay.cost(own))
    mu = math.sqrt(decay.W * decay.H)
    bias_decay = None if block.output_bias is None else decay.output_bias
    return DecayedObjective(own, X * stretch, stretch, loss, outputs, primal, mu, bias_decay, free)
