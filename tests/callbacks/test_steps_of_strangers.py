"""Steps as projects write them: what monitors make of each, and that none ends the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from support.quiet import QUIET
from support.sines import Net, batches
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.data import DataLoader

from relu_diag.callbacks import GrowOnPlateau, LandscapeMonitor, PlateauMonitor, ReviveDeadUnits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class ByHand(Net):
    """Optimized by hand; the step returns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def step_on(self, loss: Tensor) -> None:
        optimizers = self.optimizers()
        optimizer = optimizers[0] if isinstance(optimizers, list) else optimizers
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.step_on(functional.mse_loss(self.net(batch[0]), batch[1]))


def watch(module: Net, data: Any = None, **settings: Any) -> tuple[LandscapeMonitor, PlateauMonitor]:
    monitors = LandscapeMonitor(every_n_steps=1), PlateauMonitor()
    trainer = Trainer(**QUIET, callbacks=list(monitors), **{"max_epochs": 2, "log_every_n_steps": 1, **settings})
    trainer.fit(module, batches(24) if data is None else data)
    assert monitors[0].off == ""
    return monitors


def test_the_only_loss_of_a_step_by_hand_is_followed() -> None:
    _, plateau = watch(ByHand())
    assert plateau.off == ""
    assert len(plateau._curve.points) == 6


def test_a_step_with_several_losses_switches_off_what_follows_one() -> None:
    class Adversarial(ByHand):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            self.step_on(functional.mse_loss(self.net(batch[0]), batch[1]))
            self.step_on(functional.l1_loss(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.01) for _ in range(2)]

    with pytest.warns(UserWarning, match=r"returns no loss, and its optimizers have several.*monitor=\.\.\."):
        landscape, plateau = watch(Adversarial())
    assert "monitor=..." in repr(plateau)
    assert landscape.reports


def test_optimizers_that_share_a_loss_are_followed() -> None:
    class Shared(ByHand):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.manual_backward(functional.mse_loss(self.net(batch[0]), batch[1]))
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(layer.parameters(), lr=0.01) for layer in (self.net[0], self.net[2])]

    _, plateau = watch(Shared())
    assert plateau.off == ""
    assert len(plateau._curve.points) == 6


def test_weights_that_move_within_a_step_are_seen_as_they_were_first() -> None:
    class SharpnessAware(ByHand):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            self.first = self.net[0].weight.detach().clone()
            self.step_on(functional.mse_loss(self.net(batch[0]), batch[1]))
            self.step_on(functional.mse_loss(self.net(batch[0]), batch[1]))

    module = SharpnessAware()
    landscape, _ = watch(module, batches(8), max_epochs=1)
    assert landscape.parameters is not None
    assert_close(landscape.parameters.W[:, :3], module.first, rtol=0, atol=0)
    assert landscape.reports["net.0"].samples == 8


def test_derivatives_of_something_else_are_no_part_of_a_loss_by_hand() -> None:
    class Looking(ByHand):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            outputs = self.net(batch[0])
            torch.autograd.grad(outputs.sum(), self.net[0].weight, retain_graph=True)
            self.step_on(functional.mse_loss(outputs, batch[1]))

    plain, _ = watch(ByHand(), batches(8), max_epochs=1)
    looking, _ = watch(Looking(), batches(8), max_epochs=1)
    assert plain.geometry is not None
    assert looking.geometry is not None
    assert_close(looking.geometry.steepest, plain.geometry.steepest, rtol=0, atol=0)


def test_a_layer_read_by_different_layers_is_one_block() -> None:
    class Recurrent(Net):
        def __init__(self) -> None:
            super().__init__()
            self.again = nn.Linear(6, 6)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            hidden = self.net[0](batch[0]).relu()
            for _ in range(3):
                hidden = self.again(hidden).relu()
            return functional.mse_loss(self.net[2](hidden), batch[1])

    landscape, plateau = watch(Recurrent())
    assert plateau.off == ""
    assert landscape.reports.keys() == {"net.0", "again"}
    again = landscape.reports["again"]
    assert again.block.H.shape == (8, 6)


