"""Draw a network with one input: the function it has learned, and the fall of its loss past the critical levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from relu_diag.figures.canvas import Canvas, set_title, to_numpy
from relu_diag.figures.labels import place_beside
from relu_diag.figures.palette import BLACK, GREY, PALETTE
from relu_diag.functional import IntervalTarget, critical_levels, neuron_types
from relu_diag.functional.integral import AffineProblem, Function1d, Guarantee, Interval, network_pieces

_TARGET_POINTS = 513
# Marker and label by type. A neuron of several types gets the first one.
_MARKS = {
    "type_2_active": ("o", "type-2-active"),
    "semi_inactive": ("s", "semi-inactive"),
    "type_1_active": (">", "type-1-active"),
    "inactive": ("x", "inactive"),
}


def interval_figure(
    neurons: Tensor,
    c: Tensor | float,
    target: Function1d | IntervalTarget,
    interval: Interval,
    slopes: tuple[float, float] = (0.0, 1.0),
    ax: Axes | None = None,
) -> Figure:
    """The learned function over the target; below it, every breakpoint with the size of its kink and its neuron's type.

    Breakpoints outside the interval are drawn just beyond its edge. Neurons without a breakpoint are counted in the
    title.

    Source: Cheridito et al., Definition 4.1.

    Args:
        neurons: Rows ``w``, ``b`` and ``h``, shape ``(3, I)``.
        c: Output bias.
        target: Vectorised target.
        interval: ``(A, B)``.
        slopes: ``(s-, s+)``.
        ax: Axes in whose place it is drawn; None: a new figure.

    Returns:
        Figure.

    Example:
        >>> neurons = torch.tensor([[1.0, -1.0], [0.0, 0.5], [1.0, 2.0]])  # rows w, b, h
        >>> figure = interval_figure(neurons, 0.0, torch.sin, (0.0, 1.0))
        >>> [panel.get_ylabel() for panel in figure.axes]
        ['output', 'kink']
    """
    w, b, h = neurons.detach().double()
    pieces = network_pieces(w, b, h, c if isinstance(c, float) else c.detach().double(), interval, slopes)
    canvas = Canvas.at(ax, (5.5, 5.0), (2, 1), sharex=True)
    top, bottom = canvas.axes
    x = torch.linspace(*interval, _TARGET_POINTS, dtype=torch.float64, device=w.device)
    function = target.function if isinstance(target, IntervalTarget) else target
    ends = torch.stack([pieces.edges[:-1], pieces.edges[1:]], dim=1)
    values = pieces.value[:, None] + pieces.slope[:, None] * (ends - pieces.origin)
    top.plot(to_numpy(ends.flatten()), to_numpy(values.flatten()), color=PALETTE[1], label="network")
    top.plot(to_numpy(x), to_numpy(function(x)), color=BLACK, linewidth=1.0, linestyle="--", label="target")
    top.set(ylabel="output")
    without = int((w == 0).sum())
    set_title(top, f"{len(w)} neurons" + (f", {without} of them without a breakpoint" if without else ""))
    _draw_breakpoints(bottom, neurons.detach().double(), interval, slopes)
    canvas.legend(columns=3)
    return canvas.figure


def _draw_breakpoints(ax: Axes, neurons: Tensor, interval: Interval, slopes: tuple[float, float]) -> None:
    """Every breakpoint of neurons ``w``, ``b``, ``h`` of shape ``(3, I)``, with the size of its kink."""
    A, B = interval
    w, b, h = neurons
    types = neuron_types(w, b, h, interval)
    placed = torch.zeros_like(types.flat)
    margin = (B - A) / 20
    for color, (name, (marker, label)) in zip(PALETTE, _MARKS.items(), strict=False):
        members = getattr(types, name) & ~placed & (w != 0)
        placed |= members
        if bool(members.any()):
            t = types.breakpoint[members].clamp(A - margin, B + margin)
            kink = (slopes[1] - slopes[0]) * (h * w.abs())[members]
            text = f"{label} ({int(members.sum())})"
            ax.plot(to_numpy(t), to_numpy(kink), marker, color=color, label=text, markersize=5)
    ax.axhline(0, color=GREY, linewidth=0.6)
    for end in interval:
        ax.axvline(end, color=GREY, linewidth=0.6)
    ax.set(xlabel="input", ylabel="kink", xlim=(A - 1.5 * margin, B + 1.5 * margin))


def ladder_figure(
    steps: Sequence[float],
    losses: Sequence[float],
    problem: AffineProblem,
    guarantee: Guarantee,
    certain_from: float | None = None,
    ax: Axes | None = None,
) -> Figure:
    """The loss over the steps, the critical levels, and the threshold below which a global minimum is certain.

    Leaky units have neither levels nor threshold: then the loss is drawn alone.

    Source: Cheridito et al., Proposition 4.5 and Theorem 1.2.

    Args:
        steps: Gradient steps done.
        losses: Loss at these steps.
        problem: Target, interval and width.
        guarantee: Result of `relu_diag.functional.convergence_threshold`.
        certain_from: Step from which a global minimum is certain, marked; None: no mark.
        ax: Axes in whose place it is drawn; None: a new figure.

    Returns:
        Figure.

    Example:
        >>> from relu_diag import functional as F
        >>> from relu_diag.functional.integral import AffineProblem
        >>> w, b, h = torch.ones(3, 4).double()
        >>> problem = AffineProblem(w, b, h, torch.tensor(0.0).double(), 1.0, 0.0, (0.0, 1.0), (0.0, 1.0))
        >>> figure = ladder_figure([0, 1], [0.1, 0.01], problem, F.convergence_threshold(1.0, (0.0, 1.0), 4))
        >>> figure.axes[0].get_yscale()
        'log'
    """
    canvas = Canvas.at(ax, (5.2, 4.0))
    panel = canvas.axes[0]
    relu = problem.slopes[0] == 0
    levels = to_numpy(critical_levels(problem.slope, problem.interval, len(problem.w))) if relu else ()
    for level in levels:
        panel.axhline(level, color=GREY, linewidth=0.6)
    panel.plot(steps, losses, color=PALETTE[1], label="loss")
    if 0 < guarantee.threshold < float("inf"):
        panel.axhline(guarantee.threshold, color=PALETTE[2], linestyle="--", label=f"below: {guarantee.statement}")
    if certain_from is not None:
        panel.axvline(certain_from, color=PALETTE[0], linestyle=":", label=f"certain from step {certain_from:g}")
    panel.set(xlabel="step", ylabel="loss", yscale="log")
    set_title(panel, guarantee.theorem)
    canvas.legend(columns=1, fontsize="small")
    place_beside(panel, [(level, f"n = {2 * k}") for k, level in enumerate(levels)], size=8)
    return canvas.figure
