"""ReviveDeadUnits: what it places anew, what it leaves alone, and everything it has to work under."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from support.dictionary import Dictionary, dead_share, fit, loss_of, sparse_rows
from support.quiet import QUIET
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from relu_diag.callbacks import ReviveDeadUnits


class Regression(LightningModule):
    """A small regression, half of whose neurons are dead at first."""

    def __init__(self, custom: bool = False, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
        self.custom = custom
        self.calls = 0
        with torch.no_grad():
            self.net[0].bias[: width // 2] = -50.0

    def training_step(self, batch: list[Tensor]) -> Tensor:
        self.calls += 1
        miss = self.net(batch[0]) - batch[1]
        return (1 + miss.square()).log().mean() if self.custom else miss.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def regression_data(samples: int = 96) -> TensorDataset:
    draw = torch.Generator().manual_seed(2)
    X = torch.randn(samples, 3, generator=draw)
    return TensorDataset(X, torch.stack([X.prod(dim=1), (2 * X[:, 0]).sin()], dim=1))


def fit_regression(module: LightningModule, *callbacks: Callback, batch: int = 32, **options: Any) -> Trainer:
    trainer = Trainer(callbacks=list(callbacks), **{**QUIET, "max_steps": 60, **options})
    torch.manual_seed(1)
    trainer.fit(module, DataLoader(regression_data(), batch_size=batch))
    return trainer


def final_loss(module: Regression) -> float:
    X, Y = regression_data().tensors
    with torch.no_grad():
        return float((module.net(X) - Y).square().mean())


class AtRevival(Callback):
    """Outputs on all data right before and right after each step's callbacks, for steps that revive."""

    def __init__(self, revive: ReviveDeadUnits) -> None:
        self.revive = revive
        self.change: list[float] = []
        self.fall: list[float] = []

    def outputs(self, module: Regression) -> Tensor:
        with torch.no_grad():
            return module.net(regression_data().tensors[0])


class Before(AtRevival):
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.seen = self.outputs(pl_module)
        self.count = len(self.revive.revivals)


class After(AtRevival):
    def __init__(self, before: Before) -> None:
        super().__init__(before.revive)
        self.before = before

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if len(self.revive.revivals) > self.before.count:
            now, Y = self.outputs(pl_module), regression_data().tensors[1]
            self.change.append(float((now - self.before.seen).abs().max()))
            self.fall.append(float((self.before.seen - Y).square().mean() - (now - Y).square().mean()))


def test_dead_neurons_come_back_and_the_loss_ends_lower_than_without() -> None:
    alone, revived = Regression(), Regression()
    revive = ReviveDeadUnits(every_n_steps=20, samples=96)
    fit_regression(alone)
    fit_regression(revived, revive)
    assert not revive.off
    assert [one.step for one in revive.revivals] == [20, 40]
    first = revive.revivals[0]
    assert (first.dead, first.width, first.block) == (8, 16, "net.0")
    assert first.revived > 0
    assert first.gain > 0
    assert final_loss(revived) < 0.9 * final_loss(alone)
    assert revived.calls == alone.calls


def test_at_a_revival_the_loss_falls_as_evaluated_where_a_batch_is_the_whole_data_set() -> None:
    revive = ReviveDeadUnits(every_n_steps=20)
    before = Before(revive)
    after = After(before)
    fit_regression(Regression(), before, revive, after, batch=96)
    assert len(after.fall) == 2
    for fall, one in zip(after.fall, revive.revivals, strict=True):
        assert fall == pytest.approx(one.drop, rel=1e-3, abs=1e-7)
        assert one.drop > 0 or not one.revived


def test_under_a_loss_that_nobody_recognises_the_function_stays() -> None:
    revive = ReviveDeadUnits(every_n_steps=20, samples=96, dormant=0)
    before = Before(revive)
    after = After(before)
    module = Regression(custom=True)
    fit_regression(module, before, revive, after)
    assert revive.revivals[0].revived > 0
    assert revive.revivals[0].drop == 0
    assert max(after.change) < 1e-6
    X, _ = regression_data().tensors
    alive = (module.net[0](X) > 0).any(dim=0)
    assert int(alive.sum()) > 8


