"""Layers that FSDP2 gathers while they run, or that tensor parallelism splits by neurons, are seen as whole blocks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing import assert_close

from relu_diag.capture import Sighting, riding
from relu_diag.training import Window

NEURONS = 8


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, NEURONS), nn.ReLU(), nn.Linear(NEURONS, 2))
    with torch.no_grad():
        net[0].bias[:2] = -100.0
        net[0].bias[NEURONS - 1] = -100.0
    return net


def rows(of: int) -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(of))


def gather_at_the_root(net: nn.Sequential, mesh: DeviceMesh) -> None:
    fully_shard(net, mesh=mesh)


def gather_by_layer(net: nn.Sequential, mesh: DeviceMesh) -> None:
    for layer in (net[0], net[2], net):
        fully_shard(layer, mesh=mesh)


def split_by_neurons(net: nn.Sequential, mesh: DeviceMesh) -> None:
    parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


SHARDED: dict[str, Callable[[nn.Sequential, DeviceMesh], None]] = {
    "FSDP2 of the whole": gather_at_the_root,
    "FSDP2 by layer": gather_by_layer,
    "tensor parallel": split_by_neurons,
}


def seen_in(net: nn.Module, X: torch.Tensor) -> Sighting:
    with riding(net) as ride:
        loss = net(X).square().mean()
        ride.board(loss)
        loss.backward()
        (seen,) = ride.end()
    return seen


def check(rank: int, name: str, mesh: DeviceMesh) -> None:
    """Twice, as gathered parameters come and go; the same rows for all processes where neurons are split."""
    net = network()
    SHARDED[name](net, mesh)
    split = name == "tensor parallel"
    for step in range(2):
        X = rows(step if split else 10 * step + rank)
        seen, expected = seen_in(net, X), seen_in(network(), X)
        assert (seen.name, seen.sharded, seen.live) == ("0 -> 2", True, None)
        assert seen.repeated == (split and rank == 1)
        for part in ("W", "H", "output_bias"):
            assert_close(getattr(seen.block, part), getattr(expected.block, part))
        for part in ("X", "G", "C", "Z"):
            assert_close(getattr(seen.signal, part), getattr(expected.signal, part))
        assert seen.gradients is not None
        assert expected.gradients is not None
        assert_close(seen.gradients, expected.gradients)
        assert {id(one) for one in seen.parameters} == {id(one) for one in net.parameters()}
    window = Window(seen.name)
    window.add(seen, step=0, scale=1.0)
    report = window.report()
    passed = rows(1) if split else torch.cat([rows(10), rows(11)])
    assert report.samples == len(passed)
    assert report.states.dead.tolist() == (network()[0](passed) <= 0).all(0).tolist()
    net.zero_grad()


def check_refusal(mesh: DeviceMesh) -> None:
    """Every process has all activations, and some of the weights that make them."""
    net = network()
    parallelize_module(net, mesh, {"0": ColwiseParallel(output_layouts=Replicate())})
    with riding(net) as ride:
        loss = net(rows(0)).square().mean()
        ride.board(loss)
        loss.backward()
        assert ride.end() == []
    assert ride.reasons["0"] == "its weights are sharded over processes otherwise than by neurons"


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name in SHARDED:
        check(rank, name, mesh)
    check_refusal(mesh)
    Path(folder, f"rank_{rank}").touch()
    distributed.barrier()
    os._exit(0)  # FSDP2 on the CPU may fail to end its threads


@pytest.mark.slow
def test_blocks_of_sharded_layers_are_those_of_whole_ones(tmp_path: Path) -> None:
    multiprocessing.spawn(run, (str(tmp_path),), nprocs=2)
    assert len(list(tmp_path.glob("rank_*"))) == 2
