"""Five points, fifty neurons, half a million gradient steps: two saddles, then a local minimum (Wu et al., Figure 3).

Run with ``make demo``. Watch it live with ``tensorboard --logdir runs``.
"""

from __future__ import annotations

import logging
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from relu_diag.callbacks import LandscapeMonitor
from relu_diag.experiments import PointsDataModule, ReferenceRegression, reference_problem
from relu_diag.figures import TrainingHistory


def flat_stretches(history: TrainingHistory, slowest: float = 1e-3, shortest: int = 10) -> list[tuple[int, int]]:
    """First and last look of every stretch in which the loss changes by less than a thousandth per look."""
    log_loss = history.loss.log().tolist()
    moving = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(log_loss)) if abs(b - a) > slowest), len(log_loss)]
    return [(start, stop - 1) for start, stop in pairwise(moving) if stop - start > shortest]


class Diary(Callback):
    """Keeps every verdict the monitor gives, by step."""

    def __init__(self, monitor: LandscapeMonitor) -> None:
        self.monitor, self.verdicts = monitor, {}

    def on_train_batch_end(self, *_: object) -> None:
        if self.monitor.nearby is not None:
            self.verdicts[self.monitor.judged_step] = self.monitor.nearby.verdict.kind


def commonest(verdicts: dict[int, str], start: int, stop: int) -> str:
    """What the monitor said most often in the second half of a plateau, when the weights have settled."""
    return Counter(kind for step, kind in verdicts.items() if (start + stop) / 2 <= step <= stop).most_common(1)[0][0]


def table_of(history: TrainingHistory, verdicts: dict[int, str]) -> Table:
    table = Table(title="Where the loss stood still")
    for column in ("from step", "to step", "loss", "near a", "grown groups (rad)", "of the amplitude"):
        table.add_column(column, justify="right")
    for start, stop in flat_stretches(history):
        amplitude = history.input_norm[stop] * history.output[stop].norm(dim=0)
        groups = [history.group == g for g in range(int(history.group.max()) + 1)]
        large = [g for g in groups if amplitude[g].sum() > 0.01]
        table.add_row(
            f"{int(history.steps[start]):,}",
            f"{int(history.steps[stop]):,}",
            f"{history.loss[start : stop + 1].median():.5f}",
            commonest(verdicts, int(history.steps[start]), int(history.steps[stop])),
            ", ".join(f"{history.angle[stop][g].mean():.2f}" for g in large) or "none has grown",
            ", ".join(f"{amplitude[g].sum() / amplitude.sum():.0%}" for g in large),
        )
    return table


def main() -> None:
    torch.set_num_threads(1)  # five samples: a second thread only costs
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    monitor = LandscapeMonitor(every_n_steps=1000, verdict="nearby")
    diary = Diary(monitor)
    logger = TensorBoardLogger("runs", name="five_points")
    trainer = Trainer(
        accelerator="cpu",
        max_steps=500_000,
        max_epochs=1,
        callbacks=[monitor, diary, RichProgressBar()],
        logger=logger,
        log_every_n_steps=1000,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(ReferenceRegression("five_points"), PointsDataModule("five_points", batches_per_epoch=1000))

    console = Console()
    history = monitor.history
    console.print(table_of(history, diary.verdicts))
    console.print(f"The end: {monitor.nearby}")
    console.print(f"At the end: {monitor.states}", f"            {monitor.geometry}", sep="\n")
    for picture in sorted(Path(logger.log_dir).rglob("*.png")):
        console.print(f"figure: {picture}", soft_wrap=True)

    X, _ = reference_problem("five_points").tensors()
    assert monitor.parameters is not None
    largest = monitor.parameters.W[history.group == 0]
    beside_kink = (largest @ X[4]).abs().max() / (largest.norm(dim=1) * X[4].norm()).max()
    plateaus = [history.loss[start : stop + 1].median().item() for start, stop in flat_stretches(history)]
    torch.testing.assert_close(plateaus, [0.03812, 0.03019, 0.02789], rtol=1e-3, atol=0)
    stretches = [(int(history.steps[start]), int(history.steps[stop])) for start, stop in flat_stretches(history)]
    kinds = [commonest(diary.verdicts, *stretch) for stretch in stretches]
    assert kinds == ["saddle", "saddle", "local minimum"], kinds
    assert beside_kink < 1e-3, "the largest group rests on the kink of the fifth sample"


if __name__ == "__main__":
    main()
