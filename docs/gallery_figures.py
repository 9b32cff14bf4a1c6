"""Draw the figures of the gallery: each from a run or a problem small enough to be trained while the site is built."""

from __future__ import annotations

import logging
import runpy
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure

from relu_diag import ShallowBlock, figures
from relu_diag import functional as F
from relu_diag.callbacks import GuaranteeMonitor, LandscapeMonitor, PlateauMonitor
from relu_diag.experiments import (
    Affine,
    PointsDataModule,
    PopulationNodes,
    PopulationRegression,
    ReferenceRegression,
    reference_problem,
)
from relu_diag.functional import integral
from relu_diag.losses import IntervalL2Loss

QUIET = {
    "accelerator": "cpu",
    "max_epochs": -1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def draw_all(folder: Path) -> None:
    """Write every figure of the gallery into a folder, as PNG."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder.mkdir(exist_ok=True)
    drawn = {**five_points(), **one_neuron(), **line_on_an_interval(), **certain_convergence()}
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=110)


def five_points() -> dict[str, Figure]:
    """The run of Wu et al., Figure 3, faster: its story, its neurons, and what a saddle and a minimum look like."""
    plateaus = PlateauMonitor()
    landscape = LandscapeMonitor(every_n_steps=200)
    module = ReferenceRegression("five_points", lr=2e-2, steps_per_batch=20)
    trainer = Trainer(max_steps=15_000, callbacks=[plateaus, landscape], **QUIET)
    trainer.fit(module, PointsDataModule("five_points", batches_per_epoch=1000))
    history = landscape.history
    ends = [plateau.end for plateau in plateaus.plateaus if plateau.end is not None]

    X, Y = reference_problem("five_points").tensors()
    nearby = F.nearby_stationary_point(module.block.double(), X, Y)
    saddle = ShallowBlock(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
    witness = F.classify(saddle, X, Y).direction
    loudest = int((module.block.W.norm(dim=1) * module.block.H.norm(dim=0)).argmax())
    generator = torch.Generator().manual_seed(0)
    return {
        "story": figures.story_figure(history.steps.tolist(), history.loss.tolist(), plateaus.plateaus),
        "training": figures.training_figure(history, ends),
        "function": figures.function_figure(module.block, X, Y),
        "direction": figures.direction_figure(saddle, X, Y, witness),
        "neuron": figures.neuron_figure(module.block, X, Y, loudest),
        "perturbation": figures.perturbation_figure(
            F.perturbation_test(nearby.block, X, Y, generator=generator), "at the minimum nearby"
        ),
    }


def one_neuron() -> dict[str, Figure]:
    """The cells of a neuron on two samples (Liu, Figure 2)."""
    X = torch.eye(2).double()
    block = ShallowBlock(torch.tensor([[0.4, 0.3]]).double(), torch.ones(1, 1).double())
    return {"cells": figures.cell_figure(block, X, torch.tensor([[1.0], [-1.0]]).double())}


def line_on_an_interval() -> dict[str, Figure]:
    """A line learned past its critical levels, until a global minimum is certain."""
    monitor = GuaranteeMonitor(every_n_steps=20)
    module = PopulationRegression(IntervalL2Loss(Affine(), (0.0, 1.0)), width=6, lr=0.1, init_scale=0.1, seed=1)
    Trainer(max_steps=4000, callbacks=[monitor], **QUIET).fit(module.double(), PopulationNodes(steps_per_epoch=1000))
    net = module.net
    neurons = torch.stack([net.hidden.weight.flatten(), net.hidden.bias, net.output.weight.flatten()]).detach()
    problem = integral.AffineProblem(*neurons, net.output.bias.detach()[0], 1.0, 0.0, (0.0, 1.0))
    ladder = figures.ladder_figure(monitor.steps, monitor.losses, problem, monitor.guarantee, monitor.certain_from)
    return {"interval": figures.interval_figure(neurons, problem.c, Affine(), (0.0, 1.0)), "ladder": ladder}


def certain_convergence() -> dict[str, Figure]:
    """A toy problem and a network whose convergence is proved (Chatterjee, 2022), as in the example."""
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "07_certain_convergence.py"))
    paths = [example["toy_path"](start) for start in example["STARTS"]]
    return {
        "toy": figures.toy_figure(paths),
        "certificate": figures.certificate_figure(*example["certified_run"]()),
    }
