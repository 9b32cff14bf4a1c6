"""Shapes that training steps and loaders of projects have, on a net of 3 inputs, and all that a run leaves behind."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset

SAMPLES = 20


class Drawn(Dataset[tuple[Tensor, Tensor]]):
    """Data that note the order in which samples are drawn."""

    def __init__(self, samples: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(1)
        self.X = torch.randn(samples, 3, generator=generator)
        self.Y = torch.randn(samples, 2, generator=generator)
        self.drawn: list[int] = []

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.drawn.append(int(index))
        return self.X[index], self.Y[index]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Samples one after the other: once and never again, or without end."""

    def __init__(self, endless: bool) -> None:
        self.data = Drawn()
        self.endless = endless
        self.drawn = self.data.drawn
        self._next = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.endless or self._next < len(self.data):
            self._next += 1
            yield self.data[(self._next - 1) % len(self.data)]


class WithoutLength:
    """Batches, of a number that is not told."""

    def __init__(self) -> None:
        self.data = Drawn()
        self.drawn = self.data.drawn

    def __iter__(self) -> Iterator[list[Tensor]]:
        yield from DataLoader(self.data, batch_size=4)


class Reloaded(LightningDataModule):
    """A loader made anew for every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.data = Drawn()
        self.drawn = self.data.drawn

    def train_dataloader(self) -> DataLoader[Any]:
        self.drawn.append(-1)
        return DataLoader(self.data, batch_size=4 + int(torch.randint(3, ())), shuffle=True)


class Net(LightningModule):
    """A regression whose step draws random numbers and keeps a list, a count and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
        self.register_buffer("steps", torch.zeros(()))
        self.calls: Counter[str] = Counter()
        self.kept: list[float] = []

    def forward(self, X: Tensor) -> Tensor:
        self.calls["forward"] += 1
        return self.net(X)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note()
        loss = self.loss_of(batch)
        self.log("loss", loss, batch_size=1)
        return loss

    def note(self) -> None:
        self.calls["training_step"] += 1
        self.steps += 1
        self.kept.append(random.random() + float(np.random.rand()) + float(torch.rand(())))

    def loss_of(self, batch: Any) -> Tensor:
        return functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


class ByHand(Net):
    """Manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note()
        loss = self.loss_of(batch)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss.detach()


class Gan(ByHand):
    """Two networks and two optimizers that take turns."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(2, 5), nn.LeakyReLU(0.2), nn.Linear(5, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.note()
        first, second = self.optimizers()
        if batch_idx % 2:
            loss = functional.softplus(-self.critic(self(batch[0]))).mean()
            optimizer = first
        else:
            made = self(torch.randn_like(batch[0])).detach()
            loss = functional.softplus(self.critic(made)).mean() + functional.softplus(-self.critic(batch[1])).mean()
            optimizer = second
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=1e-2), torch.optim.SGD(self.critic.parameters(), lr=1e-2)


class Dqn(Net):
    """A step that plays, keeps a memory, and updates a target network."""

    def __init__(self) -> None:
        super().__init__()
        self.target = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
        self.state = torch.zeros(3)
        self.memory: list[tuple[Tensor, int, float, Tensor]] = []

    @torch.no_grad()
    def play(self) -> None:
        action = random.randrange(2) if random.random() < 0.3 else int(self(self.state[None]).argmax())
        after = 0.9 * self.state + torch.randn(3)
        self.memory.append((self.state, action, float(after[action]), after))
        self.state = after

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note()
        self.play()
        chosen = random.choices(self.memory, k=4)
        before, action, reward, after = (list(part) for part in zip(*chosen, strict=True))
        value = self(torch.stack(before)).gather(1, torch.tensor(action)[:, None])[:, 0]
        with torch.no_grad():
            wanted = torch.tensor(reward) + 0.9 * self.target(torch.stack(after)).max(1).values
        if self.calls["training_step"] % 3 == 0:
            self.target.load_state_dict(self.net.state_dict())
        return functional.smooth_l1_loss(value, wanted)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=1e-2)


class Skipping(Net):
    """Every third batch is left out."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 3 == 0 else loss


class NotFinite(Net):
    """The loss is not finite from some step on."""

    def loss_of(self, batch: Any) -> Tensor:
        return super().loss_of(batch) * (float("nan") if self.calls["training_step"] > 7 else 1.0)


class WithDict(Net):
    """The step returns more than its loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "batch": batch_idx}


class Penalty(Net):
    """A gradient penalty, with `autograd.grad` inside the step."""

    def loss_of(self, batch: Any) -> Tensor:
        X = batch[0].clone().requires_grad_()
        out = self(X)
        (slope,) = torch.autograd.grad(out.sum(), X, create_graph=True)
        return functional.mse_loss(out, batch[1]) + 0.1 * slope.square().mean()


class Inside(Net):
    """A step that looks at its own gradient before it returns the loss."""

    def loss_of(self, batch: Any) -> Tensor:
        loss = super().loss_of(batch)
        (slope,) = torch.autograd.grad(loss, self.net[0].weight, retain_graph=True)
        self.kept.append(float(slope.norm()))
        return loss


class Combined(Net):
    """Batches of two loaders at once."""

    def loss_of(self, batch: Any) -> Tensor:
        return super().loss_of(batch["a"]) + functional.l1_loss(self(batch["b"][0]), batch["b"][1])


class OfIterator(Net):
    """A step that takes batches itself."""

    def training_step(self, dataloader_iter: Iterator[Any]) -> Any:
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)


class Repeated(Net):
    """An optimizer that evaluates the loss several times a step."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Recomputed(Net):
    """Activations that are computed again during the backward pass."""

    def forward(self, X: Tensor) -> Tensor:
        self.calls["forward"] += 1
        return checkpoint(self.net, X.requires_grad_(), use_reentrant=False)


class Compiled(Net):
    """A net that was compiled before the fit."""

    def __init__(self) -> None:
        super().__init__()
        self.net.compile(backend="eager")


class Kept(Net):
    """A module that keeps its loss, with hooks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].register_full_backward_hook(lambda *_: self.calls.update(["backward"]))
        self.net[2].register_forward_hook(lambda _layer, _args, out: 1.5 * out)

    def loss_of(self, batch: Any) -> Tensor:
        self.last = super().loss_of(batch)
        return self.last


def left_behind(module: Net, trainer: Trainer, drawn: list[int]) -> dict[str, Any]:
    """All that a run leaves behind, beside what monitors are asked for."""
    metrics = {name: value for name, value in trainer.callback_metrics.items() if "/" not in name}
    schedules = [one.scheduler.state_dict() for one in trainer.lr_scheduler_configs]
    kind, keys, *rest = np.random.get_state()
    return {
        "weights": dict(module.state_dict()),
        "modes": [one.training for one in module.modules()],
        "hooks": [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules()],
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedules": schedules,
        "torch": torch.get_rng_state(),
        "numpy": (kind, keys.tolist(), *rest),
        "python": random.getstate(),
        "calls": dict(module.calls),
        "kept": module.kept,
        "drawn": drawn,
        "metrics": metrics,
        "step": trainer.global_step,
    }
