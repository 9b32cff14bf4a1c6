"""Tensors in float64 and blocks of one neuron, written short."""

import torch
from torch import Tensor

from relu_diag import ShallowBlock


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def neuron(w: tuple[float, ...], *h: float) -> ShallowBlock:
    return ShallowBlock(torch.tensor([w]).double(), torch.tensor(h).double()[:, None])
