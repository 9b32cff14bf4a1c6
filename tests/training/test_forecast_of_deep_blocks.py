"""A block whose inputs are computed by layers that are trained too has no forecast, and says why."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from relu_diag.capture import BlockLocation, read_block
from relu_diag.functional import SquaredError
from relu_diag.training import TrainingData
from relu_diag.training._judged import Subject
from relu_diag.training.rows import KeptRows


@pytest.mark.parametrize("alone", [True, False])
def test_only_a_block_whose_inputs_stay_has_a_forecast(alone: bool) -> None:
    torch.manual_seed(0)
    module = LightningModule()
    module.net = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)).double()
    for parameter in module.parameters():
        parameter.data *= 1e-3
    trainer = Trainer(barebones=True, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
    location = BlockLocation("net.0", "net.2", (0.0, 1.0))
    X = torch.randn(20, 2, dtype=torch.float64)
    data = TrainingData(X, SquaredError(X[:, :1].abs()), complete=True)
    subject = Subject(
        trainer=trainer,
        module=module,
        name="net.0",
        location=location,
        block=read_block(module, location),
        parameters=tuple(module.parameters()),
        alone=alone,
        dead=False,
        rows=KeptRows(),
        drop=0.01,
    )
    found = subject.judged(data, loss=1.0)
    assert found.verdict.kind == "saddle"
    assert (found.forecast is not None) == alone
    assert ("the layers below the block are trained too" in found.no_forecast) != alone
