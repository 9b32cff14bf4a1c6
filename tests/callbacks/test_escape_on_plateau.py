"""EscapeOnPlateau leaves saddles by the way that proves them, and never makes the loss higher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from support.five_points import Five, fit, points, reference_run
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import functional as F
from relu_diag.callbacks import Escape, EscapeOnPlateau, PlateauEvent, PlateauMonitor
from relu_diag.capture import choose_block, read_block, write_block
from relu_diag.nn import ShallowNet


@pytest.mark.xdist_group("five points")
def test_both_saddles_of_five_points_are_left_at_once(
    five_points_run: tuple[PlateauMonitor, list[PlateauEvent]],
) -> None:
    waiting, monitor, escape = five_points_run[0], PlateauMonitor(), EscapeOnPlateau()
    reference_run("five_points", 2e-2, 5_000, monitor, escape)
    first, second, *_ = escape.escapes
    for move, plateau in zip((first, second), monitor.plateaus, strict=False):
        assert plateau.verdict.kind == "saddle"
        assert move.after < 0.99 * move.before
        assert move.end == plateau.end
        assert move.saved == move.forecast - plateau.end
    losses = [[plateau.loss for plateau in one.plateaus[:3]] for one in (waiting, monitor)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    starts = [[plateau.start for plateau in one.plateaus[1:3]] for one in (waiting, monitor)]
    assert [moved / waited < 0.1 for waited, moved in zip(*starts, strict=True)] == [True, True]
    # Left before the largest group has come to rest on a kink, the third one is a saddle too.
    assert waiting.plateaus[2].verdict.kind == "local minimum"
    assert escape.escapes[-1].after < 0.995 * waiting.plateaus[2].loss
    assert f"{first.saved:,.0f} steps before the forecast" in str(first)


def test_loss_never_rises_and_the_optimizer_keeps_its_state() -> None:
    class Careful(EscapeOnPlateau):
        def on_plateau(self, trainer: Trainer, pl_module: Any, event: Any) -> None:
            loss = [pl_module.net(X).sub(Y).square().mean().item()]
            ours = {id(parameter) for parameter in pl_module.parameters()}
            state = {p: {k: v.clone() for k, v in s.items()} for p, s in trainer.optimizers[0].state.items()}
            super().on_plateau(trainer, pl_module, event)
            loss.append(pl_module.net(X).sub(Y).square().mean().item())
            assert loss[1] <= loss[0]
            assert {
                id(parameter) for group in trainer.optimizers[0].param_groups for parameter in group["params"]
            } == ours
            assert state
            for parameter, before in state.items():
                assert_close(trainer.optimizers[0].state[parameter], before, rtol=0, atol=0)

    X, Y = points().dataset.tensors
    escape = Careful()
    fit(Five("Adam", lr=1e-6), PlateauMonitor(), escape, max_steps=200)
    (move,) = escape.escapes
    assert move.after < move.before
    assert move.forecast is None  # Adam
    assert move.saved is None


@pytest.mark.parametrize(("max_samples", "moves"), [(None, 1), (8, 0), (32, 1)])
def test_samples_that_are_left_out_must_not_lose_by_it(max_samples: int | None, moves: int) -> None:
    # Every fourth sample wants the opposite of what all of them want together.
    X, Y = (tensor.repeat(8, 1)[:32].clone() for tensor in points().dataset.tensors)
    Y[::4] *= -1
    loader = DataLoader(TensorDataset(X, Y), batch_size=32)
    monitor, escape = PlateauMonitor(max_samples=max_samples), EscapeOnPlateau()
    fit(Five(lr=1e-6), monitor, escape, loader=loader, max_steps=120)
    (plateau,) = monitor.plateaus
    assert plateau.verdict.kind == "saddle"
    assert plateau.verdict.assumptions["full data set"] == ("broken" if max_samples == 8 else "holds")
    assert len(escape.escapes) == moves


def test_nothing_moves_where_there_is_no_saddle() -> None:
    class Fitted(Five):
        def __init__(self) -> None:
            super().__init__(lr=0.0)
            with torch.no_grad():
                self.net.hidden.weight.copy_(-self.net.hidden.weight.abs() - torch.tensor([0.0, 100.0]))  # all dead

    escape, monitor = EscapeOnPlateau(), PlateauMonitor()
    fit(Fitted(), monitor, escape, max_steps=200)
    assert monitor.plateaus[0].verdict.kind == "local minimum"
    assert escape.escapes == []


def test_moves_survive_a_checkpoint(tmp_path: Path) -> None:
    escape, other = EscapeOnPlateau(), EscapeOnPlateau()
    escape.escapes = [Escape(120, 0, 0.04, 0.03, 2_400.0, 121)]
    torch.save(escape.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.escapes == escape.escapes
    assert other.escapes[0].saved == 2_279.0
    assert escape.state_key != EscapeOnPlateau(block="net.0").state_key


def test_a_monitor_is_needed() -> None:
    with pytest.raises(MisconfigurationException, match=r"PlateauMonitor\(block=None\)"):
        fit(Five(), EscapeOnPlateau(), max_steps=5)
    with pytest.raises(MisconfigurationException, match=r"PlateauMonitor\(block='net.hidden'\)"):
        fit(Five(), PlateauMonitor(), EscapeOnPlateau("net.hidden"), max_steps=5)


# The pieces


@pytest.mark.parametrize("biases", [(False, False), (True, True)])
def test_a_written_block_is_read_back(biases: tuple[bool, bool]) -> None:
    net = ShallowNet(3, 5, 2, hidden_bias=biases[0], output_bias=biases[1]).double()
    location = choose_block(net)
    parameters = list(net.parameters())
    block, draw = read_block(net, location), torch.Generator().manual_seed(0)
    X = torch.randn(4, 3, generator=draw).double()
    direction = F.Direction(
        *(torch.randn(t.shape, generator=draw).double() for t in (block.W, block.H)), 0.5, -1.0, torch.ones(2).double()
    )
    there = direction.applied_to(block)
    write_block(net, location, there)
    X1 = torch.cat([X, X.new_ones(4, 1)], dim=1) if biases[0] else X
    assert_close(net(X), there(X1))
    assert_close(there.W, block.W + 0.5 * direction.dW)
    assert all(one is other for one, other in zip(parameters, net.parameters(), strict=True))
    with pytest.raises(ValueError, match="`block` must have the sizes"):
        write_block(net, location, read_block(ShallowNet(3, 6, 2).double()))


def test_a_block_with_frozen_weights_is_not_moved() -> None:
    module, escape = Five("SGD", lr=1e-6), EscapeOnPlateau()
    module.net.output.weight.requires_grad_(False)
    before = module.net.output.weight.clone()
    monitor = PlateauMonitor()
    fit(module, monitor, escape, max_steps=200)
    assert monitor.plateaus[0].verdict.kind == "saddle"
    assert not escape.escapes
    assert torch.equal(module.net.output.weight, before)
