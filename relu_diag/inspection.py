"""Read a block from a checkpoint file and its data from a data file; show its neurons as a table and figures."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from torch import Tensor, nn

from relu_diag.capture import read_block
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
from relu_diag.report import BlockNeurons, Report, RunStory, neuron_groups
from relu_diag.training import Plateau

_MAX_ROWS = 100


def load_block(
    checkpoint: Path, class_path: str | None = None, slopes: tuple[float, float] | None = None
) -> ShallowBlock:
    """The block in a Lightning checkpoint or a plain state dict, in float64. Nothing in the file is executed.

    Args:
        checkpoint: File written by a Trainer or by ``torch.save(module.state_dict())``.
        class_path: Import path of the module's class, which is built with the checkpoint's hyper-parameters; None: the
            file holds a `ShallowNet`, alone or inside another module.
        slopes: ``(s-, s+)`` of a `ShallowNet`; None: as in the hyper-parameters, or those of ReLU.

    Returns:
        The block.

    Raises:
        ValueError: If the file cannot be read, or holds no shallow block or several.
    """
    loaded = _loaded(checkpoint)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{checkpoint} holds a {type(loaded).__name__}; expected a checkpoint or a state dict.")
    state = loaded.get("state_dict", loaded)
    hparams = loaded.get("hyper_parameters", {})
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{checkpoint} holds no state dict: its keys must be names of parameters.")
    if class_path is not None:
        module = _module(class_path, state, hparams).double().eval()
        block = read_block(module)
        _check_is_block(module, block)
        return block
    return _shallow_net(checkpoint, state, slopes or tuple(hparams.get("slopes", (0.0, 1.0))))


def _shallow_net(checkpoint: Path, state: Mapping[str, Any], slopes: tuple[float, float]) -> ShallowBlock:
    """The block of the only `ShallowNet` in a state dict.

    Raises:
        ValueError: If there is none or there are several, or one of its parameters is no tensor.
    """
    prefixes = [key.removesuffix("hidden.weight") for key in state if key.endswith("hidden.weight")]
    prefixes = [prefix for prefix in prefixes if f"{prefix}output.weight" in state]
    if len(prefixes) != 1:
        found = f"{len(prefixes)} of them ({', '.join(prefixes)})" if prefixes else f"the keys {', '.join(state)}"
        raise ValueError(
            f"{checkpoint} must hold one pair hidden.weight, output.weight of a ShallowNet; it has {found}. "
            "Name the module's class with --class_path."
        )
    names = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")
    parts = {name: state.get(prefixes[0] + name) for name in names}
    wrong = [key for key, part in parts.items() if not isinstance(part, Tensor | None)]
    if wrong:
        raise ValueError(f"{checkpoint} must hold tensors; {wrong[0]} is a {type(parts[wrong[0]]).__name__}.")
    W, b, H, bias = (None if part is None else part.double() for part in parts.values())
    assert W is not None
    assert H is not None
    W = W if b is None else torch.cat([W, b[:, None]], dim=1)
    return ShallowBlock(W, H, slopes, bias)


def load_data(file: Path, block: ShallowBlock) -> tuple[Tensor, Tensor]:
    """A data set for a block, in float64.

    Args:
        file: ``.npz`` or ``.pt`` with ``X`` and ``Y`` (a pair of tensors will do), or ``.csv`` with the targets in the
            last columns and an optional header.
        block: The block: it tells how many columns are targets, and whether a column of ones is to be added.

    Returns:
        Inputs ``(N, d)``, with a column of ones if the block has a hidden bias, and targets ``(N, J)``.

    Raises:
        ValueError: If the file cannot be read as a data set of the block.
    """
    X, Y = _READERS.get(file.suffix, _unknown)(file, len(block.H))
    if not isinstance(X, Tensor) or not isinstance(Y, Tensor) or not X.numel() or not Y.numel():
        raise ValueError(f"{file} must hold numbers for X and Y, at least one sample.")
    X = X.double()
    Y = Y.double().reshape(len(Y), -1)
    if X.ndim == 1:
        X = X[:, None]
    if X.shape[1] == block.W.shape[1] - 1:
        X = torch.cat([X, X.new_ones(len(X), 1)], dim=1)
    if X.shape[1] != block.W.shape[1] or Y.shape != (len(X), len(block.H)):
        raise ValueError(
            f"{file} has inputs {tuple(X.shape)} and targets {tuple(Y.shape)}; the block takes {block.W.shape[1]} "
            f"inputs (the constant column counted) and gives {len(block.H)} outputs."
        )
    return X, Y


def load_story(checkpoint: Path) -> RunStory | None:
    """What a `PlateauMonitor` and the callbacks that act on plateaus left in a checkpoint. Nothing in it is executed.

    Args:
        checkpoint: File written by a Trainer.

    Returns:
        The run up to the checkpoint; None if there was no such monitor, or it had seen no loss.
    """
    loaded = _loaded(checkpoint)
    states = loaded.get("callbacks", {}) if isinstance(loaded, Mapping) else {}
    monitors = [state for key, state in states.items() if str(key).startswith("PlateauMonitor")]
    if not monitors or not monitors[0]["curve"][0]:
        return None
    steps, losses = zip(*monitors[0]["curve"][0], strict=True)
    marks = []
    for state in states.values():
        marks += [(one["step"], f"width {one['after']}") for one in state.get("growths", ())]
        marks += [(one["step"], "moved") for one in state.get("escapes", ())]
    return RunStory(steps, losses, [Plateau.from_state(one) for one in monitors[0]["plateaus"]], sorted(marks))


def group_table(geometry: NeuronGeometry, states: NeuronStates) -> Table:
    """The neurons of a layer, one row a group, the largest first.

    Args:
        geometry: One-sided derivatives.
        states: Neuron states.

    Returns:
        Table for a terminal of 80 columns.
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


