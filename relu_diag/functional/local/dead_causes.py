"""Why neurons are dead, and what would cure it; how many are dead before training begins."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor

from relu_diag.functional._checks import is_number
from relu_diag.functional.block import BlockSignal, ShallowBlock, check_fit, chunk_rows, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local.neurons import repeated_neurons
from relu_diag.functional.local.sums import neuron_sums
from relu_diag.functional.tables import counted
from relu_diag.functional.tolerances import derivative_tolerance, kink_tolerance

_CURES = {
    "offset": "centre the inputs of the block, or add their mean times its input weights to its bias",
    "bias": "set its bias to zero",
    "price": "lower the price, or place it where a direction is worth it (extremal_directions with this price)",
    "nothing": "none: its output would gain nothing, and fewer neurons do",
    "duplicate": "add its output weights to those of the neuron it repeats, and place it elsewhere",
    "zero": "give it input weights",
}


@dataclass(frozen=True, slots=True, eq=False)
class DeadCauses:
    """Why each neuron is dead, or superfluous.

    Attributes:
        cause: One word a neuron. "alive". Dead, silent on every sample: "offset", its input weights point against the
            mean of the inputs; "bias", its bias holds it down; "price", were it active, it would bring less than its
            activity costs; "nothing", were it active, no output would gain; "zero", it has no input weights. Alive,
            but along another neuron of more amplitude: "duplicate".
        cure: What would cure it, in words; empty for neurons that are alive.
        gamma: Length of the mean of the inputs over their spread, the root mean square distance from the mean.
        born_dead: Predicted share of dead neurons among those with random input weights and biases as these have.

    Example:
        >>> X = torch.tensor([[1.0, 1.0], [2.0, 1.0]])
        >>> block = ShallowBlock(W=torch.tensor([[-1.0, 0.0], [0.1, -9.0], [1.0, 0.0]]), H=torch.ones(1, 3))
        >>> found = dead_causes(block, BlockSignal(X, G=torch.ones(2, 1)))
        >>> found.cause, found.gamma
        (('offset', 'bias', 'alive'), 3.0)
        >>> print(found)
        3 neurons: 1 offset, 1 bias, 1 alive; gamma 3: 62 % of random neurons are born dead
    """

    cause: tuple[str, ...]
    cure: tuple[str, ...]
    gamma: float
    born_dead: float

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {word}" for word, count in Counter(self.cause).items())
        born = f"gamma {self.gamma:.3g}: {self.born_dead:.0%} of random neurons are born dead".replace("%", " %")
        return f"{counted(len(self.cause), 'neuron')}: {counts}; {born}"


def dead_causes(block: ShallowBlock, signal: BlockSignal, price: float = 0.0) -> DeadCauses:
    """Why each neuron of a block is dead, and what would cure it.

    A neuron is active on a sample where ``w . (x_k - mean) + w . mean + b > 0``. Of the two offsets the one without
    which it would be active is named, the larger where that is either or neither. Without both it is active on some
    sample; if the outputs gain nothing there, or less than the price of this activity, that is the cause.

    Args:
        block: The network. A last column of ones in the inputs marks the hidden bias.
        signal: Its signal. What counts as dead is silent on its samples.
        price: Loss per unit of mean activation of one neuron, as of an L1 penalty.

    Returns:
        The causes.

    Raises:
        ValueError: If the price is negative or not finite.

    Example:
        >>> X = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
        >>> block = ShallowBlock(W=torch.tensor([[1.0, -2.0]]), H=torch.ones(1, 1))
        >>> signal = BlockSignal(X, G=torch.tensor([[-1.0], [0.0]]))
        >>> dead_causes(block, signal).cause, dead_causes(block, signal, price=3.0).cause
        (('bias',), ('price',))
    """
    if not (is_number(price) and math.isfinite(price) and price >= 0):
        raise ValueError(f"`price` is loss per unit of mean activation, finite and not negative; got {price!r}.")
    check_fit(block, signal)
    inputs = _Inputs.of(block, signal.X)
    sums = neuron_sums(block, signal)
    side = 1.0 if block.slopes[0] == 0 else -1.0
    top = sums.z_max if side > 0 else -sums.z_min
    reach = kink_tolerance(None, block.W.dtype) * float(signal.X.double().norm(dim=1).max())
    silent = (top <= reach * block.W.detach().double().norm(dim=1)) & (0.0 in block.slopes)
    repeated = repeated_neurons(block, ~silent) >= 0
    causes = ["duplicate" if one else "alive" for one in repeated.tolist()]
    dead = silent.nonzero().squeeze(1)
    if len(dead):
        words = _held_down(inputs, side, top, dead)
        futile = _futile(inputs, block, signal, dead, price)
        for i, word, reason in zip(dead.tolist(), words, futile, strict=True):
            causes[i] = reason or word
    cures = tuple(_CURES.get(word, "") for word in causes)
    return DeadCauses(tuple(causes), cures, inputs.gamma, _born_dead(inputs, block.slopes))


def offset_over_spread(X: Tensor) -> float:
    """How far from zero inputs are: the ``gamma`` of `born_dead_share`.

    Args:
        X: Inputs, shape ``(N, d)``; a last column of ones, the constant of a hidden bias, is left out.

    Returns:
        Length of their mean over their spread, the root mean square distance from the mean.

    Example:
        >>> offset_over_spread(torch.tensor([[1.0, 1.0], [2.0, 1.0]]))
        3.0
    """
    _, mean, spread = _centred(X)
    return _ratio(float(mean.norm()), spread)


def born_dead_share(gamma: float, bias: float = 0.0, samples: int = 1000) -> float:
    """The share of ReLU units with random input weights that are silent on all samples, before any training.

    Along random input weights the centred inputs are nearly Gaussian, of variance 1 in units of ``||w|| spread /
    sqrt(d)``; their mean is ``gamma xi`` with ``xi`` Gaussian over the units. So the share is the mean of
    ``Phi(-gamma xi - bias)^N``: none at ``gamma = 0``, one half where ``gamma`` is large.

    Args:
        gamma: Length of the mean of the inputs over their spread.
        bias: Bias of the units, in units of ``||w|| spread / sqrt(d)``.
        samples: Number of samples ``N``.

    Returns:
        Share of dead units.

    Raises:
        ValueError: If ``gamma`` is negative, or there is no sample.

    Example:
        >>> [round(born_dead_share(gamma), 3) for gamma in (0.0, 1.0, 3.0, 100.0)]
        [0.0, 0.001, 0.142, 0.487]
    """
    if not gamma >= 0 or samples < 1:
        raise ValueError(f"`gamma` must not be negative and `samples` positive; got {gamma!r} and {samples!r}.")
    if math.isinf(gamma):
        return 0.5
    xi = torch.linspace(-BUDGETS.deviations, BUDGETS.deviations, BUDGETS.quantiles, dtype=torch.float64)
    weight = (-xi.square() / 2).exp()
    silent = torch.special.log_ndtr(-gamma * xi - bias).mul(samples).exp()
    return float((weight * silent).sum() / weight.sum())


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """Inputs without the constant column ``(N, d)``, their mean ``(d,)``, and weights and biases, float64."""

    X: Tensor
    mean: Tensor
    W: Tensor
    bias: Tensor
    spread: float

    @classmethod
    def of(cls, block: ShallowBlock, X: Tensor) -> _Inputs:
        """Split the bias off."""
        W = block.W.detach().double()
        rows, mean, spread = _centred(X)
        biased = rows.shape[1] < X.shape[1]
        bias = W[:, -1] if biased else torch.zeros_like(W[:, 0])
        return cls(rows, mean, W[:, :-1] if biased else W, bias, spread)

    @property
    def gamma(self) -> float:
        """Length of the mean over the spread."""
        return _ratio(float(self.mean.norm()), self.spread)


def _centred(X: Tensor) -> tuple[Tensor, Tensor, float]:
    """Inputs without the constant column ``(N, d)``, their mean in float64 ``(d,)``, and their spread."""
    biased = X.shape[1] > 1 and bool((X[:, -1] == 1).all())
    rows = X[:, :-1] if biased else X
    mean = rows.double().mean(dim=0)
    square = sum(float((part.double() - mean).square().sum()) for part in torch.split(rows, BUDGETS.samples_at_once))
    return rows, mean, math.sqrt(square / len(rows))


def _ratio(length: float, spread: float) -> float:
    return length / spread if spread else (math.inf if length else 0.0)


def _held_down(inputs: _Inputs, side: float, top: Tensor, dead: Tensor) -> list[str]:
    """What holds each dead neuron below its kink: "offset", "bias", or "zero" where it has no input weights."""
    offset = side * (inputs.W[dead] @ inputs.mean)
    bias = side * inputs.bias[dead]
    centred = top[dead] - offset - bias  # the largest of the centred pre-activations
    centring_helps = centred + bias > 0
    bias_helps = centred + offset > 0
    by_offset = torch.where(centring_helps == bias_helps, offset <= bias, centring_helps)
    moving = inputs.W[dead].any(dim=1)
    words = torch.where(moving, by_offset.long(), 2).tolist()
    return [("bias", "offset", "zero")[word] for word in words]


def _futile(inputs: _Inputs, block: ShallowBlock, signal: BlockSignal, dead: Tensor, price: float) -> list[str]:
    """For dead neurons, were they active with neither offset: "nothing" to gain, less than the "price", or empty."""
    W = inputs.W[dead]
    outputs = len(block.H)
    D = W.new_zeros(len(dead), outputs)
    terms = W.new_zeros(len(dead))
    activity = W.new_zeros(len(dead))
    rows = chunk_rows(block)
    for X, G in zip(torch.split(inputs.X, rows), torch.split(signal.G, rows), strict=True):
        A = rho((X.double() - inputs.mean) @ W.T, block.slopes)
        D += A.T @ G.double()
        terms += A.abs().T @ G.double().norm(dim=1)
        activity += A.abs().sum(dim=0)
    gain = D.norm(dim=1)
    nothing = gain <= derivative_tolerance(None, None, block.W.dtype) * terms
    costs = price * activity / len(inputs.X) >= gain
    moving = W.any(dim=1)
    words = torch.where(moving, torch.where(nothing, 2, (costs & (price > 0)).long()), 0).tolist()
    return [("", "price", "nothing")[word] for word in words]


def _born_dead(inputs: _Inputs, slopes: tuple[float, float]) -> float:
    """The share of random neurons that are silent on the inputs, for biases as the block has.

    Input weights have any direction alike. Those across the mean are drawn; of the angles with it, on which most
    hangs, each draw takes some that stand for all.
    """
    if 0.0 not in slopes or not inputs.X.any():
        return 0.0
    side = 1.0 if slopes[0] == 0 else -1.0
    d = inputs.X.shape[1]
    draws = BUDGETS.random_units
    scale = inputs.W.norm(dim=1)
    biases = (side * inputs.bias / scale)[scale > 0].sort().values
    at = torch.linspace(0, max(len(biases) - 1, 0), draws, device=biases.device).round().long()
    level = biases[at] if len(biases) else inputs.W.new_zeros(draws)
    length = inputs.mean.norm()
    along = inputs.mean / length if length > 0 else torch.nn.functional.one_hot(torch.tensor(0), d).to(inputs.W)
    generator = torch.Generator().manual_seed(0)
    U = torch.randn(draws, d, generator=generator, dtype=torch.float64).to(inputs.W)
    U = torch.nn.functional.normalize(U - torch.outer(U @ along, along), dim=1)
    # No order of theirs goes with that of the biases.
    mixed = torch.randperm(draws, generator=generator)
    cosines = _cosines(d, BUDGETS.random_angles, draws)[:, mixed].to(inputs.W)
    sines = (1 - cosines.square()).clamp(min=0).sqrt()
    top = torch.full_like(cosines, -torch.inf)
    for part in torch.split(inputs.X, BUDGETS.samples_at_once):
        X = part.double()
        near = X @ along
        far = U @ X.T
        for one, cosine, sine in zip(top, cosines, sines, strict=True):
            torch.maximum(one, (torch.outer(cosine, near) + sine[:, None] * far).amax(dim=1), out=one)
    return float((top + level <= 0).double().mean())


def _cosines(d: int, angles: int, draws: int) -> Tensor:
    """Cosines of the angles of random directions with a given one, evenly by their share ``(angles, draws)``."""
    share = (torch.arange(angles * draws, dtype=torch.float64) + 0.5) / (angles * draws)
    if d == 1:
        return (share - 0.5).sign().reshape(angles, draws)
    half = (d - 1) / 2
    return torch.from_numpy(2 * betaincinv(half, half, share.numpy()) - 1).reshape(angles, draws)
