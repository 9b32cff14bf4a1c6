"""Growth proposals where data are degenerate or digits few: the search ends, and noise is not taken for a drop."""

from __future__ import annotations

import pytest
import torch
from support.reference import kinked_problem
from torch import Tensor
from torch.nn import functional

from relu_diag import ShallowBlock
from relu_diag import functional as F


@pytest.mark.parametrize("copies", [300, 2000])
def test_a_sample_given_hundreds_of_times_on_a_kink_ends_the_search(copies: int) -> None:
    """More of them lie on the kink than within any reach that is still looked at, or are kept: they count once."""
    X = torch.cat([torch.eye(2)[:1], torch.eye(2)[1:].repeat(copies, 1)]).double()
    Y = torch.cat([torch.ones(1, 1), -torch.ones(copies, 1)]).double()
    stuck = ShallowBlock(torch.eye(2)[:1].double(), torch.ones(1, 1).double())
    proposals = F.growth_proposals(stuck, X, Y)
    assert {one.kind for one in proposals} == {"replication", "inactive propagation"}
    for one in proposals:
        drop = F.squared_loss(stuck, X, Y) - F.squared_loss(one.new_block, X, Y)
        assert one.measured_drop == pytest.approx(float(drop))


def test_the_rounding_of_a_float32_network_is_not_a_drop() -> None:
    """Its loss comes from float32 pieces, however they are added up; a change of a last digit is no way down."""
    problem = kinked_problem(0, outputs=3)
    block, X = ShallowBlock(problem.block.W.float(), problem.block.H.float()), problem.X.float()
    labels = torch.randint(3, (len(X),), generator=torch.Generator().manual_seed(0))
    offset = torch.tensor([0.3, 0.1, -0.4])

    def loss(outputs: Tensor) -> Tensor:
        parts = [functional.cross_entropy(1e-7 * outputs.float()[i::3] + offset, labels[i::3]) for i in range(3)]
        return torch.stack(parts).double().mean()

    for one in F.growth_proposals(block, X, loss):
        # What remains is seen through the noise: it is more than eight roundings of the loss.
        assert one.measured_drop > 8 * torch.finfo(torch.float32).eps * float(loss(block(X)))
