"""Checkpoints of grown networks load everywhere."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from relu_diag import ShallowBlock
from relu_diag.capture import BlockLocation, read_block
from relu_diag.growth import GrowingModule, grow, resize_on_load
from relu_diag.nn import ShallowNet

LOCATION = BlockLocation("net.hidden", "net.output", (0.0, 1.0))
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Regression(LightningModule):
    """The width is a hyper-parameter."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = ShallowNet(2, width, hidden_bias=True)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor]) -> None:
        self.log("loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class FixedWidth(Regression, GrowingModule):
    """No hyper-parameter says how wide it is."""

    def __init__(self) -> None:
        GrowingModule.__init__(self)
        self.net = ShallowNet(2, 4, hidden_bias=True)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    X, Y = torch.randn(32, 2, generator=generator), torch.randn(32, 1, generator=generator)
    return DataLoader(TensorDataset(X, Y), batch_size=8)


def twice_the_first(block: ShallowBlock) -> ShallowBlock:
    H = torch.cat([block.H[:, :1] / 2, block.H[:, 1:], block.H[:, :1] / 2], dim=1)
    return ShallowBlock(torch.cat([block.W, block.W[:1]]), H, block.slopes, block.output_bias)


def grown_checkpoint(module: LightningModule, folder: Path) -> Path:
    """Trained for an epoch, grown by one neuron, saved."""
    trainer = Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(module, loader())
    grow(module, LOCATION, twice_the_first(read_block(module, LOCATION)), trainer.optimizers)
    trainer.save_checkpoint(folder / "grown.ckpt")
    return folder / "grown.ckpt"


@pytest.mark.parametrize("kind", [Regression, FixedWidth])
@pytest.mark.parametrize("weights_only", [True, False])
def test_load_from_checkpoint_needs_no_user_code(kind: type[Regression], weights_only: bool, tmp_path: Path) -> None:
    module = kind()
    path = grown_checkpoint(module, tmp_path)
    loaded = kind.load_from_checkpoint(path, weights_only=weights_only)
    assert loaded.net.hidden.out_features == 5
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    if kind is Regression:
        assert loaded.hparams["width"] == 5


@pytest.mark.parametrize("kind", [Regression, FixedWidth])
def test_fit_and_test_take_a_grown_checkpoint(kind: type[Regression], tmp_path: Path) -> None:
    module = kind()
    path = grown_checkpoint(module, tmp_path)
    fresh = kind()
    resize_on_load(fresh, LOCATION)
    trainer = Trainer(max_epochs=2, enable_checkpointing=False, **QUIET)
    trainer.fit(fresh, loader(), ckpt_path=path, weights_only=True)
    assert fresh.net.hidden.out_features == 5
    assert trainer.optimizers[0].state[fresh.net.hidden.weight]["exp_avg"].shape == (5, 2)
    assert trainer.global_step == 8
    other = kind()
    resize_on_load(other, LOCATION)
    found = Trainer(**QUIET).test(other, loader(), ckpt_path=path, weights_only=True, verbose=False)
    (X, Y), net = loader().dataset.tensors, module.net
    assert found[0]["loss"] == pytest.approx(float(nn.functional.mse_loss(net(X), Y).detach()), rel=1e-5)


def test_what_a_resumed_run_saves_loads_too(tmp_path: Path) -> None:
    fresh = Regression()
    resize_on_load(fresh)
    trainer = Trainer(max_epochs=2, enable_checkpointing=False, **QUIET)
    trainer.fit(fresh, loader(), ckpt_path=grown_checkpoint(Regression(), tmp_path), weights_only=True)
    trainer.save_checkpoint(tmp_path / "resumed.ckpt")
    assert Regression.load_from_checkpoint(tmp_path / "resumed.ckpt").hparams["width"] == 5


def test_a_grown_run_resumed_is_the_run_without_a_break_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Regression()
    path = grown_checkpoint(module, tmp_path)
    resumed, through = Regression(), copy.deepcopy(module)
    optimizer = through.configure_optimizers()
    optimizer.load_state_dict(torch.load(path, weights_only=True)["optimizer_states"][0])
    resize_on_load(resumed, LOCATION)
    Trainer(max_epochs=3, enable_checkpointing=False, **QUIET).fit(resumed, loader(), ckpt_path=path, weights_only=True)
    for _ in range(2):
        for batch in loader():
            optimizer.zero_grad()
            through.training_step(batch).backward()
            optimizer.step()
    for name, value in through.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


@pytest.mark.parametrize("width", [3, 9])
def test_a_grown_module_takes_narrower_and_wider_state_dicts(width: int) -> None:
    module, other = Regression(), Regression(width)
    grow(module, LOCATION, twice_the_first(read_block(module, LOCATION)))
    parameters = list(module.parameters())
    module.load_state_dict(other.state_dict())
    assert all(one is two for one, two in zip(module.parameters(), parameters, strict=True))
    X = loader().dataset.tensors[0]
    assert torch.equal(module.net(X), other.net(X))
    assert (module.net.hidden.out_features, module.net.output.in_features) == (width, width)


def test_a_copy_of_the_parameters_that_somebody_keeps_is_no_obstacle_to_loading() -> None:
    module, other = Regression(6), Regression(4)
    resize_on_load(module)
    kept = [parameter.clone() for parameter in module.parameters()]  # each with a graph
    module.load_state_dict(other.state_dict())
    module.training_step(next(iter(loader()))).backward()
    assert [parameter.grad.shape for parameter in module.parameters()] == [p.shape for p in other.parameters()]
    assert len(kept[0]) == 6


def test_a_state_dict_of_another_problem_is_still_refused() -> None:
    module = Regression()
    resize_on_load(module, LOCATION)
    resize_on_load(module, LOCATION)
    assert len(module._load_state_dict_pre_hooks) == 1
    other = nn.ModuleDict({"net": ShallowNet(3, 6, hidden_bias=True)})
    with pytest.raises(RuntimeError, match=r"size mismatch for net.hidden.weight"):
        module.load_state_dict(other.state_dict())


def tower(*widths: int) -> nn.Sequential:
    """Two blocks that share the layer in the middle."""
    first, second = widths
    return nn.Sequential(nn.Linear(2, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 1))


@pytest.mark.parametrize("widths", [(5, 6), (5, 5), (3, 6), (4, 5)])
@pytest.mark.parametrize("hidden", [(None,), ("0", "2")])
def test_blocks_that_share_a_layer_take_their_widths(widths: tuple[int, int], hidden: tuple[str | None, ...]) -> None:
    module, other = tower(4, 4), tower(*widths)
    for name in hidden:
        location = name and BlockLocation(name, str(int(name) + 2), (0.0, 1.0))
        resize_on_load(module, location or None)
    module.load_state_dict(other.state_dict())
    X = loader().dataset.tensors[0]
    assert torch.equal(module(X), other(X))
    assert str(module) == str(other)


class TwoWidths(GrowingModule):
    """One hyper-parameter for the widths of two blocks, of which one grows."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net, self.other = ShallowNet(2, width, hidden_bias=True), ShallowNet(2, width)


def test_a_growing_module_loads_blocks_of_different_widths_under_one_hyper_parameter(tmp_path: Path) -> None:
    module = TwoWidths()
    grow(module, LOCATION, twice_the_first(read_block(module, LOCATION)))
    trainer = Trainer(**QUIET, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "grown.ckpt")
    loaded = TwoWidths.load_from_checkpoint(tmp_path / "grown.ckpt")
    assert (loaded.net.hidden.out_features, loaded.other.hidden.out_features) == (5, 4)


def test_the_hook_is_copied_with_the_module() -> None:
    module = Regression()
    resize_on_load(module, LOCATION)
    copied = copy.deepcopy(module)
    copied.load_state_dict(Regression(7).state_dict())
    assert copied.net.hidden.out_features == 7
    assert module.net.hidden.out_features == 4


def test_a_hyper_parameter_that_is_not_the_width_is_left_alone() -> None:
    module = Regression()
    module.hparams["width"] = 40
    grow(module, LOCATION, twice_the_first(read_block(module, LOCATION)))
    assert module.hparams["width"] == 40


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"hidden_dim": 4, "in_features": 4, "layers": 4}, {"hidden_dim": 5}),
        ({"n_units": 4, "hidden_layers": 4}, {"n_units": 5}),
        ({"width": 4, "hidden_dim": 4}, {"width": 5}),
        ({"hidden_1": 4, "hidden_2": 4}, {}),  # whose? nothing is guessed
        ({"hidden": 4.0, "in_features": 4}, {}),
    ],
)
def test_the_hyper_parameter_that_is_the_width_has_another_name(before: dict[str, int], after: dict[str, int]) -> None:
    module = FixedWidth()
    module.save_hyperparameters(before)
    grow(module, LOCATION, twice_the_first(read_block(module, LOCATION)))
    assert dict(module.hparams) == before | after


def test_layers_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match="no Linear layers a -> b"):
        resize_on_load(Regression(), BlockLocation("a", "b", (0.0, 1.0)))
