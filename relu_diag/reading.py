"""Read a block from a checkpoint file, its data from a data file, and the run that a checkpoint remembers."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relu_diag.capture import BlockLocation, choose_block, find_blocks, read_block
from relu_diag.functional import ShallowBlock
from relu_diag.report import RunStory
from relu_diag.training import Plateau


def load_block(
    checkpoint: Path,
    class_path: str | None = None,
    slopes: tuple[float, float] | None = None,
    block: str | None = None,
) -> ShallowBlock:
    """The block in a Lightning checkpoint or a plain state dict, in float64. Nothing in the file is executed.

    Args:
        checkpoint: File written by a Trainer or by ``torch.save(module.state_dict())``.
        class_path: Import path of the module's class, which is built with the checkpoint's hyper-parameters; None: the
            file holds a `ShallowNet`, alone or inside another module.
        slopes: ``(s-, s+)`` of a `ShallowNet`; None: as in the hyper-parameters, or those of ReLU.
        block: Name of the block's first Linear in a module of ``class_path``; None: the module is its only block.

    Returns:
        The block.

    Raises:
        ValueError: If the file cannot be read, or holds no shallow block or several.

    Example:
        >>> from tempfile import mkdtemp
        >>> from relu_diag.nn import ShallowNet
        >>> folder = Path(mkdtemp())
        >>> torch.save(ShallowNet(2, 3).state_dict(), folder / "net.pt")
        >>> load_block(folder / "net.pt").W.shape
        torch.Size([3, 2])
    """
    if class_path is None:
        if block is not None:
            raise ValueError(f"--block {block} names a layer of the module of --class_path, and there is none.")
        state, hparams = _state(checkpoint)
        return _shallow_net(checkpoint, state, slopes or tuple(hparams.get("slopes", (0.0, 1.0))))
    module = _saved_module(checkpoint, class_path)
    location = _location(module, block)
    found = read_block(module, location)
    if block is None and not _is_block(module, found):
        raise ValueError(
            f"{type(module).__name__} computes more than its block: inspect the block's own layers, or name its first "
            f"layer, --block {location.hidden}."
        )
    return found


def load_problem(
    checkpoint: Path,
    data: Path,
    class_path: str | None = None,
    slopes: tuple[float, float] | None = None,
    block: str | None = None,
    classes: bool = False,
) -> tuple[ShallowBlock, Tensor, Tensor]:
    """A block and what it is fitted to. Of a deep module it is the last block: the layers before it make its inputs.

    Args:
        checkpoint: As in `load_block`.
        data: As in `load_data`, for the whole module.
        class_path: As in `load_block`.
        slopes: As in `load_block`.
        block: As in `load_block`.
        classes: As in `load_data`.

    Returns:
        The block, its inputs and its targets.

    Raises:
        ValueError: If a file cannot be read, or the module computes more from the block's outputs.

    Example:
        >>> from tempfile import mkdtemp
        >>> from relu_diag.nn import ShallowNet
        >>> folder = Path(mkdtemp())
        >>> torch.save(ShallowNet(2, 3).state_dict(), folder / "net.pt")
        >>> torch.save((torch.eye(2), torch.ones(2, 1)), folder / "data.pt")
        >>> block, X, Y = load_problem(folder / "net.pt", folder / "data.pt")
        >>> block(X).shape == Y.shape
        True
    """
    found = load_block(checkpoint, class_path, slopes, block)
    if class_path is None or block is None:
        return found, *load_data(data, found, classes)
    module = _saved_module(checkpoint, class_path)
    if _is_block(module, found):
        return found, *load_data(data, found, classes)
    X, Y = _arrays(data, found, classes)
    with _reading(data, f"{class_path} does not take its inputs of shape {tuple(X.shape)}."):
        inputs, outputs, results = _inside(module, _location(module, block), X)
    if results.shape != outputs.shape or not results.equal(outputs):
        raise ValueError(
            f"{type(module).__name__} computes more from the outputs of the block at {block!r}; a verdict is on one "
            f"with the outputs of the module: try --block {find_blocks(module)[-1].hidden}."
        )
    return found, *_matching(data, found, inputs, Y, classes)


def _inside(module: nn.Module, location: BlockLocation, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of a block, a column of ones for its bias included, its outputs, and those of the module."""
    hidden, output = location.linears(module)
    seen: dict[str, Tensor] = {}
    hidden.register_forward_pre_hook(lambda _, inputs: seen.update(inputs=inputs[0]))
    output.register_forward_hook(lambda *called: seen.update(outputs=called[2]))
    with torch.no_grad():
        results = module(X)
    inputs = seen["inputs"].flatten(0, -2)
    if hidden.bias is not None:
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    return inputs, seen["outputs"], results


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
    for key, part in parts.items():
        if not isinstance(part, Tensor | None) or (part is not None and part.is_complex()):
            found = f"{part.dtype} one" if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"{checkpoint} must hold tensors; {key} is a {found}; expected real numbers.")
    W, b, H, bias = (None if part is None else part.double() for part in parts.values())
    assert W is not None
    assert H is not None
    if W.ndim != 2 or (b is not None and b.shape != W.shape[:1]):
        shapes = f"a weight of shape {tuple(W.shape)} and a bias of shape {None if b is None else tuple(b.shape)}"
        raise ValueError(f"{checkpoint} has {shapes} in its hidden layer; expected (I, d) and (I,).")
    W = W if b is None else torch.cat([W, b[:, None]], dim=1)
    return ShallowBlock(W, H, slopes, bias)


