"""An embedding applied to a live module: its layers, gradients, optimizers and checkpoints."""

from relu_diag.growth.checkpoint import GrowingModule, resize_on_load
from relu_diag.growth.live import grow

__all__ = ["GrowingModule", "grow", "resize_on_load"]
