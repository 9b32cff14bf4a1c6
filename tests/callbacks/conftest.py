"""Runs that several tests read: trained once; `xdist_group` keeps their readers in one worker."""

import pytest
from lightning.pytorch import LightningModule, Trainer
from support.five_points import reference_run

from relu_diag.callbacks import PlateauEvent, PlateauListener, PlateauMonitor


class Heard(PlateauListener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[PlateauEvent] = []

    def on_plateau(self, trainer: Trainer, pl_module: LightningModule, event: PlateauEvent) -> None:
        assert event.step == trainer.global_step
        self.events.append(event)


@pytest.fixture(scope="session")
def five_points_run() -> tuple[PlateauMonitor, list[PlateauEvent]]:
    """The reference run past both saddles into the minimum, 12,000 steps: what a monitor found, and what it told."""
    monitor, heard = PlateauMonitor(), Heard()
    reference_run("five_points", 2e-2, 12_000, monitor, heard)
    return monitor, heard.events
