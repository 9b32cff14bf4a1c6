"""What holds a loss that could fall: steps that overshoot or are short, or noise, under SGD and Adam; and the cure."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support.quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import PlateauMonitor, SaddleAwareEarlyStopping
from relu_diag.training import Descent
from relu_diag.training._pace_of_weights import pace_of_weights


class Mlp(LightningModule):
    """Eight neurons on fifty samples of three inputs."""

    def __init__(self, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD, **settings: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        X = torch.randn(50, 3, generator=generator)
        self.data = TensorDataset(X, torch.sin(2 * X[:, :1]) + X[:, 1:2])
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        self.optimizer = optimizer
        self.settings = settings

    def loss(self, X: Tensor, Y: Tensor) -> Tensor:
        return functional.mse_loss(self.net(X), Y)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = self.loss(*batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), **self.settings)  # type: ignore[call-arg]

    def sharpness(self) -> float:
        """Largest eigenvalue of the dense Hessian, float64."""
        module = Mlp().double()
        module.load_state_dict(self.state_dict())
        X, Y = (tensor.double() for tensor in self.data.tensors)
        parameters = dict(module.net.named_parameters())
        names, sizes = list(parameters), [one.numel() for one in parameters.values()]

        def loss(flat: Tensor) -> Tensor:
            parts = dict(zip(names, torch.split(flat, sizes), strict=True))
            shaped = {name: part.reshape(parameters[name].shape) for name, part in parts.items()}
            return functional.mse_loss(torch.func.functional_call(module.net, shaped, X), Y)

        flat = torch.cat([one.detach().flatten() for one in parameters.values()])
        return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1])


def fit(module: Mlp, steps: int, *callbacks: Any, batch_size: int = 50, **options: Any) -> PlateauMonitor:
    monitor = PlateauMonitor()
    trainer = Trainer(max_steps=steps, callbacks=[monitor, *callbacks], **(QUIET | {"max_epochs": -1} | options))
    trainer.fit(module, DataLoader(module.data, batch_size=batch_size, shuffle=batch_size < 50))
    return monitor


def numbers(fact: str) -> tuple[float, float, float, float]:
    """Rate, product, bound and cure of a fact."""
    pattern = r"the rate (\S+) is too high \(sharpness x rate = (\S+), stable below (\S+)\); lower it to (\S+)$"
    found = re.search(pattern, fact)
    assert found is not None, fact
    return tuple(float(one) for one in found.groups())  # type: ignore[return-value]


def test_a_rate_beyond_two_over_the_sharpness_is_named_at_its_plateau_and_its_cure_works() -> None:
    module = Mlp(lr=0.7)
    monitor = fit(module, 400)
    plateau = monitor.plateaus[-1]
    assert plateau.fact.startswith("steps overshoot: the rate 0.7 is too high")
    assert plateau.fact in plateau.words
    assert "what holds it" in plateau.summary()
    assert type(plateau).from_state(plateau.state_dict()).fact == plateau.fact
    assert monitor.final is not None
    _, product, bound, cure = numbers(monitor.final.fact)
    assert bound == 2
    here = module.sharpness()
    fit(module, 1)  # steps hop from side to side
    assert product == pytest.approx(0.7 * max(here, module.sharpness()), rel=0.05)
    assert cure == pytest.approx(0.7 / product, rel=0.05)
    module.settings["lr"] = cure
    after = fit(module, 100).final
    assert after is not None
    assert after.loss < 0.8 * monitor.final.loss
    assert not after.fact


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.5}],
    ids=["plain", "momentum", "nesterov", "dampening"],
)
def test_the_bound_is_where_torchs_sgd_leaves_a_parabola(settings: dict[str, Any]) -> None:
    """The product that a fact names is beyond the bound exactly where the weights of a parabola grow."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0, **settings)
    pace = pace_of_weights([optimizer], [weight])
    assert pace is not None
    for share, grows in ((0.98, False), (1.02, True)):
        optimizer = torch.optim.SGD([weight], lr=share * pace.bound, **settings)
        weight.data.fill_(1.0)
        for _ in range(2000):
            weight.grad = weight.detach().clone()
            optimizer.step()
        assert (abs(float(weight.detach())) > 1) == grows


