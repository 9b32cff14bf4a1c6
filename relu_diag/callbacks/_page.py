"""The page that a run leaves: what its monitors saw, in one file to send."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from relu_diag.callbacks.plateau import PlateauMonitor
from relu_diag.functional import NearbyStationaryPoint
from relu_diag.report import BlockNeurons, Report, write_report
from relu_diag.training import BlockWatch


def write_page(trainer: Trainer, nearby: NearbyStationaryPoint | None, watches: Sequence[BlockWatch]) -> None:
    """Write a run as ``report.html`` beside its logs, with the story of the trainer's first `PlateauMonitor`.

    Args:
        trainer: The trainer, at the end of training.
        nearby: The stationary point near the weights; None: as the monitors of plateaus judged the end.
        watches: The blocks that were watched.
    """
    folder = trainer.log_dir  # Lightning broadcasts it: every rank must ask.
    if folder is None or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
        return
    monitors = [one for one in trainer.callbacks if isinstance(one, PlateauMonitor)]  # type: ignore[attr-defined]
    judged = [one.final.verdict for one in monitors if one.final is not None]
    stories = [story for one in monitors if (story := one.story(trainer)) is not None]
    reports = [watch.last for watch in watches if watch.last is not None]
    page = Report(
        title=f"{type(trainer.lightning_module).__name__}, {trainer.global_step:,} steps",
        verdict=nearby.verdict if nearby is not None else next(iter(judged), None),
        story=next(iter(stories), None),
        figures={name: figure for watch in watches for name, figure in watch.figures().items()},
        neurons=[BlockNeurons(one.name, one.block, one.geometry, one.states) for one in reports],
    )
    path = Path(folder, "report.html")
    try:
        write_report(path, page)
    except OSError as error:
        rank_zero_warn(f"The report {path} could not be written ({error}); the run goes on.")
