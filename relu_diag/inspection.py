"""Judge a saved block on its data; show its neurons as tables and figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from torch import Tensor

from relu_diag.figures import direction_figure, function_figure, neuron_figure, perturbation_figure
from relu_diag.functional import (
    AbsoluteError,
    BinaryCrossEntropy,
    BlockSignal,
    CrossEntropy,
    Gap,
    Huber,
    NearbyStationaryPoint,
    NeuronGeometry,
    NeuronStates,
    Poisson,
    ShallowBlock,
    SquaredError,
    Verdict,
    WeightDecay,
    classify,
    nearby_stationary_point,
    neuron_geometry,
    optimality_gap,
    perturbation_test,
)
from relu_diag.functional.block import Reduction, chunked_outputs
from relu_diag.functional.local import neuron_sums, states_from_sums
from relu_diag.functional.output_loss import Loss, as_loss
from relu_diag.reading import load_block, load_data, load_problem, load_story
from relu_diag.report import BlockNeurons, Report, RunStory, neuron_groups

__all__ = [
    "Inspection",
    "LossName",
    "group_table",
    "inspect_block",
    "inspection_figures",
    "is_near",
    "load_block",
    "load_data",
    "load_problem",
    "load_story",
    "loss_named",
    "neuron_table",
]

LossName = Literal["squared_error", "absolute_error", "huber", "poisson", "cross_entropy", "binary_cross_entropy"]
_LOSSES: dict[str, Callable[..., Loss]] = {
    "squared_error": SquaredError,
    "absolute_error": AbsoluteError,
    "huber": Huber,
    "poisson": Poisson,
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
}
_MAX_ROWS = 100
# Numbers of inputs up to which a better bound on the gap is searched.
_FEW_NUMBERS = 2048
# Activations of all random perturbations together: some seconds.
_PERTURBED_NUMBERS = 2**26


def loss_named(name: LossName, block: ShallowBlock, Y: Tensor, reduction: str = "mean", **constants: Any) -> Loss:
    """A loss by its name in the command line, of the outputs of a block.

    Args:
        name: Its name.
        block: The block.
        Y: Targets, shape ``(N, J)``; of cross-entropy classes, shape ``(N, 1)``, or probabilities.
        reduction: "mean" or "sum"; of the squared error "half_sum" as well.
        constants: Constants of the loss, such as ``delta``.

    Returns:
        The loss.

    Raises:
        ValueError: If the targets are none of this loss, or it has no such constant.

    Example:
        >>> block = ShallowBlock(W=torch.ones(2, 1), H=torch.ones(3, 2))
        >>> loss_named("cross_entropy", block, torch.tensor([[0.0], [2.0]])).labels
        tensor([0, 2])
    """
    kind = _LOSSES[name]
    unknown = [one for one in constants if one not in getattr(kind, "__dataclass_fields__", {})]
    if unknown:
        raise ValueError(f"--{unknown[0]} is no constant of --loss {name}.")
    if name == "cross_entropy":
        Y = _as_classes(block, Y)
    return kind(Y, reduction=reduction, **constants)


def _as_classes(block: ShallowBlock, Y: Tensor) -> Tensor:
    """Targets of cross-entropy: probabilities ``(N, J)`` as they are, one column of numbers as classes ``(N,)``.

    Raises:
        ValueError: If there is one output, or a class is no output.
    """
    outputs = len(block.H)
    if outputs == 1:
        raise ValueError("--loss cross_entropy needs two outputs or more; a block with one has binary_cross_entropy.")
    if Y.shape[1] == outputs:
        return Y
    classes = Y[:, 0].long()
    if not bool((classes == Y[:, 0]).all()) or bool((classes < 0).any()) or bool((classes >= outputs).any()):
        raise ValueError(
            f"--loss cross_entropy needs a class from 0 to {outputs - 1} as target of every sample; got numbers from "
            f"{float(Y.min()):g} to {float(Y.max()):g}."
        )
    return classes


def group_table(geometry: NeuronGeometry, states: NeuronStates) -> Table:
    """The neurons of a layer, one row a group, the largest first.

    Args:
        geometry: One-sided derivatives.
        states: Neuron states.

    Returns:
        Table for a terminal of 80 columns.

    Example:
        >>> from relu_diag.functional import neuron_states, squared_error_signal
        >>> X, Y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> origin = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
        >>> geometry = neuron_geometry(origin, squared_error_signal(origin, X, Y))
        >>> group_table(geometry, neuron_states(origin, X, Y)).row_count
        1
    """
    table = Table(title=str(states), title_justify="left", box=box.SIMPLE, padding=0)
    for column in ("group", "neurons", "which", "state", "amplitude", "kinks", "steepest"):
        words = column in {"group", "which", "state"}
        table.add_column(column, justify="left" if words else "right", no_wrap=column != "which")
    for one in neuron_groups(geometry, states):
        size, kinks = str(len(one.neurons)), str(one.kinks)
        table.add_row(one.name, size, one.members, one.state, f"{one.amplitude:.2g}", kinks, f"{one.steepest:.2g}")
    return table


def neuron_table(
    block: ShallowBlock, X: Tensor, Y: Tensor | Loss, reduction: Reduction = "mean", kink_tol: float | None = None
) -> Table:
    """The state of each neuron, largest amplitude first; groups are numbered as in `NeuronStates.group`.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets of the squared error, shape ``(N, J)``, or a loss.
        reduction: "mean", "sum" or "half_sum", of the squared error.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.

    Returns:
        Table for a terminal, at most 100 neurons.

    Example:
        >>> X, Y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> origin = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
        >>> [column.header for column in neuron_table(origin, X, Y).columns][:3]
        ['neuron', 'state', 'group']
    """
    geometry, states = _neurons(block, X, as_loss(Y, reduction), kink_tol)
    order = states.amplitude.argsort(descending=True, stable=True)[:_MAX_ROWS].tolist()
    title = f"{len(block.W)} neurons" + (f", the largest {_MAX_ROWS}" if len(block.W) > _MAX_ROWS else "")
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=0)
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
        gap: How far it is from the best network of any width; None without weight decay, and where nothing is known of
            the loss's conjugate.

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
    gap: Gap | None = None

    def report(self, title: str, story: RunStory | None, command: str) -> Report:
        """The same as a report.

        Args:
            title: Its title.
            story: The run that led there; None: unknown.
            command: The command that makes it again.

        Returns:
            The report. Its verdict is that on the stationary point nearby, if there is one.
        """
        verdict = self.nearby.verdict if is_near(self.nearby) else self.verdict
        return Report(title, verdict, story, self.figures, (self.neurons,), command)


def inspect_block(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor | Loss,
    reduction: Reduction = "mean",
    kink_tol: float | None = None,
    tol: float | None = None,
    weight_decay: float = 0.0,
) -> Inspection:
    """Judge a block, find the stationary point near it, and draw both.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets of the squared error, shape ``(N, J)``, or a loss.
        reduction: "mean", "sum" or "half_sum", of the squared error.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.
        tol: Relative tolerance on derivatives; None: by dtype.
        weight_decay: Decay of all parameters, as of torch's SGD.

    Returns:
        What is said of it.

    Raises:
        ValueError: If the decay is negative or not finite.

    Example:
        >>> X, Y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> origin = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
        >>> found = inspect_block(origin, X, Y)
        >>> found.verdict.kind, sorted(found.figures)
        ('saddle', ['function', 'neuron_0', 'perturbations', 'witness'])
    """
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"`weight_decay` must be a finite factor, 0 or more; got {weight_decay!r}.")
    decay = WeightDecay(weight_decay, weight_decay, output_bias=weight_decay)
    verdict = classify(block, X, Y, reduction, kink_tol, tol, decay)
    nearby = nearby_stationary_point(block, X, Y, reduction, weight_decay=decay)
    neurons = BlockNeurons("the block", block, *_neurons(block, X, as_loss(Y, reduction), kink_tol))
    figures = inspection_figures(block, X, Y, verdict, reduction, nearby, decay)
    return Inspection(verdict, nearby, neurons, figures, _gap(block, X, as_loss(Y, reduction), decay))


def _gap(block: ShallowBlock, X: Tensor, loss: Loss, decay: WeightDecay) -> Gap | None:
    """The gap to the best network of any width, by the gradient of the block; None where there is none to be known."""
    if not decay.any:
        return None
    try:
        return optimality_gap(block, X, loss, decay, rounds=0 if X.numel() > _FEW_NUMBERS else 8)
    except NotImplementedError:
        return None


def _neurons(block: ShallowBlock, X: Tensor, loss: Loss, kink_tol: float | None) -> tuple[NeuronGeometry, NeuronStates]:
    """The neurons of a block under a loss."""
    G = loss.gradient(chunked_outputs(block, X))
    sums = neuron_sums(block, BlockSignal(X, G), kink_tol)
    return neuron_geometry(block, BlockSignal(X, G), kink_tol), states_from_sums(block, sums, loss.output_scale)


def is_near(nearby: NearbyStationaryPoint) -> bool:
    """Whether a stationary point is near weights, so that its verdict is theirs.

    Args:
        nearby: The nearest one that was found.

    Returns:
        Whether it is.

    Example:
        >>> origin = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
        >>> is_near(nearby_stationary_point(origin, torch.eye(2).double(), torch.ones(2, 1).double()))
        True
    """
    return nearby.genuine and not nearby.reason


def inspection_figures(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor | Loss,
    verdict: Verdict,
    reduction: Reduction = "mean",
    nearby: NearbyStationaryPoint | None = None,
    weight_decay: float | WeightDecay = 0.0,
) -> dict[str, Figure]:
    """Figures of a point: its function, the loss as one neuron turns, along the witness, and under perturbations.

    The perturbations are of the stationary point nearby, if there is one. At the weights themselves the gradient that
    training has left decides which way most small perturbations go, and says nothing about the point.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets of the squared error, shape ``(N, J)``, or a loss.
        verdict: The verdict on the point.
        reduction: "mean", "sum" or "half_sum", of the squared error.
        nearby: The stationary point near it; None: it is searched.
        weight_decay: Factor ``mu`` of ``mu / 2`` times the squared weights, or one for each part.

    Returns:
        Figures by name; "function" only with two inputs and targets, "witness" only if the verdict has a direction.

    Example:
        >>> X, Y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> origin = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
        >>> sorted(inspection_figures(origin, X, Y, classify(origin, X, Y)))
        ['function', 'neuron_0', 'perturbations', 'witness']
    """
    loss = as_loss(Y, reduction)
    figures = {}
    targets = getattr(loss, "Y", None)
    if X.shape[1] == 2 and targets is not None:
        figures["function"] = function_figure(block, X, targets)
    if X.shape[1] > 1:
        # The first neuron that the verdict names, or else the one of largest amplitude.
        amplitude = block.W.norm(dim=1) * block.H.norm(dim=0)
        neuron = int(verdict.neurons[0] if len(verdict.neurons) else amplitude.argmax())
        figures[f"neuron_{neuron}"] = neuron_figure(block, X, loss, neuron)
    if verdict.direction is not None:
        figures["witness"] = direction_figure(block, X, loss, verdict.direction, weight_decay=weight_decay)
    nearby = nearby or nearby_stationary_point(block, X, loss, weight_decay=weight_decay)
    perturbed = nearby.block if nearby.genuine else block
    draws = min(5000, max(100, _PERTURBED_NUMBERS // (len(X) * len(block.W))))
    seed = torch.Generator().manual_seed(0)
    test = perturbation_test(perturbed, X, loss, draws=draws, generator=seed, weight_decay=weight_decay)
    place = f"at the {nearby.verdict.kind} nearby" if is_near(nearby) else f"at the nearest {nearby.verdict.kind} found"
    where = place if nearby.genuine else "at these weights"
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
