"""Widen a block of a live module: its layers, gradients, optimizers, averaged copies and checkpoints.

Nothing else in the package changes the shape of a module.
"""

from relu_diag.growth.checkpoint import GrowingModule, resize_on_load
from relu_diag.growth.live import grow
from relu_diag.growth.training import averaged_copies, check_strategy, grow_in_training

__all__ = ["GrowingModule", "averaged_copies", "check_strategy", "grow", "grow_in_training", "resize_on_load"]
