"""Which logger it is, of either of Lightning's two packages."""

from __future__ import annotations

from typing import TypeGuard

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from relu_diag.capture import of_lightning


def is_tensorboard(logger: Logger) -> TypeGuard[TensorBoardLogger]:
    """Whether a logger is TensorBoard's.

    Args:
        logger: The logger.

    Returns:
        Whether it is.

    Example:
        >>> is_tensorboard(TensorBoardLogger("logs"))
        True
    """
    return of_lightning(logger, "TensorBoardLogger")


def is_wandb(logger: Logger) -> TypeGuard[WandbLogger]:
    """Whether a logger is that of Weights & Biases.

    Args:
        logger: The logger.

    Returns:
        Whether it is.

    Example:
        >>> is_wandb(TensorBoardLogger("logs"))
        False
    """
    return of_lightning(logger, "WandbLogger")


def is_mlflow(logger: Logger) -> TypeGuard[MLFlowLogger]:
    """Whether a logger is MLflow's.

    Args:
        logger: The logger.

    Returns:
        Whether it is.

    Example:
        >>> is_mlflow(TensorBoardLogger("logs"))
        False
    """
    return of_lightning(logger, "MLFlowLogger")
