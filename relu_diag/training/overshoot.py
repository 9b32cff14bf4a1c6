"""Whether steps overshoot: the curvature of the loss against the rate of the optimizer, in words with a cure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from relu_diag.capture import BlockLocation
from relu_diag.functional import ShallowBlock
from relu_diag.training._sample import sampled
from relu_diag.training.rows import TrainingData

# Rows by which the curvature is measured at most and at least, and rows times weights: about a second.
_ROWS = 4096
_FEWEST = 256
_NUMBERS = 2**25
# Accuracy of the curvature, and size and number of the subspaces it is searched in.
_ACCURACY = 0.01
_SUBSPACE = 12
_SUBSPACES = 10
# Steps ahead at which it is measured too: steps that overshoot hop from side to side, and one side may be less curved.
_AHEAD = 1
# How much more than the bound the product must be: it is known to the accuracy above.
_BEYOND = 1.05
# Share of the largest stable rate that is advised: as the loss falls, its curvature often grows.
_CURED = 0.5
# Steps at a lower rate by which the cure is tried.
_TRIED = 10


@dataclass(frozen=True, slots=True)
class Overshoot:
    """Steps that are too long for the curvature of the loss.

    Steepest descent at a rate is stable along a direction only where the curvature times the rate is below a bound: 2
    without momentum, ``2 (1 + m)`` with it. Adam's steps are measured in the scale that it gives every weight, which
    is taken to stay.

    Attributes:
        rate: Learning rate.
        product: Largest curvature times the rate, a lower bound of it.
        bound: What it must stay below.
        fall: Fraction by which ten steps at a stable rate were seen to lower the loss.

    Example:
        >>> print(Overshoot(rate=0.5, product=3.1, bound=2.0, fall=0.2))
        steps overshoot: the rate 0.5 is too high (sharpness x rate = 3.1, stable below 2); lower it to 0.16
    """

    rate: float
    product: float
    bound: float
    fall: float

    def __str__(self) -> str:
        return (
            f"steps overshoot: the rate {self.rate:.3g} is too high (sharpness x rate = {self.product:.2g}, stable "
            f"below {self.bound:.2g}); lower it to {_CURED * self.rate * self.bound / self.product:.2g}"
        )


def overshoot_of(
    trainer: Trainer, module: LightningModule, location: BlockLocation | None, data: TrainingData, drop: float
) -> Overshoot | None:
    """Whether the steps on a block overshoot where its loss stands: their rate is beyond what its curvature allows.

    Args:
        trainer: The trainer, fitting.
        module: Its module.
        location: The place of the block; None: it has no two Linear layers.
        data: What the block is trained on.
        drop: Fraction by which ten steps at a stable rate must lower the loss for the rate to be what holds it up.

    Returns:
        The fact; None where the steps are stable, or the optimizer is neither SGD nor Adam, or gradients are clipped.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> data = TrainingData(torch.ones(1, 1), SquaredError(torch.ones(1, 1)))
        >>> overshoot_of(Trainer(logger=False), LightningModule(), location=None, data=data, drop=0.01) is None
        True
    """
    if location is None or trainer.gradient_clip_val or not module.automatic_optimization:
        return None
    layers = location.linears(module)
    numbers = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    rows = min(_ROWS, _NUMBERS // numbers)
    if rows < min(_FEWEST, len(data.X)):
        return None
    some = sampled(data, rows)
    parts = _Parts(layers, location.slopes, replace(some, loss=some.loss.double()))
    pace = _pace_of(trainer.optimizers, parts.parameters)
    if pace is None:
        return None
    parts = replace(parts, decay=pace.decay)
    start = parts.weights()
    product = pace.rate * max(_sharpness(parts, at, pace.scale) for at in _visited(parts, start, pace))
    if not product > _BEYOND * pace.bound:
        return None
    fall = _fall(parts, start, pace.scale, pace.rate / product)
    return Overshoot(pace.rate, product, pace.bound, fall) if fall > drop else None


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """The loss of a block as a function of the weights that are trained, float64."""

    layers: tuple[nn.Linear, nn.Linear]
    slopes: tuple[float, float]
    data: TrainingData
    decay: float = 0.0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [one for layer in self.layers for one in layer.parameters() if one.requires_grad]

    def weights(self) -> Tensor:
        """All of them below each other, shape ``(n,)``."""
        return torch.cat([one.detach().double().flatten() for one in self.parameters])

    def loss(self, flat: Tensor) -> Tensor:
        """The loss with its decay at other weights ``(n,)``."""
        sizes = [one.numel() for one in self.parameters]
        parts = zip(self.parameters, torch.split(flat, sizes), strict=True)
        moved = {id(one): part.reshape(one.shape) for one, part in parts}
        W, b, H, bias = (
            None if one is None else moved.get(id(one), one.detach().double())
            for layer in self.layers
            for one in (layer.weight, layer.bias)
        )
        assert W is not None
        assert H is not None
        W = W if b is None else torch.cat([W, b[:, None]], dim=1)
        block = ShallowBlock(W, H, self.slopes, bias)
        return self.data.loss(block(self.data.X.double())) + self.decay / 2 * flat.square().sum()

    def gradient(self, flat: Tensor, graph: bool = False) -> tuple[Tensor, Tensor]:
        """The gradient ``(n,)`` at weights, and the leaf it was taken at."""
        leaf = flat.detach().clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.loss(leaf), leaf, create_graph=graph)
        return gradient, leaf


@dataclass(frozen=True, slots=True, eq=False)
class _Pace:
    """How an optimizer steps, and below which bound of curvature times rate its steps are stable.

    Its velocity is ``momentum * velocity + push * gradient``, a step ``rate * velocity / scale``; both ``(n,)``.
    """

    rate: float
    bound: float
    decay: float
    momentum: float
    push: float
    velocity: Tensor
    scale: Tensor


def _pace_of(optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter]) -> _Pace | None:
    """The pace at which all of the parameters are stepped; None where there is no one pace, or it is not known."""
    own = {id(one) for one in parameters}
    found = [
        (optimizer, group)
        for optimizer in optimizers
        for group in optimizer.param_groups
        if any(id(one) in own for one in group["params"])
    ]
    if len(found) != 1 or not own <= {id(one) for one in found[0][1]["params"]}:
        return None
    optimizer, group = found[0]
    if group.get("maximize"):
        return None
    if isinstance(optimizer, SGD):
        return _pace_of_sgd(optimizer, group, parameters)
    return _pace_of_adam(optimizer, group, parameters) if isinstance(optimizer, Adam) else None


def _pace_of_sgd(optimizer: SGD, group: dict[str, Any], parameters: Sequence[nn.Parameter]) -> _Pace:
    """That of SGD: a step of momentum is stable while no root of its characteristic polynomial is below -1."""
    momentum = float(group["momentum"])
    push = 1 - (float(group["dampening"]) if momentum else 0.0)
    pushed = 1 + 2 * momentum if group["nesterov"] else push
    velocity = _flat([optimizer.state.get(one, {}).get("momentum_buffer") for one in parameters], parameters)
    bound = 2 * (1 + momentum) / pushed if pushed > 0 else math.inf
    decay = float(group["weight_decay"])
    return _Pace(float(group["lr"]), bound, decay, momentum, push, velocity, torch.ones_like(velocity))


def _pace_of_adam(optimizer: Adam, group: dict[str, Any], parameters: Sequence[nn.Parameter]) -> _Pace | None:
    """That of Adam, its scales taken to stay: momentum with as much dampening."""
    states = [optimizer.state.get(one, {}) for one in parameters]
    if any("exp_avg_sq" not in state for state in states):
        return None
    momentum, forgets = (float(beta) for beta in group["betas"])
    squares = _flat([state.get("max_exp_avg_sq", state["exp_avg_sq"]) for state in states], parameters)
    seen = 1 - forgets ** float(states[0]["step"])
    scale = (squares / seen).sqrt() + float(group["eps"])
    decay = 0.0 if group.get("decoupled_weight_decay") else float(group["weight_decay"])
    velocity = _flat([state["exp_avg"] for state in states], parameters)
    bound = 2 * (1 + momentum) / (1 - momentum)
    return _Pace(float(group["lr"]), bound, decay, momentum, 1 - momentum, velocity, scale)


def _flat(parts: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """One number for every weight, zero where there is none, shape ``(n,)``, float64."""
    known = [torch.zeros_like(one) if part is None else part for part, one in zip(parts, parameters, strict=True)]
    return torch.cat([one.detach().double().flatten() for one in known])


def _visited(parts: _Parts, start: Tensor, pace: _Pace) -> Iterator[Tensor]:
    """The weights, and those at which the next steps arrive, shape ``(n,)`` each."""
    at, velocity = start, pace.velocity
    yield at
    for _ in range(_AHEAD):
        velocity = pace.momentum * velocity + pace.push * parts.gradient(at)[0]
        at = at - pace.rate * velocity / pace.scale
        yield at


def _sharpness(parts: _Parts, start: Tensor, scale: Tensor) -> float:
    """The largest curvature of the loss in units of a scale ``(n,)``, from below."""
    count = len(start)
    if count < 3:
        return 0.0
    gradient, leaf = parts.gradient(start, graph=True)
    root = scale.sqrt()

    def product(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        vector = torch.as_tensor(numbers, dtype=torch.float64).reshape(-1).to(leaf.device) / root
        (image,) = torch.autograd.grad(gradient, leaf, vector, retain_graph=True)
        curved: NDArray[np.float64] = (image / root).cpu().numpy()
        return curved

    first = np.random.default_rng(0).standard_normal(count)
    settings: dict[str, Any] = {"k": 1, "which": "LA", "v0": first, "ncv": min(count, _SUBSPACE), "tol": _ACCURACY}
    operator = LinearOperator((count, count), matvec=product, dtype=np.float64)
    try:
        (largest,) = eigsh(operator, maxiter=_SUBSPACES, return_eigenvectors=False, **settings)
    except ArpackNoConvergence as error:
        largest = max(error.eigenvalues, default=0.0)
    return float(largest)


def _fall(parts: _Parts, start: Tensor, scale: Tensor, rate: float) -> float:
    """Fraction by which some steps at a rate lower the loss."""
    flat = start
    for _ in range(_TRIED):
        flat = flat - rate * parts.gradient(flat)[0] / scale
    before = float(parts.loss(start))
    return (before - float(parts.loss(flat))) / abs(before) if before else 0.0
