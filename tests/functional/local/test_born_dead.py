"""The predicted share of units that are born dead is the one that random units have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from relu_diag.functional import BlockSignal, ShallowBlock, dead_causes

SAMPLES, UNITS = 200, 4000


def weights(kind: str, inputs: int, draw: torch.Generator) -> Tensor:
    """Random input weights of lengths as Gaussian ones have, or all of one length."""
    W = torch.randn(UNITS, inputs, generator=draw).double()
    return W / math.sqrt(inputs) if kind == "gaussian" else normalize(W, dim=1)


@pytest.mark.parametrize("offset", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("bias", [0.0, -1.0, -2.0])
@pytest.mark.parametrize("kind", ["gaussian", "one length"])
@pytest.mark.parametrize("inputs", [1, 2, 3, 6, 40])
def test_the_share_is_that_of_random_units(inputs: int, kind: str, bias: float, offset: float) -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(SAMPLES, inputs, generator=draw).double()
    X[:, 0] += offset * math.sqrt(inputs)
    X = torch.cat([X, torch.ones(SAMPLES, 1).double()], dim=1)
    W = torch.cat([weights(kind, inputs, draw), torch.full((UNITS, 1), bias).double()], dim=1)
    block = ShallowBlock(W, torch.ones(1, UNITS).double())
    measured = float((X @ W.T <= 0).all(dim=0).double().mean())
    said = dead_causes(block, BlockSignal(X, torch.ones(SAMPLES, 1).double())).born_dead
    # Two standard errors of a share among 256 x 8 random ones and the measured units are less.
    assert said == pytest.approx(measured, abs=0.03)
