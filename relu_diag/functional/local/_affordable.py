"""Budgets for all neurons together, the same whatever their order."""

from __future__ import annotations

import numpy as np

from relu_diag.functional._arrays import Array, Mask


def affordable(costs: Array, total: float) -> Mask:
    """Which searches ``(n,)`` are made: the cheap ones, equal ones alike, while all of them fit into a budget."""
    order = costs.argsort(kind="stable")
    spent = costs[order].cumsum()
    limit = costs[order][spent > total].min(initial=np.inf)
    return np.asarray(costs < limit)
