"""Dead features of sparse autoencoders at matched L0: nothing done, AuxK, resampling, ghost gradients, ReviveDeadUnits.

    python benchmarks/sparse_autoencoder.py --device cuda --d 768 --width 24576 --batch 2048 --steps 5000 --l0 32

Rows are sums of a few of many directions, of frequencies that fall as a power, plus noise, drawn on the device as they
are needed; inputs are centred, or have an offset. The price of activity is steered until the mean number of active
features is the one asked for, for every method alike; then the miss of the outputs is what is compared. Where it is not
reached, the table in Markdown says so.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from relu_diag.callbacks import ReviveDeadUnits

METHODS = ("nothing", "auxk", "resampling", "ghost gradients", "revive")
# Relative difference from the number of active features asked for, up to which methods are compared at the same.
MATCHED = 0.05
# Rows on which features are counted as dead at the end.
COUNTED = 131_072


class Rows(IterableDataset[Tensor]):
    """Endless batches of sparse sums of directions, the same for the same seed."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options = options
        self.seed = seed
        draw = torch.Generator(options.device).manual_seed(0)
        count = options.directions or options.width // 2
        directions = torch.randn(count, options.d, generator=draw, device=options.device)
        self.directions = functional.normalize(directions, dim=1)
        rank = torch.arange(1, count + 1, device=options.device)
        frequency = rank.float().rsqrt()
        self.frequency = options.true * frequency / frequency.sum()
        self.mean = 0.75 * self.frequency.clamp(max=1) @ self.directions
        if options.offset:
            spread = self.batch(4096, draw).var(dim=0).sum().sqrt()
            away = torch.randn(options.d, generator=draw, device=options.device)
            self.mean -= options.offset * spread * functional.normalize(away, dim=0)

    def batch(self, rows: int, draw: torch.Generator) -> Tensor:
        device = self.options.device
        active = torch.rand(rows, len(self.directions), generator=draw, device=device) < self.frequency
        size = 0.5 + 0.5 * torch.rand(rows, len(self.directions), generator=draw, device=device)
        noise = torch.randn(rows, self.options.d, generator=draw, device=device)
        return (active * size) @ self.directions - self.mean + 0.1 / self.options.d**0.5 * noise

    def __iter__(self) -> Iterator[Tensor]:
        draw = torch.Generator(self.options.device).manual_seed(self.seed)
        while True:
            yield self.batch(self.options.batch, draw)


