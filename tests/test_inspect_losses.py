"""`relu-diag inspect --loss NAME --weight_decay X` judges a network under the loss it was trained with."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.cli import main
from relu_diag.inspection import inspect_block, load_block, load_data, loss_named
from relu_diag.nn import ShallowNet

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CLASSES = torch.arange(12) % 3
LOSSES = {
    "squared_error": (X[:, :1], F.SquaredError, {}),
    "absolute_error": (X[:, :1], F.AbsoluteError, {}),
    "huber": (X[:, :1], F.Huber, {"delta": 0.5}),
    "poisson": (X[:, :1].abs().round(), F.Poisson, {}),
    "binary_cross_entropy": ((X[:, :1] > 0).double(), F.BinaryCrossEntropy, {}),
    "cross_entropy": (CLASSES[:, None].double(), F.CrossEntropy, {"label_smoothing": 0.1}),
}


def net(outputs: int) -> ShallowNet:
    torch.manual_seed(0)
    return ShallowNet(2, 4, outputs, hidden_bias=True, output_bias=True).double()


def written(folder: Path, outputs: int, Y: torch.Tensor) -> list[str]:
    torch.save(net(outputs).state_dict(), folder / "net.ckpt")
    np.savetxt(folder / "d.csv", torch.cat([X, Y], 1).numpy(), delimiter=",")
    return ["inspect", str(folder / "net.ckpt"), "--data", str(folder / "d.csv")]


@pytest.mark.parametrize("name", LOSSES)
def test_a_network_is_judged_under_the_loss_that_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Y, kind, constants = LOSSES[name]
    outputs = 3 if name == "cross_entropy" else 1
    command = [*written(tmp_path, outputs, Y), "--loss", name]
    for option, value in constants.items():
        command += [f"--{option}", str(value)]
    main([*command, "--report", "true"])
    said = capsys.readouterr().out
    block = load_block(tmp_path / "net.ckpt")
    inputs, _ = load_data(tmp_path / "d.csv", block, name == "cross_entropy")
    expected = F.classify(block, inputs, kind(CLASSES if outputs == 3 else Y, **constants))
    assert said.startswith(f"{expected.kind}")
    assert f"loss                    {expected.loss:.6g}" in said
    assert "stationary point" in said
    assert f"--loss {name}" in (tmp_path / "report.html").read_text()


def test_weight_decay_is_that_of_sgd_on_all_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without weights nothing pulls by more than a large decay; without decay the way down is free."""
    Y = (X[:, :1] * X[:, 1:] > 0).double()
    command = [*written(tmp_path, 1, Y), "--loss", "binary_cross_entropy"]
    torch.save(ShallowNet(2, 3, init_scale=0.0).double().state_dict(), tmp_path / "net.ckpt")
    main([*command, "--weight_decay", "0.5"])
    assert capsys.readouterr().out.startswith("global minimum")
    main(command)
    assert capsys.readouterr().out.startswith("saddle")
    written(tmp_path, 1, Y)
    block = load_block(tmp_path / "net.ckpt")
    inputs, _ = load_data(tmp_path / "d.csv", block)
    loss = F.BinaryCrossEntropy(Y)
    expected = F.classify(block, inputs, loss, weight_decay=F.WeightDecay(0.1, 0.1, output_bias=0.1))
    assert inspect_block(block, inputs, loss, weight_decay=0.1).verdict.loss == expected.loss


BAD = {
    "an unknown loss": (1, X[:, :1], "--loss hinge", "hinge"),
    "a negative decay": (1, X[:, :1], "--weight_decay -1", "`weight_decay` must be a finite factor, 0 or more; got -1"),
    "classes of one output": (1, X[:, :1], "--loss cross_entropy", "a block with one has binary_cross_entropy"),
    "numbers as classes": (3, X[:, :1], "--loss cross_entropy", "needs a class from 0 to 2 as target"),
    "a class too many": (3, CLASSES[:, None] + 1.0, "--loss cross_entropy", "numbers from 1 to 3"),
    "labels that are none": (1, X[:, :1], "--loss binary_cross_entropy", r"must lie in \[0, 1\]"),
    "another reduction": (1, X[:, :1], "--loss huber --reduction half_sum", "`reduction` must be one of"),
    "a constant of another loss": (1, X[:, :1], "--delta 2", "--delta is no constant of --loss squared_error"),
    "a constant out of range": (1, X[:, :1], "--loss huber --delta 0", "`delta` must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_a_loss_is_one_sentence(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs, Y, options, said = BAD[case]
    with pytest.raises(SystemExit) as ended:
        main([*written(tmp_path, outputs, Y), *options.split()])
    told = str(ended.value.code) if isinstance(ended.value.code, str) else capsys.readouterr().err
    assert "Traceback" not in told
    assert re.search(said, told), told


def test_classes_of_a_table_are_its_last_column_and_probabilities_those_of_a_file(tmp_path: Path) -> None:
    block = ShallowBlock(torch.ones(2, 3).double(), torch.ones(3, 2).double())
    np.savetxt(tmp_path / "d.csv", torch.cat([X, CLASSES[:, None]], 1).numpy(), delimiter=",")
    inputs, Y = load_data(tmp_path / "d.csv", block, classes=True)
    assert inputs.shape == (12, 3)
    assert loss_named("cross_entropy", block, Y).labels.tolist() == CLASSES.tolist()
    soft = torch.full((12, 3), 1 / 3, dtype=torch.float64)
    torch.save((X, soft), tmp_path / "d.pt")
    _, Y = load_data(tmp_path / "d.pt", block, classes=True)
    assert loss_named("cross_entropy", block, Y).labels.equal(soft)
    drawn = inspect_block(block, inputs, loss_named("cross_entropy", block, Y)).figures
    assert sorted(drawn) == ["neuron_0", "perturbations"]


def test_with_decay_it_says_how_far_the_best_network_of_any_width_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = written(tmp_path, 1, X[:, :1])
    main([*command, "--weight_decay", "0.01"])
    block = load_block(tmp_path / "net.ckpt")
    inputs, Y = load_data(tmp_path / "d.csv", block)
    gap = F.optimality_gap(block, inputs, Y, F.WeightDecay(0.01, 0.01, output_bias=0.01))
    assert f"with this weight decay: {gap}" in " ".join(capsys.readouterr().out.split())
    main(command)
    assert "any width" not in capsys.readouterr().out
