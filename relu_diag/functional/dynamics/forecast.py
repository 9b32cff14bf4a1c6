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
from relu_diag.functional.dynamics._escape import Plateau, escape
from relu_diag.functional.dynamics._system import Squares, System
from relu_diag.functional.problem import squared_problem
from relu_diag.functional.tables import html_table, summary_of
from relu_diag.functional.tolerances import FLOAT64, derivative_tolerance


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
        drop: The fraction asked for.
        reached: The fraction by which the loss drops: less than that where all growth ends before. Steps and time are
            inf then, and the neurons are the last that grow.

    Example:
        >>> import torch
        >>> X = torch.eye(2, dtype=torch.float64)
        >>> small = ShallowBlock(1e-3 * X[:1], torch.tensor([[1e-3]]).double())
        >>> forecast = forecast_escape(small, X, X[:, :1], lr=0.1)
        >>> forecast.neurons.tolist(), forecast.drop
        ([0], 0.01)
    """

    steps: float
    time: float
    gain: float
    amplitude: float
    neurons: Tensor
    drop: float
    reached: float

    def __str__(self) -> str:
        growth = f"{len(self.neurons)} neurons of amplitude {self.amplitude:.3g} grow at rate {self.gain:.3g}"
        if self.reached < self.drop:
            return f"no escape by {self.drop:.3g} of the loss, at most {self.reached:.3g}: {growth}"
        if math.isfinite(self.steps):
            return f"escape in ~{self.steps:,.0f} steps: {growth}, time {self.time:.4g}"
        return f"no escape at a learning rate of 0: {growth}, time {self.time:.4g}"

    def summary(self) -> str:
        """The forecast as a table.

        Returns:
            Text, one fact a line.
        """
        rows = [
            ("steps", f"{self.steps:,.0f}"),
            ("time", f"{self.time:.4g}"),
            ("growth rate", f"{self.gain:.3g}"),
            ("amplitude", f"{self.amplitude:.3g}"),
            ("growing neurons", str(len(self.neurons))),
            ("drop asked for", f"{self.drop:.3g} of the loss"),
            ("drop reached", f"{self.reached:.3g} of the loss"),
        ]
        return summary_of(rows)

    def _repr_html_(self) -> str:
        return html_table(self.summary())


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
    neurons have gathered at extremal directions; until then they are followed from kink to kink, with the residuals
    held fixed. With several outputs a grown group may also come apart; the earlier end counts. Where the residuals do
    not stand still, or the loss drops by less than to first order, the gradient flow of the whole network is followed.

    SGD with momentum mu moves like plain descent at the rate ``lr / (1 - mu)``, up to ``lr gain mu / (1 - mu)^2`` of
    the steps: pass that rate (`PlateauMonitor` counts exactly).

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
        The forecast, with infinite steps where all growth ends before the drop is reached; None where nothing grows: no
        small living neuron that any direction attracts, or no residual left.

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
    objective = Squares((problem.outputs - residual).cpu().numpy(), problem.factor)
    found = escape(
        Plateau(
            block=problem.block,
            X=problem.signal.X,
            targets=targets,
            system=System(problem.signal.X.cpu().numpy(), block.slopes, objective, block.output_bias is not None, 0.0),
            drop=drop * float(problem.loss),
            small=small,
            lr=lr,
            loud=max(FLOAT64.derivative, problem.kink_tol),
        )
    )
    if found is None:
        return None
    growth = found.growth
    steps = float(found.time) / lr if lr > 0 else math.inf
    time = float(found.time) if steps >= 1 else 0.0
    steps = steps if steps >= 1 else 0.0
    reached = float(found.drop) / float(problem.loss)
    return EscapeForecast(steps, time, growth.gain, growth.amplitude, growth.neurons, drop, reached)
