"""`relu-diag inspect` reads checkpoints and data as users have them, and says what is wrong with the others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.cli import main
from relu_diag.inspection import (
    inspect_block,
    inspection_figures,
    is_near,
    load_block,
    load_data,
    load_problem,
    neuron_table,
)
from relu_diag.nn import ShallowNet


class Leaky(nn.Module):
    """A block that is not a ShallowNet."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.25), nn.Linear(width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Shifted(Leaky):
    """More than its block."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def saved(folder: Path, module: nn.Module, **extra: object) -> Path:
    path = folder / "net.ckpt"
    torch.save({"state_dict": module.state_dict(), **extra} if extra else module.state_dict(), path)
    return path


@pytest.fixture
def net() -> ShallowNet:
    torch.manual_seed(0)
    return ShallowNet(2, 4, hidden_bias=True, output_bias=True).double()


@pytest.fixture
def points() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (2, 1))  # type: ignore[return-value]


def test_state_dicts_and_lightning_checkpoints_of_a_shallow_net_are_read(tmp_path: Path, net: ShallowNet) -> None:
    inside = nn.ModuleDict({"net": net})
    cases = [(net, {}), (inside, {"hyper_parameters": {"slopes": (-1.0, 1.0), "lr": 0.1}})]
    for module, extra in cases:
        block = load_block(saved(tmp_path, module, **extra))
        assert_close(block.W, torch.cat([net.hidden.weight, net.hidden.bias[:, None]], 1).detach())
        assert_close(block.output_bias, net.output.bias.detach())
        assert block.slopes == ((-1.0, 1.0) if extra else (0.0, 1.0))
    assert load_block(saved(tmp_path, net), slopes=(0.5, 1.0)).slopes == (0.5, 1.0)


def test_a_class_path_builds_the_module_from_its_hyper_parameters(tmp_path: Path) -> None:
    path = saved(tmp_path, Leaky(7), hyper_parameters={"width": 7, "lr": 0.1})
    block = load_block(path, f"{__name__}.Leaky")
    assert (block.W.shape, block.slopes) == ((7, 3), (0.25, 1.0))


def test_data_come_from_npz_pt_and_csv(tmp_path: Path, net: ShallowNet, points: tuple[torch.Tensor, ...]) -> None:
    X, Y = points
    block = load_block(saved(tmp_path, net))
    np.savez(tmp_path / "a.npz", x=X.numpy(), Y=Y.numpy()[:, 0])
    torch.save({"X": X, "y": Y}, tmp_path / "b.pt")
    torch.save((X.float(), Y.float()), tmp_path / "c.pt")
    table = torch.cat([X, Y], 1).numpy()
    np.savetxt(tmp_path / "d.csv", table, delimiter=",")
    np.savetxt(tmp_path / "e.csv", table, delimiter=",", header="x1,x2,target", comments="")
    for name in ("a.npz", "b.pt", "c.pt", "d.csv", "e.csv"):
        got_X, got_Y = load_data(tmp_path / name, block)
        assert_close(
            got_X, torch.cat([X, torch.ones(6, 1, dtype=torch.float64)], 1), rtol=1e-6, atol=1e-6
        )  # c: float32
        assert_close(got_Y, Y, rtol=1e-6, atol=1e-6)


def test_the_table_has_a_row_a_neuron_and_fits_a_terminal(tmp_path: Path, net: ShallowNet, points: tuple) -> None:
    block = load_block(saved(tmp_path, net))
    torch.save(points, tmp_path / "d.pt")
    console = Console(width=80, record=True, quiet=True)
    table = neuron_table(block, *load_data(tmp_path / "d.pt", block))
    assert table.row_count == 4
    assert console.measure(table).maximum <= 80


def test_inspect_prints_the_verdict_and_writes_the_figure(
    tmp_path: Path, points: tuple, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = saved(tmp_path, ShallowNet(2, 3, init_scale=0.0).double())
    torch.save(points, tmp_path / "d.pt")
    main(["inspect", str(checkpoint), "--data", str(tmp_path / "d.pt"), "--reduction", "half_sum"])
    out = capsys.readouterr().out
    assert "6 samples, 2 inputs, 1 targets" in out
    assert "verdict                 saddle" in out
    assert "nearby stationary point: saddle at distance 0" in out
    assert {path.stem for path in tmp_path.glob("*.png")} == {"function", "neuron_0", "witness", "perturbations"}


def test_bad_files_are_named(tmp_path: Path, net: ShallowNet, points: tuple) -> None:
    good = load_block(saved(tmp_path, net))
    with pytest.raises(ValueError, match="must hold one pair"):
        load_block(saved(tmp_path, nn.Linear(2, 2)))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        load_block(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="cannot be imported"):
        load_block(saved(tmp_path, net), "absent.Module")
    with pytest.raises(ValueError, match="cannot be built"):
        load_block(saved(tmp_path, net), f"{__name__}.Leaky")
    with pytest.raises(ValueError, match="computes more than its block"):
        load_block(saved(tmp_path, Shifted()), f"{__name__}.Shifted")
    torch.save((points[0][:, :1], points[1]), tmp_path / "narrow.pt")
    with pytest.raises(ValueError, match="the block takes 3 inputs"):
        load_data(tmp_path / "narrow.pt", good)
    torch.save({"inputs": points[0]}, tmp_path / "unnamed.pt")
    with pytest.raises(ValueError, match="must hold X and Y; it holds inputs"):
        load_data(tmp_path / "unnamed.pt", good)
    (tmp_path / "data.txt").write_text("1")
    with pytest.raises(ValueError, match=r"must be one of \.npz"):
        load_data(tmp_path / "data.txt", good)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"hello", "cannot be read"),
        (nn.Linear(2, 1), r"save module\.state_dict"),
        ({"state_dict": 3}, "no state dict"),
        ({1: torch.ones(2)}, "no state dict"),
        ({"hidden.weight": 3, "output.weight": 3}, "must hold tensors; hidden.weight is a int"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: object, said: str) -> None:
    path = tmp_path / "net.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"net\.ckpt .*{said}"):
        load_block(path)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_numbers_that_are_not_real_are_refused(
    tmp_path: Path, net: ShallowNet, points: tuple, dtype: torch.dtype
) -> None:
    good = load_block(saved(tmp_path, net))
    torch.save((points[0].to(dtype), points[1]), tmp_path / "data.pt")
    with pytest.raises(ValueError, match=r"data\.pt must hold dense arrays of real numbers"):
        load_data(tmp_path / "data.pt", good)
    state = {name: value.to(dtype) for name, value in net.state_dict().items()}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"net\.pt must hold tensors; .* expected real numbers"):
        load_block(tmp_path / "net.pt")


def test_arrays_of_another_form_are_named(tmp_path: Path, net: ShallowNet, points: tuple) -> None:
    good = load_block(saved(tmp_path, net))
    torch.save((points[0].to_sparse(), points[1]), tmp_path / "sparse.pt")
    with pytest.raises(ValueError, match=r"sparse\.pt must hold dense arrays"):
        load_data(tmp_path / "sparse.pt", good)
    torch.save((points[0][:, None], points[1]), tmp_path / "deep.pt")
    with pytest.raises(ValueError, match=r"deep\.pt has inputs \(\d+, 1, \d+\)"):
        load_data(tmp_path / "deep.pt", good)
    (tmp_path / "bytes.csv").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"bytes\.csv cannot be read: no text"):
        load_data(tmp_path / "bytes.csv", good)


@pytest.mark.parametrize("text", ["", "a,b,y\n", "1;2;3\n", "1,2,\n", "1,2,cat\n"])
def test_a_table_without_numbers_is_named(tmp_path: Path, net: ShallowNet, text: str) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(ValueError, match=r"d\.csv (cannot be read|must hold numbers)"):
        load_data(tmp_path / "d.csv", load_block(saved(tmp_path, net)))


def test_a_first_row_with_a_nan_is_no_header(tmp_path: Path, net: ShallowNet) -> None:
    (tmp_path / "d.csv").write_text("1,nan,3\n1,2,3\n")
    X, _ = load_data(tmp_path / "d.csv", load_block(saved(tmp_path, net)))
    assert len(X) == 2


def test_inspect_ends_with_one_line_on_bad_input(tmp_path: Path, net: ShallowNet) -> None:
    with pytest.raises(SystemExit, match=r"relu-diag inspect: .*absent"):
        main(["inspect", str(saved(tmp_path, net)), "--data", str(tmp_path / "absent.npz")])


class Fussy(nn.Module):
    """Its constructor fails in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        raise KeyError("missing")


