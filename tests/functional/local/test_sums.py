"""The sums over samples: chunks, batches, memory, precision, and what is lost when kinks are too many."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.reference import SLOPES, Problem, activation, kinked_problem, problems
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from relu_diag import BlockSignal, ShallowBlock
from relu_diag.functional import block as block_module
from relu_diag.functional import neuron_geometry
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import NeuronSums, geometry_from_sums, neuron_sums, slopes_at
from relu_diag.functional.local import _pairs as pairs_module


def assert_same_sums(one: NeuronSums, two: NeuronSums) -> None:
    for field in fields(NeuronSums):
        if field.name != "kinks":
            assert_close(getattr(one, field.name), getattr(two, field.name))
    order, other = one.kinks.neuron.argsort(stable=True), two.kinks.neuron.argsort(stable=True)
    for name in ("neuron", "X", "c"):
        assert_close(getattr(one.kinks, name)[order], getattr(two.kinks, name)[other])


def part(signal: BlockSignal, rows: slice) -> BlockSignal:
    return BlockSignal(*(None if value is None else value[rows] for value in (signal.X, signal.G, signal.C, signal.Z)))


@given(problems())
def test_sums_are_the_definitions_sample_by_sample(problem: Problem) -> None:
    signal, (s_minus, s_plus) = problem.signal, problem.block.slopes
    C = signal.G @ problem.block.H if signal.C is None else signal.C
    found = neuron_sums(problem.block, signal)
    for i, w in enumerate(problem.block.W):
        z = torch.stack([x @ w for x in problem.X])
        z[z.abs() < 1e-12] = 0.0
        slope = [s_plus if v > 0 else s_minus if v < 0 else (s_plus + s_minus) / 2 for v in z.tolist()]
        assert_close(found.smooth[i], sum(s * c * x for s, c, x in zip(slope, C[:, i], problem.X, strict=True)))
        assert_close(found.activation[i], activation(z, problem.block.slopes).abs().sum())
        assert_close(found.output_gradient[:, i], signal.G.T @ activation(z, problem.block.slopes))
        assert (float(found.z_min[i]), float(found.z_max[i])) == pytest.approx((float(z.min()), float(z.max())))
        assert int(found.kink_count[i]) == int((z == 0).sum())
        assert_close(found.kinks.X[found.kinks.neuron == i], problem.X[z == 0])
        assert_close(found.kinks.c[found.kinks.neuron == i], C[z == 0, i])
        steep = torch.tensor([abs(s) if v else max(abs(s_minus), abs(s_plus)) for s, v in zip(slope, z, strict=True)])
        seen = steep * problem.X.norm(dim=1)
        size = signal.G.norm(dim=1)
        assert_close(found.terms_per_output[i], seen @ size)
        assert_close(found.terms[i], seen @ torch.maximum(size * problem.block.H[:, i].norm(), C[:, i].abs()))
        assert_close(found.output_terms[i], size @ activation(z, problem.block.slopes).abs())
    assert int(found.samples) == len(problem.X)


@pytest.mark.parametrize("slopes", SLOPES)
def test_chunk_size_changes_nothing(slopes: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    problem = kinked_problem(0, slopes, neurons=60, outputs=2, kinks=3, penalty=0.7)
    whole = neuron_sums(problem.block, problem.signal)
    monkeypatch.setattr(block_module, "BUDGETS", replace(BUDGETS, chunk=1))  # 64 samples, the least
    assert_same_sums(neuron_sums(problem.block, problem.signal), whole)


@given(problems(), st.integers(1, 9))
def test_sums_of_batches_are_the_sums_of_all(problem: Problem, cut: int) -> None:
    whole = neuron_sums(problem.block, problem.signal)
    parts = [neuron_sums(problem.block, part(problem.signal, rows)) for rows in (slice(cut), slice(cut, None))]
    assert_same_sums(parts[0] + parts[1], whole)
    one, two = geometry_from_sums(problem.block, parts[0] + parts[1]), geometry_from_sums(problem.block, whole)
    assert_close(one.steepest, two.steepest)


def test_scaled_sums_are_those_of_the_scaled_loss() -> None:
    problem = kinked_problem(1, outputs=2, penalty=0.7)
    signal = problem.signal
    scaled = replace(signal, G=3 * signal.G, C=3 * signal.C)
    assert_same_sums(neuron_sums(problem.block, signal).scaled(3.0), neuron_sums(problem.block, scaled))


@given(problems(), st.floats(-8, 8), st.floats(-8, 8))
def test_terms_scale_as_the_derivatives_and_bound_them(problem: Problem, power: float, size: float) -> None:
    c, block = 10.0**power, problem.block
    rescaled = replace(block, W=c * block.W, H=block.H / c)
    signal = replace(problem.signal, C=None if problem.signal.C is None else problem.signal.C / c)
    here, there = neuron_sums(block, problem.signal), neuron_sums(rescaled, signal)
    assert_close(there.terms, here.terms / c)
    assert_close(there.terms_per_output, here.terms_per_output)
    assert_close(there.output_terms, here.output_terms * c)
    assert_close(neuron_sums(block, replace(problem.signal, X=10.0**size * problem.X)).terms, 10.0**size * here.terms)
    rounding = 1 + 1e-12
    assert bool((here.smooth.norm(dim=1) <= rounding * here.terms).all())
    assert bool((here.output_gradient.norm(dim=0) <= rounding * here.output_terms).all())
    assert bool((-neuron_geometry(block, problem.signal).steepest <= rounding * here.terms).all())


def test_terms_leave_out_what_a_neuron_does_not_see() -> None:
    X = torch.tensor([[1.0, 0.0], [0.0, -1e8]]).double()
    block = ShallowBlock(torch.tensor([[1.0, 0.3], [-1e8, 1e8]]).double(), torch.tensor([[1.0, 1e8]]).double())
    sums = neuron_sums(block, BlockSignal(X, torch.tensor([[-0.5], [10.0]]).double()))
    assert sums.terms.tolist() == [0.5, 0.0]
    assert sums.output_terms.tolist() == [0.5, 0.0]


@pytest.mark.parametrize("slopes", SLOPES)
def test_pre_activations_and_gradients_that_are_given_are_used_and_left_alone(slopes: tuple[float, float]) -> None:
    problem = kinked_problem(2, slopes, outputs=2, kinks=3)
    signal = problem.signal
    given = replace(signal, C=signal.G @ problem.block.H, Z=problem.X @ problem.block.W.T)
    copies = given.C.clone(), given.Z.clone(), given.X.clone(), given.G.clone()
    assert_same_sums(neuron_sums(problem.block, given), neuron_sums(problem.block, signal))
    for value, copy in zip((given.C, given.Z, given.X, given.G), copies, strict=True):
        assert torch.equal(value, copy)
    doubled = neuron_sums(problem.block, replace(given, Z=2 * given.Z))
    assert_close(doubled.z_max, 2 * neuron_sums(problem.block, signal).z_max)


@pytest.mark.parametrize("slopes", SLOPES)
def test_slope_on_the_kink_is_the_mean_of_the_two(slopes: tuple[float, float]) -> None:
    expected = [slopes[0], (slopes[0] + slopes[1]) / 2, slopes[1]]
    assert slopes_at(torch.tensor([-1.0, 0.0, 1.0]).double(), slopes).tolist() == pytest.approx(expected, rel=1e-15)


class LargestTensor(TorchDispatchMode):
    """Watches every operation for the number of elements of its result."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self.given:
                self.elements = max(self.elements, value.numel())
        return out

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {value.untyped_storage().data_ptr() for value in given}


