"""Before anything is trained a monitor warns of inputs that kill random neurons."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import LandscapeMonitor

X = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))


class Regression(LightningModule):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 512), activation, nn.Linear(512, 1))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def said(inputs: Tensor, activation: nn.Module, log: pytest.LogCaptureFixture) -> tuple[list[str], LandscapeMonitor]:
    """The warnings of a run, and its monitor."""
    monitor = LandscapeMonitor(every_n_steps=1)
    loader = DataLoader(TensorDataset(inputs), batch_size=256)
    with log.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        Trainer(max_epochs=2, callbacks=[monitor], **QUIET).fit(Regression(activation), loader)
    return [line for line in log.messages if "gamma" in line], monitor


def test_inputs_far_from_zero_are_named_with_the_share_they_kill(caplog: pytest.LogCaptureFixture) -> None:
    (line,), monitor = said(X + 10, nn.ReLU(), caplog)
    assert line.startswith("warning: the inputs of net.0 are far from zero (gamma 9.8,")
    share = float(line.split("where ")[1].split(" %")[0]) / 100
    assert monitor.worst is not None
    assert share == pytest.approx(monitor.worst.dead_share, abs=0.08)


@pytest.mark.parametrize(("inputs", "activation"), [(X, nn.ReLU()), (X + 10, nn.LeakyReLU(0.1))])
def test_nothing_is_said_where_none_are_born_dead(
    inputs: Tensor, activation: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    assert said(inputs, activation, caplog)[0] == []


def test_of_several_blocks_the_one_that_holds_the_loss_back_is_named(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    module = Regression(nn.Sequential(nn.ReLU(), nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 512), nn.ReLU()))
    inner = module.net[1][1]
    assert isinstance(inner, nn.Linear)
    with torch.no_grad():
        inner.bias[:6] = -1e3
    loader = DataLoader(TensorDataset(X), batch_size=256)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        Trainer(max_epochs=4, callbacks=[LandscapeMonitor(every_n_steps=1)], **QUIET).fit(module, loader)
    (line,) = [line for line in caplog.messages if "holds the loss back" in line]
    assert line.startswith("net.1.1 holds the loss back: 6 of 8 neurons dead on 256 samples")
