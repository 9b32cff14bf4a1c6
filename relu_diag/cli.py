"""The command line: ``relu-diag fit -c configs/five_points.yaml`` and ``relu-diag inspect CHECKPOINT --data FILE``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from inspect import signature
from itertools import pairwise
from pathlib import Path

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from rich.console import Console

from relu_diag import callbacks, experiments
from relu_diag.functional import SquaredError
from relu_diag.functional.block import Reduction
from relu_diag.inspection import LossName, group_table, inspect_block, is_near, loss_named, neuron_table
from relu_diag.reading import load_problem, load_story
from relu_diag.report import Report, write_report

# Imported so that configs may name these classes without their module.
__all__ = ["callbacks", "experiments", "inspect", "main", "report"]

_INSPECT = "relu-diag inspect CHECKPOINT --data FILE says what a saved network is stuck at."
_REPORT = (
    "relu-diag report CHECKPOINT [--data FILE] writes what its run went through, and where it is, as one HTML file."
)
_HELP = """usage: relu-diag COMMAND ...

Says what a shallow ReLU-like network in training is stuck at.

commands:
  fit      train from a config: relu-diag fit -c configs/five_points.yaml
  inspect  what a saved network is stuck at: relu-diag inspect CHECKPOINT --data FILE
  report   what a run went through, as one HTML file: relu-diag report CHECKPOINT
  validate, test, predict: as those of Lightning's command line

relu-diag COMMAND --help lists the options of a command."""
_PAGE = "report.html"
# Commands of Lightning's command line.
_LIGHTNING = ("fit", "validate", "test", "predict")
# Arguments that need no value: ``--all``; ``--all true`` says the same.
_FLAGS = {"all": "show every neuron, not only groups", "report": "write report.html as well: everything in one file"}
# Colours of a terminal, near those of the figures.
_COLORS = {"local minimum": "blue", "global minimum": "green", "saddle": "dark_orange3", "type-2 candidate": "magenta"}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None: those of the process.

    Example:
        >>> main(["inspect", "absent.ckpt", "--data", "data.csv"])
        Traceback (most recent call last):
        SystemExit: relu-diag inspect: absent.ckpt: No such file or directory
    """
    given = list(sys.argv[1:] if args is None else args)
    commands: dict[str, tuple[Callable[..., None], str]] = {"inspect": (inspect, _INSPECT), "report": (report, _REPORT)}
    if given in ([], ["-h"], ["--help"]):
        Console().print(_HELP, markup=False, highlight=False, soft_wrap=True)
        return
    if given[0] in commands:
        _run(given[0], *commands[given[0]], given[1:])
        return
    if given[0].isidentifier() and given[0] not in _LIGHTNING:
        sys.exit(f"relu-diag: there is no command {given[0]!r}; there are {', '.join([*commands, *_LIGHTNING])}.")
    _check_configs(given)
    # The CLI object is not returned: it would become the exit status of the console script.
    LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=False,
        parser_kwargs={"prog": "relu-diag", "epilog": f"{_INSPECT} {_REPORT}"},
        args=None if args is None else given,  # With both, arguments and sys.argv, Lightning warns.
    )


def _check_configs(args: Sequence[str]) -> None:
    """End with one line where a config is no text, which the parser of arguments takes for granted."""
    words = [part for word in args for part in word.split("=", 1)]
    for option, config in pairwise(words):
        try:
            if option in {"-c", "--config"} and Path(config).is_file():
                Path(config).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            sys.exit(
                f"relu-diag {args[0]}: {config} is no text; a config is a YAML file, such as configs/five_points.yaml"
            )


def _run(name: str, command: Callable[..., None], described: str, args: Sequence[str]) -> None:
    """Run a command of our own; wrong input ends it with one line."""
    parser = ArgumentParser(prog=f"relu-diag {name}", description=described)
    parser.add_argument("checkpoint", type=Path, help="a Lightning checkpoint or a state dict")
    flags = {flag: words for flag, words in _FLAGS.items() if flag in signature(command).parameters}
    parser.add_function_arguments(command, as_positional=False, skip={"checkpoint", *flags})
    for flag, words in flags.items():
        parser.add_argument(f"--{flag}", nargs="?", const=True, default=False, type=bool, help=words)
    try:
        command(**parser.parse_args(args))
    except OSError as error:
        sys.exit(f"relu-diag {name}: {error.filename or error}: {error.strerror or 'cannot be read'}")
    except (ValueError, TypeError, RuntimeError) as error:
        sys.exit(f"relu-diag {name}: {error}")


