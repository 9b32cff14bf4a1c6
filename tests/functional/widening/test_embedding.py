"""Embeddings compute the same function; inactive units exist exactly where a search finds them; bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls
from support.reference import SLOPES
from torch import Tensor
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random_block(
    seed: int, slopes: tuple[float, float] = (0.0, 1.0), bias: bool = False, dtype: torch.dtype = torch.float64
) -> tuple[ShallowBlock, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    d, neurons, outputs = (int(torch.randint(1, high, (), generator=draw)) for high in (6, 9, 4))
    W, H, X = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((neurons, d), (outputs, neurons), (20, d)))
    X[:, -1] = 1.0
    return ShallowBlock(W, H, slopes, torch.randn(outputs, generator=draw).to(dtype) if bias else None), X


def random_factors(seed: int) -> tuple[Tensor, Tensor]:
    """Positive beta, and gamma of both signs and zero with sum beta gamma = 1."""
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 5))
    beta, gamma = draw.uniform(0.2, 3.0, count), draw.uniform(-2.0, 2.0, count) * draw.choice([0.0, 1.0, 1.0], count)
    gamma[0] = (1 - beta[1:] @ gamma[1:]) / beta[0]
    return torch.as_tensor(beta), torch.as_tensor(gamma)


def relative_change(block: ShallowBlock, wider: ShallowBlock, X: Tensor) -> float:
    """Largest change of an output beside the terms it is the sum of, both evaluated in float64."""
    narrow, wide = (
        ShallowBlock(b.W.double(), b.H.double(), b.slopes, None if b.output_bias is None else b.output_bias.double())
        for b in (block, wider)
    )
    X = X.double()
    terms = max(float((b.H.abs() @ (X @ b.W.T).abs().T).max()) for b in (narrow, wide))
    bias = 0.0 if narrow.output_bias is None else float(narrow.output_bias.abs().max())
    return float((wide(X) - narrow(X)).abs().max()) / (terms * max(map(abs, block.slopes)) + bias)


@given(seed=st.integers(0, 10_000), slopes=st.sampled_from(SLOPES), bias=st.booleans(), dtype=st.sampled_from(DTYPES))
def test_every_embedding_leaves_the_function_as_it_is(
    seed: int, slopes: tuple[float, float], bias: bool, dtype: torch.dtype
) -> None:
    block, X = random_block(seed, slopes, bias, dtype)
    beta, gamma = random_factors(seed)
    unit, everywhere = seed % len(block.W), torch.randn(50, X.shape[1], dtype=torch.float64)
    rounding = torch.finfo(dtype).eps
    replicated = F.replicate_unit(block, unit, beta, gamma)
    assert relative_change(block, replicated, everywhere) <= 2 * rounding
    propagated = F.add_inactive_propagation(block, torch.randn(3, X.shape[1]).to(dtype))
    assert relative_change(block, propagated, everywhere) <= 1e-15
    wider = [replicated, propagated]
    kinds = [kind for kind, slope in zip(("negative", "positive"), slopes, strict=True) if slope == 0]
    for kind in kinds:
        wider.append(F.add_inactive_units(block, X, 4, kind, H_new=torch.ones(len(block.H), 4, dtype=dtype)))
        assert relative_change(block, wider[-1], X) <= 1e-15
        assert relative_change(block, F.add_inactive_units(block, X, 4, kind), everywhere) <= 1e-15
    flat = torch.cat([X, X[:, :1]], dim=1)
    block_there = ShallowBlock(torch.cat([block.W, block.W[:, :1]], dim=1), block.H, slopes, block.output_bias)
    wide_there = F.add_inactive_units(block_there, flat, 3, "orthogonal", torch.ones(len(block.H), 3, dtype=dtype))
    assert relative_change(block_there, wide_there, flat) <= max(1e-14, 4 * rounding)  # of three units and a basis
    for result in wider:
        assert result.slopes == block.slopes
        assert result.output_bias is block.output_bias
        assert result.W.dtype == result.H.dtype == dtype


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-15), (torch.float32, 1e-6)])
def test_outputs_of_a_hundred_networks_agree_to_rounding(dtype: torch.dtype, bound: float) -> None:
    """With factors whose products are exact: what changes is the order of the sum."""
    for seed in range(100):
        block, X = random_block(seed, SLOPES[seed % len(SLOPES)], dtype=dtype)
        for gamma in ((1.5, -0.5), (2.0, -1.0), (0.5, 0.5), (1.0, 0.0)):
            assert relative_change(block, F.replicate_unit(block, 0, (1.0, 1.0), gamma), X) <= bound


def test_copies_are_the_unit_in_its_place_and_behind_the_last() -> None:
    torch.manual_seed(0)
    block = ShallowBlock(torch.randn(4, 3), torch.randn(2, 4))
    wider = F.replicate_unit(block, 1, beta=[2.0, 0.5, 1.0], gamma=[0.25, 2.0, -0.5])
    assert wider.W.shape == (6, 3)
    assert torch.equal(wider.W[[0, 2, 3]], block.W[[0, 2, 3]])
    assert torch.equal(wider.H[:, [0, 2, 3]], block.H[:, [0, 2, 3]])
    for place, beta, gamma in ((1, 2.0, 0.25), (4, 0.5, 2.0), (5, 1.0, -0.5)):
        assert_close(wider.W[place], beta * block.W[1])
        assert_close(wider.H[:, place], gamma * block.H[:, 1])


def test_the_narrow_network_is_not_written_and_carries_no_graph() -> None:
    block, X = random_block(1)
    block.W.requires_grad_()
    before = block.W.detach().clone(), block.H.clone()
    results = [
        F.replicate_unit(block, 0, (1.0, 1.0), (1.5, -0.5)),
        F.add_inactive_units(block, X, 1),
        F.add_inactive_propagation(block, X[:2]),
    ]
    for result in results:
        assert not result.W.requires_grad
        result.W.zero_()
        result.H.zero_()
    assert torch.equal(block.W, before[0])
    assert torch.equal(block.H, before[1])


def test_gamma_may_be_off_by_rounding_but_the_function_is_not() -> None:
    block, X = random_block(5)
    beta = torch.full((10,), 1.0)
    gamma = torch.full((10,), 0.1)  # float32: ten of them add up to 1 + 1.5e-8
    assert relative_change(block, F.replicate_unit(block, 0, beta, gamma), X) <= 1e-15


def largest_margin(X: Tensor) -> float:
    """Over unit ``w``, of ``min_k -w . x_k / ||x_k||``: the distance of the convex hull of the unit inputs from zero.

    By nonnegative least squares; 0 where the hull contains zero, which is where no direction sees all from one side.
    """
    U = (X / X.norm(dim=1, keepdim=True)).numpy()
    weights, _ = nnls(np.vstack([1e-4 * U.T, np.ones(len(U))]), np.append(np.zeros(U.shape[1]), 1.0))
    return float(np.linalg.norm(U.T @ weights / weights.sum()))


@pytest.mark.parametrize("seed", range(60))
def test_negative_units_exist_exactly_where_the_hull_of_the_inputs_misses_zero(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    d = 2 + seed % 4
    X = torch.randn(d + seed % 7, d, generator=draw).double() + 0.3 * (seed % 3)
    block = ShallowBlock(torch.randn(5, d, generator=draw).double(), torch.ones(1, 5).double())
    best = largest_margin(X)
    if best < 1e-6:
        with pytest.raises(ValueError, match="No negative unit exists"):
            F.add_inactive_units(block, X, 1)
        return
    wider = F.add_inactive_units(block, X, 3)
    W = wider.W[5:]
    margin = -(W @ X.T / (W.norm(dim=1)[:, None] * X.norm(dim=1))).amax(1)
    # Half of the largest margin in the norm of the linear program, which is up to sqrt(d) from Euclid's.
    assert float(margin[0]) >= best / (2 * d**0.5)
    assert float(margin[1:].min()) >= float(margin[0]) / (2 + float(margin[0]))
    assert_close(W.norm(dim=1), block.W.norm(dim=1).median().expand(3))
    assert len(W.unique(dim=0)) == 3


def test_half_of_these_problems_have_negative_units() -> None:
    """Or the test above would test one answer only."""
    exist = 0
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        d = 2 + seed % 4
        exist += largest_margin(torch.randn(d + seed % 7, d, generator=draw).double() + 0.3 * (seed % 3)) >= 1e-6
    assert 15 <= exist <= 45


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_with_a_bias_there_always_is_a_negative_unit(scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    X = torch.cat([scale * torch.randn(3000, 5), torch.ones(3000, 1)], dim=1).to(dtype)
    block = ShallowBlock(torch.zeros(2, 6, dtype=dtype), torch.ones(1, 2, dtype=dtype))
    wider = F.add_inactive_units(block, X, 7)
    assert float((X @ wider.W[2:].T).max()) < 0
    assert_close(wider.W[2:].norm(dim=1), torch.ones(7, dtype=dtype))  # every present unit has w = 0


def test_margin_that_only_many_samples_decide() -> None:
    """3,000 directions on a cap just short of the half sphere, and then one more beyond it."""
    angle = torch.linspace(-1.5, 1.5, 3000).double()
    X = torch.stack([angle.cos(), angle.sin()], dim=1)
    block = ShallowBlock(torch.ones(1, 2).double(), torch.ones(1, 1).double())
    w = F.add_inactive_units(block, X, 1).W[1]
    assert float((X @ w).max()) < -0.5 * torch.sin(torch.tensor(torch.pi / 2 - 1.5)) * float(w.norm())
    with pytest.raises(ValueError, match="No negative unit exists"):
        F.add_inactive_units(block, torch.cat([X, -X[1500:1501]]), 1)


def test_positive_units_mirror_negative_ones() -> None:
    _, X = random_block(7)
    block = ShallowBlock(X[:2], X.new_ones(1, 2), slopes=(1.0, 0.0))
    assert float((X @ F.add_inactive_units(block, X, 4, "positive").W[2:].T).min()) > 0


def test_samples_that_are_zero_stand_in_no_way() -> None:
    X = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double()
    block = ShallowBlock(torch.ones(1, 2).double(), torch.ones(1, 1).double())
    assert float(X[1] @ F.add_inactive_units(block, X, 1).W[1]) < 0
    assert F.add_inactive_units(block, 0 * X, 3).W.shape == (4, 2)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_orthogonal_units_fill_the_space_the_inputs_leave(rank: int) -> None:
    torch.manual_seed(rank)
    X = torch.randn(30, rank).double() @ torch.randn(rank, 5).double()
    block = ShallowBlock(torch.randn(4, 5).double(), torch.randn(2, 4).double(), slopes=(0.1, 1.0))
    W = F.add_inactive_units(block, X, 7, "orthogonal").W[4:]
    assert_close(X @ W.T, torch.zeros(30, 7).double(), atol=1e-14, rtol=0)
    assert torch.linalg.matrix_rank(W) == 5 - rank
    assert_close(W.norm(dim=1), block.W.norm(dim=1).median().expand(7))


def test_orthogonal_units_do_not_exist_where_the_inputs_span_everything() -> None:
    block = ShallowBlock(torch.ones(1, 3).double(), torch.ones(1, 1).double())
    X = torch.eye(3).double()
    X[2] = torch.tensor([1.0, 1.0, 1e-9])  # almost flat, but it spans
    with pytest.raises(ValueError, match="No orthogonal unit exists: the inputs span all dimensions"):
        F.add_inactive_units(block, X, 1, "orthogonal")
    assert len(F.add_inactive_units(block, X[:2], 1, "orthogonal").W) == 2


BAD_COPIES = [
    ({"unit": 2}, ValueError, "`unit` must be a hidden neuron of the block, 0 to 1; got 2"),
    ({"unit": -1}, ValueError, "got -1"),
    ({"unit": 0.5}, TypeError, "`unit`"),
    ({"beta": (1.0, 0.0)}, ValueError, "`beta` must be positive"),
    ({"beta": (2.0, -1.0), "gamma": (1.0, 1.0)}, ValueError, "`beta` must be positive"),
    ({"gamma": (1.5, -0.4)}, ValueError, r"must be 1 for the function to stay; got 1.1"),
    ({"gamma": (1.0, 0.0, 0.0)}, ValueError, "one entry per copy"),
    ({"beta": (), "gamma": ()}, ValueError, "one number per copy"),
    ({"beta": ((1.0, 1.0),)}, ValueError, "one number per copy"),
    ({"gamma": (float("nan"), 1.0)}, ValueError, "NaN"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), BAD_COPIES)
def test_copies_that_are_none_are_refused(wrong: dict[str, object], error: type[Exception], message: str) -> None:
    block = ShallowBlock(torch.eye(2), torch.ones(1, 2))
    with pytest.raises(error, match=message):
        F.replicate_unit(block, **({"unit": 0, "beta": (1.0, 1.0), "gamma": (1.5, -0.5)} | wrong))


BAD_UNITS = [
    ({"count": 0}, "`count`"),
    ({"count": 1.5}, "`count`"),
    ({"kind": "dead"}, "`kind` must be one of"),
    ({"kind": "positive"}, r"needs a slope of 0 on that side.*\(0.0, 1.0\)"),
    ({"X": torch.ones(3, 3)}, "`X` needs 2 columns"),
    ({"X": torch.full((3, 2), float("inf"))}, "NaN or infinite"),
    ({"H_new": torch.ones(1, 2)}, r"`H_new` needs the shape \(1, 1\)"),
    ({"H_new": torch.ones(1, 1).double()}, "`H_new` is torch.float64"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD_UNITS)
def test_inactive_units_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    block = ShallowBlock(torch.eye(2), torch.ones(1, 2))
    with pytest.raises(ValueError, match=message):
        F.add_inactive_units(block, **({"X": torch.ones(3, 2), "count": 1} | wrong))


def test_new_units_have_the_inputs_and_the_dtype_of_the_others() -> None:
    block = ShallowBlock(torch.eye(2), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"`W_new` needs the shape \(1, 2\)"):
        F.add_inactive_propagation(block, torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"`W_new` is torch.float64"):
        F.add_inactive_propagation(block, torch.ones(1, 2).double())


def test_nothing_carries_the_graph_of_the_callers_weights() -> None:
    W, H, bias = (torch.nn.Parameter(torch.ones(*shape).double()) for shape in ((1, 2), (1, 1), (1,)))
    block, X = ShallowBlock(W, H, output_bias=bias), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    Y = torch.tensor([[2.0], [-1.0]]).double()
    proposals = [one for nudge in (True, False) for one in F.growth_proposals(block, X, Y, nudge=nudge)]
    wider = [
        F.replicate_unit(block, 0, (1.0, 1.0), (0.5, 0.5)),
        F.add_inactive_units(block, X, 1),
        F.add_inactive_propagation(block, W),
        *(one.new_block for one in proposals),
        *(one.embed(block) for one in proposals),
    ]
    assert proposals
    for one in wider:
        assert not any(value.requires_grad for value in (one.W, one.H, one.output_bias))
