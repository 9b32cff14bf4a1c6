"""The page that a run leaves: what its monitors saw, in one file to send."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure

from relu_diag.callbacks.plateau import PlateauMonitor
from relu_diag.functional import NearbyStationaryPoint
from relu_diag.report import BlockNeurons, Report, write_report
from relu_diag.training import BlockWatch


def write_page(
    trainer: Trainer, folder: str | None, nearby: NearbyStationaryPoint | None, watches: Sequence[BlockWatch]
) -> None:
    """Write a run as ``report.html`` beside its logs, with the story of the trainer's first `PlateauMonitor`.

    Args:
        trainer: The trainer, after training.
        folder: That of the logs; None: there is none.
        nearby: The stationary point near the weights; None: as the monitors of plateaus judged the end.
        watches: The blocks that were watched.
    """
    if folder is None or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
        return
    monitors = [one for one in trainer.callbacks if isinstance(one, PlateauMonitor)]  # type: ignore[attr-defined]
    judged = [one.final.verdict for one in monitors if one.final is not None]
    stories = [story for one in monitors if (story := one.story(trainer)) is not None]
    seen = [watch for watch in watches if watch.last is not None]
    reports = [watch.last for watch in seen if watch.last is not None]
    figures: dict[str, Figure | bytes] = {}
    for watch in seen:
        of = f" of {watch.hidden}" if len(seen) > 1 else ""
        figures.update({name + of: figure for name, figure in (watch.pictures or watch.figures()).items()})
    page = Report(
        title=f"{type(trainer.lightning_module).__name__}, {trainer.global_step:,} steps",
        verdict=nearby.verdict if nearby is not None else next(iter(judged), None),
        story=next(iter(stories), None),
        figures=figures,
        neurons=[BlockNeurons(one.name, one.block, one.geometry, one.states) for one in reports],
        reproduce=_again(trainer, Path(folder)),
    )
    path = Path(folder, "report.html")
    try:
        write_report(path, page)
    except OSError as error:
        rank_zero_warn(f"The report {path} could not be written ({error}); the run goes on.")


def _again(trainer: Trainer, folder: Path) -> str:
    """The command that makes a run again, and what it depends on besides: the seed and the hyper-parameters."""
    config = folder / "config.yaml"  # written by Lightning's command line
    command = f"relu-diag fit -c {config}" if config.exists() else shlex.join(["python", *sys.argv])
    lines = [] if "ipykernel" in sys.argv[0] and not config.exists() else [command]
    seed = os.environ.get("PL_GLOBAL_SEED")
    if seed is not None:
        lines.append(f"# seed_everything({seed})")
    hparams = getattr(trainer.lightning_module, "hparams", {})
    lines += [f"# {name}: {value}" for name, value in hparams.items()]
    return "\n".join(lines)
