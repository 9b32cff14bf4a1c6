"""Draw the loss of one neuron over its input weights, cell by cell."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from relu_diag.figures.canvas import Canvas, to_numpy
from relu_diag.figures.labels import Ray, place_on_rays
from relu_diag.figures.palette import BLACK, DARK, PALETTE
from relu_diag.functional import CellMinimum, ShallowBlock, cell_minimum, rho
from relu_diag.functional.block import Reduction, residual_factor
from relu_diag.functional.cells import cell_directions

_GRID = 301
_LINE_POINTS = 2001
# Reach of the axes relative to the furthest minimum.
_REACH = 1.6
# Singular values below this fraction of the data's norm count as zero.
_FLAT = 1e-12


def cell_figure(
    block: ShallowBlock, X: Tensor, Y: Tensor, reduction: Reduction = "mean", ax: Axes | None = None
) -> Figure:
    """The loss over the input weights of one neuron, its cells, and the minimum of each cell, at a fixed output weight.

    A star or a line shows where a cell attains its minimum; a flat cell attains it everywhere. A number in brackets
    belongs to a cell that does not attain its minimum, because its least-squares solutions lie outside.

    Source: Liu, Figure 2.

    Args:
        block: The network: one neuron, two inputs, one output, no output bias.
        X: Inputs, shape ``(N, 2)``.
        Y: Targets, shape ``(N, 1)``.
        reduction: "mean", "sum" or "half_sum".
        ax: Axes in whose place it is drawn; None: a new figure.

    Returns:
        Figure.

    Raises:
        ValueError: If the block has another shape, an output bias, or ``h = 0``.

    Example:
        >>> X, Y = torch.eye(2), torch.ones(2, 1)
        >>> figure = cell_figure(ShallowBlock(torch.ones(1, 2), torch.ones(1, 1)), X, Y)
        >>> figure.axes[0].get_xlabel()
        '$w_1$'
    """
    if block.W.shape != (1, 2) or block.H.shape != (1, 1) or block.output_bias is not None or not block.H.any():
        raise ValueError(
            "`block` needs one neuron with two inputs, one output, nonzero output weight and no output bias for its "
            f"loss to be drawn; got {tuple(block.W.shape)}, {tuple(block.H.shape)}, bias {block.output_bias}."
        )
    directions = cell_directions(X).to(X)
    minima = [cell_minimum(ShallowBlock(w[None], block.H, block.slopes), X, Y, reduction) for w in directions]
    h = block.H.detach()[0, 0]
    at = torch.stack([block.W.detach()[0], *(cell.R[0] / h for cell in minima)])
    reach = _REACH * float(at.norm(dim=1).max()) or 1.0
    canvas = Canvas.at(ax, (5.6, 4.8))
    panel = canvas.axes[0]
    panel.set(aspect="equal", xlabel="$w_1$", ylabel="$w_2$", xlim=(-reach, reach), ylim=(-reach, reach))
    axis = torch.linspace(-reach, reach, _GRID, dtype=X.dtype, device=X.device)
    outputs = h * rho(torch.cartesian_prod(axis, axis) @ X.T, block.slopes)
    loss = to_numpy(residual_factor(Y, reduction) / 2 * (outputs - Y.T).square().sum(dim=1)).reshape(_GRID, _GRID)
    # The valleys matter: everything above twice the loss of the zero function gets one colour.
    top = residual_factor(Y, reduction) * float(Y.square().sum()) or float(loss.max())
    levels = MaxNLocator(24).tick_values(0.0, top)
    filled = panel.contourf(to_numpy(axis), to_numpy(axis), loss.T, levels, cmap="Blues", extend="max")
    canvas.figure.colorbar(filled, ax=panel, label="loss", ticks=MaxNLocator(6))
    for x in to_numpy(X[X.any(dim=1)]):
        panel.axline((0, 0), (-x[1], x[0]), color=BLACK, linewidth=0.8)
    words = []
    for w, cell in zip(to_numpy(directions), minima, strict=True):
        attained = _draw_minimum(panel, block, X, cell)
        text = f"{cell.loss:.3g}" if attained else f"({cell.loss:.3g})"
        words.append(Ray(text, w * reach, BLACK if attained else DARK))
    panel.plot(*to_numpy(block.W[0])[:, None], "o", color="white", markeredgecolor=BLACK, label="now")
    place_on_rays(panel, words)
    return canvas.figure


def _draw_minimum(ax: Axes, block: ShallowBlock, X: Tensor, cell: CellMinimum) -> bool:
    """Draw the points at which a cell attains its minimum with this output weight; return whether there are any."""
    sigma = torch.where(cell.pattern, *(X.new_tensor(s) for s in reversed(block.slopes)))
    _, singular, rows = torch.linalg.svd(sigma * X)
    flat = rows[int((singular > _FLAT * X.norm()).sum()) :]
    if len(flat) == 2:
        return True
    low, high = ax.get_xlim()
    along = torch.linspace(2 * low, 2 * high, _LINE_POINTS, dtype=X.dtype, device=X.device)[:, None]
    points = cell.R / block.H.detach()[0, 0] + (along * flat if len(flat) else 0.0)
    inside = (points @ X.T > 0).T.eq(cell.pattern).all(dim=0)
    x, y = to_numpy(torch.where(inside[:, None], points, torch.nan)).T
    ax.plot(x, y, "-" if len(flat) else "*", color=PALETTE[0], linewidth=2.5, markersize=13, label="minimum")
    return bool(inside.any())
