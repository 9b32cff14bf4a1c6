"""Whether a loss that stands could fall, and what holds it: steps that overshoot, short steps, or noise of batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from relu_diag.capture import BlockLocation
from relu_diag.functional import ShallowBlock
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.tables import counted
from relu_diag.training._pace_of_weights import WeightPace, pace_of_weights, unknown_pace
from relu_diag.training._sample import sampled
from relu_diag.training._training_data import TrainingData

# Rows by which the curvature is measured at most and at least, and rows times weights: about a second.
_ROWS = 4096
_FEWEST = 256
_NUMBERS = 2**25
# Accuracy of the curvature, and size and number of the subspaces it is searched in.
_ACCURACY = 0.01
_SUBSPACE = 12
_SUBSPACES = 10
# Rounding of the weights between their layers and the block.
_SAME = 1e-4
# Steps ahead at which it is measured too: steps that overshoot hop from side to side, and one side may be less curved.
_AHEAD = 1
# How much more than the bound the product must be: it is known to the accuracy above.
_BEYOND = 1.05
# Share of the largest stable rate that is advised: as the loss falls, its curvature often grows.
_CURED = 0.5
# Curvature times rate, momentum counted, below which steps are short.
_SHORT = 0.05
# Steps at a stable rate that are tried.
_TRIED = 10
# Share of a fall in the first half of these steps that makes it one that slows down.
_MOST = 0.6
# The same of one that keeps its pace: leaving a saddle, a fall grows.
_EVEN = 0.5


@dataclass(frozen=True, slots=True)
class Descent:
    """How far the loss of a block could fall at once, and what the steps of its optimizer are against its curvature.

    Steepest descent at a rate is stable along a direction only where the curvature times the rate is below a bound: 2
    without momentum, ``2 (1 + m)`` with it. Adam's steps are measured in the scale that it gives every weight, which
    is taken to stay, and decay is part of the loss.

    Attributes:
        fall: Fraction by which ten steps on the data at a stable rate were seen to lower the loss.
        rate: Learning rate; 0 where it is not known how the optimizer steps.
        product: Largest curvature times the rate, a lower bound of it.
        bound: What it must stay below.
        speed: What momentum multiplies the rate by.
        whole: Whether every batch is the whole data set.
        early: Share of the fall that came in the first half of the steps.
        samples: Number of samples of the data; 0 where they are all of them.
        slows: Whether most of the fall came in the first half of the steps; leaving a saddle, a loss falls ever faster.

    Example:
        >>> Descent(fall=0.2, rate=0.5, product=3.1, bound=2.0).holds(drop=0.01)
        'steps overshoot: the rate 0.5 is too high (sharpness x rate = 3.1, stable below 2); lower it to 0.16'
        >>> Descent(fall=0.03, rate=0.1, product=0.4, bound=2.0).holds(drop=0.01)
        'the noise of the batches holds the loss: lower the rate 0.1, or take larger batches'
    """

    fall: float
    rate: float = 0.0
    product: float = 0.0
    bound: float = 2.0
    speed: float = 1.0
    whole: bool = False
    slows: bool = False
    early: float = 0.0
    samples: int = 0

    @property
    def overshoots(self) -> bool:
        """Whether the steps of the optimizer are longer than the curvature lets them be."""
        return self.product > _BEYOND * self.bound

    @property
    def is_taken(self) -> bool:
        """Whether the optimizer takes it: it grows no faster, and steps are neither too long nor too short for it."""
        return self.early >= _EVEN and not self.overshoots and self.product * self.speed >= _SHORT

    def holds(self, drop: float) -> str:
        """What holds a loss that stands.

        Args:
            drop: Fraction by which it must be able to fall.

        Returns:
            It, with a cure, in words; empty where the loss cannot fall that much at once, or nothing is known.
        """
        if self.fall <= drop or not self.rate:
            return ""
        if self.overshoots:
            return (
                f"steps overshoot: the rate {self.rate:.3g} is too high (sharpness x rate = {self.product:.2g}, stable "
                f"below {self.bound:.2g}); lower it to {_CURED * self.rate * self.bound / self.product:.2g}"
            )
        if self.product * self.speed < _SHORT:
            return f"steps are short: the rate {self.rate:.3g} is low (sharpness x rate = {self.product:.2g}); raise it"
        if self.whole:
            return ""
        return f"the noise of the batches holds the loss: lower the rate {self.rate:.3g}, or take larger batches"

    def __str__(self) -> str:
        data = counted(self.samples, "sample") if self.samples else "all data"
        return f"{_TRIED} steps of descent on {data} lower the loss by {self.fall:.1%}"


def descent_of(
    trainer: Trainer,
    module: LightningModule,
    location: BlockLocation | None,
    block: ShallowBlock,
    data: TrainingData,
    whole: bool = False,
) -> Descent | None:
    """How far the loss of a block could fall at once, and how its optimizer steps.

    Args:
        trainer: The trainer, fitting.
        module: Its module.
        location: The place of the block; None: it has no two Linear layers.
        block: The block.
        data: What the block is trained on.
        whole: Whether every batch is the whole data set.

    Returns:
        The descent; None where the block is too large to measure it, is stepped at more than one rate, is more than its
        two layers, or curves too little for it.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> data = TrainingData(torch.ones(1, 1), SquaredError(torch.ones(1, 1)))
        >>> block = ShallowBlock(W=torch.ones(2, 1), H=torch.ones(1, 2))
        >>> descent_of(Trainer(logger=False), LightningModule(), None, block, data) is None
        True
    """
    if location is None or not data.loss.smooth or block.W.device.type == "mps":  # which has no float64
        return None
    layers = location.linears(module)
    numbers = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    rows = min(_ROWS, _NUMBERS // numbers)
    if rows < min(_FEWEST, len(data.X)):
        return None
    tried_on = sampled(data, rows)
    parts = _Parts(layers, location.slopes, tried_on)
    if not parts.make(block):
        return None
    known = module.automatic_optimization and not trainer.gradient_clip_val
    pace = pace_of_weights(trainer.optimizers, parts.parameters) if known else unknown_pace(parts.parameters)
    if pace is None or len(pace.scale) < _SUBSPACE:
        return None
    start = parts.weights()
    sharpness = max(_sharpness(parts, at, pace) for at in _visited(parts, start, pace))
    if not sharpness > 0:
        return None
    half, fall = _falls(parts, start, pace, 1 / sharpness)
    if not 0 <= fall < math.inf:  # beyond the range of the curvature, which says nothing of the loss
        return None
    speed = pace.push / (1 - pace.momentum) if pace.momentum < 1 else 1.0
    product = pace.rate * sharpness
    early = half / fall if fall > 0 else 0.0
    return Descent(
        fall=fall,
        rate=pace.rate,
        product=product,
        bound=pace.bound,
        speed=speed,
        whole=whole,
        slows=half > _MOST * fall,
        early=early,
        samples=0 if tried_on.complete else len(tried_on.X),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """The loss of a block as a function of the weights that are trained, float64."""

    layers: tuple[nn.Linear, nn.Linear]
    slopes: tuple[float, float]
    data: TrainingData

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [one for layer in self.layers for one in layer.parameters() if one.requires_grad]

    def make(self, block: ShallowBlock) -> bool:
        """Whether the layers are all of a block: no norm is folded into them, and no weight is computed."""
        here = self.block(self.weights())
        plain = all(isinstance(layer.weight, nn.Parameter) for layer in self.layers)
        return plain and all(
            one.shape == other.shape and torch.allclose(one, other.to(one), rtol=_SAME)
            for one, other in ((here.W, block.W), (here.H, block.H))
        )

    def weights(self) -> Tensor:
        """All of them below each other, shape ``(n,)``."""
        return torch.cat([one.detach().double().flatten() for one in self.parameters])

    def block(self, flat: Tensor) -> ShallowBlock:
        """The block at other weights ``(n,)``."""
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
        return ShallowBlock(W, H, self.slopes, bias)

    def loss(self, flat: Tensor, pace: WeightPace) -> Tensor:
        """The loss with its decay at other weights ``(n,)``."""
        loss: Loss = self.data.loss.double()
        return loss(self.block(flat)(self.data.X.double())) + (pace.decay * flat.square()).sum() / 2

    def gradient(self, flat: Tensor, pace: WeightPace, graph: bool = False) -> tuple[Tensor, Tensor]:
        """The gradient ``(n,)`` at weights, and the leaf it was taken at."""
        leaf = flat.detach().clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.loss(leaf, pace), leaf, create_graph=graph)
        return gradient, leaf


def _visited(parts: _Parts, start: Tensor, pace: WeightPace) -> Iterator[Tensor]:
    """The weights, and those at which the next steps arrive, shape ``(n,)`` each."""
    at, velocity = start, pace.velocity
    yield at
    for _ in range(_AHEAD):
        velocity = pace.momentum * velocity + pace.push * parts.gradient(at, pace)[0]
        at = at - pace.rate * velocity / pace.scale
        yield at


def _sharpness(parts: _Parts, start: Tensor, pace: WeightPace) -> float:
    """The largest curvature of the loss in the scale of a pace, from below."""
    count = len(start)
    gradient, leaf = parts.gradient(start, pace, graph=True)
    if not bool(gradient.isfinite().all()):
        return 0.0
    root = pace.scale.sqrt()

    def product(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        vector = torch.as_tensor(numbers, dtype=torch.float64).reshape(-1).to(leaf.device) / root
        (image,) = torch.autograd.grad(gradient, leaf, vector, retain_graph=True)
        curved: NDArray[np.float64] = (image / root).cpu().numpy()
        return curved

    first = np.random.default_rng(0).standard_normal(count)
    settings: dict[str, Any] = {"k": 1, "which": "LA", "v0": first, "ncv": _SUBSPACE, "tol": _ACCURACY}
    operator = LinearOperator((count, count), matvec=product, dtype=np.float64)
    try:
        (largest,) = eigsh(operator, maxiter=_SUBSPACES, return_eigenvectors=False, **settings)
    except ArpackNoConvergence as error:
        largest = max(error.eigenvalues, default=0.0)
    return float(largest)


def _falls(parts: _Parts, start: Tensor, pace: WeightPace, rate: float) -> list[float]:
    """Fractions by which half of some steps at a rate, and all of them, lower the loss."""
    before = float(parts.loss(start, pace))
    falls = []
    flat = start
    for number in range(1, _TRIED + 1):
        flat = flat - rate * parts.gradient(flat, pace)[0] / pace.scale
        if number in {_TRIED // 2, _TRIED}:
            falls.append((before - float(parts.loss(flat, pace))) / abs(before) if before else 0.0)
    return falls
