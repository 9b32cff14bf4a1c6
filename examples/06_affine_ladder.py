"""Learn a line on an interval, past its critical levels, until the end is certain (Cheridito et al., 2022).

Trains through a Lightning Trainer on the exact integral loss, without data. Figures and scalars: ``tensorboard --logdir
runs``.
"""

from __future__ import annotations

import logging

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from relu_diag import functional as F
from relu_diag.callbacks import GuaranteeMonitor
from relu_diag.experiments import Affine, PopulationNodes, PopulationRegression
from relu_diag.losses import IntervalL2Loss

INTERVAL = (0.0, 1.0)


def say_step(trainer: Trainer, _: LightningModule) -> None:
    print(f"step {trainer.global_step:,}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    monitor = GuaranteeMonitor(every_n_steps=20)
    logger = TensorBoardLogger("runs", name="affine_ladder")
    trainer = Trainer(
        accelerator="cpu",
        max_steps=4000,
        max_epochs=-1,
        callbacks=[monitor, LambdaCallback(on_train_epoch_end=say_step)],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = PopulationRegression(IntervalL2Loss(Affine(), INTERVAL), width=6, lr=0.1, init_scale=0.1, seed=1)
    trainer.fit(module.double(), PopulationNodes(steps_per_epoch=1000))

    console = Console()
    net = module.net
    w, b, h = net.hidden.weight.flatten(), net.hidden.bias, net.output.weight.flatten()
    verdict = F.classify_affine(w, b, h, net.output.bias, 1.0, 0.0, INTERVAL, tol=1e-3)
    types = F.neuron_types(w, b, h, INTERVAL)
    console.print(f"{monitor}\n{types}\nThe end: {verdict}", highlight=False)
    console.print(f"figures: {logger.log_dir}/guarantee", soft_wrap=True)

    top = float(F.critical_levels(1.0, INTERVAL, width=6)[0])
    assert sum(abs(loss / top - 1) < 0.02 for loss in monitor.losses) >= 3, "it rests at the highest level first"
    assert monitor.certain_from is not None
    assert monitor.losses[-1] < 1e-5, "certain, and so it came"
    assert verdict.kind == "global minimum"


if __name__ == "__main__":
    main()
