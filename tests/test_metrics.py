"""Sums over batches and ranks are the sums over all samples."""

import itertools
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import multiprocessing
from torch.testing import assert_close

from relu_diag import BlockSignal, ShallowBlock
from relu_diag.functional import local
from relu_diag.functional.local import NeuronSums
from relu_diag.metrics import BlockMetric, landscape_scalars, sums_of_all_ranks

SAMPLES = 24


def problem(dtype: torch.dtype = torch.float64) -> tuple[ShallowBlock, BlockSignal]:
    """Neuron 0 has two samples on its kink, neuron 1 is zero, sample 3 is zero."""
    generator = torch.Generator().manual_seed(5)
    W, H = torch.randn(6, 3, generator=generator), torch.randn(2, 6, generator=generator)
    X, G = torch.randn(SAMPLES, 3, generator=generator), torch.randn(SAMPLES, 2, generator=generator)
    W[0] = torch.tensor([0.0, 0.0, 1.0])
    W[1], X[3], X[5, 2], X[17, 2] = 0.0, 0.0, 0.0, 0.0
    block = ShallowBlock(W.to(dtype), H.to(dtype), (-0.2, 1.5))
    return block, BlockSignal(X.to(dtype), G.to(dtype))


def part(signal: BlockSignal, rows: slice) -> BlockSignal:
    return BlockSignal(signal.X[rows], signal.G[rows])


def assert_same_results(block: ShallowBlock, sums: NeuronSums, expected: NeuronSums) -> None:
    got, want = local.geometry_from_sums(block, sums), local.geometry_from_sums(block, expected)
    for name in ("radial", "steepest", "direction", "output_gradient", "kink_count", "exact"):
        assert_close(getattr(got, name), getattr(want, name))
    for name in ("z_min", "z_max", "activation", "samples"):
        assert_close(getattr(sums, name), getattr(expected, name))


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, SAMPLES - 1), max_size=4, unique=True))
def test_many_batches_equal_one(cuts: list[int]) -> None:
    block, signal = problem()
    edges = [0, *sorted(cuts), SAMPLES]
    metric = BlockMetric(neurons=6, inputs=3, outputs=2)
    for start, stop in itertools.pairwise(edges):
        metric.update(block, part(signal, slice(start, stop)))
    assert_same_results(block, metric.sums(), local.neuron_sums(block, signal))


def test_mean_losses_of_unequal_batches_are_weighted_by_their_size() -> None:
    block, signal = problem()
    metric = BlockMetric(neurons=6, inputs=3, outputs=2, reduction="mean")
    for rows in (slice(0, 20), slice(20, SAMPLES)):
        batch = part(signal, rows)
        metric.update(block, BlockSignal(batch.X, batch.G / len(batch.X)))
    assert_same_results(block, metric.sums(), local.neuron_sums(block, BlockSignal(signal.X, signal.G / SAMPLES)))


def test_compute_is_the_scalars_and_reset_starts_over() -> None:
    block, signal = problem()
    metric = BlockMetric(neurons=6, inputs=3, outputs=2)
    metric.update(block, signal)
    sums = local.neuron_sums(block, signal)
    expected = landscape_scalars(local.geometry_from_sums(block, sums), local.states_from_sums(block, sums, scale=1.0))
    assert_close(metric.compute(), expected)
    assert int(expected["on_kink"]) == 2
    metric.reset()
    with pytest.raises(ValueError, match="No sample was added"), pytest.warns(UserWarning, match="before"):
        metric.compute()
    metric.update(block, signal)
    assert_close(metric.compute(), expected)
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        BlockMetric(1, 1, 1, reduction="half")  # type: ignore[arg-type]


def _rank(rank: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    block, signal = problem()
    metric = BlockMetric(neurons=6, inputs=3, outputs=2)
    metric.update(block, part(signal, slice(0, 7) if rank == 0 else slice(7, None)))
    sums = metric.sums()
    assert_same_results(block, sums, local.neuron_sums(block, signal))
    assert int(metric.samples) == (7 if rank == 0 else SAMPLES - 7)  # back to the rank's own share
    own = local.neuron_sums(block, part(signal, slice(0, 7) if rank == 0 else slice(7, None)))
    assert_same_results(block, sums_of_all_ranks(own), local.neuron_sums(block, signal))
    Path(folder, f"done{rank}").touch()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_gloo_processes_equal_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    assert {path.name for path in tmp_path.glob("done*")} == {"done0", "done1"}