def test_asking_for_a_verdict_computes_no_weight() -> None:
    class Spectral(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net[0] = nn.utils.parametrizations.spectral_norm(self.net[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01, weight_decay=0.01)

    alone, watched = Spectral(), Spectral()
    torch.manual_seed(1)
    Trainer(**QUIET, max_epochs=2).fit(alone, batches(24))
    torch.manual_seed(1)
    _, plateau = watch(watched)
    assert_close(dict(watched.state_dict()), dict(alone.state_dict()), rtol=0, atol=0)
    assert plateau.final is not None
    assert plateau.final.verdict.reason.startswith("its weights are computed from others")


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_hides_no_loss(precision: str) -> None:
    _, plateau = watch(Net(), precision=precision)
    assert plateau.final is not None
    assert plateau.final.data is not None, plateau.final.verdict.reason


def test_a_number_behind_the_activation_is_part_of_its_slopes() -> None:
    class Doubled(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return functional.mse_loss(self.net[2](2 * self.net[0](batch[0]).relu()), batch[1])

    landscape, plateau = watch(Doubled())
    assert landscape.reports["net.0"].caveats == ()
    assert landscape.parameters is not None
    assert landscape.parameters.slopes == pytest.approx((0.0, 2.0))
    assert plateau.final is not None
    assert plateau.final.data is not None


def test_a_batch_that_comes_again_after_others_is_not_all_data() -> None:
    landscape, _ = watch(Net(), batches(24, 8), max_epochs=6)
    landscape.every_n_steps = 3
    trainer = Trainer(**QUIET, callbacks=[landscape], max_epochs=6, log_every_n_steps=1)
    trainer.fit(Net(), batches(24, 8))
    assert not landscape.reports["net.0"].exact
    assert landscape.reports["net.0"].samples > 8


def test_the_block_whose_loss_is_known_speaks_for_a_deep_network() -> None:
    class Deep(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))

    _, plateau = watch(Deep())
    assert plateau.final is not None
    assert plateau.final.name == "net.2"
    other = plateau.examiner._kept.rows["net.0"].reason
    assert other.endswith("; between them and the loss stands a later Relu")


def test_targets_that_a_step_takes_out_of_its_batch_are_found() -> None:
    class Popping(Net):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # type: ignore[override]
            targets = batch.pop("y")
            return functional.mse_loss(self.net(batch["x"]), targets)

    data = [{"x": X, "y": Y} for X, Y in batches(24).dataset]
    _, plateau = watch(Popping(), DataLoader(data, batch_size=8))
    assert plateau.final is not None
    assert plateau.final.data is not None


def test_a_root_is_named() -> None:
    class Root(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx).sqrt()

    _, plateau = watch(Root())
    assert plateau.final is not None
    assert plateau.final.verdict.reason == "the loss is the root of the squared error"


def frozen() -> Net:
    module = Net()
    module.net[0].requires_grad_(False)
    return module


def smooth() -> Net:
    module = Net()
    module.net = nn.Sequential(nn.Linear(3, 6), nn.Identity(), nn.Linear(6, 2))
    return module


def convolved() -> Net:
    module = Net()
    module.net = nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Conv1d(3, 2, 1), nn.Flatten())
    return module


NOTHING = {
    frozen: "1 of 2 Linear layers are frozen",
    smooth: "no two Linear layers that are trained have something ReLU-like between them",
    convolved: "there are no Linear layers",
}


@pytest.mark.parametrize("module", NOTHING)
def test_a_module_without_blocks_is_told_why(module: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        watch(module())
    assert NOTHING[module] in caplog.text


def test_blocks_that_thaw_are_named_when_they_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    class Thawing(Net):
        def on_train_epoch_start(self) -> None:
            self.net[0].requires_grad_(self.current_epoch > 0)

    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        watch(Thawing())
    assert "are frozen" in caplog.text
    assert "watching net.0 -> net.2, 6 neurons" in caplog.text


@pytest.mark.parametrize("module", [Net, ByHand])
def test_all_callbacks_of_ours_work_on_one_run(module: type[Net], recwarn: pytest.WarningsRecorder) -> None:
    grow, revive = GrowOnPlateau(at_steps=[4]), ReviveDeadUnits(every_n_steps=3)
    callbacks = [LandscapeMonitor(every_n_steps=1), PlateauMonitor(), grow, revive]
    Trainer(**QUIET, callbacks=callbacks, max_epochs=3, log_every_n_steps=1).fit(module(), batches(24))
    assert [growth.after for growth in grow.growths] == [7]
    assert revive.off == ""
    assert {one.width for one in revive.revivals} == {6, 7}
    assert not [one for one in recwarn if "keeps the graph" in str(one.message)]


def test_layers_that_share_a_weight_are_refused_by_name() -> None:
    class Tied(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            hidden = self.net[0](batch[0]).relu()
            return functional.mse_loss(functional.linear(hidden, self.net[0].weight.T), batch[0])

    with pytest.warns(UserWarning, match=r"net\.0 can never grow"):
        Trainer(**QUIET, callbacks=[GrowOnPlateau(at_steps=[2])], max_epochs=2, log_every_n_steps=1).fit(
            Tied(), batches(24)
        )


def test_a_layer_that_other_layers_read_in_other_steps_has_no_one_loss() -> None:
    class TakingTurns(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(6, 1)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            outputs = (self.other if batch_idx % 2 else self.net[2])(self.net[:2](batch[0]))
            return functional.mse_loss(outputs, batch[1][:, : outputs.shape[1]])

    _, plateau = watch(TakingTurns())
    assert plateau.off == ""
    assert plateau.final is not None
    assert plateau.final.verdict.reason.startswith("other layers read it in other steps")


def test_losses_of_several_backward_passes_of_a_step_add_up() -> None:
    class InParts(ByHand):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            outputs = self.net(batch[0])
            parts = [functional.mse_loss(outputs[:, j], batch[1][:, j]) for j in range(2)]
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(parts[0], retain_graph=True)
            self.manual_backward(parts[1])
            optimizer.step()
            return sum(parts)

    _, plateau = watch(InParts())
    assert plateau.final is not None
    assert plateau.final.data is not None


@pytest.mark.parametrize("callback", [LandscapeMonitor, PlateauMonitor, ReviveDeadUnits])
def test_fabric_is_told_how_to_ride_along(callback: Any) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[callback()])
    with pytest.raises(MisconfigurationException, match=r"relu_diag\.capture\.riding"):
        fabric.setup(nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("held", "rate", "words"), [(True, 0.0, "the learning rate is 0"), (False, 0.1, "no optimizer")]
)
def test_a_block_that_no_step_moves_is_told_so(held: bool, rate: float, words: str) -> None:
    class Still(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Parameter(torch.zeros(2))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return functional.mse_loss(self.net(batch[0]) + 0 * self.other, batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([self.other, *(self.net.parameters() if held else [])], lr=rate)

    _, plateau = watch(Still())
    assert plateau.final is not None
    assert plateau.final.fact.startswith(f"net.0 stands still: {words}")


def test_a_block_with_two_names_has_the_first() -> None:
    class Twice(Net):
        def __init__(self) -> None:
            super().__init__()
            self.alias = self.net

    _, plateau = watch(Twice())
    assert plateau.final is not None
    assert plateau.final.location is not None
    assert plateau.final.location.hidden == "net.0"


def test_weights_that_were_replaced_are_not_judged() -> None:
    class Operated(Net):
        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 1:
                nn.utils.prune.l1_unstructured(self.net[0], "weight", 0.5)

    _, plateau = watch(Operated())
    assert plateau.final is not None
    assert plateau.final.data is None
    assert plateau.final.verdict.reason.startswith("its weights were replaced")
