"""A regression of sines by one hidden layer, as small as a project can be."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))


def samples(count: int) -> TensorDataset:
    X = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    return TensorDataset(X, X[:, :2].sin())


def batches(count: int, size: int = 8) -> DataLoader[Any]:
    return DataLoader(samples(count), batch_size=size)


class Net(LightningModule):
    """The same weights at every start, plain SGD."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = network()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)
