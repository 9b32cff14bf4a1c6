"""Draw the loss around a point: along a direction, as one neuron turns, under random perturbations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETLEFTBASE, CARETRIGHTBASE
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from torch import Tensor

from relu_diag.figures.canvas import Canvas, set_title, to_numpy
from relu_diag.figures.palette import BLACK, GREY, PALETTE
from relu_diag.functional import (
    BlockSignal,
    Direction,
    ShallowBlock,
    neuron_geometry,
    rho,
    tangential_derivatives,
    taylor_expansion,
)
from relu_diag.functional.block import Reduction
from relu_diag.functional.local import slopes_at
from relu_diag.functional.output_loss import Loss, as_loss
from relu_diag.functional.verdict import PerturbationTest, TaylorExpansion
from relu_diag.functional.weight_decay import WeightDecay, as_weight_decay

_STEPS = 201
_ANGLES = 721
_MANY_KINKS = 100


def direction_figure(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor | Loss,
    direction: Direction,
    reduction: Reduction = "mean",
    ax: Axes | None = None,
    weight_decay: float | WeightDecay = 0.0,
) -> Figure:
    """The evaluated loss change along a witness direction, with its expansion drawn over it up to the first kink.

    The squared error is a quartic there; of other smooth losses the expansion to fourth order is drawn.

    Source: Wu et al., appendix F.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets of the squared error, shape ``(N, J)``, or a loss, such as `CrossEntropy`.
        direction: The direction of a verdict.
        reduction: "mean", "sum" or "half_sum", of the squared error.
        ax: Axes in whose place it is drawn; None: a new figure.
        weight_decay: Factor ``mu`` of ``mu / 2`` times the squared weights, an output bias being free; or one for each
            part.

    Returns:
        Figure.

    Example:
        >>> from relu_diag import functional as F
        >>> X, Y = torch.eye(2), torch.ones(2, 1)
        >>> origin = ShallowBlock(torch.zeros(1, 2), torch.zeros(1, 1))
        >>> figure = direction_figure(origin, X, Y, F.classify(origin, X, Y).direction)
        >>> [line.get_label() for line in figure.axes[0].lines][1:]
        ['loss change, evaluated', 'exact quartic', 'witness']
    """
    block, X = block.double(), X.detach().double()
    loss, decay = as_loss(Y, reduction).double(), as_weight_decay(weight_decay)
    steps = torch.linspace(0, 2 * direction.step, _STEPS, dtype=torch.float64)
    reached = [direction.applied_to(block, float(step)) for step in steps]
    losses = torch.stack([loss(there(X)) + decay.cost(there) for there in reached])
    canvas = Canvas.at(ax, (5.5, 4.0))
    panel = canvas.axes[0]
    panel.axhline(0, color=GREY, linewidth=0.6)
    panel.plot(
        to_numpy(steps), to_numpy(losses - losses[0]), color=BLACK, linewidth=1.2, label="loss change, evaluated"
    )
    panel.set_ylim(panel.get_ylim())
    if direction.db is None and loss.smooth:
        line = taylor_expansion(block, X, loss, direction.dW, direction.dH, weight_decay=decay)
        _draw_expansion(panel, line, steps)
    panel.plot([direction.step], [direction.loss_change], "o", color=PALETTE[1], label="witness")
    panel.set(xlabel="step along the direction", ylabel="loss change")
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.ticklabel_format(style="sci", scilimits=(-3, 3))
    canvas.legend(fontsize="small")
    return canvas.figure


def _draw_expansion(panel: Axes, line: TaylorExpansion, steps: Tensor) -> None:
    """Draw the change that an expansion tells, and where it ends, at the first kink."""
    within = steps[steps <= line.eps_max]
    label = "exact quartic" if line.exact else "to fourth order"
    change = to_numpy(line(within) - line(0.0))
    if len(within) > 1:  # else too short to be seen
        panel.plot(to_numpy(within), change, "--", color=PALETTE[0], linewidth=2.2, label=label)
    if line.eps_max < float(steps[-1]):
        panel.axvline(line.eps_max, color=GREY, linestyle=":", label="a sample crosses a kink")


def neuron_figure(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor | Loss,
    neuron: int,
    reduction: Reduction = "mean",
    ax: Axes | None = None,
) -> Figure:
    """The loss and its slope as one neuron turns in a plane at a fixed norm, the others at rest; kinks are dotted.

    With more than two inputs the plane is that of the neuron and its steepest tangential direction. The slope jumps at
    kinks; at the neuron's own orientation both one-sided slopes are marked. A neuron with output weight zero does not
    change the loss: then the pull on its output weights is drawn, ``sum_k e_kj rho(v . x_k)``. Weight decay, the same
    for all input weights, does not change as a neuron turns.

    Source: Wu et al., Lemma 3.2.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``, ``d > 1``.
        Y: Targets of the squared error, shape ``(N, J)``, or a loss, such as `CrossEntropy`.
        neuron: Index of the neuron.
        reduction: "mean", "sum" or "half_sum", of the squared error.
        ax: Axes in whose place it is drawn; None: a new figure.

    Returns:
        Figure.

    Raises:
        ValueError: If there is no such neuron, or if ``d = 1``, where nothing can turn.

    Example:
        >>> block = ShallowBlock(torch.tensor([[1.0, 0.5]]), torch.ones(1, 1))
        >>> figure = neuron_figure(block, torch.eye(2), torch.ones(2, 1), neuron=0)
        >>> [panel.get_ylabel() for panel in figure.axes]
        ['loss', 'slope']
    """
    count, inputs = block.W.shape
    if not 0 <= neuron < count or inputs == 1:
        raise ValueError(
            f"`neuron` must be one of {count} neurons of two inputs or more; got {neuron}, {inputs} inputs."
        )
    block, X = block.double(), X.detach().double()
    loss = as_loss(Y, reduction).double()
    signal = BlockSignal(X, loss.gradient(block(X)))
    plane = _plane(block, signal, neuron)
    angle = torch.linspace(0, 2 * math.pi, _ANGLES, dtype=X.dtype, device=X.device)
    loud = bool(block.H[:, neuron].any())
    canvas = Canvas.at(ax, (5.5, 5.0), (1, 1) if loud else (1,), sharex=True)
    axes = canvas.axes
    if loud:
        losses, slopes = _turned(block, X, loss, neuron, plane, angle)
        axes[0].plot(to_numpy(angle), to_numpy(losses), color=BLACK)
        axes[0].set(ylabel="loss")
        axes[1].plot(to_numpy(angle), to_numpy(slopes), ".", color=BLACK, markersize=1.5)
        axes[1].set(ylabel="slope")
        _mark_own_slopes(axes[1], block, signal, neuron, plane)
    else:
        _draw_pull(axes[0], block, signal, plane, angle)
    set_title(axes[0], f"neuron {neuron} turning in a plane")
    _finish(axes, X @ plane.axes.T, plane.angle)
    canvas.legend(axes[-1].get_legend_handles_labels()[0], columns=3)
    return canvas.figure


def perturbation_figure(test: PerturbationTest, where: str = "", ax: Axes | None = None) -> Figure:
    """The histogram of the loss changes under random perturbations.

    Source: Wu et al., Figures 10 and 13.

    Args:
        test: Result of `relu_diag.functional.perturbation_test`.
        where: Name of the point that was perturbed, for the title.
        ax: Axes in whose place it is drawn; None: a new figure.

    Returns:
        Figure.

    Example:
        >>> from relu_diag import functional as F
        >>> block = ShallowBlock(torch.ones(1, 2), torch.ones(1, 1))
        >>> test = F.perturbation_test(block, torch.eye(2), torch.zeros(2, 1), draws=50)
        >>> perturbation_figure(test).axes[0].get_ylabel()
        'perturbations'
    """
    canvas = Canvas.at(ax, (5.5, 3.5))
    panel = canvas.axes[0]
    panel.hist(to_numpy(test.changes), bins=60, color=PALETTE[1])
    panel.axvline(0, color=BLACK, linewidth=0.8)
    panel.set(xlabel=f"loss change, noise up to {test.zeta:.2g}", ylabel="perturbations")
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.ticklabel_format(axis="x", style="sci", scilimits=(-3, 3))
    set_title(panel, f"{where}: {test}" if where else str(test))
    return canvas.figure


@dataclass(frozen=True, slots=True, eq=False)
class _Plane:
    """A plane in which a neuron turns: two orthonormal rows, shape ``(2, d)``, and the neuron's angle in it, rad."""

    axes: Tensor
    angle: float

    def directions(self, angle: Tensor) -> Tensor:
        """Unit vectors at ``n`` angles, shape ``(n, d)``."""
        return angle.cos()[:, None] * self.axes[0] + angle.sin()[:, None] * self.axes[1]


