"""Steps that copy their module, run layers twice, or bring batches of an unusual kind: watched, and said as it is."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from support.quiet import QUIET
from support.sines import Net, batches, samples
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor
from relu_diag.training import tensors_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")
LOG = "lightning.pytorch.utilities.rank_zero"


def watch(module: Net, data: Any = None, **settings: Any) -> tuple[LandscapeMonitor, PlateauMonitor]:
    monitors = LandscapeMonitor(every_n_steps=1), PlateauMonitor()
    trainer = Trainer(**QUIET, callbacks=list(monitors), **{"max_epochs": 2, "log_every_n_steps": 1, **settings})
    trainer.fit(module, batches(24) if data is None else data)
    assert [monitor.off for monitor in monitors] == ["", ""]
    return monitors


class Copying(Net):
    """Copies and saves its network in the middle of each step, as meta-learners do."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        outputs = self.net(batch[0])
        self.twin = copy.deepcopy(self.net)
        pickle.loads(pickle.dumps(self.net))(batch[0])
        self.twin(batch[0])
        return functional.mse_loss(outputs, batch[1])


def test_a_copy_of_a_layer_in_the_step_takes_nothing_of_ours_along() -> None:
    module = Copying()
    landscape, _ = watch(module)
    assert landscape.reports
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


class Attacked(Net):
    """Trains on inputs that it has computed with its own weights."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(functional.mse_loss(self.net(inputs), batch[1]), inputs)
        return functional.mse_loss(self.net(batch[0] + 0.3 * slope.sign()), batch[1])


class Refined(Net):
    """Trains on its own outputs, computed without gradient."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            guess = self.net(batch[0]).mean(dim=1, keepdim=True)
        return functional.mse_loss(self.net(batch[0] + guess), batch[1])


class Deep(Net):
    """Blocks whose inputs are computed by trained layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


@pytest.mark.parametrize("module", [Attacked, Refined, Deep])
def test_inputs_that_weights_compute_are_said_to_have_moved(
    module: type[Net], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", LOG):
        _, plateau = watch(module(), max_epochs=3)
    assert plateau.final is not None
    assert plateau.final.data is not None
    assert plateau.final.verdict.assumptions["nothing else is trained"] == "broken"
    assert "compute its inputs have changed by" in caplog.text


def test_inputs_of_the_batch_have_not_moved(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", LOG):
        watch(Net())
    assert "compute its inputs have changed" not in caplog.text


def test_a_layer_that_the_loss_reads_elsewhere_is_a_caveat() -> None:
    class Penalised(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) + self.net[0](2 * batch[0]).square().mean()

    landscape, _ = watch(Penalised())
    assert landscape.reports["net.0"].caveats == (
        "its first layer ran elsewhere in the step too, which these slopes leave out",
    )


def test_a_block_that_shares_its_weight_has_no_verdict() -> None:
    class Tied(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return functional.mse_loss(self.net[0](batch[0]).relu() @ self.net[0].weight, batch[0])

    landscape, plateau = watch(Tied())
    assert landscape.reports
    assert plateau.final is not None
    assert plateau.final.verdict.reason.startswith("its layers share a weight")


@pytest.mark.parametrize(("size", "expected"), [(8, True), (7, False)])
def test_samples_that_every_epoch_leaves_out_are_not_all_data(size: int, expected: bool) -> None:
    data = DataLoader(samples(24), batch_size=size, shuffle=True, drop_last=True)
    _, plateau = watch(Net(), data)
    assert plateau.final is not None
    assert plateau.final.data is not None
    assert plateau.final.data.complete == expected


def test_a_sampler_of_some_samples_does_not_draw_all_data() -> None:
    data = DataLoader(samples(24), batch_size=8, sampler=RandomSampler(samples(24), num_samples=16))
    _, plateau = watch(Net(), data)
    assert plateau.final is not None
    assert plateau.final.data is not None
    assert not plateau.final.data.complete


@pytest.mark.parametrize(("count", "expected"), [(24, True), (25, False)])
def test_samples_that_no_rank_draws_in_an_epoch_are_left_out(count: int, expected: bool) -> None:
    sampler = DistributedSampler(samples(count), num_replicas=2, rank=0, drop_last=True)
    _, plateau = watch(Net(), DataLoader(samples(count), batch_size=4, sampler=sampler))
    assert plateau.final is not None
    assert plateau.final.data is not None
    assert plateau.final.data.complete == expected


def packed(rows: list[tuple[Tensor, Tensor]]) -> Any:
    pack = nn.utils.rnn.pack_sequence
    return [pack([one[part].reshape(1, -1) for one in rows]) for part in range(2)]


@dataclass
class Graph:
    """A batch that is an object of the project's own."""

    x: Tensor
    y: Tensor

    def to(self, device: Any) -> Graph:
        return Graph(self.x.to(device), self.y.to(device))


