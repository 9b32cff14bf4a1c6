"""Watch which neurons a digits classifier uses: biases, cross-entropy, minibatches, Adam."""

from __future__ import annotations

import logging

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from relu_diag.callbacks import LandscapeMonitor


class Classifier(LightningModule):
    """A 64-64-10 MLP as anyone would write it; a fifth of its neurons starts with a bias that keeps them silent."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 10)
        with torch.no_grad():
            self.first.bias[::5] = -10.0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.relu(self.first(x)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        self.log("accuracy", (logits.argmax(1) == batch[1]).float().mean(), prog_bar=True)
        return functional.cross_entropy(logits, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def loss_of(model: LightningModule, batch: list[Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def main() -> None:
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    images, labels = load_digits(return_X_y=True)
    dataset = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    # Riding along costs nothing; this run is small enough for passes over all images, at weights that stand still.
    monitor = LandscapeMonitor(every_n_steps=100, loss=loss_of)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=20,
        callbacks=[monitor],
        logger=TensorBoardLogger("runs", name="digits"),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    model = Classifier()
    console = Console()
    console.print("20 epochs of 1,797 images")
    trainer.fit(model, DataLoader(dataset, batch_size=64, shuffle=True))

    assert monitor.states is not None
    assert monitor.geometry is not None
    console.print(f"loss over all 1,797 images: {monitor.loss_value:.4f}")
    console.print(str(monitor.states))
    console.print(str(monitor.geometry))
    console.print(f"figure: {trainer.log_dir}/landscape/training.png", soft_wrap=True)

    dead = monitor.states.dead
    with torch.no_grad():
        ever_active = (model.first(dataset.tensors[0]) > 0).any(0)
    assert bool(dead[::5].all()), "no gradient ever wakes a neuron that begins silent on every image"
    assert torch.equal(dead, ~ever_active), "dead is what no image activates"
    assert bool((monitor.geometry.steepest[dead] == 0).all()), "a dead neuron has no slope in any direction"
    assert bool((monitor.geometry.steepest[~dead] < 0).all()), "each of the others still has a way down"


if __name__ == "__main__":
    main()
