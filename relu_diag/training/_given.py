"""Rows of data that somebody gives, read as those of training steps were found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from relu_diag.training.recipe import Recipe
from relu_diag.training.rows import KeptRows

_NO_RECIPE = (
    "inputs and targets are not found in the batches as they are; give the loss of a batch, loss=lambda module, batch"
)


def rows_of_batches(
    batches: Iterable[Any], recipes: Mapping[str, Recipe | None], max_samples: int | None
) -> dict[str, KeptRows]:
    """Rows of data that somebody gives, read as those of training steps were found.

    Args:
        batches: The batches.
        recipes: Where inputs and targets of each block are; None: not known.
        max_samples: Keep no more than so many; None: as many as memory allows.

    Returns:
        The rows of each block.

    Example:
        >>> rows_of_batches([], {"net.0": None}, None)["net.0"].reason.partition(";")[0]
        'inputs and targets are not found in the batches as they are'
    """
    given = {name: KeptRows(max_samples) for name in recipes}
    for name, rows in given.items():
        rows.recipe = recipes[name]
        rows.reason = "" if rows.recipe else _NO_RECIPE
    for batch in batches:
        for rows in given.values():
            if not rows.reason and not rows.take(batch):
                rows.reason = _NO_RECIPE
    for rows in given.values():
        rows.finish(complete=True)
    return given