@pytest.mark.parametrize("zero", [False, True])
def test_no_tensor_grows_with_samples_times_neurons(zero: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither N x I, nor N x I x d, nor J x I x d, not even where every sample is on the kink of every neuron."""
    samples, inputs, neurons, outputs = 2000, 30, 50, 40
    monkeypatch.setattr(block_module, "BUDGETS", replace(BUDGETS, chunk=64 * neurons))
    monkeypatch.setattr(pairs_module, "BUDGETS", replace(BUDGETS, kink_numbers=10_000))
    generator = torch.Generator().manual_seed(0)
    shapes = (samples, inputs), (samples, outputs), (neurons, inputs), (outputs, neurons)
    X, G, W, H = (torch.randn(*shape, generator=generator) for shape in shapes)
    block, signal = ShallowBlock(0 * W if zero else W, H), BlockSignal(X, G)
    with LargestTensor(X, G, W, H) as largest:
        sums = neuron_sums(block, signal)
        geometry_from_sums(block, sums)
    assert largest.elements <= max(2 * 64 * neurons, inputs * neurons, 10_000)  # row and column of each kink pair
    assert (sums.lost > 0).all() == zero


def test_neurons_that_lose_kink_samples_are_undecided_and_the_others_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = kinked_problem(3, d=3, neurons=3, kinks=2)
    crowded = problem.block.W.clone()
    crowded[1] = 0.0
    problem = replace(problem, block=replace(problem.block, W=crowded))
    exact = neuron_geometry(problem.block, problem.signal)
    monkeypatch.setattr(pairs_module, "BUDGETS", replace(BUDGETS, kinks=5))
    sums = neuron_sums(problem.block, problem.signal)
    halves = [neuron_sums(problem.block, part(problem.signal, rows)) for rows in (slice(4), slice(4, None))]
    for found in (sums, halves[0] + halves[1]):
        assert found.lost.tolist() == [0, len(problem.X), 0]
        assert found.kink_count.tolist() == [2, len(problem.X), 2]
        assert 1 not in found.kinks.neuron
        geometry = geometry_from_sums(problem.block, found)
        assert geometry.exact.tolist() == [True, False, True]
        assert_close(geometry.steepest[[0, 2]], exact.steepest[[0, 2]])
        assert geometry.steepest[1] == 0
        assert not geometry.direction[1].any()


def test_the_most_crowded_neurons_lose_their_kink_samples_first(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = kinked_problem(4, d=3, neurons=4, kinks=2)
    one, two = problem.X[-2:]
    extra = torch.stack([one + two, one - two])  # two more on the kink of the last neuron
    problem = replace(problem, X=torch.cat([problem.X, extra]), Y=torch.cat([problem.Y, extra[:, :1]]))
    monkeypatch.setattr(pairs_module, "BUDGETS", replace(BUDGETS, kink_numbers=3 * 6))  # room for six pairs
    assert neuron_sums(problem.block, problem.signal).lost.tolist() == [0, 0, 0, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_weights_give_the_geometry_of_those_weights(dtype: torch.dtype) -> None:
    problem = kinked_problem(10, d=3, outputs=2, kinks=0)
    block = ShallowBlock(problem.block.W.to(dtype), problem.block.H.to(dtype))
    signal = BlockSignal(problem.X.to(dtype), problem.signal.G.to(dtype))
    exact = neuron_geometry(
        ShallowBlock(block.W.double(), block.H.double()), BlockSignal(signal.X.double(), signal.G.double())
    )
    found = neuron_geometry(block, signal)
    # Products of numbers in 16 or 32 bits, added up in float32.
    for name in ("radial", "steepest", "output_gradient", "direction"):
        assert_close(getattr(found, name), getattr(exact, name), rtol=1e-4, atol=1e-4)


def test_many_samples_in_bfloat16_add_up() -> None:
    """Sums kept in 16 bits would stop growing at 256."""
    one = torch.ones(100_000, 1, dtype=torch.bfloat16)
    geometry = neuron_geometry(ShallowBlock(one[:1], one[:1]), BlockSignal(one, one))
    assert geometry.radial.tolist() == [100_000.0]
    assert geometry.output_gradient.tolist() == [[100_000.0]]


def test_rounding_to_float32_keeps_samples_on_their_kink() -> None:
    problem = kinked_problem(10, d=4, kinks=3)
    block = ShallowBlock(problem.block.W.float(), problem.block.H.float())
    geometry = neuron_geometry(block, BlockSignal(problem.X.float(), problem.signal.G.float()))
    exact = neuron_geometry(problem.block, problem.signal)
    assert geometry.kink_count.tolist() == [3, 3, 3, 3]
    assert_close(geometry.steepest, exact.steepest, rtol=1e-4, atol=1e-4)  # sums of float32 numbers


def test_weights_whose_squares_underflow_keep_their_kinks() -> None:
    W = 1e-25 * torch.tensor([[1.0, 1.0]])
    X = torch.tensor([[3.0, -3.0000002], [1.0, 0.0]])
    assert neuron_sums(ShallowBlock(W, torch.ones(1, 1)), BlockSignal(X, torch.ones(2, 1))).kink_count.tolist() == [1]
