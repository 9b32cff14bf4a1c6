"""Every loss against torch's own, autograd, and its conjugate's definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as tf
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.functional.output_loss import Loss, as_loss, joined

Pair = tuple[Loss, Callable[[Tensor], Tensor]]


def drawn(seed: int, samples: int, outputs: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return {
        "outputs": 2 * normal(samples, outputs),
        "step": normal(samples, outputs),
        "Y": normal(samples, outputs),
        "unit": torch.rand(samples, outputs, generator=draw, dtype=torch.float64),
        "weight": torch.rand(samples, outputs, generator=draw, dtype=torch.float64) + 0.1,
        "by_sample": torch.rand(samples, 1, generator=draw, dtype=torch.float64) + 0.1,
        "by_output": torch.rand(outputs, generator=draw, dtype=torch.float64) + 0.1,
        "labels": torch.randint(outputs, (samples,), generator=draw),
    }


def pairs(seed: int, samples: int, outputs: int, reduction: str) -> dict[str, Pair]:
    """Each of our losses, and torch's own."""
    d = drawn(seed, samples, outputs)
    Y, unit, weight, labels, by_output = d["Y"], d["unit"], d["weight"], d["labels"], d["by_output"]
    counts, r = (3 * unit).round(), reduction
    shares = unit / unit.sum(1, keepdim=True)
    holed = labels.clone()
    holed[1:] = torch.where(unit[1:, 0] < 0.3, -7, labels[1:])
    full = d["by_sample"].expand_as(Y)
    return {
        "squared": (F.SquaredError(Y, r), lambda out: tf.mse_loss(out, Y, reduction=r)),
        "squared, weights": (
            F.SquaredError(Y, r, weight=weight),
            lambda out: tf.mse_loss(out, Y, reduction=r, weight=weight),
        ),
        "squared, samples": (
            F.SquaredError(Y, r, weight=full[:, 0]),
            lambda out: tf.mse_loss(out, Y, reduction=r, weight=full),
        ),
        "absolute": (F.AbsoluteError(Y, r), lambda out: tf.l1_loss(out, Y, reduction=r)),
        "absolute, weights": (
            F.AbsoluteError(Y, r, weight=weight),
            lambda out: tf.l1_loss(out, Y, reduction=r, weight=weight),
        ),
        "huber": (F.Huber(Y, 0.7, r), lambda out: tf.huber_loss(out, Y, delta=0.7, reduction=r)),
        "huber, weights": (
            F.Huber(Y, 0.7, r, weight=weight),
            lambda out: tf.huber_loss(out, Y, delta=0.7, reduction=r, weight=weight),
        ),
        "smooth l1": (F.Huber(Y, 0.7, r).scaled(1 / 0.7), lambda out: tf.smooth_l1_loss(out, Y, beta=0.7, reduction=r)),
        "poisson": (F.Poisson(counts, r), lambda out: tf.poisson_nll_loss(out, counts, reduction=r)),
        "binary": (
            F.BinaryCrossEntropy(unit, reduction=r),
            lambda out: tf.binary_cross_entropy_with_logits(out, unit, reduction=r),
        ),
        "binary, positive": (
            F.BinaryCrossEntropy(unit, pos_weight=by_output, reduction=r),
            lambda out: tf.binary_cross_entropy_with_logits(out, unit, pos_weight=by_output, reduction=r),
        ),
        "binary, outputs": (
            F.BinaryCrossEntropy(unit, weight=by_output, reduction=r),
            lambda out: tf.binary_cross_entropy_with_logits(out, unit, by_output, reduction=r),
        ),
        "binary, samples": (
            F.BinaryCrossEntropy(unit, weight=d["by_sample"], reduction=r),
            lambda out: tf.binary_cross_entropy_with_logits(out, unit, d["by_sample"], reduction=r),
        ),
        "classes": (F.CrossEntropy(labels, reduction=r), lambda out: tf.cross_entropy(out, labels, reduction=r)),
        "classes, all": (
            F.CrossEntropy(holed, by_output, 0.3, r, ignore_index=-7),
            lambda out: tf.cross_entropy(out, holed, by_output, label_smoothing=0.3, reduction=r, ignore_index=-7),
        ),
        "shares": (F.CrossEntropy(shares, reduction=r), lambda out: tf.cross_entropy(out, shares, reduction=r)),
        "shares, all": (
            F.CrossEntropy(shares, by_output, 0.2, r),
            lambda out: tf.cross_entropy(out, shares, by_output, label_smoothing=0.2, reduction=r),
        ),
    }