def test_without_dead_neurons_training_is_the_same_to_the_bit() -> None:
    ends = []
    for callbacks in ((), (ReviveDeadUnits(every_n_steps=20, samples=64, dormant=0),)):
        module = Regression()
        with torch.no_grad():
            module.net[0].bias.zero_()
        fit_regression(module, *callbacks)
        ends.append(module.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_duplicates_hand_their_output_weights_over() -> None:
    module = Regression()
    with torch.no_grad():
        module.net[0].bias.zero_()
        module.net[0].weight[1] = 2 * module.net[0].weight[0]
        module.net[2].weight[:, 1] = module.net[2].weight[:, 0] / 2
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)  # type: ignore[method-assign]
    X, Y = regression_data().tensors
    before = module.net(X).detach()
    revive = ReviveDeadUnits(every_n_steps=10, dormant=0)
    fit_regression(module, revive, batch=96, max_steps=15)
    (one,) = revive.revivals
    assert (one.dead, one.duplicate, one.revived) == (0, 1, 1)
    fall = (before - Y).square().mean() - (module.net(X).detach() - Y).square().mean()
    assert float(fall) == pytest.approx(one.drop, rel=1e-4)


@pytest.mark.parametrize("form", [{}, {"tied_bias": True}, {"linear": True}, {"normalised": False}])
def test_dictionaries_lose_their_dead_features(form: dict[str, bool]) -> None:
    alone, revived = Dictionary(**form), Dictionary(**form)
    revive = ReviveDeadUnits(every_n_steps=30, samples=256)
    fit(alone)
    fit(revived, revive)
    assert not revive.off
    assert revive.revivals[0].dead == 24
    assert dead_share(alone) >= 0.5
    assert dead_share(revived) <= 0.01
    assert loss_of(revived) < 0.9 * loss_of(alone)
    if form.get("normalised", True) and not form.get("linear"):
        assert_close(revived.out.norm(dim=1), torch.ones(48))


def test_at_a_price_that_nothing_is_worth_nothing_is_revived() -> None:
    revive = ReviveDeadUnits(every_n_steps=30, samples=256, dormant=0)
    fit(Dictionary(price=50.0), revive, max_steps=40)
    assert revive.revivals[0].dead >= 24
    assert revive.revivals[0].revived == 0


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop", "Adagrad"])
def test_it_works_under_other_optimizers(optimizer: str) -> None:
    module = Dictionary(optimizer=optimizer)
    revive = ReviveDeadUnits(every_n_steps=30, samples=128)
    fit(module, revive, max_steps=70)
    assert not revive.off
    assert sum(one.revived for one in revive.revivals) > 0


def test_averaged_copies_get_the_same_neurons() -> None:
    revive, averaging = ReviveDeadUnits(every_n_steps=20, samples=96), EMAWeightAveraging(decay=0.9)
    module = Regression()
    copies = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 20:
                copies["live"] = copy.deepcopy(pl_module.net.state_dict())
                copies["average"] = copy.deepcopy(averaging._average_model.module.net.state_dict())

    fit_regression(module, averaging, revive, Look(), max_steps=30)
    assert not revive.off
    dead = slice(0, 8)
    changed = (copies["live"]["0.bias"][dead] > -40).nonzero().squeeze(1)
    assert len(changed)
    for name in ("0.weight", "0.bias"):
        assert_close(copies["average"][name][changed], copies["live"][name][changed])


def test_compiled_modules_are_revived_and_go_on_compiled() -> None:
    torch._dynamo.reset()
    module = Regression()
    module.net.compile(backend="eager")
    revive = ReviveDeadUnits(every_n_steps=20, samples=96)
    fit_regression(module, revive)
    assert not revive.off
    assert revive.revivals[0].revived > 0
    torch._dynamo.reset()


def test_a_resumed_run_knows_what_was_active_before(tmp_path: Any) -> None:
    revive = ReviveDeadUnits(every_n_steps=20, samples=96)
    trainer = fit_regression(Regression(), revive, max_steps=30)
    path = tmp_path / "half.ckpt"
    trainer.save_checkpoint(path)
    again = ReviveDeadUnits(every_n_steps=20, samples=96)
    module = Regression()
    trainer = Trainer(callbacks=[again], **{**QUIET, "max_steps": 60})
    trainer.fit(module, DataLoader(regression_data(), batch_size=32), ckpt_path=path, weights_only=True)
    assert not again.off
    assert again.revivals[0] == revive.revivals[0]
    assert [one.step for one in again.revivals] == [20, 40]


