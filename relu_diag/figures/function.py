"""Draw the function that a block has learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from relu_diag.figures.canvas import Canvas, limits_of, set_title, to_numpy
from relu_diag.figures.palette import BLACK, GREY, PALETTE
from relu_diag.functional import BlockSignal, ShallowBlock, neuron_states
from relu_diag.functional.block import check_fit

_GRID = 201
# Samples up to which each is a large mark.
_FEW = 60


def function_figure(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor,
    interval: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """The learned function of a block with two inputs, its kinks and the data.

    The function is drawn as filled contours over the plane of both inputs, one panel per output. If the second input is
    the same on every sample, as the constant that carries the hidden bias, it is drawn over the first input alone. The
    kinks of dead neurons are left out.

    Where the loss is an integral over an interval, the samples are its nodes: the target is drawn as a line through
    them, nothing is drawn beyond the interval, and a second panel shows what is left to learn.

    Source: Wu et al., Figure 18.

    Args:
        block: The network, ``d = 2``.
        X: Inputs, shape ``(N, 2)``.
        Y: Targets, shape ``(N, J)``.
        interval: Ends of the interval over which the loss integrates; None: the loss is that of the samples.
        ax: Axes in whose place it is drawn; None: a new figure.

    Returns:
        Figure.

    Raises:
        ValueError: If the block does not have two inputs, or an interval is given and the second is not constant.

    Example:
        >>> x = torch.linspace(-1, 1, 5)
        >>> X = torch.stack([x, torch.ones(5)], dim=1)  # one input, and the constant that carries the bias
        >>> figure = function_figure(ShallowBlock(torch.eye(2), torch.ones(1, 2)), X, x[:, None].abs())
        >>> len(figure.axes)
        1
    """
    if block.W.shape[1] != 2:
        raise ValueError(f"`block` needs two inputs, a constant one included, to be drawn; got {block.W.shape[1]}.")
    check_fit(block, BlockSignal(X, Y))
    living = ~neuron_states(block, X, Y).dead
    on_line = bool((X[:, 1] == X[0, 1]).all())
    if interval is not None and not on_line:
        raise ValueError("`interval` is of one input: the second column of `X` must be constant.")
    with torch.no_grad():
        if not on_line:
            return _plane_figure(block, living, X, Y, ax)
        if interval is not None:
            return _interval_figure(block, living, X, Y, interval, ax)
        return _line_figure(block, living, X, Y, ax)


def _line_figure(block: ShallowBlock, living: Tensor, X: Tensor, Y: Tensor, ax: Axes | None) -> Figure:
    """The function over the first input and the samples; `living` is a mask of shape ``(I,)``."""
    canvas = Canvas.at(ax, (5.5, 4.0))
    panel = canvas.axes[0]
    curve = _Curve.of(block, living, X, limits_of(X[:, 0]))
    few = len(X) <= _FEW
    style: dict[str, Any] = {"marker": "*" if few else ".", "linestyle": "none", "markersize": 11 if few else 4}
    if few:
        style["markeredgecolor"] = BLACK
    for j, (color, name) in enumerate(_outputs(Y)):
        curve.draw(panel, j, color, name)
        panel.plot(to_numpy(X[:, 0]), to_numpy(Y[:, j]), color=color, label="data" + name, **style)
    panel.set(xlabel="input", ylabel="output", xlim=curve.limits)
    by_kind = [line for kind in range(3) for line in panel.lines[kind::3]]
    canvas.legend(by_kind, columns=3, fontsize="small")
    return canvas.figure


def _interval_figure(
    block: ShallowBlock, living: Tensor, X: Tensor, Y: Tensor, interval: tuple[float, float], ax: Axes | None
) -> Figure:
    """The function over an interval with the target as a line, and the residual below."""
    canvas = Canvas.at(ax, (5.5, 5.0), (2, 1), sharex=True)
    top, bottom = canvas.axes
    order = X[:, 0].argsort()
    order = order[(X[order, 0] >= interval[0]) & (X[order, 0] <= interval[1])]
    residual = to_numpy((block(X) - Y)[order])
    x = to_numpy(X[order, 0])
    curve = _Curve.of(block, living, X, interval)
    for j, (color, name) in enumerate(_outputs(Y)):
        curve.draw(top, j, color, name)
        top.plot(x, to_numpy(Y[order, j]), color=BLACK, linestyle="--", linewidth=1.0, label="target" + name)
        bottom.plot(x, residual[:, j], color=color, linewidth=1.2)
    bottom.axhline(0, color=GREY, linewidth=0.6)
    top.set(ylabel="output", xlim=interval)
    bottom.set(xlabel="input", ylabel="residual")
    canvas.legend([line for kind in range(3) for line in top.lines[kind::3]], columns=3, fontsize="small")
    return canvas.figure


@dataclass(frozen=True, slots=True, eq=False)
class _Curve:
    """A function of one input: where it bends or ends, ``(n,)`` and ``(n, J)``, and the kinks that are drawn."""

    limits: tuple[float, float]
    nodes: NDArray[np.float64]
    values: NDArray[np.float64]
    kinks: NDArray[np.float64]
    at_kinks: NDArray[np.float64]

    @classmethod
    def of(cls, block: ShallowBlock, living: Tensor, X: Tensor, limits: tuple[float, float]) -> _Curve:
        """The function between limits; `living` is a mask of shape ``(I,)``."""
        low, high = limits
        kink = -block.W[:, 1] * X[0, 1] / block.W[:, 0]  # Not finite, and so not inside, if a neuron has no kink.
        inside = (kink > low) & (kink < high)
        # The function is linear between neighbouring kinks, those of dead neurons beyond the data included.
        nodes = torch.cat([kink.new_tensor([low]), kink[inside].sort().values, kink.new_tensor([high])])
        kinks = kink[inside & living]
        values, at_kinks = (block(torch.stack([x, X[0, 1].expand_as(x)], dim=1)) for x in (nodes, kinks))
        return cls(limits, to_numpy(nodes), to_numpy(values), to_numpy(kinks), to_numpy(at_kinks))

    def draw(self, ax: Axes, output: int, color: str, name: str) -> None:
        """Draw one output and its kinks."""
        ax.plot(self.nodes, self.values[:, output], color=color, linewidth=1.5, label="learned function" + name)
        ax.plot(self.kinks, self.at_kinks[:, output], "|", color=color, markersize=10, label="kinks" + name)


def _outputs(Y: Tensor) -> list[tuple[str, str]]:
    """Colour and name of each output, for targets of shape ``(N, J)``."""
    count = Y.shape[1]
    names = [f", output {j + 1}" if count > 1 else "" for j in range(count)]
    return [(PALETTE[(j + 1) % len(PALETTE)], name) for j, name in enumerate(names)]


def _plane_figure(block: ShallowBlock, living: Tensor, X: Tensor, Y: Tensor, ax: Axes | None) -> Figure:
    """The function over the plane of two inputs; `living` is a mask of shape ``(I,)``."""
    ranges = limits_of(X[:, 0]), limits_of(X[:, 1])
    first, second = (torch.linspace(*limits, _GRID, dtype=X.dtype, device=X.device) for limits in ranges)
    values = to_numpy(block(torch.cartesian_prod(first, second))).reshape(_GRID, _GRID, -1)
    outputs = Y.shape[1]
    columns = min(outputs, 2)
    rows = -(-outputs // columns)
    # No wider for two panels, so that words are read at the same size.
    canvas = Canvas.at(ax, (5.6, (5.6 if columns == 1 else 3.8) * rows), (1,) * rows, columns)
    for unused in canvas.axes[outputs:]:
        unused.remove()
    for j, panel in enumerate(canvas.axes[:outputs]):
        panel.set(aspect="equal", xlabel="input 1", ylabel="input 2")
        set_title(panel, f"output {j + 1}" if outputs > 1 else "output")
        y = to_numpy(Y[:, j])
        # Zero, the value at the origin without an output bias, gets the neutral colour.
        limit = max(np.abs(values[:, :, j]).max(), np.abs(y).max(), np.finfo(float).tiny)
        scale: dict[str, Any] = {"cmap": "RdBu_r", "norm": Normalize(-limit, limit)}
        levels = np.linspace(-limit, limit, 25)
        filled = panel.contourf(to_numpy(first), to_numpy(second), values[:, :, j].T, levels, **scale)
        canvas.figure.colorbar(filled, ax=panel, location="bottom", ticks=MaxNLocator(4))
        for w in to_numpy(block.W[living & block.W.any(dim=1)]):
            panel.axline((0, 0), (-w[1], w[0]), color=BLACK, linewidth=0.6, alpha=0.4, label="kink")
        size = 60 if len(X) <= _FEW else 12
        panel.scatter(to_numpy(X[:, 0]), to_numpy(X[:, 1]), c=y, edgecolors=BLACK, s=size, zorder=3, **scale)
        panel.set(xlim=ranges[0], ylim=ranges[1])
    return canvas.figure