NAMES = list(pairs(0, 4, 2, "mean"))
CONJUGATES = [name for name in NAMES if name not in {"absolute", "absolute, weights"}]
sizes = st.tuples(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 4), st.sampled_from(["mean", "sum"]))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(sizes)
def test_value_gradient_and_curvature_are_those_of_torch(name: str, size: tuple[int, int, int, str]) -> None:
    loss, own = pairs(*size)[name]
    d = drawn(*size[:3])
    at = d["outputs"].requires_grad_()
    value = own(at)
    assert_close(loss(at.detach()), value.detach())
    (gradient,) = torch.autograd.grad(value, at, create_graph=True)
    assert_close(loss.gradient(at.detach()), gradient.detach())
    if gradient.requires_grad:
        (product,) = torch.autograd.grad(gradient, at, d["step"], materialize_grads=True)
        assert_close(loss.curvature(at.detach(), d["step"]), product)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10)
@given(sizes)
def test_a_prepared_loss_is_the_same_loss(name: str, size: tuple[int, int, int, str]) -> None:
    loss, _ = pairs(*size)[name]
    d = drawn(*size[:3])
    here = loss.prepared(d["outputs"]).rows(slice(None)).at(d["outputs"])
    assert_close(here.value(), loss(d["outputs"]))
    assert_close(here.gradient(), loss.gradient(d["outputs"]))
    assert_close(here.curvature(d["step"]), loss.curvature(d["outputs"], d["step"]))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10)
@given(sizes, st.sampled_from([1e-8, 1e-3, 0.3, 1.0, 30.0]))
def test_a_change_is_the_difference_of_two_values(name: str, size: tuple[int, int, int, str], length: float) -> None:
    loss, _ = pairs(*size)[name]
    d = drawn(*size[:3])
    outputs, step = d["outputs"], length * d["step"]
    assert_close(loss.change(outputs, step), loss(outputs + step) - loss(outputs), rtol=1e-9, atol=1e-13)


def test_a_small_change_keeps_its_digits() -> None:
    for name, (loss, _) in pairs(0, 5, 3, "mean").items():
        d = drawn(0, 5, 3)
        outputs, step = d["outputs"], 1e-12 * d["step"]
        expected = (loss.gradient(outputs) * step).sum()
        assert_close(loss.change(outputs, step), expected, rtol=1e-9, atol=0, msg=name)


@pytest.mark.parametrize("name", CONJUGATES)
@settings(max_examples=10)
@given(sizes)
def test_a_loss_and_its_conjugate_add_up_where_one_is_the_others_gradient(
    name: str, size: tuple[int, int, int, str]
) -> None:
    loss, _ = pairs(*size)[name]
    outputs = drawn(*size[:3])["outputs"]
    G = loss.gradient(outputs)
    assert_close(loss(outputs) + loss.conjugate(G), (G * outputs).sum(), rtol=1e-9, atol=1e-11)
    other = drawn(size[0] + 1, *size[1:3])["outputs"]
    assert loss(other) + loss.conjugate(0.5 * G) >= (0.5 * G * other).sum() - 1e-11


def test_conjugates_are_infinite_outside_their_domain() -> None:
    Y, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    for loss in (F.Huber(Y), F.AbsoluteError(Y), F.BinaryCrossEntropy(Y), F.CrossEntropy(labels), F.Poisson(Y)):
        assert loss.conjugate(torch.full((2, 2), -5.0)) == torch.inf, loss.name
    squared = F.SquaredError(Y, "sum", weight=torch.tensor([0.0, 1.0]))
    assert squared.conjugate(torch.tensor([[0.0, 0.0], [1.0, 1.0]])) == 0.5
    assert squared.conjugate(torch.ones(2, 2)) == torch.inf


@pytest.mark.parametrize("name", NAMES)
def test_rows_add_up_and_join_again(name: str) -> None:
    for reduction in ("mean", "sum"):
        loss, _ = pairs(3, 6, 3, reduction)[name]
        outputs = drawn(4, 6, 3)["outputs"]
        parts = [loss.rows(slice(0, 2)), loss.rows(torch.tensor([2, 3, 4])), loss.rows([5])]
        values = [parts[0](outputs[:2]), parts[1](outputs[2:5]), parts[2](outputs[5:])]
        assert_close(sum(values), loss(outputs))
        whole = joined(parts, [2.0, 2.0, 4.0])
        assert_close(whole(outputs), 2 * values[0] + 2 * values[1] + 4 * values[2])
        assert whole.samples == 6
        assert_close(loss.scaled(3.0).gradient(outputs), 3 * loss.gradient(outputs))


