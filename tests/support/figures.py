"""A figure of every kind, drawn of a problem as small as can be."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace as Record

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from relu_diag import ShallowBlock, figures
from relu_diag import functional as F
from relu_diag.functional import integral

DRAW = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


X, Y = normal(7, 2), normal(7, 1)
LINE = torch.stack([torch.linspace(0.01, 1.99, 100, dtype=torch.float64), torch.ones(100, dtype=torch.float64)], dim=1)
BLOCK = ShallowBlock(normal(5, 2), normal(1, 5))
TWO = ShallowBlock(BLOCK.W, normal(2, 5))
SILENT = ShallowBlock(BLOCK.W, 0 * BLOCK.H)
ONE = ShallowBlock(normal(1, 2), torch.ones(1, 1, dtype=torch.float64))
WITNESS = F.classify(SILENT, X, Y).direction
AFFINE = integral.AffineProblem(*normal(3, 50), torch.tensor(0.5).double(), 1.0, 0.0, (0.0, 1.0), (0.0, 1.0))
GUARANTEE = F.convergence_threshold(1.0, (0.0, 1.0), 50)
# Zero loss is certain: wide enough, and near.
CERTIFICATE = F.convergence_certificate(
    ShallowBlock(torch.eye(2).double() + 0.5, 10 * torch.ones(1, 2).double()),
    torch.eye(2).double(),
    20.01 * torch.ones(2, 1).double(),
)


def run(outputs: int, inputs: int) -> figures.TrainingHistory:
    alignment = torch.rand(9, 12, generator=DRAW)
    return figures.TrainingHistory(
        steps=torch.arange(9) * 1000,
        loss=torch.linspace(1.0, 1e-4, 9),
        angle=6 * torch.rand(9, 12, generator=DRAW),
        input_norm=1e-9 * torch.rand(9, 12, generator=DRAW),
        output=torch.randn(9, outputs, 12, generator=DRAW),
        group=torch.arange(12) // 2,
        dead=torch.arange(12) > 9,
        alignment=alignment if inputs > 2 else None,
        active=alignment,
    )


STORY = [
    Record(start=100 * k, end=100 * k + 80, loss=1 - 0.1 * k, verdict=Record(kind="saddle"), forecasts=[])
    for k in range(4)
]
FIGURES: dict[str, Callable[[Axes | None], Figure]] = {
    "cells": lambda ax: figures.cell_figure(ONE, X, Y, ax=ax),
    "certificate": lambda ax: figures.certificate_figure(CERTIFICATE, [0.0, 0.1], [1e-4, 1e-5], ax=ax),
    "direction": lambda ax: figures.direction_figure(SILENT, X, Y, WITNESS, ax=ax),
    "function": lambda ax: figures.function_figure(BLOCK, LINE[:7], Y, ax=ax),
    "function of many samples": lambda ax: figures.function_figure(BLOCK, LINE, LINE[:, :1], ax=ax),
    "function on an interval": lambda ax: figures.function_figure(BLOCK, LINE, LINE[:, :1], (0.0, 2.0), ax=ax),
    "function over a plane": lambda ax: figures.function_figure(TWO, X, X, ax=ax),
    "interval": lambda ax: figures.interval_figure(AFFINE.neurons, AFFINE.c, torch.sin, (0.0, 1.0), ax=ax),
    "ladder": lambda ax: figures.ladder_figure([0, 1], [0.1, 1e-8], AFFINE, GUARANTEE, 1, ax=ax),
    "neuron": lambda ax: figures.neuron_figure(BLOCK, X, Y, 0, ax=ax),
    "silent neuron": lambda ax: figures.neuron_figure(SILENT, X, Y, 0, ax=ax),
    "perturbations": lambda ax: figures.perturbation_figure(
        F.perturbation_test(BLOCK, X, Y, draws=100, generator=DRAW), "at the local minimum nearby", ax=ax
    ),
    "story": lambda ax: figures.story_figure([0, 380, 400], [1.0, 0.6, 1e-9], STORY, [(80, "moved")], ax=ax),
    "toy": lambda ax: figures.toy_figure([np.array([[1.0, 2.0], [1.0, 1.0]])], ax=ax),
    "training": lambda ax: figures.training_figure(run(1, 2), [2000], ax=ax),
    "training with many inputs": lambda ax: figures.training_figure(run(3, 9), [2000], ax=ax),
}
