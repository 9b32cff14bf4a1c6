"""Draw where convergence is certain: a certificate's bound over the loss, and the region of a toy problem."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from relu_diag.figures.palette import BLACK, GREY, PALETTE, SHADE
from relu_diag.functional import ConvergenceCertificate

_GRID = 401


def certificate_figure(certificate: ConvergenceCertificate, times: Sequence[float], losses: Sequence[float]) -> Figure:
    """The loss along training below the bound that a certificate gives.

    Source: Chatterjee, Theorem 2.1.

    Args:
        certificate: The certificate at time 0.
        times: Times since then, learning rate times steps.
        losses: Loss at these times.

    Returns:
        Figure.

    Raises:
        ValueError: If the certificate does not hold, so that there is no bound to draw.
    """
    if not certificate.holds:
        raise ValueError(f"There is no bound to draw: {certificate}.")
    t = np.asarray(times, dtype=float)
    figure = Figure(figsize=(5.5, 4.0), layout="constrained")
    ax = figure.subplots()
    ax.plot(t, certificate.loss * np.exp(-certificate.rate * t), color=PALETTE[0], linestyle="--", label="bound")
    ax.plot(t, losses, color=PALETTE[1], label="loss")
    ax.set(xlabel="time (learning rate x steps)", ylabel="loss", yscale="log", title=str(certificate))
    ax.title.set_fontsize("small")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def toy_figure(paths: Sequence[NDArray[np.float64]] = (), limit: float = 3.0) -> Figure:
    """The region from which descent on ``(x y - 1)^2`` is certain to reach ``x y = 1``, and paths of descent.

    The criterion is ``|x y - 1| < (x^2 + y^2) / 4``.

    Source: Chatterjee, equation 3.2 and Figure 1.

    Args:
        paths: Points ``(x, y)`` along each path, shape ``(T, 2)``.
        limit: Limit of both axes.

    Returns:
        Figure.
    """
    x = np.linspace(-limit, limit, _GRID)
    X, Y = np.meshgrid(x, x)
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    ax = figure.subplots()
    ax.contourf(X, Y, (X**2 + Y**2) / 4 - np.abs(X * Y - 1), levels=[0, np.inf], colors=[SHADE])
    ax.contour(X, Y, X * Y, levels=[1], colors=[BLACK], linestyles="--")
    for path in paths:
        ax.plot(path[:, 0], path[:, 1], color=PALETTE[1], linewidth=1.0)
        ax.plot(path[0, 0], path[0, 1], "o", color=PALETTE[1], markersize=4)
    ax.axhline(0, color=GREY, linewidth=0.6)
    ax.axvline(0, color=GREY, linewidth=0.6)
    ax.set(xlabel="x", ylabel="y", xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    figure.legend(
        handles=[Patch(color=SHADE, label="convergence is certain")], loc="outside lower center", frameon=False
    )
    return figure