def _module(class_path: str, state: Mapping[str, Tensor], hparams: Mapping[str, Any]) -> nn.Module:
    """A module of a class given by its import path, with the hyper-parameters and weights of a checkpoint.

    Raises:
        ValueError: If the class cannot be imported or built, or the weights do not fit.
    """
    module_name, _, class_name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--class_path {class_path!r} cannot be imported: {error}.") from error
    accepted = inspect.signature(cls).parameters
    try:
        module = cls(**{name: value for name, value in hparams.items() if name in accepted})
        module.load_state_dict(state)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{class_path} cannot be built from the checkpoint's hyper-parameters: {error}.") from error
    assert isinstance(module, nn.Module)
    return module


def _check_is_block(module: nn.Module, block: ShallowBlock) -> None:
    """Refuse a module that computes more than its block, since the data are inputs and targets of the module.

    Raises:
        ValueError: If it does.
    """
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Linear))
    X = torch.randn(16, first.in_features, dtype=block.W.dtype, generator=torch.Generator().manual_seed(0))
    inputs = X if first.bias is None else torch.cat([X, X.new_ones(len(X), 1)], dim=1)
    with torch.no_grad():
        if block.W.shape[1] != inputs.shape[1] or not torch.allclose(module(X), block(inputs)):
            raise ValueError(f"{type(module).__name__} computes more than its block: inspect the block's own layers.")


@contextmanager
def _reading(file: Path, what: str = "") -> Iterator[None]:
    """Turn any error of a reader into one that names the file; errors of the operating system already do.

    Raises:
        ValueError: If the reader raises anything else.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{file} cannot be read: {what or error}") from error


def _loaded(file: Path) -> Any:
    """The content of a file written by ``torch.save``, without executing anything in it."""
    with _reading(file, "no file of torch.save, or not of tensors alone; save module.state_dict()."):
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_npz(file: Path, _: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets in an ``.npz`` file."""
    with _reading(file), np.load(file, allow_pickle=False) as arrays:
        read = {name: torch.as_tensor(arrays[name]) for name in arrays.files}
    return _named(file, read)


def _read_pt(file: Path, _: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets in a ``.pt`` file: a pair, or a mapping with X and Y."""
    loaded = _loaded(file)
    if isinstance(loaded, tuple | list) and len(loaded) == 2:
        return loaded[0], loaded[1]
    return _named(file, loaded if isinstance(loaded, Mapping) else {})


def _read_csv(file: Path, outputs: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets in a ``.csv`` file, the targets in the last columns, with or without a header."""
    lines = file.read_text().splitlines()
    header = bool(lines) and not any(_is_number(field) for field in lines[0].split(","))
    with (
        _reading(file),
        warnings.catch_warnings(action="ignore", category=UserWarning),
    ):  # no rows: refused by the caller
        table = torch.as_tensor(np.loadtxt(lines, delimiter=",", skiprows=int(header), ndmin=2))
    return table[:, :-outputs], table[:, -outputs:]


def _is_number(field: str) -> bool:
    """Whether a field of a table is a number."""
    try:
        float(field)
    except ValueError:
        return False
    return True


def _named(file: Path, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The arrays named X and Y, in upper or lower case.

    Raises:
        ValueError: If one is missing.
    """
    lower = {str(name).lower(): value for name, value in arrays.items()}
    if not {"x", "y"} <= lower.keys():
        raise ValueError(f"{file} must hold X and Y; it holds {', '.join(map(str, arrays)) or 'neither'}.")
    return lower["x"], lower["y"]


def _unknown(file: Path, _: int) -> tuple[Tensor, Tensor]:
    """Refuse a file whose name has an unknown suffix.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{file} must be one of {', '.join(_READERS)}.")


_READERS = {".npz": _read_npz, ".pt": _read_pt, ".csv": _read_csv}
