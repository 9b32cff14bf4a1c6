"""Blocks all of whose neurons are dead: whether they are, whether anything can change yet, and in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relu_diag.capture import Sighting
from relu_diag.functional import ShallowBlock
from relu_diag.functional.block import chunked_outputs
from relu_diag.functional.local import born_dead_share, offset_over_spread
from relu_diag.functional.tolerances import kink_tolerance
from relu_diag.training._training_data import TrainingData

# Share of the gradients at the outputs beyond which their sum pulls the output bias.
_PULLED = 1e-3
# Share of neurons born dead that is worth a warning, and rows by which it is predicted.
_BORN_DEAD = 0.05
_ROWS = 1024
# Rows that are looked at together for a neuron that is not dead.
_PIECE = 64
# Rows that tell a spread.
_FEWEST = 16


def all_dead(block: ShallowBlock, inputs: Sequence[Tensor]) -> bool:
    """Whether every neuron is silent, and on no kink, on all inputs; False where there are none."""
    if block.slopes[0] != 0 or not inputs:
        return False
    tolerance = kink_tolerance(None, block.W.dtype)
    sizes = block.W.norm(dim=1)
    # In pieces: most blocks have a neuron that is active among the first rows.
    for piece in (piece for X in inputs for piece in torch.split(X, _PIECE)):
        rows = piece.to(block.W)
        if bool((rows @ block.W.mT >= -tolerance * sizes * rows.norm(dim=1, keepdim=True)).any()):
            return False
    return True


def nothing_moves(block: ShallowBlock, name: str, data: TrainingData | None) -> str:
    """That a block is dead, and whether its output bias is still pulled."""
    pulled = block.output_bias is not None
    if pulled and data is not None:
        G = data.loss.double().gradient(chunked_outputs(block.double(), data.X.double()))
        pulled = bool((G.sum(0).abs() > _PULLED * G.abs().sum(0)).any())
    what = "nothing but the output bias" if pulled else "nothing"
    return f"{what} can change any more: {dead_words(block, name)}"


def dead_words(block: ShallowBlock, name: str) -> str:
    """That every neuron of a block is dead, in words."""
    where = name or "the block"
    return f"all {len(block.W)} neurons of {where} are dead" if len(block.W) > 1 else f"the neuron of {where} is dead"


def born_dead_words(seen: Sighting) -> str:
    """That data far from zero kill neurons before they are trained, and the cure; empty where few are born dead."""
    if 0.0 not in seen.block.slopes or not seen.from_data or seen.count < _FEWEST:
        return ""
    gamma = offset_over_spread(seen.signal.X[:_ROWS].detach())
    share = born_dead_share(gamma)
    if share < _BORN_DEAD:
        return ""
    return (
        f"the inputs of {seen.hidden} are far from zero (gamma {gamma:.2g}, their mean over their spread), where "
        f"{share:.0%} of random neurons are born dead: centre them".replace("%", " %")
    )
