"""Tell the runs of the four reference problems: each plateau, the stationary point it is near, and its end."""

from __future__ import annotations

import logging

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from rich.console import Console

from relu_diag.callbacks import PlateauMonitor
from relu_diag.experiments import PointsDataModule, ReferenceRegression

# Learning rate, gradient steps, losses of the saddles that the run passes, and its final loss.
RUNS = {
    "five_points": (2e-2, 15_000, [0.03812, 0.03019], 0.02789),
    "five_points_wide_init": (1e-2, 60_000, [0.03812, 0.03018], 0.0),
    "three_inputs": (5e-3, 60_000, [0.725, 0.41824], 0.0),
    "two_outputs": (5e-3, 40_000, [1.53, 0.63424, 0.37419], 0.34),
}


def say_step(trainer: Trainer, _: LightningModule) -> None:
    print(f"step {trainer.global_step:,}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    console = Console()
    for problem, (lr, steps, saddles, end) in RUNS.items():
        monitor = PlateauMonitor()
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            callbacks=[monitor, LambdaCallback(on_train_epoch_end=say_step)],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        module = ReferenceRegression(problem, lr=lr, steps_per_batch=20)
        console.print(f"{problem}: {steps:,} steps of gradient descent", highlight=False)
        trainer.fit(module, PointsDataModule(problem, batches_per_epoch=250))
        console.print(f"[bold]{problem}[/bold]", *monitor.timeline, "", sep="\n", highlight=False, soft_wrap=True)

        left = [plateau for plateau in monitor.plateaus if plateau.ended_by == "escape"][: len(saddles)]
        torch.testing.assert_close([plateau.loss for plateau in left], saddles, rtol=2e-3, atol=0)
        assert {plateau.verdict.kind for plateau in left} == {"saddle"}
        for plateau in left:
            length = plateau.end - plateau.start
            early = [one for one in plateau.forecasts if one.step <= plateau.start + 0.3 * length]
            forecast = early[-1] if early else plateau.forecasts[0]
            assert abs(forecast.end - plateau.end) < 0.05 * length, str(plateau)
        assert monitor.final is not None
        assert abs(monitor.final.loss - end) < 1e-4, monitor.final.loss


if __name__ == "__main__":
    main()