def test_two_outputs_of_softmax_are_the_logistic_loss_of_their_difference() -> None:
    outputs, labels = drawn(0, 5, 2)["outputs"], torch.tensor([0, 1, 1, 0, 1])
    assert_close(F.CrossEntropy(labels)(outputs), F.BinaryCrossEntropy(labels)(outputs[:, 1:] - outputs[:, :1]))


def test_a_loss_knows_its_dtype_device_and_nature() -> None:
    Y = torch.zeros(3, 1)
    for loss, smooth in (
        (F.SquaredError(Y), True),
        (F.AbsoluteError(Y), False),
        (F.CrossEntropy(Y[:, 0].long()), True),
    ):
        assert loss.convex
        assert loss.smooth is smooth
        assert loss.samples == 3
        assert loss.double().to("cpu").samples == 3
    assert F.SquaredError(Y).double().Y.dtype == torch.float64
    assert as_loss(Y, "sum").name == "squared error"
    assert as_loss(F.Huber(Y)).name == "Huber loss"


def test_half_a_sum_is_for_the_squared_error() -> None:
    Y = torch.zeros(2, 1)
    assert F.SquaredError(Y, "half_sum")(Y + 1) == 1.0
    with pytest.raises(ValueError, match="reduction"):
        F.Huber(Y, reduction="half_sum")


def test_a_function_of_the_outputs_is_differentiated_by_autograd() -> None:
    Y, outputs = torch.zeros(3, 2, dtype=torch.float64), drawn(0, 3, 2)["outputs"]
    own = F.OutputLoss(lambda out: tf.mse_loss(out, Y), convex=True)
    known = F.SquaredError(Y)
    assert_close(own(outputs), known(outputs))
    assert_close(own.gradient(outputs), known.gradient(outputs))
    assert_close(own.curvature(outputs, outputs), known.curvature(outputs, outputs))
    assert_close(own.scaled(2.0).change(outputs, outputs), 2 * known.change(outputs, outputs))
    flat = F.OutputLoss(lambda out: out.sum())
    assert not flat.convex
    assert not flat.curvature(outputs, outputs).any()
    for refused in (lambda: own.conjugate(outputs), lambda: own.rows([0]), lambda: joined([own, own])):
        with pytest.raises(NotImplementedError):
            refused()


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "labels that are numbers": (lambda: F.CrossEntropy(torch.zeros(3)), "labels.long"),
    "a negative class": (lambda: F.CrossEntropy(torch.tensor([0, -2])), "ignore_index"),
    "nothing but ignored": (lambda: F.CrossEntropy(torch.tensor([-100])), "mean over no sample"),
    "labels of a logit": (lambda: F.BinaryCrossEntropy(torch.tensor([-1.0, 1.0])), r"\(Y \+ 1\) / 2"),
    "a negative weight": (lambda: F.SquaredError(torch.zeros(2, 1), weight=-torch.ones(2)), "OutputLoss"),
    "weights of other samples": (lambda: F.SquaredError(torch.zeros(2, 1), weight=torch.ones(3)), "per sample"),
    "a negative distance": (lambda: F.Huber(torch.zeros(2, 1), -1.0), "delta"),
    "outputs of other samples": (lambda: F.Huber(torch.zeros(2, 1))(torch.zeros(3, 1)), "outputs"),
    "too few classes": (lambda: F.CrossEntropy(torch.tensor([2]))(torch.zeros(1, 2)), "2 outputs"),
    "different losses": (
        lambda: joined([F.Huber(torch.zeros(2, 1)), F.AbsoluteError(torch.zeros(2, 1))]),
        "one kind",
    ),
    "different distances": (
        lambda: joined([F.Huber(torch.zeros(2, 1)), F.Huber(torch.zeros(2, 1), 2.0)]),
        "delta",
    ),
}


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_with_a_cure(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_function_without_a_scalar_or_a_thing_that_is_no_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="one number"):
        F.OutputLoss(lambda out: out)(torch.zeros(2, 1))
    with pytest.raises(TypeError, match="OutputLoss"):
        as_loss(lambda out: out.sum())  # type: ignore[arg-type]
