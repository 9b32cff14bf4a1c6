"""Which loss a step uses, from numbers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as tf
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.functional.output_loss import Recognition, recognise

N, J = 12, 3


def data(dtype: torch.dtype = torch.float64, outputs: int = J) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    labels = torch.randint(outputs, (N,), generator=draw)
    labels[:outputs] = torch.arange(outputs)
    return {
        "X": normal(N, 5),
        "out": normal(N, outputs),
        "Y": normal(N, outputs),
        "labels": labels,
        "bits": normal(N, outputs) > 0,
        "weight": normal(N).abs(),
        "mask": normal(N) > 0,
        "shares": normal(N, outputs).softmax(1),
    }


def seen(loss: Callable[[Tensor, dict[str, Tensor]], Tensor], batch: Any, d: dict[str, Tensor]) -> Recognition:
    out = d["out"].requires_grad_()
    (G,) = torch.autograd.grad(loss(out, d), out)
    found = recognise(out, G, batch)
    if found.loss is not None:
        eps = 1e-2 if out.dtype == torch.bfloat16 else 1e-4 if out.dtype == torch.float32 else 1e-8
        assert_close(found.loss.gradient(out.detach()).double(), G.double(), rtol=eps, atol=eps * float(G.abs().max()))
    return found


W3 = torch.tensor([0.5, 2.0, 1.0])
Case = tuple[Callable[[Tensor, dict[str, Tensor]], Tensor], str]
CASES: dict[str, Case] = {
    "mean squares": (lambda o, d: tf.mse_loss(o, d["Y"]), "squared error"),
    "scaled sum of squares": (lambda o, d: 7 * (o - d["Y"]).square().sum(), "squared error"),
    "weighted squares": (lambda o, d: (d["weight"][:, None] * (o - d["Y"]).square()).mean(), "squared error"),
    "masked squares": (lambda o, d: (o - d["Y"])[d["mask"]].square().mean(), "squared error"),
    "masked out squares": (lambda o, d: (o - d["Y"])[~d["mask"]].square().mean(), "squared error"),
    "outputs weighted": (lambda o, d: (W3.to(o) * (o - d["Y"]).square()).mean(), "squared error"),
    "squares of bits": (lambda o, d: tf.mse_loss(o, d["bits"].to(o)), "squared error"),
    "squares of one-hot": (lambda o, d: tf.mse_loss(o, tf.one_hot(d["labels"], J).to(o)), "squared error"),
    "absolute": (lambda o, d: tf.l1_loss(o, d["Y"]), "absolute error"),
    "weighted absolute": (lambda o, d: (d["weight"][:, None] * (o - d["Y"]).abs()).sum(), "absolute error"),
    "huber": (lambda o, d: tf.huber_loss(o, d["Y"], delta=0.5), "Huber loss"),
    "masked huber": (lambda o, d: tf.huber_loss(o[d["mask"]], d["Y"][d["mask"]]), "Huber loss"),
    "smooth l1": (lambda o, d: tf.smooth_l1_loss(o, d["Y"], beta=0.3), "Huber loss"),
    "poisson": (lambda o, d: tf.poisson_nll_loss(o, d["bits"].to(o)), "Poisson loss"),
    "binary": (lambda o, d: tf.binary_cross_entropy_with_logits(o, d["bits"].to(o)), "binary cross-entropy"),
    "sigmoid and binary": (lambda o, d: tf.binary_cross_entropy(o.sigmoid(), d["bits"].to(o)), "binary cross-entropy"),
    "binary of signs": (lambda o, d: tf.softplus(-(2 * d["bits"].to(o) - 1) * o).mean(), "binary cross-entropy"),
    "binary with positive weight": (
        lambda o, d: tf.binary_cross_entropy_with_logits(o, d["bits"].to(o), pos_weight=torch.tensor(3.0).to(o)),
        "binary cross-entropy",
    ),
    "binary with positive weights": (
        lambda o, d: tf.binary_cross_entropy_with_logits(o, d["bits"].to(o), pos_weight=W3.to(o)),
        "binary cross-entropy",
    ),
    "binary of one-hot": (
        lambda o, d: tf.binary_cross_entropy_with_logits(o, tf.one_hot(d["labels"], J).to(o)),
        "binary cross-entropy",
    ),
    "classes": (lambda o, d: tf.cross_entropy(o, d["labels"]), "cross-entropy"),
    "log-softmax by hand": (lambda o, d: tf.nll_loss(o.log_softmax(1), d["labels"], reduction="sum"), "cross-entropy"),
    "smoothed classes": (lambda o, d: tf.cross_entropy(o, d["labels"], label_smoothing=0.1), "cross-entropy"),
    "weighted classes": (lambda o, d: tf.cross_entropy(o, d["labels"], weight=W3.to(o)), "cross-entropy"),
    "weighted and smoothed classes": (
        lambda o, d: tf.cross_entropy(o, d["labels"], weight=W3.to(o), label_smoothing=0.2),
        "cross-entropy",
    ),
    "an ignored class": (lambda o, d: tf.cross_entropy(o, d["labels"], ignore_index=1), "cross-entropy"),
    "weighted samples": (
        lambda o, d: (d["weight"] * tf.cross_entropy(o, d["labels"], reduction="none")).mean(),
        "cross-entropy",
    ),
    "masked samples": (lambda o, d: tf.cross_entropy(o[d["mask"]], d["labels"][d["mask"]]), "cross-entropy"),
    "shares": (lambda o, d: tf.cross_entropy(o, d["shares"]), "cross-entropy"),
    "smoothed shares": (lambda o, d: tf.cross_entropy(o, d["shares"], label_smoothing=0.1), "cross-entropy"),
    "weighted shares": (lambda o, d: tf.cross_entropy(o, d["shares"], weight=W3.to(o)), "cross-entropy"),
}
# What a batch holds is one of a few tensors; the loss is among all of them.
DTYPES = [torch.float64, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("loss", "name"), CASES.values(), ids=CASES)
def test_a_loss_is_recognised_whatever_else_the_batch_holds(loss: Any, name: str, dtype: torch.dtype) -> None:
    d = data(dtype)
    batch = (d["X"], {"meta": [d["mask"], d["weight"]], "y": d["Y"], "bits": d["bits"]}, [d["shares"], d["labels"]])
    found = seen(loss, batch, d)
    assert found.loss is not None, found.reason
    assert found.loss.name == name
    assert found.candidates == (found.loss,)


def test_constants_are_read_off() -> None:
    d = data()
    batch = (d["X"], d["Y"], d["labels"])
    huber = seen(CASES["huber"][0], batch, d).loss
    assert isinstance(huber, F.Huber)
    assert huber.delta == 0.5
    smoothed = seen(CASES["smoothed classes"][0], batch, d).loss
    assert isinstance(smoothed, F.CrossEntropy)
    assert smoothed.label_smoothing == 0.1


@pytest.mark.parametrize("name", ["mean squares", "classes", "binary", "smoothed classes", "weighted squares"])
@pytest.mark.parametrize("sixteen", [torch.bfloat16, torch.float16])
def test_outputs_that_have_passed_through_16_bits_are_recognised(name: str, sixteen: torch.dtype) -> None:
    d = data(torch.float32)
    exact = d["out"]
    loss, kind = CASES[name]
    rounded = exact.to(sixteen).requires_grad_()
    (G,) = torch.autograd.grad(loss(rounded.float(), d), rounded)
    # A factor of a power of two is what a loss scaler leaves.
    found = recognise(exact, G.float() * 2**-4, (d["X"], d["Y"], d["bits"], d["weight"], d["labels"]))
    assert found.loss is not None, found.reason
    assert found.loss.name == kind


OTHERS: dict[str, Callable[[Tensor, dict[str, Tensor]], Tensor]] = {
    "penalty on the outputs": lambda o, d: tf.mse_loss(o, d["Y"]) + 0.01 * o.square().mean(),
    "hinge": lambda o, d: tf.relu(1 - (2 * d["bits"].to(o) - 1) * o).mean(),
    "squared hinge": lambda o, d: tf.relu(1 - (2 * d["bits"].to(o) - 1) * o).square().mean(),
    "log cosh": lambda o, d: (o - d["Y"]).cosh().log().mean(),
    "fourth power": lambda o, d: (o - d["Y"]).pow(4).mean(),
    "focal": lambda o, d: tf.cross_entropy(o, d["labels"], reduction="none").square().mean(),
    "two tasks": lambda o, d: tf.mse_loss(o, d["Y"]) + tf.cross_entropy(o, d["labels"]),
    "quantiles": lambda o, d: torch.maximum(0.9 * (d["Y"] - o), 0.1 * (o - d["Y"])).mean(),
    "targets of elsewhere": lambda o, d: tf.mse_loss(o, 2 * d["Y"] + 1),
    "no targets": lambda o, d: o.square().mean(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", OTHERS.values(), ids=OTHERS)
def test_other_losses_are_not_taken_for_one_of_ours(loss: Any, dtype: torch.dtype) -> None:
    d = data(dtype)
    found = seen(loss, (d["X"], d["Y"], d["mask"], d["weight"], d["bits"], d["labels"]), d)
    assert found.loss is None
    assert found.candidates == ()
    assert found.reason


def test_one_output_takes_targets_of_any_shape_and_kind() -> None:
    d = data(outputs=1)
    classes = d["bits"][:, 0].long()
    found = seen(lambda o, d: tf.mse_loss(o[:, 0], d["Y"][:, 0]), (d["X"], d["Y"][:, 0]), d)
    assert found.loss is not None
    assert found.loss.name == "squared error"
    binary = lambda o, d: tf.binary_cross_entropy_with_logits(o[:, 0], classes.to(o))  # noqa: E731
    found = seen(binary, (d["X"], classes), d)
    assert found.loss is not None
    assert found.loss.name == "binary cross-entropy"


def test_sequences_are_recognised_token_by_token() -> None:
    d = data()
    labels = d["labels"].view(4, 3).clone()
    labels[0, 0] = -100
    found = seen(lambda o, _: tf.cross_entropy(o.view(4, 3, J).mT, labels), {"x": d["X"], "y": labels}, d)
    assert found.loss is not None
    assert found.loss.name == "cross-entropy"
    assert not found.loss.gradient(d["out"])[0].any()


def test_missing_targets_are_no_numbers() -> None:
    d = data()
    Y = d["Y"].clone()
    Y[2:5] = torch.nan
    found = seen(lambda o, _: tf.mse_loss(o[~Y.isnan()], Y[~Y.isnan()]), (d["X"], Y), d)
    assert found.loss is not None, found.reason
    assert found.loss.name == "squared error"


def test_both_are_named_where_two_fit() -> None:
    d = data()
    far = d["Y"] + 10
    found = seen(lambda o, _: tf.l1_loss(o, far), (d["X"], far), d)
    assert found.loss is None
    assert {loss.name for loss in found.candidates} == {"absolute error", "Huber loss"}
    assert "Huber loss" in found.reason
    twice = seen(lambda o, d: tf.mse_loss(o, d["Y"]), (d["Y"], d["Y"].clone()), d)
    assert len(twice.candidates) == 1


def test_residuals_of_one_sign_do_not_tell_the_absolute_error_from_a_quantile() -> None:
    d = data()
    above = d["out"] - d["Y"].abs()
    found = seen(lambda o, _: torch.maximum(0.9 * (above - o), 0.1 * (o - above)).mean(), (d["X"], above), d)
    assert found.loss is None
    assert "more samples would tell" in found.reason


def test_no_residual_so_small_that_it_tells_leaves_two_losses() -> None:
    d = data()
    Y = d["out"] + d["Y"].sign() * (0.2 + d["Y"].abs())
    for loss in (tf.l1_loss, lambda o, Y: tf.smooth_l1_loss(o, Y, beta=0.1)):
        found = seen(lambda o, _, loss=loss: loss(o, Y), (d["X"], Y), d)
        assert found.loss is None
        assert len(found.candidates) == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_classes_are_not_read_off_classes_seen_once(dtype: torch.dtype) -> None:
    d = {name: part[:3] for name, part in data(dtype).items()}  # a sample of each class
    focal = lambda o, d: (1 - o.softmax(1).gather(1, d["labels"][:, None])).square().mean()  # noqa: E731
    assert seen(focal, (d["X"], d["labels"]), d).loss is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_few_different_numbers_are_none_of_16_bits(dtype: torch.dtype) -> None:
    d = data(dtype)
    d["out"] = 0.01 * d["out"]  # there the binary cross-entropy has nearly the gradient of a hinge
    d = {name: part[:8] for name, part in d.items()}
    assert seen(OTHERS["hinge"], (d["X"], d["bits"]), d).loss is None


def test_a_mask_without_any_sample_of_a_class_is_no_error() -> None:
    d = data()
    mask = torch.zeros(N)
    mask[d["labels"] == 1] = 1.0
    focal = lambda o, d: (mask * tf.cross_entropy(o, d["labels"], reduction="none").square()).mean()  # noqa: E731
    assert seen(focal, (d["X"], d["labels"], mask), d).loss is None


def test_a_single_number_tells_nothing() -> None:
    out, Y = torch.tensor([[0.3]]), torch.tensor([[1.0]])
    found = recognise(out, out - Y, (torch.ones(1, 4), Y))
    assert found.loss is None


def test_no_gradient_no_targets_and_no_numbers_say_so() -> None:
    out = torch.ones(3, 2)
    assert "zero" in recognise(out, 0 * out, (out,)).reason
    assert "shape of targets" in recognise(out, out, (torch.ones(7),)).reason
    assert "not finite" in recognise(out, out / 0, (out,)).reason