class SparseAutoencoder(LightningModule):
    """ReLU and L1, raw parameters, a decoder bias taken off the inputs, decoder columns normalised after each step."""

    def __init__(self, options: argparse.Namespace, method: str) -> None:
        super().__init__()
        self.options = options
        self.method = method
        draw = torch.Generator().manual_seed(options.seed)
        directions = functional.normalize(torch.randn(options.width, options.d, generator=draw), dim=1)
        self.encoder = nn.Parameter(directions.T.clone())
        self.decoder = nn.Parameter(directions.clone())
        self.bias = nn.Parameter(torch.zeros(options.width))
        with torch.no_grad():
            self.bias[: round(options.born_dead * options.width)] = -10.0
        self.centre = nn.Parameter(torch.zeros(options.d))
        self.register_buffer("price", torch.tensor(float(options.price)))
        self.register_buffer("silent", torch.zeros(options.width))
        self.l0 = 0.0

    def training_step(self, x: Tensor) -> Tensor:
        z = (x - self.centre) @ self.encoder + self.bias
        features = z.relu()
        outputs = features @ self.decoder + self.centre
        miss = (outputs - x).square().sum(dim=1).mean()
        with torch.no_grad():
            active = features > 0
            self.silent.add_(1).masked_fill_(active.any(dim=0), 0)
            self._steer(active.float().sum(dim=1).mean())
        loss = miss + self.price * features.sum(dim=1).mean()
        if self.method == "auxk":
            return loss + self._auxk(x - outputs.detach(), z)
        if self.method == "ghost gradients":
            return loss + self._ghost(x - outputs.detach(), z, miss.detach())
        return loss

    def _steer(self, l0: Tensor) -> None:
        """The price follows the number of active features."""
        if self.global_step > self.options.steps // 10:
            self.price.mul_((self.options.rate * (l0 / self.options.l0).log()).clamp(-0.1, 0.1).exp())

    def _dead(self) -> Tensor:
        return self.silent >= self.options.every

    def _auxk(self, residual: Tensor, z: Tensor) -> Tensor:
        """Gao et al. 2024: the largest dead features give the residual back; a 32nd of the loss there, --auxk here.

        Behind a ReLU the pre-activations of dead features are negative: they count as they are, or nothing would learn.
        """
        dead = self._dead().nonzero().squeeze(1)
        if not len(dead):
            return z.new_zeros(())
        top = z[:, dead].topk(min(self.options.d // 2, len(dead)), dim=1)
        chosen = torch.zeros_like(z[:, dead]).scatter(1, top.indices, top.values)
        return (chosen @ self.decoder[dead] - residual).square().sum(dim=1).mean() * self.options.auxk

    def _ghost(self, residual: Tensor, z: Tensor, miss: Tensor) -> Tensor:
        """Jermyn and Templeton 2024: exponentials of dead features, half as long as the residual, weighed so."""
        dead = self._dead().nonzero().squeeze(1)
        if not len(dead):
            return z.new_zeros(())
        ghost = z[:, dead].clamp(max=10).exp() @ self.decoder[dead]
        scale = residual.norm(dim=1, keepdim=True) / (2 * ghost.norm(dim=1, keepdim=True) + 1e-8)
        loss = (ghost * scale.detach() - residual).square().sum(dim=1).mean()
        return self.options.ghost * loss * (miss / (loss.detach() + 1e-8))

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            self.decoder.copy_(functional.normalize(self.decoder, dim=1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.options.lr, fused=self.options.device == "cuda")


class Resampling(Callback):
    """Bricken et al. 2023: dead features take the directions of rows, by the squares of their misses."""

    def on_train_batch_end(
        self, trainer: Trainer, module: SparseAutoencoder, outputs: Any, batch: Tensor, index: int
    ) -> None:
        options = module.options
        step = trainer.global_step
        if step % options.every or step >= options.steps - options.every:
            return
        with torch.no_grad():
            dead = module._dead().nonzero().squeeze(1)
            if not len(dead):
                return
            x = batch
            features = ((x - module.centre) @ module.encoder + module.bias).relu()
            residual = x - features @ module.decoder - module.centre
            rows = torch.multinomial(residual.square().sum(dim=1).square(), len(dead), replacement=True)
            new = functional.normalize(x[rows] - module.centre, dim=1)
            alive = ~module._dead()
            length = module.encoder[:, alive].norm(dim=0).mean() if bool(alive.any()) else 1.0
            module.decoder[dead] = new
            module.encoder[:, dead] = (0.2 * length * new).T
            module.bias[dead] = 0.0
            state = trainer.optimizers[0].state
            for name in ("exp_avg", "exp_avg_sq"):
                state[module.encoder][name][:, dead] = 0.0
                state[module.decoder][name][dead] = 0.0
                state[module.bias][name][dead] = 0.0
            module.silent[dead] = 0


def measure(module: SparseAutoencoder, options: argparse.Namespace) -> dict[str, float]:
    """What features do on rows that were not trained on."""
    rows = Rows(options, seed=1)
    draw = torch.Generator(options.device).manual_seed(1)
    active = torch.zeros(options.width, dtype=torch.bool, device=options.device)
    total = torch.zeros(3, device=options.device)
    batches = max(1, COUNTED // options.batch)
    with torch.no_grad():
        for _ in range(batches):
            x = rows.batch(options.batch, draw)
            features = ((x - module.centre) @ module.encoder + module.bias).relu()
            active |= (features > 0).any(dim=0)
            miss = (features @ module.decoder + module.centre - x).square().sum(dim=1).mean()
            spread = (x - x.mean(dim=0)).square().sum(dim=1).mean()
            total += torch.stack([miss, (features > 0).float().sum(dim=1).mean(), spread])
    miss, l0, spread = (total / batches).tolist()
    return {"dead": float((~active).float().mean()), "miss": miss, "L0": l0, "explained": 1 - miss / spread}


def run(method: str, options: argparse.Namespace) -> dict[str, float]:
    module = SparseAutoencoder(options, method)
    revive = ReviveDeadUnits(every_n_steps=options.every, samples=options.samples, dormant=options.dormant)
    callbacks: dict[str, list[Callback]] = {"resampling": [Resampling()], "revive": [revive]}
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        max_steps=options.steps,
        callbacks=callbacks.get(method, []),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    began = time.perf_counter()
    at_work = time.process_time()
    trainer.fit(module, DataLoader(Rows(options, seed=0), batch_size=None))
    if options.device == "cuda":
        torch.cuda.synchronize()
    times = {"s": time.perf_counter() - began, "CPU s": time.process_time() - at_work}
    memory = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else float("nan")
    if method == "revive":
        print(f"<!-- {revive!r}; {'; '.join(map(str, revive.revivals[-3:]))} -->")
    return {**measure(module.to(options.device), options), "price": float(module.price), **times, "GiB": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--d", type=int, default=32, help="inputs")
    parser.add_argument("--width", type=int, default=256, help="features")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--every", type=int, default=250, help="steps after which a silent feature is dead")
    parser.add_argument("--samples", type=int, help="rows that ReviveDeadUnits keeps, if not as many as it wants")
    parser.add_argument("--dormant", type=float, default=0.025, help="below this share of the mean activation")
    parser.add_argument("--directions", type=int, default=0, help="of the data; 0: half as many as features")
    parser.add_argument("--born-dead", type=float, default=0.0, help="share of features that begin dead")
    parser.add_argument("--offset", type=float, default=0.0, help="mean of the inputs over their spread; 0: centred")
    parser.add_argument("--true", type=float, default=3.0, help="mean number of directions in a row")
    parser.add_argument("--l0", type=float, default=6.0, help="mean number of active features")
    parser.add_argument("--price", type=float, default=0.3, help="price of activity at the start")
    parser.add_argument("--rate", type=float, default=0.01, help="how fast the price follows")
    parser.add_argument("--auxk", type=float, default=0.002, help="weight of AuxK's loss; at 1/32 outputs miss more")
    parser.add_argument("--ghost", type=float, default=1.0, help="weight of the ghost gradients' loss")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_float32_matmul_precision("high")
    run(options.methods[0], argparse.Namespace(**{**vars(options), "steps": 20}))  # warm up
    print(f"The price of every method is steered to {options.l0:g} active features.\n")
    columns = ("dead", "miss", "L0", "explained", "price", "s", "CPU s", "GiB")
    print(f"| method | {' | '.join(columns)} |")
    print(f"|---|{'---:|' * len(columns)}")
    for method in options.methods:
        values = run(method, options)
        if not abs(values["L0"] / options.l0 - 1) <= MATCHED:  # nor is what is no number
            method += " (L0 not matched)"
        print(f"| {method} | {' | '.join(f'{values[name]:.4g}' for name in columns)} |", flush=True)


if __name__ == "__main__":
    main()
