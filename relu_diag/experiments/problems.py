"""The data of the reference problems."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.functional.block import Reduction

ProblemName = Literal["five_points", "five_points_wide_init", "three_inputs", "two_outputs"]


@dataclass(frozen=True, slots=True)
class ReferenceProblem:
    """Data, loss and initialisation of one experiment.

    Attributes:
        inputs: Samples, ``N`` rows of ``d`` numbers, including the constant 1 if the problem has one.
        targets: ``N`` rows of ``J`` numbers.
        reduction: Reduction of the squared loss: "mean", "sum" or "half_sum".
        init_scale: Standard deviation of the initial weights.

    Example:
        >>> X, Y = reference_problem("two_outputs").tensors()
        >>> X.shape, Y.shape
        (torch.Size([4, 2]), torch.Size([4, 2]))
    """

    inputs: tuple[tuple[float, ...], ...]
    targets: tuple[tuple[float, ...], ...]
    reduction: Reduction
    init_scale: float

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The data.

        Returns:
            Inputs ``(N, d)`` and targets ``(N, J)``, float64.
        """
        return torch.tensor(self.inputs, dtype=torch.float64), torch.tensor(self.targets, dtype=torch.float64)


_FIVE_POINTS = ReferenceProblem(
    inputs=((-1.0, 1.0), (-0.6, 1.0), (-0.1, 1.0), (0.3, 1.0), (0.7, 1.0)),
    targets=((0.28,), (-0.1,), (0.03,), (0.23,), (-0.22,)),
    reduction="mean",
    init_scale=50.0**-3,
)
_THREE_INPUTS = ReferenceProblem(
    inputs=(
        (-0.3, -0.75, -0.5),
        (-0.2, -0.2, 0.4),
        (-0.6, 1.0, -1.0),
        (-0.4, 0.4, 0.3),
        (0.6, -0.1, -0.7),
        (0.4, -0.9, 0.3),
        (0.2, 0.2, -0.5),
    ),
    targets=((-0.5,), (0.1,), (-0.6,), (0.3,), (0.8,), (-0.3,), (-0.1,)),
    reduction="half_sum",
    init_scale=9.51e-11,
)
_TWO_OUTPUTS = ReferenceProblem(
    inputs=((-0.3, 0.5), (1.0, 1.0), (-0.6, -1.0), (0.4, -0.4)),
    targets=((0.6, -0.5), (0.5, -1.0), (-0.4, 0.6), (0.8, 0.2)),
    reduction="half_sum",
    init_scale=9.51e-11,
)
_PROBLEMS: dict[str, ReferenceProblem] = {
    "five_points": _FIVE_POINTS,
    "five_points_wide_init": replace(_FIVE_POINTS, init_scale=8.75e-4),
    "three_inputs": _THREE_INPUTS,
    "two_outputs": _TWO_OUTPUTS,
}


def reference_problem(name: ProblemName) -> ReferenceProblem:
    """The reference problem of a name.

    Source: Wu et al., section 4.1.1 and appendices J, I.0.1, I.0.2.

    Args:
        name: "five_points", "five_points_wide_init", "three_inputs" or "two_outputs".

    Returns:
        The problem.

    Raises:
        ValueError: If there is no such problem.

    Example:
        >>> problem = reference_problem("five_points")
        >>> X, Y = problem.tensors()
        >>> X.shape, Y.shape
        (torch.Size([5, 2]), torch.Size([5, 1]))
    """
    if name not in _PROBLEMS:
        raise ValueError(f"`problem` must be one of {sorted(get_args(ProblemName))}; got {name!r}.")
    return _PROBLEMS[name]


class PointsDataModule(LightningDataModule):
    """The points of a reference problem, all of them in every batch.

    Args:
        problem: Name of the problem.
        batches_per_epoch: Number of batches in an epoch. Starting an epoch costs as much as several batches.

    Raises:
        ValueError: If an epoch has no batch.

    Example:
        >>> loader = PointsDataModule("five_points", batches_per_epoch=100).train_dataloader()
        >>> len(loader), len(loader.dataset)
        (100, 5)
    """

    def __init__(self, problem: ProblemName = "five_points", batches_per_epoch: int = 100) -> None:
        super().__init__()
        if batches_per_epoch < 1:
            raise ValueError(f"`batches_per_epoch` must be at least 1; got {batches_per_epoch!r}.")
        self.save_hyperparameters()  # A logger then refuses a `problem` that differs from the module's.
        self.points = TensorDataset(*reference_problem(problem).tensors())
        self.batches_per_epoch = batches_per_epoch

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The loader.

        Returns:
            Loader whose every batch is all points.
        """
        everything = list(range(len(self.points)))
        return DataLoader(self.points, batch_sampler=[everything] * self.batches_per_epoch)
