"""Judge a saved block on its data; show its neurons as tables and figures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from torch import Tensor

from relu_diag.figures import direction_figure, function_figure, neuron_figure, perturbation_figure
from relu_diag.functional import (
    NearbyStationaryPoint,
    NeuronGeometry,
    NeuronStates,
    ShallowBlock,
    Verdict,
    classify,
    nearby_stationary_point,
    neuron_geometry,
    neuron_states,
    perturbation_test,
    squared_error_signal,
)
from relu_diag.functional.block import Reduction
from relu_diag.reading import load_block, load_data, load_problem, load_story
from relu_diag.report import BlockNeurons, Report, RunStory, neuron_groups

__all__ = [
    "Inspection",
    "group_table",
    "inspect_block",
    "inspection_figures",
    "load_block",
    "load_data",
    "load_problem",
    "load_story",
    "neuron_table",
]

_MAX_ROWS = 100


def group_table(geometry: NeuronGeometry, states: NeuronStates) -> Table:
    """The neurons of a layer, one row a group, the largest first.

    Args:
        geometry: One-sided derivatives.
        states: Neuron states.

    Returns:
        Table for a terminal of 80 columns.

    Example:
        >>> X, Y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> origin = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
        >>> geometry = neuron_geometry(origin, squared_error_signal(origin, X, Y))
        >>> group_table(geometry, neuron_states(origin, X, Y)).row_count
        1
    """
    table = Table(title=str(states), box=box.SIMPLE, padding=0)
    for column in ("group", "neurons", "which", "state", "amplitude", "kinks", "steepest"):
        words = column in {"group", "which", "state"}
        table.add_column(column, justify="left" if words else "right", no_wrap=column != "which")
    for one in neuron_groups(geometry, states):
        size, kinks = str(len(one.neurons)), str(one.kinks)
        table.add_row(one.name, size, one.members, one.state, f"{one.amplitude:.2g}", kinks, f"{one.steepest:.2g}")
    return table


def neuron_table(
    block: ShallowBlock, X: Tensor, Y: Tensor, reduction: Reduction = "mean", kink_tol: float | None = None
) -> Table:
    """The state of each neuron, largest amplitude first; groups are numbered as in `NeuronStates.group`.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: "mean", "sum" or "half_sum".
        kink_tol: Relative distance that counts as on the kink; None: by dtype.

    Returns:
        Table for a terminal, at most 100 neurons.

    Example:
        >>> X, Y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> origin = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
        >>> [column.header for column in neuron_table(origin, X, Y).columns][:3]
        ['neuron', 'state', 'group']
    """
    geometry = neuron_geometry(block, squared_error_signal(block, X, Y, reduction), kink_tol)
    states = neuron_states(block, X, Y, kink_tol)
    order = states.amplitude.argsort(descending=True, stable=True)[:_MAX_ROWS].tolist()
    title = f"{len(block.W)} neurons" + (f", the largest {_MAX_ROWS}" if len(block.W) > _MAX_ROWS else "")
    table = Table(title=title, box=box.SIMPLE, padding=0)
    for column in ("neuron", "state", "group", "|w|", "|h|", "angle", "kinks", "radial", "steepest"):
        table.add_column(column, justify="left" if column == "state" else "right", no_wrap=True)
    for i in order:
        table.add_row(*_row(i, block, geometry, states))
    return table


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """What is said of a saved block on its data.

    Attributes:
        verdict: Verdict on its weights.
        nearby: The stationary point near them, with its own verdict.
        neurons: Its neurons.
        figures: Figures by name.

    Example:
        >>> X, Y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> origin = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
        >>> found = inspect_block(origin, X, Y)
        >>> found.verdict.kind
        'saddle'
        >>> found.report("the origin", story=None, command="").title
        'the origin'
    """

    verdict: Verdict
    nearby: NearbyStationaryPoint
    neurons: BlockNeurons
    figures: dict[str, Figure]

    def report(self, title: str, story: RunStory | None, command: str) -> Report:
        """The same as a report.

        Args:
            title: Its title.
            story: The run that led there; None: unknown.
            command: The command that makes it again.

        Returns:
            The report. Its verdict is that on the stationary point nearby, if there is one.
        """
        verdict = self.nearby.verdict if self.nearby.genuine else self.verdict
        return Report(title, verdict, story, self.figures, (self.neurons,), command)


def inspect_block(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor,
    reduction: Reduction = "mean",
    kink_tol: float | None = None,
    tol: float | None = None,
) -> Inspection:
    """Judge a block, find the stationary point near it, and draw both.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        reduction: "mean", "sum" or "half_sum".
        kink_tol: Relative distance that counts as on the kink; None: by dtype.
        tol: Relative tolerance on derivatives; None: by dtype.

    Returns:
        What is said of it.

    Example:
        >>> X, Y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> origin = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
        >>> found = inspect_block(origin, X, Y)
        >>> found.verdict.kind, sorted(found.figures)
        ('saddle', ['function', 'neuron_0', 'perturbations', 'witness'])
    """
    verdict = classify(block, X, Y, reduction, kink_tol, tol)
    nearby = nearby_stationary_point(block, X, Y, reduction)
    geometry = neuron_geometry(block, squared_error_signal(block, X, Y, reduction), kink_tol)
    neurons = BlockNeurons("the block", block, geometry, neuron_states(block, X, Y, kink_tol))
    return Inspection(verdict, nearby, neurons, inspection_figures(block, X, Y, verdict, reduction, nearby))


def inspection_figures(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor,
    verdict: Verdict,
    reduction: Reduction = "mean",
    nearby: NearbyStationaryPoint | None = None,
) -> dict[str, Figure]:
    """Figures of a point: its function, the loss as one neuron turns, along the witness, and under perturbations.

    The perturbations are of the stationary point nearby, if there is one. At the weights themselves the gradient that
    training has left decides which way most small perturbations go, and says nothing about the point.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``.
        verdict: The verdict on the point.
        reduction: "mean", "sum" or "half_sum".
        nearby: The stationary point near it; None: it is searched.

    Returns:
        Figures by name; "function" only with two inputs, "witness" only if the verdict has a direction.

    Example:
        >>> X, Y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> origin = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
        >>> sorted(inspection_figures(origin, X, Y, classify(origin, X, Y)))
        ['function', 'neuron_0', 'perturbations', 'witness']
    """
    figures = {}
    if X.shape[1] == 2:
        figures["function"] = function_figure(block, X, Y)
    if X.shape[1] > 1:
        # The first neuron that the verdict names, or else the one of largest amplitude.
        amplitude = block.W.norm(dim=1) * block.H.norm(dim=0)
        neuron = int(verdict.neurons[0] if len(verdict.neurons) else amplitude.argmax())
        figures[f"neuron_{neuron}"] = neuron_figure(block, X, Y, neuron, reduction)
    if verdict.direction is not None:
        figures["witness"] = direction_figure(block, X, Y, verdict.direction, reduction)
    nearby = nearby or nearby_stationary_point(block, X, Y, reduction)
    perturbed = nearby.block if nearby.genuine else block
    test = perturbation_test(perturbed, X, Y, reduction, generator=torch.Generator().manual_seed(0))
    where = f"at the {nearby.verdict.kind} nearby" if nearby.genuine else "at these weights"
    figures["perturbations"] = perturbation_figure(test, where)
    return figures


def _row(i: int, block: ShallowBlock, geometry: NeuronGeometry, states: NeuronStates) -> list[str]:
    """The cells of neuron ``i``'s row in the table."""
    names = {"dead": states.dead, "on the brink": states.brink, "linear": states.linear, "small": states.small_living}
    group = int(states.group[i])
    return [
        str(i),
        ", ".join(name for name, mask in names.items() if mask[i]) or "active",
        str(group) if group >= 0 else "-",
        f"{block.W[i].norm():.2g}",
        f"{block.H[:, i].norm():.2g}",
        f"{states.angle[i]:.3f}",
        str(int(geometry.kink_count[i])),
        f"{geometry.radial[i]:.2g}",
        f"{geometry.steepest[i]:.2g}" + ("" if geometry.exact[i] else " or less"),
    ]
