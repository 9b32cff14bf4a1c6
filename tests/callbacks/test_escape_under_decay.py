"""EscapeOnPlateau under weight decay that is part of no loss: what it lowers is the loss of the data."""

import pytest
import torch
from support.five_points import Five, fit, points

from relu_diag.callbacks import EscapeOnPlateau, PlateauMonitor


class Decayed(Five):
    """The five points beside their first saddle, all weights zero or nearly so."""

    def __init__(self, start: float, climbs: bool = False) -> None:
        super().__init__(lr=1e-6)
        self.climbs = climbs
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.mul_(start)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-6, weight_decay=0.1, maximize=self.climbs)


@pytest.mark.parametrize("start", [0.0, 1e-3])
def test_a_saddle_of_the_loss_alone_is_left_under_adamw(start: float) -> None:
    escape, monitor = EscapeOnPlateau(), PlateauMonitor()
    module = Decayed(start)
    fit(module, monitor, escape, max_steps=200)
    assert "of the loss alone a saddle, but AdamW decays the weights" in monitor.plateaus[0].verdict.reason
    move = escape.escapes[0]
    assert move.after < 0.99 * move.before
    X, Y = points().dataset.tensors
    with torch.no_grad():
        assert (module.net(X) - Y).square().mean() < 0.99 * move.before


def test_an_optimizer_that_climbs_is_not_helped_down() -> None:
    escape = EscapeOnPlateau()
    fit(Decayed(0.0, climbs=True), PlateauMonitor(), escape, max_steps=200)
    assert not escape.escapes
