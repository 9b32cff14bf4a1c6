"""Which parameter groups of which optimizers hold the parameters of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A parameter group and the optimizer it belongs to."""

    optimizer: Optimizer
    group: dict[str, Any]


def groups_of(trainer: Trainer, parameters: Sequence[nn.Parameter]) -> list[Group]:
    """The parameter groups of all optimizers that hold one of the parameters."""
    own = {id(parameter) for parameter in parameters}
    return [
        Group(optimizer, group)
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        if any(id(parameter) in own for parameter in group["params"])
    ]
