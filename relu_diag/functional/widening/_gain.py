"""What a copy of a neuron gains to first order, the kinks within reach counted.

An exact copy of a neuron that rests *beside* a kink lies in the neuron's own flat cell, and nothing ever moves it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Array, unit_rows
from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import (
    neuron_sums,
    one_sided,
    radial_directions,
    steepest_descent,
    tangential_part,
)
from relu_diag.functional.tolerances import FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class CopyGain:
    """What one of two copies of a neuron gains.

    Attributes:
        unit: The neuron.
        gain: Rate at which the loss falls per unit length of the copy's input weights, positive.
        factor: The factor of the output weights of the copy that moves.
        direction: Tangential unit direction in which it moves, shape ``(d,)``.
    """

    unit: int
    gain: float
    factor: float
    direction: Tensor


def copy_gains(
    block: ShallowBlock, signal: BlockSignal, units: list[int], reach: float, gamma: tuple[float, float]
) -> list[CopyGain]:
    """For each neuron the largest gain ``-gamma_l L'(v)`` of its two copies over the tangential unit directions.

    Each sample within ``reach`` of a neuron's kink counts as on it; where the data are so dense that this is hundreds
    of samples a neuron, the reach is made smaller.

    Args:
        block: The network, float64.
        signal: Its signal under the loss.
        units: Neurons to copy.
        reach: Angle, rad.
        gamma: Factors of the output weights of the two copies.

    Returns:
        Gains above rounding, largest first; none for a neuron with more samples on its kink than are kept.
    """
    sums = neuron_sums(block, signal, kink_tol=math.sin(reach))
    while reach > FLOAT64.same_angle and bool(
        (sums.kink_count[units] > BUDGETS.kinks_in_reach).any() or sums.lost[units].any()
    ):
        reach /= 4
        sums = neuron_sums(block, signal, kink_tol=math.sin(reach))
    U, b = radial_directions(block.W), (block.slopes[1] - block.slopes[0]) / 2
    felt = FLOAT64.gain * float(signal.G.norm() * signal.X.norm())
    found = []
    for unit in units:
        if bool(sums.lost[unit]):
            continue
        own, u = sums.kinks.neuron == unit, U[unit, None]
        g, X_kinks = (tangential_part(u, part).cpu().numpy() for part in (sums.smooth[unit, None], sums.kinks.X[own]))
        q = b * sums.kinks.c[own].cpu().numpy()
        falls = [(*_steepest(factor * g[0], factor * q, X_kinks), factor) for factor in gamma]
        slope, direction, factor = min(falls, key=lambda fall: fall[0])
        if -slope > felt * float(block.H[:, unit].norm()):
            found.append(CopyGain(unit, -slope, factor, torch.as_tensor(direction).to(block.W)))
    return sorted(found, key=lambda one: -one.gain)


def _steepest(g: Array, q: Array, X: Array) -> tuple[float, Array]:
    """Where there are too many kinks to be exact, the best of the simple directions: a slope that is attained."""
    if len(q) <= BUDGETS.exact_kinks:
        found = steepest_descent(g, q, X)
        return found.slope, found.direction
    V = unit_rows(np.concatenate([-g[None], -(g + q @ X)[None], -(g - q @ X)[None], X, -X]))
    values = one_sided(V, g, q, X)
    return float(values.min()), V[values.argmin()]