def inspect(
    checkpoint: Path,
    data: Path,
    class_path: str | None = None,
    slopes: tuple[float, float] | None = None,
    block: str | None = None,
    loss: LossName = "squared_error",
    reduction: Reduction = "mean",
    delta: float | None = None,
    label_smoothing: float | None = None,
    weight_decay: float = 0.0,
    kink_tol: float | None = None,
    tol: float | None = None,
    out: Path | None = None,
    all: bool = False,
    report: bool = False,
) -> None:
    """Print the verdict on a checkpoint and a table of its neurons, and write the figures.

    Args:
        checkpoint: A Lightning checkpoint or a state dict. Nothing in it is executed.
        data: ``.npz`` or ``.pt`` with X and Y, or ``.csv`` with the targets in the last columns.
        class_path: Import path of the module's class, unless it is a ShallowNet.
        slopes: Slopes of a ShallowNet, if the checkpoint does not hold them.
        block: First layer of the block in a module of several; only of the last one are the outputs the module's.
        loss: Loss of the outputs; cross-entropy takes one column of classes, 0, 1, 2 and so on, as targets.
        reduction: Reduction of the loss: mean or sum; of the squared error half_sum as well.
        delta: Of huber: where it becomes linear, 1 by default.
        label_smoothing: Of cross_entropy: the part of every label that is spread over all classes.
        weight_decay: Decay of all parameters as SGD's, a part of the loss; AdamW's is none.
        kink_tol: Relative distance to a kink that counts as on it.
        tol: Relative tolerance on derivatives.
        out: Folder for the figures; None: the folder of the checkpoint.
        all: Show every neuron, not only groups.
        report: Write report.html as well: everything in one file.

    Example:
        >>> from tempfile import mkdtemp
        >>> import torch
        >>> from relu_diag.nn import ShallowNet
        >>> folder = Path(mkdtemp())
        >>> torch.save(ShallowNet(3, 2, init_scale=0.0).state_dict(), folder / "net.pt")
        >>> torch.save((torch.eye(3), torch.ones(3, 1)), folder / "data.pt")
        >>> inspect(folder / "net.pt", folder / "data.pt")  # doctest: +ELLIPSIS
        saddle...
    """
    console = Console()
    network, X, Y = load_problem(checkpoint, data, class_path, slopes, block, loss == "cross_entropy")
    given = {"delta": delta, "label_smoothing": label_smoothing}
    constants = {name: value for name, value in given.items() if value is not None}
    trained = loss_named(loss, network, Y, reduction, **constants)
    targets = Y if isinstance(trained, SquaredError) else trained
    found = inspect_block(network, X, targets, reduction, kink_tol, tol, weight_decay)
    console.print(str(found.verdict), style=_COLORS.get(found.verdict.kind, ""), markup=False, highlight=False)
    near = is_near(found.nearby)
    nearby = f"{'nearby stationary point' if near else 'nearest stationary point found'}: {found.nearby}"
    style = _COLORS.get(found.nearby.verdict.kind, "") if near else ""
    console.print(nearby, style=style, markup=False, highlight=False)
    if found.gap is not None:
        console.print(f"with this weight decay: {found.gap}", markup=False, highlight=False)
    constant = " (the last one constant)" if bool((X[:, -1] == 1).all()) else ""
    console.print(f"{len(X)} samples, {X.shape[1]} inputs{constant}, {Y.shape[1]} targets", highlight=False)
    console.print(group_table(found.neurons.geometry, found.neurons.states))
    if all:
        console.print(neuron_table(network, X, targets, reduction, kink_tol))
    console.print(found.verdict.summary(), markup=False, highlight=False)
    folder = out or checkpoint.parent
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in found.figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
        console.print(f"figure: {folder / name}.png", soft_wrap=True)
    if report:
        loss_options = {"loss": loss, "reduction": reduction, **constants, "weight_decay": weight_decay}
        options = " ".join(f"--{name} {value}" for name, value in loss_options.items())
        command = f"relu-diag inspect {checkpoint} --data {data} {options} --report"
        page = found.report(checkpoint.name, load_story(checkpoint), command)
        console.print(f"report: {write_report(folder / _PAGE, page)}", soft_wrap=True)


def report(
    checkpoint: Path,
    data: Path | None = None,
    class_path: str | None = None,
    slopes: tuple[float, float] | None = None,
    block: str | None = None,
    reduction: Reduction = "mean",
    out: Path | None = None,
) -> None:
    """Write report.html: what the run of a checkpoint went through, and with data what its network is stuck at.

    Args:
        checkpoint: A Lightning checkpoint of a run with a PlateauMonitor; with data, any that `inspect` takes.
        data: ``.npz`` or ``.pt`` with X and Y, or ``.csv`` with the targets in the last columns; None: the run alone.
        class_path: Import path of the module's class, unless it is a ShallowNet.
        slopes: Slopes of a ShallowNet, if the checkpoint does not hold them.
        block: First layer of the block in a module of several; only of the last one are the outputs the module's.
        reduction: Reduction of the squared loss: mean, sum or half_sum.
        out: Folder for the report; None: the folder of the checkpoint.

    Raises:
        ValueError: If the checkpoint holds no run, and there are no data.

    Example:
        >>> from tempfile import mkdtemp
        >>> import torch
        >>> from relu_diag.nn import ShallowNet
        >>> folder = Path(mkdtemp())
        >>> torch.save(ShallowNet(3, 2, init_scale=0.0).state_dict(), folder / "net.pt")
        >>> torch.save((torch.eye(3), torch.ones(3, 1)), folder / "data.pt")
        >>> report(folder / "net.pt", folder / "data.pt")  # doctest: +ELLIPSIS
        report: ...report.html
    """
    story = load_story(checkpoint)
    command = f"relu-diag report {checkpoint}" + (f" --data {data} --reduction {reduction}" if data else "")
    if data is not None:
        network, X, Y = load_problem(checkpoint, data, class_path, slopes, block)
        page = inspect_block(network, X, Y, reduction).report(checkpoint.name, story, command)
    elif story is not None:
        page = Report(checkpoint.name, story=story, reproduce=command)
    else:
        raise ValueError(f"{checkpoint} holds no run of a PlateauMonitor to tell; --data FILE says what is in it.")
    written = write_report((out or checkpoint.parent) / _PAGE, page)
    Console().print(f"report: {written}", soft_wrap=True)
