"""A small net to be grown, and its data."""

import torch
from torch import Tensor, nn

from relu_diag import ShallowBlock
from relu_diag.capture import BlockLocation

LOCATION = BlockLocation("0", "2", (0.0, 1.0))


def net(width: int = 6, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)).to(dtype)


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 3, generator=generator).to(dtype), torch.randn(40, 2, generator=generator).to(dtype)


def with_replica(block: ShallowBlock) -> ShallowBlock:
    """Neuron 0 twice, at 1.5 and -0.5 of its output weights."""
    H = torch.cat([1.5 * block.H[:, :1], block.H[:, 1:], -0.5 * block.H[:, :1]], dim=1)
    return ShallowBlock(torch.cat([block.W, block.W[:1]]), H, block.slopes, block.output_bias)
