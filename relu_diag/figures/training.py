"""Draw a training run neuron by neuron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from relu_diag.figures.canvas import Canvas, to_numpy
from relu_diag.figures.palette import BLACK, GREY, PALETTE, SHADE

# More lines than this are neither readable nor fast to draw.
_MAX_NEURONS = 512
# Ratio of the largest to the smallest loss from which the axis is logarithmic.
_LOG_FROM_RATIO = 100.0
# Size that is readable at 340 pixels: of the figure, of a row of panels, of the legend, inches; and of letters, points.
_WIDTH = 5.6
_HEIGHT = 2.1
_LEGEND = 0.7
_FONT = 9.0
# Margin above and below the living neurons, as a fraction of their range.
_MARGIN = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class TrainingHistory:
    """A training run at ``T`` moments, neuron by neuron.

    Attributes:
        steps: Gradient steps done, shape ``(T,)``.
        loss: Loss, shape ``(T,)``.
        angle: Orientation of the first two components of the input weights, rad in [0, 2 pi), shape ``(T, I)``.
        input_norm: ``||w_i||``, shape ``(T, I)``.
        output: Output weights, shape ``(T, J, I)``.
        group: The group at the end, numbered as in `NeuronStates.group` (0 the largest, -1 none), long, shape ``(I,)``.
        dead: Whether the neuron is dead at the end, bool, shape ``(I,)``.
        dead_sector: Arc of dead orientations (`dead_sector`), rad, or None.
        alignment: Cosine of the angle between ``w_i`` and its direction at the end, shape ``(T, I)``, NaN where it was
            not kept; drawn in place of the angle, which says little with more than two inputs. None: not recorded.
        active: Share of the samples on the leg of slope ``s+``, shape ``(T, I)``, or None.

    Raises:
        ValueError: If there is no moment or no neuron, or the shapes do not fit together.

    Example:
        >>> import torch
        >>> history = TrainingHistory(
        ...     steps=torch.tensor([0, 100]),
        ...     loss=torch.tensor([1.0, 0.1]),
        ...     angle=torch.zeros(2, 3),
        ...     input_norm=torch.ones(2, 3),
        ...     output=torch.ones(2, 1, 3),
        ...     group=torch.tensor([0, 0, 1]),
        ...     dead=torch.zeros(3, dtype=torch.bool),
        ... )
        >>> len(history.steps), history.alignment
        (2, None)
    """

    steps: Tensor
    loss: Tensor
    angle: Tensor
    input_norm: Tensor
    output: Tensor
    group: Tensor
    dead: Tensor
    dead_sector: tuple[float, float] | None = None
    alignment: Tensor | None = None
    active: Tensor | None = None

    def __post_init__(self) -> None:
        if self.output.ndim != 3 or 0 in self.output.shape:
            raise ValueError(
                f"`output` must be (moments, outputs, neurons), none of them 0; got {tuple(self.output.shape)}."
            )
        moments, _, neurons = self.output.shape
        shapes: dict[str, tuple[int, ...]] = {"steps": (moments,), "loss": (moments,)}
        shapes |= {
            "angle": (moments, neurons),
            "input_norm": (moments, neurons),
            "group": (neurons,),
            "dead": (neurons,),
            "alignment": (moments, neurons),
            "active": (moments, neurons),
        }
        for name, expected in shapes.items():
            value = getattr(self, name)
            got = expected if value is None else tuple(value.shape)
            if got != expected:
                raise ValueError(f"`{name}` must be {expected} to fit output {tuple(self.output.shape)}; got {got}.")


def training_figure(history: TrainingHistory, marks: Sequence[float] = (), ax: Axes | None = None) -> Figure:
    """Loss, orientations, input norms, output weights and activity along training; groups are coloured.

    The groups are the effective neurons at the end, numbered as in `NeuronStates.group`: 0 is the largest. Groups of
    two neurons or more have colours, neurons that are alone are grey, dead ones are black and do not set the scale. One
    or two outputs get a panel each, more are drawn as the norm ``||h_i||``. Beyond 512 neurons only those of largest
    amplitude at the end are drawn, and the legend says so.

    Source: Wu et al., Figures 3 and 12.

    Args:
        history: The run.
        marks: Steps to mark with a dashed line, plateau ends for example.
        ax: Axes in whose place the panels are drawn; None: a new figure.

    Returns:
        Figure.

    Example:
        >>> import torch
        >>> history = TrainingHistory(
        ...     steps=torch.tensor([0, 100]),
        ...     loss=torch.tensor([1.0, 0.1]),
        ...     angle=torch.zeros(2, 3),
        ...     input_norm=torch.ones(2, 3),
        ...     output=torch.ones(2, 1, 3),
        ...     group=torch.tensor([0, 0, 1]),
        ...     dead=torch.zeros(3, dtype=torch.bool),
        ... )
        >>> figure = training_figure(history, marks=[50])
        >>> [panel.get_ylabel() for panel in figure.axes][:2]
        ['loss', 'angle of $w_i$ (rad)']
    """
    panels = _panels(history)
    rows = len(panels) // 2 + 1
    canvas = Canvas.at(ax, (_WIDTH, _HEIGHT * rows + _LEGEND), (1,) * rows, columns=2)
    axes = canvas.axes[: len(panels) + 1]
    for unused in canvas.axes[len(axes) :]:
        unused.remove()
    steps = to_numpy(history.steps)
    axes[0].plot(steps, to_numpy(history.loss), color=BLACK, linewidth=1.2)
    axes[0].set_yscale(_loss_scale(history.loss))
    axes[0].set_ylabel("loss", fontsize=_FONT)
    bands = _bands(history)
    clipped = False
    for axis, panel in zip(axes[1:], panels, strict=True):
        axis.set_ylabel(panel.label, fontsize=_FONT)
        for name, band in bands.items():
            if len(band.drawn):
                axis.plot(steps, panel.lines(band.drawn), color=band.color, label=name, linewidth=0.9, alpha=0.7)
        if panel.limits is None:
            clipped |= _scale_to_the_living(axis, panel, history.dead)
        else:
            axis.set_ylim(panel.limits)
    if history.alignment is None:
        _finish_angles(axes[1], history.dead_sector)
    for letter, axis in zip("abcdef", axes, strict=False):
        _finish_steps(axis, letter, marks)
    _add_legend(canvas, history, bands, clipped)
    return canvas.figure


@dataclass(frozen=True, slots=True, eq=False)
class _Panel:
    """What a panel shows of every neuron, shape ``(T, I)``: the label, the limits if they are known, angle or not."""

    label: str
    values: Tensor
    limits: tuple[float, float] | None = None
    angle: bool = False

    def lines(self, neurons: Tensor) -> NDArray[np.float64]:
        """One line for each of ``n`` neurons, shape ``(T, n)``."""
        drawn = self.values[:, neurons]
        return _unwrapped(drawn) if self.angle else to_numpy(drawn)


def _panels(history: TrainingHistory) -> list[_Panel]:
    """All panels but that of the loss."""
    turning = _Panel(r"angle of $w_i$ (rad)", history.angle, (0.0, 2 * np.pi), angle=True)
    if history.alignment is not None:
        turning = _Panel(r"alignment of $w_i$", history.alignment, (-1.05, 1.05))
    panels = [turning, _Panel(r"$\|w_i\|$", history.input_norm)]
    outputs = history.output.shape[1]
    if outputs > 2:
        panels.append(_Panel(r"$\|h_i\|$", history.output.norm(dim=1)))
    else:
        panels += [_Panel(f"$h_{{{j + 1}i}}$", history.output[:, j]) for j in range(outputs)]
    if history.active is not None:
        panels.append(_Panel("share active", history.active, (-0.05, 1.05)))
    return panels


def _loss_scale(loss: Tensor) -> str:
    """The scale of the loss axis for losses of shape ``(T,)``."""
    return "log" if bool((loss > 0).all()) and bool(loss.max() > _LOG_FROM_RATIO * loss.min()) else "linear"


def _scale_to_the_living(ax: Axes, panel: _Panel, dead: Tensor) -> bool:
    """Set the scale by the neurons that are not dead; whether a dead one is off it. ``dead`` has shape ``(I,)``."""
    dead = dead.to(panel.values.device)
    living = panel.values[:, ~dead]
    living = living[living.isfinite()]
    if not len(living):
        return False
    low, high = float(living.min()), float(living.max())
    margin = _MARGIN * (high - low) or _MARGIN * abs(high) or 1.0
    ax.set_ylim(low - margin, high + margin)
    beyond = (panel.values[:, dead] > high + margin) | (panel.values[:, dead] < low - margin)
    return bool(beyond.any())


@dataclass(frozen=True, slots=True, eq=False)
class _Band:
    """Neurons that are drawn alike: their colour and the indices of those that are drawn, long, shape ``(n,)``."""

    color: str
    drawn: Tensor


def _bands(history: TrainingHistory) -> dict[str, _Band]:
    """The bands by their name in the legend; the largest groups come last and are drawn on top."""
    dead = history.dead.cpu()
    group = history.group.cpu()
    amplitude = (history.input_norm[-1] * history.output[-1].norm(dim=0)).cpu()
    drawn = amplitude.argsort(descending=True, stable=True)[:_MAX_NEURONS].sort().values
    sizes = group[group >= 0].bincount()
    shared = [g for g, size in enumerate(sizes.tolist()) if size > 1]
    coloured = shared[: len(PALETTE)]
    rest = shared[len(PALETTE) :]
    others = torch.isin(group, torch.tensor(rest, dtype=group.dtype))
    alone = torch.isin(group, (sizes == 1).nonzero()[:, 0].to(group))
    bands = {}
    for name, color, members in [
        ("dead", BLACK, dead),
        ("in no group", GREY, ~dead & (group < 0)),
        ("alone", GREY, alone),
        (_names_of(rest), GREY, others),
        *[(f"group {g}", color, group == g) for g, color in reversed(list(zip(coloured, PALETTE, strict=False)))],
    ]:
        count = int(members.sum())
        if count:
            bands[f"{name} ({count} neuron{'s' if count > 1 else ''})"] = _Band(color, drawn[members[drawn]])
    return bands


def _names_of(groups: Sequence[int]) -> str:
    """The name of several groups together."""
    first, last = (groups[0], groups[-1]) if groups else (0, 0)
    if last == first:
        return f"group {first}"
    together = last - first + 1 == len(groups)
    return f"groups {first} to {last}" if together else f"{len(groups)} groups from {first} to {last}"


def _unwrapped(angle: Tensor) -> NDArray[np.float64]:
    """One line per neuron of angles ``(T, I)``, interrupted where it jumps between 2 pi and 0."""
    lines = to_numpy(angle).copy()
    lines[1:][np.abs(np.diff(lines, axis=0)) > np.pi] = np.nan
    return lines


def _finish_angles(ax: Axes, sector: tuple[float, float] | None) -> None:
    """Shade the dead sector, and label the axis of orientations in multiples of pi."""
    if sector is not None:
        start, end = sector
        for low, high in ((start, min(end, 2 * np.pi)), (0.0, end - 2 * np.pi)):
            if low < high:
                ax.axhspan(low, high, color=SHADE, linewidth=0, zorder=0)
    ax.set(yticks=np.arange(5) * np.pi / 2)
    ax.set_yticklabels(["0", r"$\pi/2$", r"$\pi$", r"$3\pi/2$", r"$2\pi$"])


def _finish_steps(ax: Axes, letter: str, marks: Sequence[float]) -> None:
    """Give a panel its letter, its axis of steps and the marked steps."""
    ax.set_title(f"({letter})", loc="left", fontsize=_FONT)
    ax.set_xlabel("step", fontsize=_FONT)
    ax.tick_params(labelsize=_FONT - 0.5)
    ax.xaxis.set(major_locator=MaxNLocator(4, integer=True), major_formatter=EngFormatter(sep=""))
    ax.margins(x=0)
    for step in marks:
        ax.axvline(step, color=GREY, linestyle="--", linewidth=0.8)


def _add_legend(canvas: Canvas, history: TrainingHistory, bands: dict[str, _Band], clipped: bool) -> None:
    """The legend below the panels: groups from the largest, dead neurons, the dead sector."""
    keys: list[Line2D | Patch] = [Line2D([], [], color=band.color, label=name) for name, band in bands.items()]
    keys.reverse()
    if history.dead_sector is not None and history.alignment is None:
        keys.append(Patch(color=SHADE, label="dead sector"))
    neurons = len(history.dead)
    notes = [f"the {_MAX_NEURONS} of {neurons} neurons of largest amplitude"] if neurons > _MAX_NEURONS else []
    notes += ["dead neurons may be off the scale"] if clipped else []
    canvas.legend(keys, columns=2, title="; ".join(notes) or None, fontsize=_FONT, title_fontsize=_FONT)