BAD = {
    "a file as folder": ({}, {}, "--out {data}", "File exists"),
    "hyper-parameters in a list": ({}, {"hyper_parameters": [1]}, "", "expected a mapping"),
    "a bias of another layer": ({"hidden.bias": torch.ones(9)}, {}, "", r"expected \(I, d\) and \(I,\)"),
    "a function for a class": ({}, {}, "--class_path builtins.print", "must name a class of modules"),
    "a class of another kind": ({}, {}, "--class_path builtins.dict", "must name a class of modules"),
    "a constructor that fails": ({}, {}, f"--class_path {__name__}.Fussy", "cannot be built"),
    "a block of a ShallowNet": ({}, {}, "--block hidden", "--class_path"),
}


@pytest.mark.parametrize("case", BAD)
def test_no_bad_input_ends_in_a_traceback(case: str, tmp_path: Path, net: ShallowNet, points: tuple) -> None:
    changed, extra, options, said = BAD[case]
    torch.save(points, tmp_path / "data.pt")
    path = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {**net.state_dict(), **changed}, **extra}, path)
    given = options.format(data=tmp_path / "data.pt").split()
    with pytest.raises(SystemExit, match=f"relu-diag inspect: .*{said}"):
        main(["inspect", str(path), "--data", str(tmp_path / "data.pt"), *given])


