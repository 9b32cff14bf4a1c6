"""The command line: ``relu-diag fit -c configs/five_points.yaml`` and ``relu-diag inspect CHECKPOINT --data FILE``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from rich.console import Console

from relu_diag import callbacks, experiments
from relu_diag.functional import classify, nearby_stationary_point
from relu_diag.functional.block import Reduction
from relu_diag.inspection import inspection_figures, load_block, load_data, neuron_table

# Imported so that configs may name these classes without their module.
__all__ = ["callbacks", "experiments", "inspect", "main"]

_INSPECT = "relu-diag inspect CHECKPOINT --data FILE says what a saved network is stuck at."


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None: those of the process.
    """
    given = list(sys.argv[1:] if args is None else args)
    if given[:1] == ["inspect"]:
        parser = ArgumentParser(prog="relu-diag inspect", description=_INSPECT)
        parser.add_argument("checkpoint", type=Path, help="a Lightning checkpoint or a state dict")
        parser.add_function_arguments(inspect, as_positional=False, skip={"checkpoint"})
        inspect(**parser.parse_args(given[1:]))
        return
    # The CLI object is not returned: it would become the exit status of the console script.
    LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=False,
        parser_kwargs={"prog": "relu-diag", "epilog": _INSPECT},
        args=None if args is None else given,  # With both, arguments and sys.argv, Lightning warns.
    )


def inspect(
    checkpoint: Path,
    data: Path,
    class_path: str | None = None,
    slopes: tuple[float, float] | None = None,
    reduction: Reduction = "mean",
    kink_tol: float | None = None,
    tol: float | None = None,
    out: Path | None = None,
) -> None:
    """Print the verdict on a checkpoint and a table of its neurons, and write the figures.

    Args:
        checkpoint: A Lightning checkpoint or a state dict. Nothing in it is executed.
        data: ``.npz`` or ``.pt`` with X and Y, or ``.csv`` with the targets in the last columns.
        class_path: Import path of the module's class, unless it is a ShallowNet.
        slopes: Slopes of a ShallowNet, if the checkpoint does not hold them.
        reduction: Reduction of the squared loss: mean, sum or half_sum.
        kink_tol: Relative distance to a kink that counts as on it.
        tol: Relative tolerance on derivatives.
        out: Folder for the figures; None: the folder of the checkpoint.
    """
    console = Console()
    try:
        block = load_block(checkpoint, class_path, slopes)
        X, Y = load_data(data, block)
        verdict = classify(block, X, Y, reduction, kink_tol, tol)
        table = neuron_table(block, X, Y, reduction, kink_tol)
        nearby = nearby_stationary_point(block, X, Y, reduction)
    except (OSError, ValueError, TypeError) as error:
        sys.exit(f"relu-diag inspect: {error}")
    constant = " (the last one constant)" if bool((X[:, -1] == 1).all()) else ""
    console.print(f"{len(X)} samples, {X.shape[1]} inputs{constant}, {Y.shape[1]} targets", highlight=False)
    console.print(table)
    for text in (verdict.summary(), f"\nnearby stationary point: {nearby}\n{nearby.verdict}\n"):
        console.print(text, markup=False, highlight=False)
    figures = inspection_figures(block, X, Y, verdict, reduction, nearby)
    folder = out or checkpoint.parent
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
        console.print(f"figure: {folder / name}.png", soft_wrap=True)
