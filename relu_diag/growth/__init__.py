"""Widen a block of a live module, or give neurons of it new weights: layers, optimizers, averaged copies, checkpoints.

Nothing else in the package changes the shape of a module.
"""

from relu_diag.growth.checkpoint import GrowingModule, resize_on_load
from relu_diag.growth.graph import drop_graphs, in_a_graph
from relu_diag.growth.live import (
    OtherOptimizers,
    check_growable,
    grow,
    other_optimizers,
    prepared_growth,
    prepared_widening,
)
from relu_diag.growth.optimizer_state import forget_gradients
from relu_diag.growth.replace import replace_in_training, replace_units
from relu_diag.growth.spawned import accept_grown_results
from relu_diag.growth.training import averaged_copies, check_strategy, grow_in_training, unwrapped

__all__ = [
    "GrowingModule",
    "OtherOptimizers",
    "averaged_copies",
    "check_growable",
    "check_strategy",
    "drop_graphs",
    "forget_gradients",
    "grow",
    "grow_in_training",
    "in_a_graph",
    "other_optimizers",
    "prepared_growth",
    "prepared_widening",
    "replace_in_training",
    "replace_units",
    "resize_on_load",
    "unwrapped",
]

accept_grown_results()
