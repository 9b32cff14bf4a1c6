"""How a grown group of neurons comes apart: the escape of several outputs that no small neuron takes part in."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from relu_diag.functional.block import BlockSignal, ShallowBlock
from relu_diag.functional.dynamics._ascent import without_span
from relu_diag.functional.dynamics._frozen import Growth, growth_time
from relu_diag.functional.local import slopes_at
from relu_diag.functional.tolerances import FLOAT64, training_kink_tolerance


def splitting_growth(
    block: ShallowBlock, signal: BlockSignal, members: Tensor, target: float, loud: float, slowing: float
) -> Growth | None:
    """The growth of the differences between the neurons of a grown group, until they have lowered the loss.

    At a stationary point a group ``w_i = a_i u, h_i = b_i o`` may feel ``M`` across: some ``v`` orthogonal to ``u`` and
    the kinks has ``M v`` orthogonal to ``o`` and not zero, its members are escape neurons with nonzero output weights.
    Together they cannot follow, the residuals would change; their differences can, and grow at ``||M v||``.

    Source: Wu et al., Definition 4.1 and appendix I.0.2.

    Args:
        block: The network, float64.
        signal: Inputs and loss gradients, held fixed.
        members: The neurons of the group, long, shape ``(n,)``.
        target: The drop of the loss.
        loud: Largest growth rate that counts as zero.
        slowing: What weight decay takes from each growth rate.

    Returns:
        The growth; None for a group that does not come apart: one neuron, one output, or no such direction.
    """
    if len(members) < 2 or len(block.H) < 2:
        return None
    W, H = block.W[members], block.H[:, members]
    # Weighted like this, sum_i ||h_i|| w_i . v = 0 for v orthogonal to u: no part of the differences turns the group.
    u = normalize(H.norm(dim=0) @ W, dim=0)
    o = normalize(H @ W.norm(dim=1), dim=0)
    z = signal.X @ u
    on_kink = z.abs() <= training_kink_tolerance(*signal.X.shape) * signal.X.norm(dim=1)
    M = (signal.G * slopes_at(torch.where(on_kink, 0.0, z), block.slopes)[:, None]).T @ signal.X
    across = without_span(M, torch.cat([u[None], signal.X[on_kink]]))
    outputs, rates, inputs = torch.linalg.svd(across - torch.outer(o, o @ across), full_matrices=False)
    gain, amplitude = float(rates[0]), float(((W @ inputs[0] - outputs[:, 0] @ H) / 2).square().sum())
    rounding = FLOAT64.cancelled**2 * float(W.square().sum() + H.square().sum())
    # What pulls along u is a group that still settles; across, no more than that proves nothing.
    if gain <= max(loud, slowing, float((M @ u).norm())) or amplitude <= rounding:
        return None
    time = growth_time(gain, amplitude, target, slowing)
    # Of a difference along (v, -o) and one along (v, o) only the first grows.
    part = (W @ inputs[0] - outputs[:, 0] @ H) / 2 * math.expm1((gain - slowing) * time)
    return Growth(
        time=time,
        gain=gain - slowing,
        amplitude=amplitude,
        neurons=members,
        moved=members,
        W=W + torch.outer(part, inputs[0]),
        H=H - torch.outer(outputs[:, 0], part),
        arrived=True,
        dropped=gain * amplitude,
        signal=signal,
        extremal=None,
    )
