"""Draw a training run neuron by neuron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from relu_diag.figures.canvas import to_numpy
from relu_diag.figures.palette import BLACK, GREY, PALETTE, SHADE

# More lines than this are neither readable nor fast to draw.
_MAX_NEURONS = 512
# Ratio of the largest to the smallest loss from which the axis is logarithmic.
_LOG_FROM_RATIO = 100.0


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

    Raises:
        ValueError: If there is no moment or no neuron, or the shapes do not fit together.
    """

    steps: Tensor
    loss: Tensor
    angle: Tensor
    input_norm: Tensor
    output: Tensor
    group: Tensor
    dead: Tensor
    dead_sector: tuple[float, float] | None = None

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
        }
        for name, shape in shapes.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"`{name}` must be {shape} to fit output {tuple(self.output.shape)}; got {got}.")


def training_figure(history: TrainingHistory, marks: Sequence[float] = ()) -> Figure:
    """Loss, orientations, input norms and output weights along training; groups are coloured, dead neurons black.

    The groups are the effective neurons at the end, numbered as in `NeuronStates.group`: 0 is the largest. One or two
    outputs get a panel each, more are drawn as the norm ``||h_i||``. Beyond 512 neurons only those of largest amplitude
    at the end are drawn, and the legend says so.

    Source: Wu et al., Figures 3 and 12.

    Args:
        history: The run.
        marks: Steps to mark with a dashed line, plateau ends for example.

    Returns:
        Figure.
    """
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    outputs = _output_panels(history.output)
    panels = {r"orientation of $w_i$ (rad)": history.angle, r"$\|w_i\|$": history.input_norm, **outputs}
    axes = list(figure.subplot_mosaic("AB;CD" if len(outputs) == 1 else "AABBCC;DDDEEE", sharex=True).values())
    steps = to_numpy(history.steps)
    axes[0].plot(steps, to_numpy(history.loss), color=BLACK, linewidth=1.2)
    axes[0].set(ylabel="loss", yscale=_loss_scale(history.loss))
    bands = _bands(history)
    for ax, (label, values) in zip(axes[1:], panels.items(), strict=True):
        ax.set_ylabel(label)
        for name, band in bands.items():
            drawn = values[:, band.drawn]
            for line in _unwrapped(drawn) if values is history.angle else to_numpy(drawn).T:
                ax.plot(steps, line, color=band.color, label=name, linewidth=0.9, alpha=0.7)
    _finish_angles(axes[1], history.dead_sector)
    for letter, ax in zip("abcde", axes, strict=False):
        _finish_steps(ax, letter, marks)
    _add_legend(figure, history, bands)
    return figure


def _output_panels(output: Tensor) -> dict[str, Tensor]:
    """Label and values, shape ``(T, I)``, of every panel of output weights, shape ``(T, J, I)``."""
    count = output.shape[1]
    if count > 2:
        return {r"$\|h_i\|$": output.norm(dim=1)}
    return {f"$h_{{{j + 1}i}}$": output[:, j] for j in range(count)}


def _loss_scale(loss: Tensor) -> str:
    """The scale of the loss axis for losses of shape ``(T,)``."""
    return "log" if bool((loss > 0).all()) and bool(loss.max() > _LOG_FROM_RATIO * loss.min()) else "linear"


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
    bands = {}
    for name, color, members in [
        ("dead", BLACK, dead),
        ("in no group", GREY, ~dead & (group < 0)),
        (_names_of_small_groups(group), GREY, group >= len(PALETTE)),
        *[(f"group {g}", PALETTE[g], group == g) for g in reversed(range(len(PALETTE)))],
    ]:
        count = int(members.sum())
        if count:
            bands[f"{name} ({count} neuron{'s' if count > 1 else ''})"] = _Band(color, drawn[members[drawn]])
    return bands


def _names_of_small_groups(group: Tensor) -> str:
    """Name of all groups beyond the palette together; groups of shape ``(I,)``."""
    first = len(PALETTE)
    last = int(group.max())
    return f"groups {first} to {last}" if last > first else f"group {first}"


def _unwrapped(angle: Tensor) -> NDArray[np.float64]:
    """One line per neuron of angles ``(T, I)``, interrupted where it jumps between 2 pi and 0; shape ``(I, T)``."""
    lines = to_numpy(angle).T.copy()
    lines[:, 1:][np.abs(np.diff(lines, axis=1)) > np.pi] = np.nan
    return lines


def _finish_angles(ax: Axes, sector: tuple[float, float] | None) -> None:
    """Shade the dead sector, and label the axis of orientations in multiples of pi."""
    if sector is not None:
        start, end = sector
        for low, high in ((start, min(end, 2 * np.pi)), (0.0, end - 2 * np.pi)):
            if low < high:
                ax.axhspan(low, high, color=SHADE, linewidth=0, zorder=0)
    ax.set(ylim=(0, 2 * np.pi), yticks=np.arange(5) * np.pi / 2)
    ax.set_yticklabels(["0", r"$\pi/2$", r"$\pi$", r"$3\pi/2$", r"$2\pi$"])


def _finish_steps(ax: Axes, letter: str, marks: Sequence[float]) -> None:
    """Give a panel its letter, its axis of steps and the marked steps."""
    ax.set_title(f"({letter})", loc="left", fontsize="medium")
    ax.set_xlabel("step")
    ax.tick_params(labelbottom=True)
    ax.xaxis.set(major_locator=MaxNLocator(4, integer=True), major_formatter=EngFormatter(sep=""))
    ax.margins(x=0)
    for step in marks:
        ax.axvline(step, color=GREY, linestyle="--", linewidth=0.8)


def _add_legend(figure: Figure, history: TrainingHistory, bands: dict[str, _Band]) -> None:
    """The legend below the panels: groups from the largest, dead neurons, the dead sector."""
    keys: list[Line2D | Patch] = [Line2D([], [], color=band.color, label=name) for name, band in bands.items()]
    keys.reverse()
    if history.dead_sector is not None:
        keys.append(Patch(color=SHADE, label="dead sector"))
    neurons = len(history.dead)
    title = f"the {_MAX_NEURONS} of {neurons} neurons of largest amplitude" if neurons > _MAX_NEURONS else None
    figure.legend(handles=keys, title=title, loc="outside lower center", ncols=4, frameon=False)
