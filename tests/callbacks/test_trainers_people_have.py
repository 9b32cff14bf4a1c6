"""Whatever the trainer, the step and the data are: a run with monitors is the run without them, to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import CombinedLoader
from support import trainers as of
from torch.testing import assert_close
from torch.utils.data import DataLoader, WeightedRandomSampler

from relu_diag.callbacks import LandscapeMonitor, PlateauMonitor

pytestmark = pytest.mark.filterwarnings("ignore")
Data = tuple[Any, list[int]]


def batches(size: int = 4, **settings: Any) -> Data:
    data = of.Drawn()
    return DataLoader(data, batch_size=size, **settings), data.drawn


def shuffled() -> Data:
    return batches(shuffle=True)


def weighted() -> Data:
    return batches(sampler=WeightedRandomSampler(torch.arange(1.0, of.SAMPLES + 1), 16))


def streamed(endless: bool) -> Data:
    stream = of.Stream(endless)
    return DataLoader(stream, batch_size=4), stream.drawn


def without_length() -> Data:
    loader = of.WithoutLength()
    return loader, loader.drawn


def combined() -> Data:
    one, drawn = shuffled()
    other, _ = batches(5)
    return CombinedLoader({"a": one, "b": other}, "max_size_cycle"), drawn


def reloaded() -> Data:
    module = of.Reloaded()
    return module, module.drawn


@dataclass(frozen=True)
class Case:
    """A module, settings of its trainer, its data; and whether monitors see a block there."""

    module: Callable[[], of.Net] = of.Net
    settings: dict[str, Any] = field(default_factory=dict)
    data: Callable[[], Data] = shuffled
    seen: bool = True
    others: Callable[[], list[Callback]] = list
    loggers: Callable[[Path], Any] = lambda _: False


def both_loggers(folder: Path) -> Any:
    return [CSVLogger(folder, "rows"), TensorBoardLogger(folder, "events")]


def averaged() -> list[Callback]:
    return [StochasticWeightAveraging(1e-2, swa_epoch_start=1, annealing_epochs=1)]


CASES = {
    "plain": Case(),
    "whole": Case(data=lambda: batches(of.SAMPLES)),
    "by hand": Case(of.ByHand),
    "gan": Case(of.Gan),
    "dqn": Case(of.Dqn),
    "dqn whole": Case(of.Dqn, data=lambda: batches(of.SAMPLES)),
    "accumulated": Case(settings={"accumulate_grad_batches": 3}),
    "clipped by norm": Case(settings={"gradient_clip_val": 0.1}),
    "clipped by value": Case(settings={"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    "accumulated and clipped": Case(settings={"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
    "double": Case(settings={"precision": "64-true"}),
    "bf16 mixed": Case(settings={"precision": "bf16-mixed"}),
    "bf16": Case(settings={"precision": "bf16-true"}),
    "none": Case(of.Skipping),
    "not finite": Case(of.NotFinite),
    "dict": Case(of.WithDict),
    "gradient penalty": Case(of.Penalty, seen=False),
    "gradient inside": Case(of.Inside),
    "endless": Case(data=lambda: streamed(endless=True), settings={"max_steps": 30, "max_epochs": -1}),
    "endless epochs": Case(data=lambda: streamed(endless=True), settings={"limit_train_batches": 7}),
    "read once": Case(data=lambda: streamed(endless=False)),
    "combined": Case(of.Combined, data=combined),
    "dataloader_iter": Case(of.OfIterator),
    "without length": Case(data=without_length),
    "weighted": Case(data=weighted),
    "overfit": Case(settings={"overfit_batches": 2}),
    "limited": Case(settings={"limit_train_batches": 0.5}),
    "fast_dev_run": Case(settings={"fast_dev_run": True}),
    "reloaded": Case(data=reloaded, settings={"reload_dataloaders_every_n_epochs": 1}),
    "lbfgs": Case(of.Repeated),
    "recomputed": Case(of.Recomputed),
    "compiled": Case(of.Compiled),
    "kept loss": Case(of.Kept),
    "weights averaged": Case(others=averaged),
    "weights averaged exponentially": Case(others=lambda: [EMAWeightAveraging()]),
}


def monitors() -> list[Callback]:
    return [LandscapeMonitor(every_n_steps=2), PlateauMonitor(min_steps=10)]


def trainer_of(case: Case, folder: Path, *callbacks: Callback) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {"max_epochs": 3, "log_every_n_steps": 2, "accelerator": "cpu", **quiet, **case.settings}
    callbacks = [*case.others(), *callbacks]
    return Trainer(callbacks=callbacks, logger=case.loggers(folder), default_root_dir=folder, **settings)


def seed() -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)


def run(case: Case, folder: Path, *callbacks: Callback) -> dict[str, Any]:
    """What a run leaves behind."""
    seed()
    module = case.module()
    data, drawn = case.data()
    trainer = trainer_of(case, folder, *callbacks)
    trainer.fit(module, data)
    return of.left_behind(module, trainer, drawn)


def assert_equal(alone: dict[str, Any], watched: dict[str, Any]) -> None:
    assert alone.keys() == watched.keys()
    for name, value in alone.items():
        if name in {"weights", "optimizers", "torch", "metrics"}:
            assert_close(watched[name], value, rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: name + text)
        else:
            assert repr(watched[name]) == repr(value), name


def assert_on(callbacks: list[Callback], seen: bool) -> None:
    """The monitors are not off, and saw what there was to see."""
    landscape, plateau = callbacks
    assert isinstance(landscape, LandscapeMonitor)
    assert isinstance(plateau, PlateauMonitor)
    assert landscape.off == ""
    assert plateau.examiner.careful.off == ""
    assert bool(landscape.reports) == seen
    assert bool(plateau.examiner.seen) == seen


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_watched_run_is_the_run_alone(case: Case, tmp_path: Path) -> None:
    callbacks = monitors()
    alone = run(case, tmp_path / "alone")
    watched = run(case, tmp_path / "watched", *callbacks)
    assert_equal(alone, watched)
    assert_on(callbacks, case.seen)
    if case.settings.get("fast_dev_run"):
        assert not list((tmp_path / "watched").rglob("*"))


def own_rows(folder: Path) -> list[str]:
    """The rows of a CSV log that hold the user's own metric, without other columns."""
    (file,) = folder.rglob("metrics.csv")
    header, *lines = file.read_text().splitlines()
    columns = [header.split(",").index(name) for name in ("step", "epoch", "loss")]
    cells = [[line.split(",")[column] for column in columns] for line in lines]
    return [",".join(row) for row in cells if row[-1]]


