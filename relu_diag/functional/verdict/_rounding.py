"""What float64 may get wrong of the outputs of a block: a bound from the absolute terms each of them is made of."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import chunks, slopes_at
from relu_diag.functional.problem import LossProblem, Problem, SquaredProblem
from relu_diag.functional.tolerances import FLOAT64


class ResidualRounding:
    """What the gradient of a loss at the outputs may be wrong by.

    Args:
        block: The network.
        signal: Its signal.
        kink_tol: Relative distance that counts as on the kink.
        given: Lengths of what the outputs are compared with and of the output bias, shape ``(N,)``.
        size: Length of targets or outputs, whichever is larger, in the unit.
        unit: Multiple of outputs minus targets that the gradient is, one or one a sample, ``(N,)``.
    """

    def __init__(
        self,
        block: ShallowBlock,
        signal: BlockSignal,
        kink_tol: float,
        given: Tensor,
        size: float = math.inf,
        unit: float | Tensor = 1.0,
    ) -> None:
        self._block = block.double()
        self._signal = BlockSignal(signal.X.detach().double(), signal.G.detach().double())
        self._kink_tol = kink_tol
        self._given = given
        self._size = size
        self._eps = FLOAT64.roundings * FLOAT64.eps * unit

    @cached_property
    def most(self) -> Tensor:
        """A bound that needs no look at the samples, as if each sample saw all neurons, shape ``(N,)``."""
        most: Tensor = self._signal.X.norm(dim=1) * reach(self._block) + self._given
        return self._eps * most

    @property
    def most_pull(self) -> float:
        """What that adds at most to a derivative by the input weights, per unit of output weight."""
        return max(map(abs, self._block.slopes)) * float(self.most @ self._signal.X.norm(dim=1))

    @cached_property
    def exact(self) -> Tensor:
        """A few unit roundoffs of what a sample sees and of its target; unseen neurons add nothing, shape ``(N,)``."""
        return self._eps * (seen_terms(self._block, self._signal, self._kink_tol) + self._given)

    @cached_property
    def harmless(self) -> bool:
        """Whether it leaves more than half of the digits of targets and outputs."""
        return float(self.exact.norm()) <= math.sqrt(FLOAT64.eps) * self._size

    @property
    def usable(self) -> Tensor:
        """`exact`, or zero where it is not harmless: what cannot be told from rounding then is not called zero."""
        return self.exact if self.harmless else torch.zeros_like(self.exact)


def rounding_of_problem(problem: Problem) -> ResidualRounding:
    """That of the residuals of a squared loss with factor 1, or of the gradient of another loss."""
    if isinstance(problem, LossProblem):
        return _rounding_of_loss(problem)
    targets = (problem.outputs - problem.signal.G).norm(dim=1)
    bias = problem.block.output_bias
    given = targets if bias is None else targets + bias.norm()
    return ResidualRounding(problem.block, problem.signal, problem.kink_tol, given, output_size(problem))


def _rounding_of_loss(problem: LossProblem) -> ResidualRounding:
    """That of the outputs, times the curvature of the loss, and that of the gradient itself."""
    unit = curvature_of_rows(problem)
    own = problem.signal.G.norm(dim=1) / torch.where(unit > 0, unit, 1.0)
    bias = problem.block.output_bias
    given = own if bias is None else own + bias.norm()
    size = float((unit * (problem.outputs.norm(dim=1) + own)).norm())
    return ResidualRounding(problem.block, problem.signal, problem.kink_tol, given, size, unit)


def curvature_of_rows(problem: LossProblem) -> Tensor:
    """A bound on the curvature of the loss in the outputs of every sample, shape ``(N,)``."""
    outputs, curved = problem.outputs, problem.output_loss.curvature
    count = outputs.shape[1]
    if count <= BUDGETS.curvature_probes:
        axes = torch.eye(count).to(outputs)
        products = [curved(outputs, axis.expand_as(outputs)).norm(dim=1) for axis in axes]
        bound: Tensor = torch.stack(products).square().sum(0).sqrt()
        return bound
    # The mean squared length of products with random signs is that of all entries; twice that is hardly exceeded.
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (BUDGETS.curvature_probes, *outputs.shape), generator=generator).to(outputs) * 2 - 1
    squares = torch.stack([curved(outputs, sign).square().sum(1) for sign in signs])
    return 2 * squares.mean(0).sqrt()


def rounding_of_signal(block: ShallowBlock, signal: BlockSignal, kink_tol: float) -> ResidualRounding | None:
    """That of a signal in known units, and nothing else; None, unknown, of any other."""
    if signal.C is not None or signal.unit is None:
        return None
    bias = 0.0 if block.output_bias is None else float(block.output_bias.detach().double().norm())
    given = signal.G.detach().double().norm(dim=1) / signal.unit + bias  # targets are outputs minus that
    return ResidualRounding(block, signal, kink_tol, given, unit=signal.unit)


def output_size(problem: SquaredProblem) -> float:
    """The length of targets or outputs, whichever is larger."""
    outputs, residual = problem.outputs, problem.signal.G
    return max(float((outputs - residual).norm()), float(outputs.norm()))


def seen_terms(block: ShallowBlock, signal: BlockSignal, kink_tol: float) -> Tensor:
    """``||x_k|| sum_i |s(z_ki)| ||w_i|| ||h_i||`` with the larger slope on the kink, shape ``(N,)``."""
    amplitude = block.W.norm(dim=1) * block.H.norm(dim=0)
    steep = max(map(abs, block.slopes))
    terms = [amplitude.new_zeros(0)]
    for chunk in chunks(block, signal, kink_tol):
        slopes = slopes_at(chunk.Z, block.slopes).abs()
        slopes[chunk.kinks.unbind(1)] = steep
        terms.append(chunk.length * (slopes @ amplitude))
    everyone = torch.zeros_like(signal.X[:, 0])
    everyone[signal.X.any(dim=1)] = torch.cat(terms)
    return everyone


def reach(block: ShallowBlock) -> Tensor:
    """``max |s| sum_i ||w_i|| ||h_i||``: the largest output for an input of length 1, shape ``()``."""
    amplitude: Tensor = block.W.norm(dim=1) @ block.H.norm(dim=0)
    return amplitude * max(map(abs, block.slopes))