def test_adam_is_stable_up_to_a_bound_in_its_own_scale() -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    assert pace_of_weights([optimizer], [weight]) is None  # before its first step
    weight.grad = torch.full_like(weight, 3.0)
    optimizer.step()
    pace = pace_of_weights([optimizer], [weight])
    assert pace is not None
    assert pace.bound == pytest.approx(2 * 1.9 / 0.1)
    assert float(pace.scale) == pytest.approx(3.0)
    assert float(pace.decay) == pytest.approx(0.3)  # AdamW's, in the same scale


@pytest.mark.parametrize(
    "module",
    [Mlp(lr=0.05), Mlp(torch.optim.Adam, lr=1e-2), Mlp(torch.optim.RMSprop, lr=1e-3)],
    ids=["SGD", "Adam", "RMSprop"],
)
def test_steps_that_neither_overshoot_nor_are_short_hold_nothing(module: Mlp) -> None:
    final = fit(module, 150).final
    assert final is not None
    assert (final.fact, final.held) == ("", "")


@pytest.mark.parametrize("module", [Mlp(lr=1e-7), Mlp(torch.optim.AdamW, lr=1e-7)], ids=["SGD", "AdamW"])
def test_a_rate_that_is_too_low_is_named(module: Mlp) -> None:
    monitor = fit(module, 150)
    (plateau,) = monitor.plateaus
    assert plateau.verdict.kind == "not stationary"
    assert re.fullmatch(r"10 steps of descent on all data lower the loss by \d+\.\d%", plateau.verdict.reason)
    assert re.fullmatch(r"steps are short: the rate 1e-07 is low \(sharpness x rate = \S+\); raise it", plateau.fact)


def test_noise_of_batches_that_holds_a_loss_is_named() -> None:
    module = Mlp(lr=0.1)
    module.data = TensorDataset(module.data.tensors[0], module.data.tensors[1] + 3 * torch.randn(50, 1))
    monitor = fit(module, 1500, batch_size=2)
    assert monitor.final is not None
    assert monitor.final.held == "the noise of the batches holds the loss: lower the rate 0.1, or take larger batches"


def test_clipped_steps_are_as_long_as_the_clipping_lets_them() -> None:
    final = fit(Mlp(lr=0.7), 100, gradient_clip_val=0.1).final
    assert final is not None
    assert final.fact == ""


def test_early_stopping_says_what_held_the_loss() -> None:
    stopping = SaddleAwareEarlyStopping("loss", patience=20, check_on_train_epoch_end=True, min_delta=1.0)
    fit(Mlp(lr=0.7), 100, stopping)
    assert ": it has waited long enough; steps overshoot: the rate 0.7 is too high" in stopping.decision


def test_dead_neurons_are_named_and_whether_the_bias_still_learns() -> None:
    module = Mlp(lr=0.01)
    module.net[0].bias.data.fill_(-100.0)
    final = fit(module, 20).final
    assert final is not None
    assert final.fact == "nothing but the output bias can change any more: all 8 neurons of net.0 are dead"
    module.net[2].bias.requires_grad_(requires_grad=False)
    module.net[2].bias.data.fill_(float(module.data.tensors[1].mean()))
    final = fit(module, 20).final
    assert final is not None
    assert final.fact == "nothing can change any more: all 8 neurons of net.0 are dead"


def test_a_loss_that_leaves_the_numbers_names_the_rate() -> None:
    with pytest.warns(UserWarning, match="the loss is (inf|nan) at step .*, after it rose .*: steps overshoot, lower"):
        fit(Mlp(lr=30.0), 60)


def test_the_words_name_what_was_measured() -> None:
    said = Descent(fall=0.1, rate=0.1, product=4.75, bound=3.8)
    assert numbers(said.holds(drop=0.01)) == (0.1, 4.8, 3.8, 0.04)
    assert said.holds(drop=0.1) == ""


def test_weights_that_are_computed_are_not_measured() -> None:
    module = Mlp(lr=0.01)
    module.net[0] = nn.utils.parametrizations.weight_norm(module.net[0])
    final = fit(module, 5).final
    assert final is not None
    assert final.descent is None
