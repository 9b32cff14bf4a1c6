"""What a report sends to loggers that are not installed here."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from relu_diag.training.report import _log_histogram


class Recorded(WandbLogger):
    """A logger of W&B without its service: what arrives, with its step."""

    def __init__(self) -> None:
        self.arrived: list[tuple[dict[str, Any], int | None]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.arrived.append((metrics, step))

    @property
    def experiment(self) -> Any:
        raise AssertionError("a step of the service's own counter drops what comes late")


def test_histograms_go_to_wandb_as_metrics_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Histogram=lambda np_histogram: np_histogram))
    logger = Recorded()
    _log_histogram(logger, "landscape/angle", torch.arange(10.0), 700)
    ((metrics, step),) = logger.arrived
    counts, edges = metrics["landscape/angle"]
    assert (step, counts.sum(), len(edges)) == (700, 10, 31)