class TopK(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        top = z.topk(3, dim=-1)
        return torch.zeros_like(z).scatter(-1, top.indices, top.values.relu())


class Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z * (z > 0.3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return gradient * (z > 0.3)


class JumpReLUFunction(Jump):
    """Named after what it is."""


class Acts(Regression):
    def __init__(self, kind: str) -> None:
        super().__init__(width=16)
        self.kind = kind
        if kind == "module":
            self.net[1] = TopK()

    def training_step(self, batch: list[Tensor]) -> Tensor:
        X, Y = batch
        z = self.net[0](X)
        acts = {
            "module": lambda: self.net[1](z),
            "function": lambda: TopK()(z),
            "mask": lambda: z.relu() * (z >= z.topk(3, dim=-1).values[..., -1:]),
            "threshold": lambda: z.relu() * (z > 0.3),
            "autograd": lambda: JumpReLUFunction.apply(z),
        }
        return (self.net[2](acts[self.kind]()) - Y).square().mean()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("module", "TopK"), ("function", "TopK"), ("mask", "TopK"), ("threshold", "JumpReLU"), ("autograd", "JumpReLU")],
)
def test_activations_that_are_no_relu_are_refused_by_name(kind: str, name: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"(?i){name}"):
        fit_regression(Acts(kind), ReviveDeadUnits(every_n_steps=20))


@pytest.mark.parametrize("bad", [{"every_n_steps": 0}, {"samples": -1}, {"dormant": 1.5}, {"every_n_steps": 2.5}])
def test_bad_arguments_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException):
        ReviveDeadUnits(**bad)


def test_what_is_logged() -> None:
    revive = ReviveDeadUnits(every_n_steps=20, samples=96)
    trainer = fit_regression(Regression(), revive, max_steps=30)
    names = {name for name in trainer.callback_metrics if name.startswith("revive/")}
    expected = ("width", "dead", "dormant", "duplicate", "revived", "gain", "drop", "function_change")
    assert names == {f"revive/{name}" for name in expected}


def test_the_rows_of_the_sparse_data_are_as_sparse_as_said() -> None:
    assert sparse_rows().shape == (512, 16)


class Compare(Callback):
    """Writes down how far the weights of two processes are apart, and how many neurons were placed anew."""

    def __init__(self, path: Any, revive: ReviveDeadUnits) -> None:
        self.path = path
        self.revive = revive

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        flat = torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()])
        everyone = trainer.strategy.all_gather(flat)
        apart = float((everyone[0] - everyone[1]).abs().max())
        if trainer.is_global_zero:
            self.path.write_text(f"{apart} {sum(one.revived for one in self.revive.revivals)} {self.revive.off}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_decide_the_same_and_keep_the_same_weights(tmp_path: Any) -> None:
    revive = ReviveDeadUnits(every_n_steps=10, samples=64)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    compare = Compare(tmp_path / "apart", revive)
    fit_regression(Regression(), revive, compare, batch=16, max_steps=25, strategy=strategy, devices=2)
    apart, revived, off = (tmp_path / "apart").read_text().split(" ")
    assert off == ""
    assert float(apart) == 0
    assert int(revived) > 0


class TwoStreams(IterableDataset[list[Tensor]]):
    """Batches of a regression whose targets are others after some steps."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        draw = torch.Generator().manual_seed(0)
        for step in range(260):
            X = torch.randn(32, 3, generator=draw)
            Y = torch.stack([X.sum(dim=1), X[:, 0].abs()], dim=1)
            yield [X, Y if step < 150 else 20 - 20 * Y]


def test_after_a_jump_of_the_loss_neurons_are_placed_by_rows_of_the_new_data() -> None:
    revive = ReviveDeadUnits(every_n_steps=100, samples=128)
    trainer = Trainer(callbacks=[revive], **{**QUIET, "max_steps": 260})
    trainer.fit(Regression(), DataLoader(TwoStreams(), batch_size=None))
    steps = [one.step for one in revive.revivals]
    assert [step for step in steps if step % 100 == 0] == [100, 200]
    (early,) = (step for step in steps if step % 100)
    # Ten to twenty steps show the jump, and four have the rows.
    assert 150 + 10 + 4 <= early <= 150 + 20 + 4
