"""What sums over samples show by chance: slopes that are only noise, and samples that happen to lie on a kink."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from relu_diag.functional.local.sums import NeuronSums
from relu_diag.functional.tolerances import FLOAT64


def slope_noise(sums: NeuronSums) -> Tensor:
    """Standard error of the derivative by each neuron's input weights, if all it consists of is noise.

    The derivative is a sum over samples. Where each of their own derivatives is as likely to point one way as the
    other, its length is about ``sqrt(sum_k ||s(z_ki) c_ki x_k||^2)``, however many samples there are.

    Args:
        sums: Sums over all samples.

    Returns:
        Loss per unit length, float64, shape ``(I,)``.

    Example:
        >>> from relu_diag import BlockSignal, ShallowBlock
        >>> from relu_diag.functional.local import neuron_sums
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> signal = BlockSignal(X=torch.tensor([[1.0, 0.0], [2.0, 0.0]]), G=torch.tensor([[3.0], [-2.0]]))
        >>> slope_noise(neuron_sums(block, signal)).tolist()  # of 3 and -4
        [5.0]
    """
    return sums.squares.sqrt()


def slope_to_noise(slope: Tensor, noise: Tensor) -> Tensor:
    """How many standard errors a slope is from zero: about 1 where only noise is there.

    Args:
        slope: Slopes, loss per unit length, shape ``(I,)``.
        noise: Their standard errors, shape ``(I,)``.

    Returns:
        Ratios, 0 where there is no slope, shape ``(I,)``.

    Example:
        >>> slope_to_noise(torch.tensor([-6.0, 0.0]), torch.tensor([2.0, 0.0])).tolist()
        [3.0, 0.0]
    """
    return torch.where(slope == 0, 0.0, slope.abs() / noise)


def kinks_beyond_chance(sums: NeuronSums) -> Tensor:
    """Which neurons have more samples on their kink than chance puts there.

    Samples lie beside a kink as they lie anywhere: of many, some are within any tolerance. How many that should be is
    read off those a little further away; a Poisson distribution says whether the number seen is out of the ordinary.

    Args:
        sums: Sums over all samples.

    Returns:
        Mask, bool, shape ``(I,)``.

    Example:
        >>> from relu_diag import BlockSignal, ShallowBlock
        >>> from relu_diag.functional.local import neuron_sums
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> circle = torch.linspace(0, 6.28, 1000)
        >>> signal = BlockSignal(X=torch.stack([circle.cos(), circle.sin()], dim=1), G=torch.ones(1000, 1))
        >>> sums = neuron_sums(block, signal, kink_tol=1e-3)
        >>> sums.kink_count.tolist(), kinks_beyond_chance(sums).tolist()
        ([1], [False])
    """
    seen = sums.kink_count.double()
    # Where few samples were looked at, those of the layer say more than a neuron's own.
    expected = torch.maximum(sums.by_chance, sums.by_chance.mean())
    if int(sums.samples) < FLOAT64.enough:
        expected = torch.zeros_like(expected)
    probability = torch.special.gammainc(seen.clamp(min=1.0), expected)
    named: Tensor = (seen > 0) & (probability <= FLOAT64.chance)
    return named


def without_chance_kinks(sums: NeuronSums) -> NeuronSums:
    """The sums in which samples that lie on a kink by chance are as smooth as all others: at the mean of both slopes.

    Args:
        sums: Sums over all samples.

    Returns:
        Sums without the kink samples of neurons that have no more than chance allows.

    Example:
        >>> from relu_diag import BlockSignal, ShallowBlock
        >>> from relu_diag.functional.local import neuron_sums
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0]]), H=torch.tensor([[1.0]]))
        >>> circle = torch.linspace(0, 6.28, 1000)
        >>> signal = BlockSignal(X=torch.stack([circle.cos(), circle.sin()], dim=1), G=torch.ones(1000, 1))
        >>> len(without_chance_kinks(neuron_sums(block, signal, kink_tol=1e-3)).kinks.c)
        0
    """
    return replace(sums, kinks=sums.kinks.chosen(kinks_beyond_chance(sums)))
