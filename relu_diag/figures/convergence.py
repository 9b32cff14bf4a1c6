"""Draw where convergence is certain: a certificate's bound over the loss, and the region of a toy problem."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from relu_diag.figures.canvas import Canvas, set_title
from relu_diag.figures.palette import BLACK, GREY, PALETTE, SHADE
from relu_diag.functional import ConvergenceCertificate

_GRID = 401
# Roundings by which outputs are off, relative to the residuals at the start; the loss is their square.
_ROUNDINGS = 64.0


def certificate_figure(
    certificate: ConvergenceCertificate,
    times: Sequence[float],
    losses: Sequence[float],
    dtype: torch.dtype = torch.float64,
    ax: Axes | None = None,
) -> Figure:
    """The loss along training below the bound that a certificate gives, as far as rounding lets the loss follow it.

    Where the bound is below what rounding leaves of the loss, it says nothing of the numbers, and the figure ends.

    Source: Chatterjee, Theorem 2.1.

    Args:
        certificate: The certificate at time 0.
        times: Times since then, learning rate times steps.
        losses: Loss at these times.
        dtype: Type of the numbers in which the network was trained.
        ax: Axes in whose place it is drawn; None: a new figure.

    Returns:
        Figure.

    Raises:
        ValueError: If the certificate does not hold, so that there is no bound to draw.

    Example:
        >>> from relu_diag import ShallowBlock, functional as F
        >>> block = ShallowBlock(torch.eye(2).double() + 0.5, 10 * torch.ones(1, 2).double())
        >>> certificate = F.convergence_certificate(block, torch.eye(2).double(), 20.01 * torch.ones(2, 1).double())
        >>> figure = certificate_figure(certificate, times=[0.0, 0.1], losses=[1e-4, 1e-5])
        >>> figure.axes[0].get_yscale()
        'log'
    """
    if not certificate.holds:
        raise ValueError(f"There is no bound to draw: {certificate}.")
    t = np.asarray(times, dtype=float)
    canvas = Canvas.at(ax, (5.5, 4.0))
    panel = canvas.axes[0]
    rounding = (_ROUNDINGS * torch.finfo(dtype).eps) ** 2 * certificate.loss
    bound = certificate.loss * np.exp(-certificate.rate * t)
    exact = bound >= rounding
    panel.plot(t[exact], bound[exact], color=PALETTE[0], linestyle="--", label="bound")
    seen = np.asarray(losses, dtype=float)
    above = exact & (seen >= rounding)
    panel.plot(t[above], seen[above], color=PALETTE[1], label="loss")
    if not above.all():
        panel.axhline(rounding, color=GREY, linestyle=":", label="rounding")
    panel.set(xlabel="time (learning rate x steps)", ylabel="loss", yscale="log")
    set_title(panel, str(certificate))
    canvas.legend(columns=3)
    return canvas.figure


def toy_figure(paths: Sequence[NDArray[np.float64]] = (), limit: float = 3.0, ax: Axes | None = None) -> Figure:
    """The region from which descent on ``(x y - 1)^2`` is certain to reach ``x y = 1``, and paths of descent.

    The criterion is ``|x y - 1| < (x^2 + y^2) / 4``.

    Source: Chatterjee, equation 3.2 and Figure 1.

    Args:
        paths: Points ``(x, y)`` along each path, shape ``(T, 2)``.
        limit: Limit of both axes.
        ax: Axes in whose place it is drawn; None: a new figure.

    Returns:
        Figure.

    Example:
        >>> figure = toy_figure([np.array([[1.0, 2.0], [1.0, 1.0]])])
        >>> len(figure.axes)
        1
    """
    x = np.linspace(-limit, limit, _GRID)
    X, Y = np.meshgrid(x, x)
    canvas = Canvas.at(ax, (5.0, 5.0))
    panel = canvas.axes[0]
    panel.contourf(X, Y, (X**2 + Y**2) / 4 - np.abs(X * Y - 1), levels=[0, np.inf], colors=[SHADE])
    panel.contour(X, Y, X * Y, levels=[1], colors=[BLACK], linestyles="--")
    for path in paths:
        panel.plot(path[:, 0], path[:, 1], color=PALETTE[1], linewidth=1.0)
        panel.plot(path[0, 0], path[0, 1], "o", color=PALETTE[1], markersize=4)
    panel.axhline(0, color=GREY, linewidth=0.6)
    panel.axvline(0, color=GREY, linewidth=0.6)
    panel.set(xlabel="x", ylabel="y", xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    canvas.legend([Patch(color=SHADE, label="convergence is certain")])
    return canvas.figure
