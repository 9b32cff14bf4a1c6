"""Draw the function that a block has learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from relu_diag.figures.canvas import limits_of, to_numpy
from relu_diag.figures.palette import BLACK, PALETTE
from relu_diag.functional import BlockSignal, ShallowBlock, neuron_states
from relu_diag.functional.block import check_fit

_GRID = 201


def function_figure(block: ShallowBlock, X: Tensor, Y: Tensor) -> Figure:
    """The learned function of a block with two inputs, its kinks and the data.

    The function is drawn as filled contours over the plane of both inputs, one panel per output. If the second input is
    the same on every sample, as the constant that carries the hidden bias, it is drawn over the first input alone. The
    kinks of dead neurons are left out.

    Source: Wu et al., Figure 18.

    Args:
        block: The network, ``d = 2``.
        X: Inputs, shape ``(N, 2)``.
        Y: Targets, shape ``(N, J)``.

    Returns:
        Figure.

    Raises:
        ValueError: If the block does not have two inputs.
    """
    if block.W.shape[1] != 2:
        raise ValueError(f"`block` needs two inputs, a constant one included, to be drawn; got {block.W.shape[1]}.")
    check_fit(block, BlockSignal(X, Y))
    living = ~neuron_states(block, X, Y).dead
    on_line = bool((X[:, 1] == X[0, 1]).all())
    with torch.no_grad():
        return (_line_figure if on_line else _plane_figure)(block, living, X, Y)


def _line_figure(block: ShallowBlock, living: Tensor, X: Tensor, Y: Tensor) -> Figure:
    """The function over the first input; `living` is a mask of shape ``(I,)``."""
    low, high = limits_of(X[:, 0])
    kink = -block.W[:, 1] * X[0, 1] / block.W[:, 0]  # Not finite, and so not inside, if a neuron has no kink.
    inside = (kink > low) & (kink < high)
    # The function is linear between neighbouring kinks, those of dead neurons beyond the data included.
    nodes = torch.cat([kink.new_tensor([low]), kink[inside].sort().values, kink.new_tensor([high])])
    kinks = kink[inside & living]
    values, at_kinks = (to_numpy(block(torch.stack([x, X[0, 1].expand_as(x)], dim=1))) for x in (nodes, kinks))
    figure = Figure(figsize=(5.5, 4.0), layout="constrained")
    ax = figure.subplots()
    for j in range(Y.shape[1]):
        color = PALETTE[(j + 1) % len(PALETTE)]
        name = f", output {j + 1}" if Y.shape[1] > 1 else ""
        ax.plot(to_numpy(nodes), values[:, j], color=color, linewidth=1.5, label="learned function" + name)
        ax.plot(to_numpy(kinks), at_kinks[:, j], "|", color=color, markersize=10, label="kinks" + name)
        ax.plot(
            to_numpy(X[:, 0]),
            to_numpy(Y[:, j]),
            "*",
            color=color,
            markeredgecolor=BLACK,
            markersize=11,
            label="data" + name,
        )
    ax.set(xlabel="input", ylabel="output", xlim=(low, high))
    by_kind = [line for kind in range(3) for line in ax.lines[kind::3]]
    figure.legend(handles=by_kind, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return figure


def _plane_figure(block: ShallowBlock, living: Tensor, X: Tensor, Y: Tensor) -> Figure:
    """The function over the plane of two inputs; `living` is a mask of shape ``(I,)``."""
    ranges = limits_of(X[:, 0]), limits_of(X[:, 1])
    first, second = (torch.linspace(*limits, _GRID, dtype=X.dtype, device=X.device) for limits in ranges)
    values = to_numpy(block(torch.cartesian_prod(first, second))).reshape(_GRID, _GRID, -1)
    outputs = Y.shape[1]
    columns = min(outputs, 3)
    figure = Figure(figsize=(4.6 * columns, 4.2 * -(-outputs // columns)), layout="constrained")
    for j in range(outputs):
        ax = figure.add_subplot(-(-outputs // columns), columns, j + 1, aspect="equal")
        ax.set(xlabel="input 1", ylabel="input 2", title=f"output {j + 1}" if outputs > 1 else "output")
        y = to_numpy(Y[:, j])
        # Zero, the value at the origin without an output bias, gets the neutral colour.
        limit = max(np.abs(values[:, :, j]).max(), np.abs(y).max(), np.finfo(float).tiny)
        scale: dict[str, Any] = {"cmap": "RdBu_r", "norm": Normalize(-limit, limit)}
        levels = np.linspace(-limit, limit, 25)
        filled = ax.contourf(to_numpy(first), to_numpy(second), values[:, :, j].T, levels, **scale)
        figure.colorbar(filled, ax=ax, shrink=0.85, ticks=MaxNLocator(7))
        for w in to_numpy(block.W[living & block.W.any(dim=1)]):
            ax.axline((0, 0), (-w[1], w[0]), color=BLACK, linewidth=0.6, alpha=0.4, label="kink")
        ax.scatter(to_numpy(X[:, 0]), to_numpy(X[:, 1]), c=y, edgecolors=BLACK, s=60, zorder=3, **scale)
        ax.set(xlim=ranges[0], ylim=ranges[1])
    return figure
