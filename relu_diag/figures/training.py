"""A training run, neuron by neuron."""

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

from relu_diag.figures.canvas import BLACK, GREY, PALETTE, SHADE, to_numpy

_MAX_NEURONS = 512
_LOG_FROM_RATIO = 100.0


@dataclass(frozen=True, slots=True, eq=False)
class TrainingHistory:
    """What a training run looked like, neuron by neuron, at ``T`` moments.

    Attributes:
        steps: Gradient steps done, shape ``(T,)``.
        loss: Loss, shape ``(T,)``.
        angle: Orientation of the input weights' first two components, rad in [0, 2 pi), shape ``(T, I)``.
        input_norm: ``||w_i||``, shape ``(T, I)``.
        output: Output weights, shape ``(T, J, I)``.
        group: Effective neuron at the end, 0 the largest, -1 for none (`NeuronStates.group`), long, shape ``(I,)``.
        dead: Whether the neuron is dead at the end, bool, shape ``(I,)``.
        dead_sector: Arc of dead orientations (`dead_sector`), rad, or None.

    Raises:
        ValueError: If there is no moment or neuron, or the shapes do not fit.
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
    """Loss, orientations, input norms and output weights along training; effective neurons coloured, dead ones black.

    Two outputs get a panel each, more are drawn as the norm ``||h_i||``. Beyond 512 neurons only those of largest
    amplitude at the end are drawn, and the legend says so.

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
        for name, (color, members) in bands.items():
            for line in _unwrapped(values[:, members]) if values is history.angle else to_numpy(values[:, members]).T:
                ax.plot(steps, line, color=color, label=name, linewidth=0.9, alpha=0.7)
    _finish_angles(axes[1], history.dead_sector)
    for letter, ax in zip("abcde", axes, strict=False):
        _finish_steps(ax, letter, marks)
    _add_legend(figure, history, bands)
    return figure


def _output_panels(output: Tensor) -> dict[str, Tensor]:
    """Label and values, ``(T, I)``, of every panel of output weights."""
    count = output.shape[1]
    if count > 2:
        return {r"$\|h_i\|$": output.norm(dim=1)}
    return {f"$h_{{{j + 1}i}}$": output[:, j] for j in range(count)}


def _loss_scale(loss: Tensor) -> str:
    return "log" if bool((loss > 0).all()) and bool(loss.max() > _LOG_FROM_RATIO * loss.min()) else "linear"


def _bands(history: TrainingHistory) -> dict[str, tuple[str, Tensor]]:
    """Name, colour and drawn members of the neurons drawn alike; what is to be seen comes last."""
    dead, group = history.dead.cpu(), history.group.cpu()
    amplitude = (history.input_norm[-1] * history.output[-1].norm(dim=0)).cpu()
    drawn = amplitude.argsort(descending=True, stable=True)[:_MAX_NEURONS].sort().values
    coloured = {f"group {g + 1}": (color, ~dead & (group == g)) for g, color in reversed(list(enumerate(PALETTE)))}
    other = ~dead & ((group < 0) | (group >= len(PALETTE)))
    bands = {}
    for name, (color, mask) in {"dead": (BLACK, dead), "other": (GREY, other), **coloured}.items():
        count = int(mask.sum())
        if count:
            bands[f"{name} ({count} neuron{'s' if count > 1 else ''})"] = (color, drawn[mask[drawn]])
    return bands


def _unwrapped(angle: Tensor) -> NDArray[np.float64]:
    """One line per neuron, broken where it passes from 2 pi to 0 or back: the later point is left out."""
    lines = to_numpy(angle).T.copy()
    lines[:, 1:][np.abs(np.diff(lines, axis=1)) > np.pi] = np.nan
    return lines


def _finish_angles(ax: Axes, sector: tuple[float, float] | None) -> None:
    if sector is not None:
        start, end = sector
        for low, high in ((start, min(end, 2 * np.pi)), (0.0, end - 2 * np.pi)):
            if low < high:
                ax.axhspan(low, high, color=SHADE, linewidth=0, zorder=0)
    ax.set(ylim=(0, 2 * np.pi), yticks=np.arange(5) * np.pi / 2)
    ax.set_yticklabels(["0", r"$\pi/2$", r"$\pi$", r"$3\pi/2$", r"$2\pi$"])


def _finish_steps(ax: Axes, letter: str, marks: Sequence[float]) -> None:
    ax.set_title(f"({letter})", loc="left", fontsize="medium")
    ax.set_xlabel("step")
    ax.tick_params(labelbottom=True)
    ax.xaxis.set(major_locator=MaxNLocator(4, integer=True), major_formatter=EngFormatter(sep=""))
    ax.margins(x=0)
    for step in marks:
        ax.axvline(step, color=GREY, linestyle="--", linewidth=0.8)


def _add_legend(figure: Figure, history: TrainingHistory, bands: dict[str, tuple[str, Tensor]]) -> None:
    keys: list[Line2D | Patch] = [Line2D([], [], color=color, label=name) for name, (color, _) in bands.items()]
    keys.reverse()
    if history.dead_sector is not None:
        keys.append(Patch(color=SHADE, label="dead sector"))
    neurons = len(history.dead)
    title = f"the {_MAX_NEURONS} of {neurons} neurons of largest amplitude" if neurons > _MAX_NEURONS else None
    figure.legend(handles=keys, title=title, loc="outside lower center", ncols=4, frameon=False)