class Unpacking(Net):
    """Takes whatever holds inputs and targets."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if isinstance(batch, Graph):
            return functional.mse_loss(self.net(batch.x), batch.y)
        X, Y = (part.data if isinstance(part, nn.utils.rnn.PackedSequence) else part for part in batch)
        return functional.mse_loss(self.net(X.to_dense()), Y)


COLLATE = {
    "packed": packed,
    "object": lambda rows: Graph(*(torch.stack(part) for part in zip(*rows, strict=True))),
    "sparse": lambda rows: [torch.stack([x for x, _ in rows]).to_sparse(), torch.stack([y for _, y in rows])],
}


@pytest.mark.parametrize("collate", COLLATE.values(), ids=COLLATE)
def test_batches_of_any_kind_show_their_targets(collate: Any) -> None:
    _, plateau = watch(Unpacking(), DataLoader(samples(24), batch_size=8, collate_fn=collate))
    assert plateau.final is not None
    assert plateau.final.data is not None
    assert len(plateau.final.data.X) == 24


def test_the_parts_of_sparse_and_nested_tensors_are_those_of_a_batch() -> None:
    X = torch.eye(3)
    assert [len(one) for one in tensors_of([X.to_sparse()])] == [2, 3]
    nested = torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged)
    assert tensors_of({"x": nested})[0].shape == (5, 3)


def test_blocks_are_named_when_they_are_first_seen(caplog: pytest.LogCaptureFixture) -> None:
    class TakingTurns(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return functional.mse_loss((self.other if batch_idx else self.net)(batch[0]), batch[1])

    with caplog.at_level("INFO", LOG):
        watch(TakingTurns())
    named = [one.message for one in caplog.records if one.message.startswith("watching")]
    assert named == ["watching net.0 -> net.2, 6 neurons", "watching other.0 -> other.2, 5 neurons"]


class Scaled(Net):
    """A loss whose factor changes from step to step."""

    factors = (1.0,)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        factor = self.factors[min(self.trainer.global_step, len(self.factors) - 1)]
        return factor * functional.mse_loss(self.net(batch[0]), batch[1])


FACTORS = {
    "ever larger": [1 + step / 4 for step in range(18)],
    "warmed up": [min(1.0, (step + 1) / 10) for step in range(18)],
    "ever smaller": [0.9**step for step in range(18)],
}


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("size", [4, 8])
def test_a_factor_that_changes_within_an_epoch_is_that_of_the_last_step(size: int, factors: tuple[float, ...]) -> None:
    class Rising(Scaled):
        pass

    Rising.factors = factors
    module, plateau = Rising(), PlateauMonitor()
    trainer = Trainer(**QUIET, callbacks=[plateau], max_epochs=3)
    trainer.fit(module, batches(24, size))
    X, Y = samples(24).tensors
    loss = factors[trainer.global_step - 1] * functional.mse_loss(module.net(X), Y)
    assert plateau.final is not None
    assert plateau.final.loss == pytest.approx(float(loss.detach()), rel=1e-5)


def test_the_final_loss_is_that_of_the_end_where_no_data_are_kept() -> None:
    class Unknown(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = (self.net(batch[0]) - batch[1]).pow(4).mean()
            self.last = float(loss.detach())
            return loss

    module, plateau = Unknown(), PlateauMonitor()
    Trainer(**QUIET, callbacks=[plateau], max_epochs=20).fit(module, batches(24))
    assert plateau.final is not None
    assert plateau.final.data is None
    assert plateau.final.loss == pytest.approx(module.last)


class Activated(Net):
    """An activation without a name."""

    def activated(self, Z: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.mse_loss(self.net[2](self.activated(self.net[0](batch[0]))), batch[1])


class Stepped(Activated):
    """What looks like a ReLU on samples none of which falls into a gap."""

    def activated(self, Z: Tensor) -> Tensor:
        return torch.where(Z > 0.3, Z, torch.zeros_like(Z))


class Leaking(Activated):
    def activated(self, Z: Tensor) -> Tensor:
        return torch.where(Z > 0, Z, 0.1 * Z)


def test_an_activation_that_a_step_has_refuted_is_watched_no_more() -> None:
    few = Net()
    with torch.no_grad():
        Z = few.net[0](samples(24).tensors[0])
    apart = ((Z <= 0) | (Z > 0.3)).all(dim=1)
    assert 2 <= int(apart.sum()) < 22
    order = torch.argsort(apart.int(), descending=True)
    data = DataLoader(torch.utils.data.Subset(samples(24), order.tolist()), batch_size=2)
    landscape, plateau = watch(Stepped(), data)
    assert not landscape.reports
    assert plateau.final is None
    assert "net.0: what stands behind it is not ReLU-like" in plateau.examiner.reason()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_activation_is_read_off_the_numbers_that_it_was_given(precision: str) -> None:
    landscape, plateau = watch(Leaking(), precision=precision)
    assert landscape.reports["net.0"].samples == 24
    assert landscape.reports["net.0"].block.slopes == pytest.approx((0.1, 1.0), rel=5e-3)
    assert plateau.final is not None


def test_steps_of_copies_are_told_from_networks_without_blocks(caplog: pytest.LogCaptureFixture) -> None:
    class Reptile(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            learner = copy.deepcopy(self.net)
            loss = functional.mse_loss(learner(batch[0]), batch[1])
            loss.backward()
            for own, its in zip(self.net.parameters(), learner.parameters(), strict=True):
                own.grad = its.grad
            self.optimizers().step()
            return loss.detach()

    with caplog.at_level("INFO", LOG):
        watch(Reptile())
    assert "no Linear layer ran with a gradient" in caplog.text


def test_a_loss_of_derivatives_is_named_with_a_cure_that_works(caplog: pytest.LogCaptureFixture) -> None:
    class Residual(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            X = batch[0].requires_grad_()
            outputs = self.net(X)
            (slope,) = torch.autograd.grad(outputs.sum(), X, create_graph=True)
            return (slope.sum(1) + outputs[:, 0]).square().mean()

    with caplog.at_level("INFO", LOG):
        watch(Residual())
    assert "derivatives of the network; a pass under a part of it" in caplog.text
    assert "loss=lambda module, batch: ..." in caplog.text
    landscape = LandscapeMonitor(
        every_n_steps=1, loss=lambda module, batch: functional.mse_loss(module.net(batch[0]), batch[1])
    )
    module = Residual()
    Trainer(**QUIET, callbacks=[landscape], max_epochs=2, log_every_n_steps=1).fit(module, batches(24))
    assert landscape.off == ""
    with torch.no_grad():
        silent = (module.net[0](samples(24).tensors[0]) < 0).all(dim=0)
    assert torch.equal(landscape.reports["net.0"].states.dead, silent)


def test_weights_that_are_not_finite_at_the_end_switch_nothing_off(caplog: pytest.LogCaptureFixture) -> None:
    class Diverging(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e9)

    landscape = LandscapeMonitor(every_n_steps=1, verdict="nearby")
    with caplog.at_level("INFO", LOG):
        Trainer(**QUIET, callbacks=[landscape], max_epochs=12, log_every_n_steps=1).fit(Diverging(), batches(24))
    assert landscape.off == ""
    assert "(last seen at step" in caplog.text
