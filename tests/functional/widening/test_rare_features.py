"""Neurons are placed for features that few samples have, each beside others that the network knows."""

from __future__ import annotations

import torch
from torch.nn import functional

from relu_diag.functional import BlockSignal, ShallowBlock, SquaredError
from relu_diag.functional.widening import place_units

INPUTS, FEATURES, MISSING = 32, 64, 24


def test_missing_features_of_a_dictionary_get_neurons() -> None:
    """Samples are sums of three features; a fourth of the dictionary's are dead, and activity has a price."""
    draw = torch.Generator().manual_seed(0)
    directions = functional.normalize(torch.randn(FEATURES, INPUTS, generator=draw), dim=1)
    present = torch.rand(2048, FEATURES, generator=draw) < 3 / FEATURES
    size = 0.5 + 0.5 * torch.rand(2048, FEATURES, generator=draw)
    rows = (present * size) @ directions
    rows = rows - rows.mean(dim=0)
    X = torch.cat([rows, torch.ones(2048, 1)], dim=1)
    W = torch.cat([directions, torch.full((FEATURES, 1), -0.3)], dim=1)
    W[:MISSING, -1] = -10.0
    block = ShallowBlock(W, directions.T.clone())
    loss = SquaredError(rows).scaled(INPUTS)  # summed over the outputs
    signal = BlockSignal(X, loss.gradient(block(X)))

    found = place_units(block, torch.arange(MISSING), signal, loss, price=0.3)

    likeness = (functional.normalize(found.H, dim=0).T @ directions[:MISSING].T).amax(dim=0)
    assert len(found.units) >= 0.9 * MISSING
    # Over six seeds it is 14 to 20 of the 24.
    assert int((likeness > 0.8).sum()) >= 0.5 * MISSING
    assert float(loss(found.applied_to(block)(X))) < 0.7 * float(loss(block(X)))