def _plane(block: ShallowBlock, signal: BlockSignal, neuron: int) -> _Plane:
    """The plane of a neuron: all there is with two inputs, else that of its steepest tangential direction."""
    w = block.W[neuron]
    unit = torch.eye(len(w), dtype=w.dtype, device=w.device)
    if len(w) == 2:
        return _Plane(unit, float(torch.atan2(w[1], w[0])) % (2 * math.pi))
    steepest = neuron_geometry(block, signal).direction[neuron]
    # Axes take the place of a zero neuron or a zero direction.
    basis: list[Tensor] = []
    for vector in torch.cat([w[None], steepest[None], unit]):
        rest = vector - sum(((vector @ known) * known for known in basis), torch.zeros_like(vector))
        if len(basis) < 2 and float(rest.norm()) > 1e-6 * max(float(vector.norm()), 1e-300):
            basis.append(rest / rest.norm())
    return _Plane(torch.stack(basis), 0.0)


def _turned(
    block: ShallowBlock, X: Tensor, loss: Loss, neuron: int, plane: _Plane, angle: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss, and its slope per unit length, with the neuron turned to each of ``n`` angles; both of shape ``(n,)``."""
    h = block.H[:, neuron]
    others = block(X) - rho(X @ block.W[neuron], block.slopes)[:, None] * h
    Z = block.W[neuron].norm() * plane.directions(angle) @ X.T
    turned = [others + rho(z, block.slopes)[:, None] * h for z in Z]
    losses = torch.stack([loss(outputs) for outputs in turned])
    felt = torch.stack([loss.gradient(outputs) @ h for outputs in turned])
    ahead = plane.directions(angle + math.pi / 2) @ X.T
    slopes = (felt * slopes_at(Z, block.slopes) * ahead).sum(1)
    return losses, slopes


def _mark_own_slopes(ax: Axes, block: ShallowBlock, signal: BlockSignal, neuron: int, plane: _Plane) -> None:
    """Mark both one-sided slopes at the neuron's own orientation."""
    left = plane.directions(torch.as_tensor([plane.angle + math.pi / 2], dtype=block.W.dtype))[0]
    # The base of a caret is its point: equal slopes do not cover each other.
    for sign, marker, name in ((1.0, CARETRIGHTBASE, "turning left"), (-1.0, CARETLEFTBASE, "turning right")):
        V = torch.zeros_like(block.W)
        V[neuron] = sign * left
        slope = sign * float(tangential_derivatives(block, signal, V)[neuron])
        style: dict[str, Any] = {"marker": marker, "markersize": 8, "linestyle": "none", "zorder": 4}
        ax.plot([plane.angle], [slope], color=PALETTE[0], label=f"its slope {name}", **style)


def _draw_pull(ax: Axes, block: ShallowBlock, signal: BlockSignal, plane: _Plane, angle: Tensor) -> None:
    """Draw the pull on the output weights of a neuron that is turned to each of ``n`` angles."""
    pull = rho(plane.directions(angle) @ signal.X.T, block.slopes) @ signal.G
    for j in range(pull.shape[1]):
        color = PALETTE[j % len(PALETTE)]
        ax.plot(to_numpy(angle), to_numpy(pull[:, j]), color=color, label=f"output {j + 1}")
    ax.set(ylabel="pull on the output weight")


def _finish(axes: list[Axes], seen: Tensor, now: float) -> None:
    """Mark the kinks of the samples, seen in the plane as ``(N, 2)``, and the neuron's present angle."""
    at = torch.atan2(seen[:, 1], seen[:, 0])[seen.any(dim=1)]
    kinks = torch.cat([at + math.pi / 2, at - math.pi / 2]) % (2 * math.pi)
    # Many lines would hide the curve: they end as ticks on the axis.
    top = 1.0 if len(kinks) <= _MANY_KINKS else 0.03
    for ax in axes:
        style: dict[str, Any] = {"color": GREY, "linestyle": ":", "linewidth": 0.8}
        ax.vlines(to_numpy(kinks), 0, top, transform=ax.get_xaxis_transform(), **style)
        ax.axvline(now, color=PALETTE[2], linewidth=1.0, label="the neuron")
    axes[-1].set(xlabel="orientation (rad)", xlim=(0, 2 * math.pi))
    axes[-1].xaxis.set_major_locator(MultipleLocator(math.pi / 2))
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / math.pi:g}$\\pi$" if value else "0"))