def load_data(file: Path, block: ShallowBlock, classes: bool = False) -> tuple[Tensor, Tensor]:
    """A data set for a block, in float64.

    Args:
        file: ``.npz`` or ``.pt`` with ``X`` and ``Y`` (a pair of tensors will do), or ``.csv`` with the targets in the
            last columns and an optional header.
        block: The block: it tells how many columns are targets, and whether a column of ones is to be added.
        classes: Whether one column of targets, the last one of a table, may name the class of every sample.

    Returns:
        Inputs ``(N, d)``, with a column of ones if the block has a hidden bias, and targets ``(N, J)``, of classes
        ``(N, 1)``. A file that is no data set of the block is refused with a ``ValueError``.

    Example:
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp()) / "data.csv"
        >>> np.savetxt(file, [[0, 1], [2, 3]], delimiter=",")
        >>> X, Y = load_data(file, ShallowBlock(torch.ones(3, 2).double(), torch.ones(1, 3).double()))
        >>> X  # a column of ones for the hidden bias
        tensor([[0., 1.],
                [2., 1.]], dtype=torch.float64)
    """
    X, Y = _arrays(file, block, classes)
    if X.ndim == 2 and X.shape[1] == block.W.shape[1] - 1:
        X = torch.cat([X, X.new_ones(len(X), 1)], dim=1)
    return _matching(file, block, X, Y, classes)


def _arrays(file: Path, block: ShallowBlock, classes: bool) -> tuple[Tensor, Tensor]:
    """Inputs and targets as they are in a file, in float64, at least one column each.

    Raises:
        ValueError: If there are none.
    """
    X, Y = _READERS.get(file.suffix, _unknown)(file, 1 if classes else len(block.H))
    if not isinstance(X, Tensor) or not isinstance(Y, Tensor) or not X.numel() or not Y.numel():
        raise ValueError(f"{file} must hold numbers for X and Y, at least one sample.")
    if any(part.is_complex() or part.layout != torch.strided for part in (X, Y)):
        raise ValueError(f"{file} must hold dense arrays of real numbers for X and Y.")
    X = X.double()
    Y = Y.double().reshape(len(Y), -1)
    return X[:, None] if X.ndim == 1 else X, Y


def _matching(file: Path, block: ShallowBlock, X: Tensor, Y: Tensor, classes: bool) -> tuple[Tensor, Tensor]:
    """Inputs and targets, if they fit the block.

    Raises:
        ValueError: If they do not.
    """
    columns = {len(block.H), 1} if classes else {len(block.H)}
    if X.shape != (len(Y), block.W.shape[1]) or Y.shape[1] not in columns:
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

    Example:
        >>> from tempfile import mkdtemp
        >>> from relu_diag.nn import ShallowNet
        >>> folder = Path(mkdtemp())
        >>> torch.save(ShallowNet(2, 3).state_dict(), folder / "net.pt")
        >>> load_story(folder / "net.pt") is None  # no run of a PlateauMonitor
        True
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


def _state(checkpoint: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """State dict and hyper-parameters of a checkpoint.

    Raises:
        ValueError: If there are none.
    """
    loaded = _loaded(checkpoint)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{checkpoint} holds a {type(loaded).__name__}; expected a checkpoint or a state dict.")
    state = loaded.get("state_dict", loaded)
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{checkpoint} holds no state dict: its keys must be names of parameters.")
    hparams = loaded.get("hyper_parameters") or {}
    if not isinstance(hparams, Mapping):
        raise ValueError(
            f"{checkpoint} holds hyper_parameters that are a {type(hparams).__name__}; expected a mapping."
        )
    return state, hparams


def _saved_module(checkpoint: Path, class_path: str) -> nn.Module:
    """The module in a checkpoint, in float64 and eval mode."""
    return _module(class_path, *_state(checkpoint)).double().eval()


def _location(module: nn.Module, block: str | None) -> BlockLocation:
    """The block of a name, or the only one.

    Raises:
        ValueError: If no block has the name, or there are several.
    """
    blocks = find_blocks(module)
    if block is None and len(blocks) > 1:
        names = ", ".join(f"{one.hidden} ({one})" for one in blocks)
        raise ValueError(
            f"{type(module).__name__} has several blocks; choose one by its first layer with --block: {names}."
        )
    return choose_block(module, block)


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
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise ValueError(f"--class_path {class_path!r} must name a class of modules.")
    try:
        accepted = inspect.signature(cls).parameters
        module = cls(**{name: value for name, value in hparams.items() if name in accepted})
        module.load_state_dict(state)
    except Exception as error:
        raise ValueError(f"{class_path} cannot be built from the checkpoint's hyper-parameters: {error}.") from error
    return module


def _is_block(module: nn.Module, block: ShallowBlock) -> bool:
    """Whether a module computes nothing but its block, so that the data are the block's own."""
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Linear))
    X = torch.randn(16, first.in_features, dtype=block.W.dtype, generator=torch.Generator().manual_seed(0))
    inputs = X if first.bias is None else torch.cat([X, X.new_ones(len(X), 1)], dim=1)
    if block.W.shape[1] != inputs.shape[1]:
        return False
    with torch.no_grad():
        outputs, expected = module(X), block(inputs)
    return outputs.shape == expected.shape and bool(torch.allclose(outputs, expected))


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
    with _reading(file, "no text."):
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