class Deep(nn.Module):
    """Two blocks that share a layer."""

    def __init__(self) -> None:
        super().__init__()
        wide = nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)
        self.net = nn.Sequential(*wide)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_the_last_block_of_a_deep_module_is_inspected_by_name(tmp_path: Path, points: tuple) -> None:
    module = Deep().double()
    path, deep, data = saved(tmp_path, module), f"{__name__}.Deep", tmp_path / "d.pt"
    torch.save(points, data)
    with pytest.raises(ValueError, match=r"choose one by its first layer with --block: net\.0 .*, net\.2"):
        load_problem(path, data, deep)
    with pytest.raises(ValueError, match=r"computes more from the outputs .* try --block net\.2"):
        load_problem(path, data, deep, block="net.0")
    block, X, Y = load_problem(path, data, deep, block="net.2")
    assert_close(block(X), module(points[0]).detach())
    assert_close(Y, points[1])
    main(["inspect", str(path), "--data", str(data), "--class_path", deep, "--block", "net.2"])


def test_a_certified_minimum_is_not_titled_with_perturbations_that_lower_the_loss() -> None:
    """On the way to a minimum the gradient decides which way half of all perturbations go."""
    draw = torch.Generator().manual_seed(3)
    X = torch.cat([torch.randn(6, 1, generator=draw), torch.ones(6, 1)], dim=1).double()
    Y = torch.randn(6, 1, generator=draw).double()
    W, H = 0.3 * torch.randn(4, 2, generator=draw).double(), 0.3 * torch.randn(1, 4, generator=draw).double()
    for _ in range(2000):
        active = (X @ W.T > 0).double()
        hidden = active * (X @ W.T)
        residual = (hidden @ H.T - Y) / 3
        W, H = W - 0.05 * ((residual @ H) * active).T @ X, H - 0.05 * residual.T @ hidden
    block = ShallowBlock(W, H)
    nearby = F.nearby_stationary_point(block, X, Y)
    assert nearby.verdict.kind == "local minimum"
    assert int((F.perturbation_test(block, X, Y, generator=draw).changes < 0).sum()) > 500
    (panel,) = inspection_figures(block, X, Y, F.classify(block, X, Y))["perturbations"].axes
    title = " ".join(panel.get_title().split())
    assert title.startswith("at the local minimum nearby: 0 of 5000 perturbations")


def test_where_no_stationary_point_is_near_the_verdict_is_that_on_the_weights() -> None:
    """Half way down, the nearest point that was found is not what the weights are at."""
    X = torch.eye(2, dtype=torch.float64)
    Y = torch.ones(2, 1, dtype=torch.float64)
    block = ShallowBlock(torch.tensor([[0.5, 0.4]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    found = inspect_block(block, X, Y)
    assert found.nearby is not None
    assert not is_near(found.nearby)
    assert found.report("half way", None, "").verdict is found.verdict
    title = found.figures["perturbations"].axes[0].get_title()
    assert "nearby" not in title