@pytest.mark.parametrize("loggers", [lambda folder: CSVLogger(folder), both_loggers], ids=["csv", "two"])
def test_rows_of_the_user_are_as_without(loggers: Callable[[Path], Any], tmp_path: Path) -> None:
    case = Case(loggers=loggers)
    assert_equal(run(case, tmp_path / "alone"), run(case, tmp_path / "watched", *monitors()))
    assert own_rows(tmp_path / "watched") == own_rows(tmp_path / "alone")


def test_a_second_fit_is_as_without(tmp_path: Path) -> None:
    def twice(*callbacks: Callback) -> dict[str, Any]:
        run(Case(of.ByHand), tmp_path, *callbacks)
        return run(Case(), tmp_path, *callbacks)

    callbacks = monitors()
    assert_equal(twice(), twice(*callbacks))
    assert_on(callbacks, seen=True)


def test_a_fit_that_goes_on_is_as_without(tmp_path: Path) -> None:
    def resumed(folder: Path, before: list[Callback], after: list[Callback]) -> dict[str, Any]:
        seed()
        trainer = trainer_of(Case(settings={"max_epochs": 2}), folder, *before)
        trainer.fit(of.Net(), shuffled()[0])
        trainer.save_checkpoint(folder / "half.ckpt")
        seed()
        module: LightningModule = of.Net()
        data, drawn = shuffled()
        trainer = trainer_of(Case(), folder, *after)
        trainer.fit(module, data, ckpt_path=folder / "half.ckpt", weights_only=True)
        return of.left_behind(module, trainer, drawn)

    callbacks = monitors()
    assert_equal(resumed(tmp_path / "alone", [], []), resumed(tmp_path / "watched", monitors(), callbacks))
    assert_on(callbacks, seen=True)


def test_a_folder_that_takes_no_files_ends_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    for name in ("landscape", "plateau"):
        (folder / name).write_text("a file where a folder is to be")
    case = Case(loggers=lambda at: CSVLogger(tmp_path, version=0))
    callbacks = monitors()
    run(case, tmp_path, *callbacks)
    assert_on(callbacks, seen=True)
