"""The command line: ``relu-diag fit -c configs/five_points.yaml``, and everything else LightningCLI offers."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI

from relu_diag import callbacks, experiments

# Imported so that configs may name these classes without their module.
__all__ = ["callbacks", "experiments", "main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None: those of the process.
    """
    # Returning the CLI object would make it the exit status of the console script.
    LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=False,
        parser_kwargs={"prog": "relu-diag"},
        args=None if args is None else list(args),
    )
