"""When a plateau ends: the growth of small neurons while the residuals stand still (theory of early alignment).

With the loss gradient ``e_k`` at the outputs frozen, the neurons do not know of each other. Between kinks each follows
``w' = -M^T h, h' = -M w`` with ``M_jd = sum_k s_k e_kj x_kd``, so ``w.v + h.o`` grows at a singular value of ``M``.
Along an extremal direction (`extremal_directions`) that rate is ``gain = ||D(v)||``, and a balanced neuron of amplitude
``A = ||w|| ||h||`` lowers the loss by ``gain A``, which grows like ``exp(2 gain t)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from relu_diag.functional.block import Reduction, ShallowBlock
from relu_diag.functional.dynamics._frozen import Growth, small_growth
from relu_diag.functional.dynamics._splitting import splitting_growth
from relu_diag.functional.local import NeuronStates, neuron_states
from relu_diag.functional.problem import SquaredProblem, squared_problem
from relu_diag.functional.tolerances import derivative_tolerance


@dataclass(frozen=True, slots=True, eq=False)
class EscapeForecast:
    """When a plateau ends, and who ends it.

    Attributes:
        steps: Gradient steps from now until the loss has dropped by the fraction asked for; inf if ``lr`` is 0.
        time: The same in time: of plain descent ``lr`` times steps; if ``lr`` is 0 the limit of that, of gradient flow,
            as in the forecasts of `PlateauMonitor`, whose optimizer may be another.
        gain: Growth rate of both weights of the neurons that end it, per unit of time.
        amplitude: Their ``sum_i ||w_i|| ||h_i||``, counting only what grows: ``((w.v + h.o) / 2)^2`` for a neuron on
            its way to ``(v, o)``, which is the whole of a balanced neuron that has arrived.
        neurons: These neurons, long, shape ``(n,)``.
    """

    steps: float
    time: float
    gain: float
    amplitude: float
    neurons: Tensor

    def __str__(self) -> str:
        when = (
            f"escape in ~{self.steps:,.0f} steps" if math.isfinite(self.steps) else "no escape at a learning rate of 0"
        )
        return (
            f"{when}: {len(self.neurons)} neurons of amplitude {self.amplitude:.3g} grow at rate {self.gain:.3g}, "
            f"time {self.time:.4g}"
        )


def forecast_escape(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor,
    lr: float,
    drop: float = 0.01,
    reduction: Reduction = "mean",
    small: float = 0.01,
) -> EscapeForecast | None:
    """When plain gradient descent leaves the plateau it is on, from one moment of the plateau.

    ``steps = ln(drop L / (gain amplitude)) / (2 ln(1 + lr gain))`` with the present loss ``L``, once the small living
    neurons have gathered at extremal directions; until then they are followed. Grown neurons and with them the
    residuals are held fixed. With several outputs a grown group may also come apart; the earlier end counts.

    SGD with momentum mu moves like plain descent at the rate ``lr / (1 - mu)``, up to ``lr gain mu / (1 - mu)^2`` of
    the steps: pass that rate (`PlateauMonitor` counts exactly). A loss that slides meanwhile, because grown neurons
    still move, is not foreseen.

    Source: Maennel et al. 2018; Wu et al., section 4.2.

    Args:
        block: The network.
        X: All inputs of the loss, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        lr: Learning rate; at 0 the escape never comes.
        drop: The plateau has ended when the loss is lower by this fraction.
        reduction: "mean", "sum" or "half_sum".
        small: Largest contribution of a small group of neurons, as a fraction of the target scale.

    Returns:
        The forecast; None where nothing grows: no small living neuron that any direction attracts, or no residual left.

    Raises:
        ValueError: If the learning rate is negative or not finite, or the drop is not in (0, 1).

    Example:
        >>> import torch
        >>> X, Y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0], [4.0]])
        >>> start = ShallowBlock(W=torch.tensor([[6e-6, 8e-6]]), H=torch.tensor([[1e-5]]))
        >>> print(forecast_escape(start, X, Y, lr=0.01))
        escape in ~198 steps: 1 neurons of amplitude 1e-10 grow at rate 5, time 1.982
    """
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(
            f"`lr` must be finite and not negative; got {lr!r}. Pass the optimizer's present learning rate."
        )
    if not 0 < drop < 1:
        raise ValueError(f"`drop` is a fraction of the loss, in (0, 1); got {drop!r}.")
    problem = squared_problem(block, X, Y, reduction)
    residual, targets = problem.signal.G, Y.detach().double()
    if float(residual.norm()) <= derivative_tolerance(None, None, block.W.dtype) * float(targets.norm()):
        return None
    states = neuron_states(problem.block, problem.signal.X, targets, small=small)
    growths = _growths(problem, states, drop * float(problem.loss))
    if not growths:
        return None
    first = min(growths, key=lambda growth: growth.time)
    # A step of descent multiplies by 1 + lr gain, a little less than flow in the same time.
    slower = lr * first.gain / math.log1p(lr * first.gain) if lr * first.gain > 0 else 1.0
    steps = first.time * slower / lr if lr > 0 else math.inf
    return EscapeForecast(steps, first.time * slower, first.gain, first.amplitude, first.neurons)


def _growths(problem: SquaredProblem, states: NeuronStates, target: float) -> list[Growth]:
    """All that grows: the small living neurons, and the differences within grown groups."""
    block, signal = problem.block, problem.loss_signal
    loud = problem.kink_tol * float(signal.G.norm(dim=1) @ signal.X.norm(dim=1))
    found = [small_growth(block, signal, states.small_living, target, loud)]
    for group in range(len(states.group_amplitude)):
        members = (states.group == group) & ~states.small_living
        found.append(splitting_growth(block, signal, members.nonzero().squeeze(1), target, loud))
    return [growth for growth in found if growth is not None]
