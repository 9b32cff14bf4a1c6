"""When a plateau ends: the growth of small neurons while the residuals stand still (theory of early alignment).

With the loss gradient ``e_k`` at the outputs frozen, the neurons do not know of each other. Between kinks each follows
``w' = -M^T h, h' = -M w`` with ``M_jd = sum_k s_k e_kj x_kd``, so ``w.v + h.o`` grows at a singular value of ``M``.
Along an extremal direction (`extremal_directions`) that rate is ``gain = ||D(v)||``, and a balanced neuron of amplitude
``A = ||w|| ||h||`` lowers the loss by ``gain A``, which grows like ``exp(2 gain t)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from relu_diag.functional._checks import is_number
from relu_diag.functional.block import Reduction, ShallowBlock
from relu_diag.functional.dynamics._escape import Plateau, escape
from relu_diag.functional.dynamics._system import Objective, OfOutputs, Squares, System
from relu_diag.functional.local import target_scale
from relu_diag.functional.output_loss import AbsoluteError, Huber, Loss, SquaredError
from relu_diag.functional.problem import LossProblem, Problem, loss_problem, squared_problem
from relu_diag.functional.tables import counted, html_table, summary_of
from relu_diag.functional.tolerances import FLOAT64, derivative_tolerance
from relu_diag.functional.weight_decay import WeightDecay, as_weight_decay


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
        decided: False where the network was followed neither to the drop nor to its rest: descent leaps to and fro for
            long, or meets too many kinks. Steps and time are inf, and `reached` is how far it was followed.

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
    decided: bool = True

    def __str__(self) -> str:
        many = counted(len(self.neurons), "neuron")
        growth = f"{many} of amplitude {self.amplitude:.3g}, growth rate {self.gain:.3g}"
        if not self.decided:
            return f"not decided when the loss drops by {self.drop:.3g}, followed to {self.reached:.3g}: {growth}"
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
    Y: Tensor | Loss,
    lr: float,
    drop: float = 0.01,
    reduction: Reduction = "mean",
    small: float = 0.01,
    weight_decay: float | WeightDecay = 0.0,
) -> EscapeForecast | None:
    """When plain gradient descent leaves the plateau it is on, from one moment of the plateau.

    ``steps = ln(drop L / (gain amplitude)) / (2 ln(1 + lr gain))`` with the present loss ``L``, once the small
    living neurons have gathered at extremal directions; until then they are followed from kink to kink, with the
    residuals held fixed. With several outputs a grown group may also come apart; the earlier end counts. Where the
    residuals do not stand still, or the loss drops by less than to first order, the whole network is followed: a small
    one on few samples step by step and in exact leaps from kink to kink, a larger one by its gradient flow. Where the
    loss leaps to and fro across the drop, or descent overshoots ever further, the forecast is not decided.

    SGD with momentum mu moves like plain descent at the rate ``lr / (1 - mu)``, up to ``lr gain mu / (1 - mu)^2`` of
    the steps: pass that rate (`PlateauMonitor` counts exactly).

    Source: Maennel et al. 2018; Wu et al., section 4.2.

    Args:
        block: The network.
        X: All inputs of the loss, shape ``(N, d)``.
        Y: Targets of a squared error, shape ``(N, J)``, or any loss of the outputs.
        lr: Learning rate; at 0 the escape never comes.
        drop: The plateau has ended when the loss is lower by this fraction.
        reduction: "mean", "sum" or "half_sum" of the squared error.
        small: Largest contribution of a small group of neurons, as a fraction of the target scale, or of a logit's 1.
        weight_decay: Weight decay of SGD, one number or one for each part. The drop is one of the loss without it.

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
        escape in ~198 steps: 1 neuron of amplitude 1e-10, growth rate 5, time 1.982
    """
    if not (is_number(lr) and math.isfinite(lr) and lr >= 0):
        raise ValueError(
            f"`lr` must be finite and not negative; got {lr!r}. Pass the optimizer's present learning rate."
        )
    if not (is_number(drop) and 0 < drop < 1):
        raise ValueError(f"`drop` is a fraction of the loss, in (0, 1); got {drop!r}.")
    problem = loss_problem(block, X, Y) if isinstance(Y, Loss) else squared_problem(block, X, Y, reduction)
    if _fitted(problem, block):
        return None
    system = System(
        X=problem.signal.X.cpu().numpy(),
        slopes=block.slopes,
        objective=_objective(problem),
        bias_moves=block.output_bias is not None,
        decay=as_weight_decay(weight_decay),
    )
    # A descent at too high a rate overflows, and is seen to.
    with np.errstate(over="ignore", invalid="ignore"):
        found = escape(
            Plateau(
                block=problem.block,
                X=problem.signal.X,
                scale=_scale(Y),
                system=system,
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
    return EscapeForecast(steps, time, growth.gain, growth.amplitude, growth.neurons, drop, reached, found.decided)


def _fitted(problem: Problem, block: ShallowBlock) -> bool:
    """Whether the residuals of a squared error are what training leaves of them, or a loss has no slope at all."""
    G = problem.signal.G
    if isinstance(problem, LossProblem):
        return not bool(G.any())
    targets = problem.outputs - G
    return float(G.norm()) <= derivative_tolerance(None, None, block.W.dtype) * float(targets.norm())


def _objective(problem: Problem) -> Objective:
    """The loss as a function of arrays."""
    if isinstance(problem, LossProblem):
        return OfOutputs(problem.output_loss.to("cpu"))
    return Squares((problem.outputs - problem.signal.G).cpu().numpy(), problem.factor)


def _scale(Y: Tensor | Loss) -> float:
    """What a contribution to the outputs is small against: targets that are outputs, or 1, the unit of a logit."""
    if isinstance(Y, SquaredError | Huber | AbsoluteError):
        return target_scale(Y.Y)
    return 1.0 if isinstance(Y, Loss) else target_scale(Y.detach().double())
