"""Rows read off batches by a recipe: copied as they pass, read once, the same as batch by batch."""

import torch
from torch import Tensor
from torch.testing import assert_close

from relu_diag.functional import ShallowBlock, SquaredError
from relu_diag.training import KeptRows, Recipe

BLOCK = ShallowBlock(torch.eye(3).double(), torch.ones(2, 3).double())


def batches_of(*counts: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 3, generator=generator).double(), torch.randn(n, 2, generator=generator).double())
        for n in counts
    ]


def kept_rows(first: tuple[Tensor, Tensor], max_samples: int | None = None, expected: int = 0) -> KeptRows:
    rows = KeptRows(max_samples, expected)
    rows.recipe = Recipe.of(first[0], SquaredError(first[1]), first, count=len(first[0]))
    rows.reason = ""
    return rows


def test_uneven_batches_make_the_mean_over_all_rows() -> None:
    batches = batches_of(8, 8, 3)
    rows = kept_rows(batches[0])
    assert all(rows.take(batch) for batch in batches)
    rows.finish(complete=True)
    data = rows.data()
    assert data is not None
    assert data.complete
    X, Y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(data.X, X)
    assert_close(data.loss(BLOCK(X)), (BLOCK(X) - Y).square().mean())


def test_rows_are_those_of_the_moment_whatever_becomes_of_the_batch() -> None:
    (batch,) = batches_of(5)
    rows = kept_rows(batch)
    X = batch[0].clone()
    rows.take(batch)
    batch[0].zero_()
    assert torch.equal(rows.inputs()[0], X)


def test_a_batch_that_is_not_finite_is_left_out_and_the_epoch_is_then_not_complete() -> None:
    batches = batches_of(4, 4, 4)
    batches[1][0][2, 1] = torch.nan
    rows = kept_rows(batches[0])
    assert all(rows.take(batch) for batch in batches)
    rows.finish(complete=True)
    data = rows.data()
    assert data is not None
    assert not data.complete
    assert torch.equal(data.X, torch.cat([batches[0][0], batches[2][0]]))
    alone = kept_rows(batches[1])
    alone.take(batches[1])
    assert alone.data() is None


def test_few_of_many_samples_are_kept_in_parts_spread_over_the_epoch() -> None:
    count, size, most = 500, 16, 400
    batches = [(torch.full((size, 3), float(i)), torch.zeros(size, 2)) for i in range(count)]
    rows = kept_rows(batches[0], most, expected=count * size)
    assert all(rows.take(batch) for batch in batches)
    rows.finish(complete=True)
    data = rows.data()
    assert data is not None
    assert len(data.X) == most
    assert not data.complete
    shares = data.X[:, 0].long().bincount(minlength=count).reshape(10, -1).sum(1)
    assert shares.min() > 0.7 * most / 10
    assert_close(data.loss(torch.ones(most, 2)), torch.tensor(1.0))


def test_a_run_that_stops_early_has_rows_of_its_first_batch() -> None:
    (batch,) = batches_of(16)
    rows = kept_rows(batch, max_samples=400, expected=8000)
    rows.take(batch)
    assert len(rows.inputs()[0]) == 1


def test_a_batch_without_the_targets_is_refused() -> None:
    (batch,) = batches_of(4)
    rows = kept_rows(batch)
    assert not rows.take([batch[0]])
    assert not rows.take([batch[0], batch[1][:3]])
