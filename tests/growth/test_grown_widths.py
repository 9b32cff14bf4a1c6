"""Which hyper-parameter is the width of a block that has grown: the one that makes such a module, whatever its name."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from relu_diag import ShallowBlock
from relu_diag.capture import BlockLocation, read_block
from relu_diag.growth import GrowingModule, grow

LOCATION = BlockLocation("net.0", "net.2", (0.0, 1.0))


class Images(LightningModule):
    """A width and a height that are those of an image."""

    def __init__(self, width: int = 4, height: int = 4, hidden_dim: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(width * height, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 2))


class TwoWidths(LightningModule):
    """A width of 8 beside another 8: classes."""

    def __init__(self, width: int = 8, classes: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, classes))


class FixedHidden(LightningModule):
    """The only hyper-parameter named a width is the image's; the hidden one is written in the class."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(width * width, 4), nn.ReLU(), nn.Linear(4, 2))


class NeedsMore(LightningModule):
    """Cannot be made from its hyper-parameters alone: the name has to do."""

    def __init__(self, inputs: nn.Module, hidden: int = 5) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["inputs"])
        self.net = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))


class Configured(LightningModule):
    """All hyper-parameters in one mapping, with other fours beside the width."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters()
        sizes = config["sizes"]
        self.net = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2]))


@dataclass(frozen=True)
class Settings:
    """A configuration as an object."""

    hidden: int = 4
    batch: int = 4


class InAnObject(LightningModule):
    """The width in an object, as a dataclass or what argparse returns."""

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, 2))


class AsText(LightningModule):
    """Numbers as a command line passes them."""

    def __init__(self, hidden: str = "4", batch: float = 4.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, int(hidden)), nn.ReLU(), nn.Linear(int(hidden), 2))


class Sizes(LightningModule):
    """The sizes of all layers as positional numbers of one tuple."""

    def __init__(self, sizes: tuple[int, ...] = (4, 4, 4)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2]))


class Expanded(LightningModule):
    """The width is computed."""

    def __init__(self, d: int = 4, expansion: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(d, d * expansion), nn.ReLU(), nn.Linear(d * expansion, d))


class GrowingExpanded(Expanded, GrowingModule):
    """The same, which takes any width."""


def grown(module: LightningModule, count: int = 1) -> LightningModule:
    block = read_block(module, LOCATION)
    W = torch.cat([block.W, block.W[:count]])
    wider = ShallowBlock(W, torch.cat([block.H, 0 * block.H[:, :count]], 1), block.slopes, block.output_bias)
    grow(module, LOCATION, wider)
    return module


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Images(), {"width": 4, "height": 4, "hidden_dim": 5}),
        (TwoWidths(), {"width": 9, "classes": 8}),
        (FixedHidden(), {"width": 4}),
        (NeedsMore(nn.Linear(1, 1)), {"hidden": 6}),
        (Configured({"batch": 4, "sizes": [4, 4, 4]}), {"config": {"batch": 4, "sizes": [4, 5, 4]}}),
        (Sizes(), {"sizes": (4, 5, 4)}),
        (InAnObject(Settings()), {"settings": Settings(hidden=5)}),
        (InAnObject(Namespace(batch=4, hidden=4)), {"settings": Namespace(batch=4, hidden=5)}),
        (AsText(), {"hidden": "5", "batch": 4.0}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_the_hyper_parameter_that_is_the_width_changes(module: LightningModule, expected: dict[str, Any]) -> None:
    drawn = torch.random.get_rng_state()
    assert dict(grown(module).hparams) == expected
    assert torch.equal(torch.random.get_rng_state(), drawn)


def saved(module: LightningModule, folder: Path) -> Path:
    trainer = Trainer(barebones=True, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "grown.ckpt", weights_only=True)
    return folder / "grown.ckpt"


def test_a_width_that_is_computed_follows_by_its_factor(tmp_path: Path) -> None:
    path = saved(grown(Expanded(), count=4), tmp_path)
    loaded = Expanded.load_from_checkpoint(path)
    assert (loaded.hparams["expansion"], loaded.net[0].out_features) == (3, 12)


def test_a_growing_module_loads_a_width_that_nothing_can_say(tmp_path: Path) -> None:
    module = grown(GrowingExpanded())
    loaded = GrowingExpanded.load_from_checkpoint(saved(module, tmp_path))
    assert torch.equal(loaded.net[0].weight, module.net[0].weight)
