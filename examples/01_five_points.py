"""Five points, fifty neurons: two saddles, then a local minimum (Wu et al., Figure 3) - and, grown twice, zero loss.

Run with ``make demo``. Watch it live with ``tensorboard --logdir runs``. The learning rate is five times that of the
paper, whose steps are five times as many; the path is the same.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from relu_diag.callbacks import GrowOnPlateau, LandscapeMonitor, PlateauMonitor
from relu_diag.experiments import PointsDataModule, ReferenceRegression
from relu_diag.figures import training_figure

STEPS, STEPS_PER_BATCH = 240_000, 240


def main() -> None:
    torch.set_num_threads(1)  # With five samples a second thread only costs time.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    landscape, plateaus = LandscapeMonitor(every_n_steps=1000), PlateauMonitor()
    growth = GrowOnPlateau(embedding="replication", max_growths=2)
    logger = TensorBoardLogger("runs", name="five_points")
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        max_epochs=1,
        callbacks=[landscape, plateaus, growth, RichProgressBar()],
        logger=logger,
        log_every_n_steps=1000,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    module = ReferenceRegression("five_points", lr=5e-3, steps_per_batch=STEPS_PER_BATCH)
    trainer.fit(module, PointsDataModule("five_points", batches_per_epoch=STEPS // STEPS_PER_BATCH))

    console = Console()
    for one in growth.growths:
        console.print(str(one), highlight=False)
    console.print(f"The end: {landscape.states}", f"loss {landscape.loss_value:.3g}", sep="\n")
    picture = Path(logger.log_dir, "five_points.png")
    training_figure(landscape.history, [one.step for one in growth.growths]).savefig(picture, dpi=150)
    for picture in sorted(Path(logger.log_dir).rglob("*.png")):
        console.print(f"figure: {picture}", soft_wrap=True)

    losses, kinds = zip(*((plateau.loss, plateau.verdict.kind) for plateau in plateaus.plateaus[:4]), strict=True)
    torch.testing.assert_close(losses, (0.03812, 0.03019, 0.02789, 0.01876), rtol=1e-3, atol=0)
    assert kinds == ("saddle", "saddle", "local minimum", "local minimum"), kinds
    assert [one.after for one in growth.growths] == [51, 52]
    assert landscape.loss_value < 1e-12


if __name__ == "__main__":
    main()
