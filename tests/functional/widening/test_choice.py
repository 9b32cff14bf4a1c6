"""Several new neurons chosen by what they bring: the loss falls or the function stays, and better than by chance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.functional import widening
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.widening import LaterLayer, LossThroughLayers
from relu_diag.functional.widening._greedy import greedy_choice
from relu_diag.functional.widening._pools import POOLS, Situation
from relu_diag.functional.widening._refit import Start, refitted_outputs


def problem(seed: int = 0, samples: int = 200, classes: int = 3) -> tuple[ShallowBlock, Tensor, Tensor]:
    """A narrow network with a bias, its inputs, and outputs that it cannot have."""
    generator = torch.Generator().manual_seed(seed)
    X, W, H, teacher, output = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((samples, 5), (4, 5), (classes, 4), (12, 5), (classes, 12))
    )
    X[:, -1] = 1.0
    block = ShallowBlock(W, 0.1 * H, (0.0, 1.0), torch.zeros(classes).double())
    return block, X, ShallowBlock(teacher, output)(X)


def losses(Y: Tensor) -> list[Loss]:
    return [F.SquaredError(Y), F.CrossEntropy(Y.argmax(dim=1)), F.Huber(Y), F.BinaryCrossEntropy((Y > 0).double())]


@pytest.mark.parametrize("held_out", [0.0, 0.25])
@pytest.mark.parametrize("index", range(4))
def test_the_loss_falls_by_what_is_said_and_the_old_neurons_stay(index: int, held_out: float) -> None:
    block, X, Y = problem()
    loss = losses(Y)[index]
    found = F.best_widening(block, X, loss, units=4, held_out=held_out)
    assert_close(float(loss(block(X))), found.before)
    assert_close(float(loss(found.new_block(X))), found.after)
    assert found.after < 0.8 * found.before
    assert found.new_block.W.shape == (8, 5)
    assert torch.equal(found.new_block.W[:4], block.W)
    assert torch.equal(found.new_block.H[:, :4], block.H)


def test_random_units_with_outputs_on_of_the_same_number_bring_less() -> None:
    block, X, Y = problem()
    loss = F.SquaredError(Y)
    generator = torch.Generator().manual_seed(1)
    drawn = []
    for _ in range(20):
        W, H = (torch.rand(*shape, generator=generator).double() * 2 - 1 for shape in ((4, 5), (3, 4)))
        wider = ShallowBlock(torch.cat([block.W, W]), torch.cat([block.H, H], dim=1), block.slopes, block.output_bias)
        drawn.append(float(loss(wider(X))))
    assert F.best_widening(block, X, loss, units=4).after < 0.8 * min(drawn)


@pytest.mark.parametrize("kind", list(POOLS))
def test_every_kind_of_input_weights_lowers_the_loss(kind: str) -> None:
    block, X, Y = problem()
    found = F.best_widening(block, X, Y, units=6, kinds=[kind], held_out=0.0)
    assert found.kind == kind
    assert [one.kind for one in found.candidates] == [kind]
    assert found.after < 0.8 * found.before


def test_what_fits_noise_only_keeps_the_function() -> None:
    block, X, _ = problem(samples=80)
    noise = torch.randn(80, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    fitted = [F.best_widening(block, X, block(X) + noise, units=20, seed=seed) for seed in range(5)]
    assert any(one.kept for one in fitted)
    for one in fitted:
        assert one.kept or one.after < one.before
        if one.kept:
            assert not bool(one.new_block.H[:, 4:].any())
            assert_close(one.new_block(X), block(X))
            assert bool((one.new_block.W[4:].norm(dim=1) > 0).all())
            assert "the function is kept" in str(one)


@pytest.mark.parametrize(("units", "added"), [(2, 2), ("auto", 1)])
def test_nothing_to_gain_keeps_the_function(units: int | str, added: int) -> None:
    block, X, _ = problem()
    found = F.best_widening(block, X, block(X), units=units)
    assert found.units == added
    assert found.kept
    assert found.after == found.before == 0


def test_auto_adds_as_many_as_are_worth_it() -> None:
    """Two neurons make all of the difference: two bring it, and the rest little."""
    _, X, _ = problem()
    silent = ShallowBlock(torch.zeros(1, 5).double(), torch.zeros(1, 1).double())
    needed = ShallowBlock(torch.eye(5)[:2].double(), torch.tensor([[1.0, -2.0]]).double())
    found = F.best_widening(silent, X, needed(X), held_out=0.0)
    assert 2 <= found.units <= 16
    assert found.after < 0.1 * found.before


def test_the_result_does_not_depend_on_the_scale_of_the_loss_and_repeats() -> None:
    block, X, Y = problem()
    one, two, large = (
        F.best_widening(block, X, loss, units=3)
        for loss in (F.SquaredError(Y), F.SquaredError(Y), F.SquaredError(Y, factor=1024.0))
    )
    assert torch.equal(one.new_block.W, two.new_block.W)
    assert_close(one.new_block.W, large.new_block.W, rtol=1e-3, atol=1e-3)


def test_new_neurons_have_outputs_twice_as_loud_as_the_usual_balance() -> None:
    block, X, Y = problem()
    W, H = F.best_widening(block, X, Y, units=3).new_block.W, F.best_widening(block, X, Y, units=3).new_block.H
    ratio = W.norm(dim=1) / H.norm(dim=0)
    assert_close(4 * ratio[4:], ratio[:4].median().expand(3))


def test_an_averaged_copy_gets_the_same_neurons() -> None:
    block, X, Y = problem()
    found = F.best_widening(block, X, Y, units=3)
    other = ShallowBlock(block.W + 1, block.H + 1, block.slopes, block.output_bias)
    wider = found.embed(other)
    assert torch.equal(wider.W, torch.cat([other.W, found.new_block.W[4:]]))
    assert torch.equal(wider.H, torch.cat([other.H, found.new_block.H[:, 4:]], dim=1))


def test_float32_stays_float32() -> None:
    block, X, Y = problem()
    found = F.best_widening(block.cast(torch.float32), X.float(), Y.float(), units=3)
    assert found.new_block.W.dtype == torch.float32
    assert found.after < found.before


def test_a_loss_of_ones_own_works_where_nothing_is_held_out() -> None:
    block, X, Y = problem()
    loss = F.OutputLoss(lambda outputs: (outputs - Y).square().mean() + (outputs - Y).sin().mean())
    found = F.best_widening(block, X, loss, units=3, held_out=0.0)
    assert found.after < found.before
    with pytest.raises(NotImplementedError, match="rows cannot be taken apart"):
        F.best_widening(block, X, loss, units=3)


def test_inputs_without_a_constant_column_and_any_slopes() -> None:
    generator = torch.Generator().manual_seed(2)
    X = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    block = ShallowBlock(X[:2], torch.zeros(1, 2).double(), (-0.3, 1.0))
    found = F.best_widening(block, X, X[:, :1].abs() + X[:, 1:2], units=4, held_out=0.0)
    assert found.after < 0.5 * found.before


def test_the_greedy_choice_is_that_of_refitting_after_each() -> None:
    generator = torch.Generator().manual_seed(0)
    A, G = (torch.randn(30, n, generator=generator, dtype=torch.float64) for n in (12, 2))
    found = greedy_choice(A, G, 5)
    chosen: list[int] = []
    for place in range(5):
        left = {
            new: float((G - A[:, [*chosen, new]] @ torch.linalg.lstsq(A[:, [*chosen, new]], G).solution).square().sum())
            for new in range(12)
            if new not in chosen
        }
        before = G if not chosen else G - A[:, chosen] @ torch.linalg.lstsq(A[:, chosen], G).solution
        best = min(left, key=left.__getitem__)
        assert int(found.index[place]) == best
        assert float(found.explained[place]) == pytest.approx(float(before.square().sum()) - left[best])
        chosen.append(best)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_greedy_choice_goes_by_gradients_of_any_size(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    A, G = (torch.randn(30, n, generator=generator, dtype=torch.float64) for n in (12, 2))
    found = greedy_choice(A, size * G, 5).explained / size**2
    torch.testing.assert_close(found, greedy_choice(A, G, 5).explained)


def test_fitted_outputs_are_those_of_ridge_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    A, Y = (torch.randn(40, n, generator=generator, dtype=torch.float64) for n in (6, 2))
    A = A / A.square().mean(dim=0).sqrt()
    H = refitted_outputs(Start(F.SquaredError(Y), torch.zeros(40, 2).double()), A, torch.zeros(2, 6).double(), 0.1)
    exact = torch.linalg.solve(A.T @ A + 0.1 * 40 * torch.eye(6).double(), A.T @ Y).T
    assert_close(H, exact, rtol=1e-2, atol=1e-3)


def test_kinks_between_samples_lie_between_them() -> None:
    X = torch.tensor([[-1.0, 2.0], [3.0, 2.0]]).double()
    situation = Situation(
        ShallowBlock(X, torch.ones(1, 2).double()),
        F.BlockSignal(X, torch.tensor([[1.0], [-1.0]]).double()),
        biased=True,
        draw=torch.Generator().manual_seed(0),
    )
    V = POOLS["between samples"](situation, 20)
    kink = -2 * V[:, 1] / V[:, 0]
    assert bool(((kink > -1) & (kink < 3)).all())


def test_bad_input_is_refused() -> None:
    block, X, Y = problem()
    for options, message in (
        ({"units": 0}, "`units` must be"),
        ({"kinds": ["best"]}, "`kinds` must be some of"),
        ({"held_out": 1.0}, "`held_out` is a share"),
        ({"steps": -1}, "`steps` must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            F.best_widening(block, X, Y, **options)
    with pytest.raises(TypeError, match="OutputLoss"):
        F.best_widening(block, X, torch.nn.MSELoss())
    assert widening.WideningCandidate("random", 2, 1.0, 0.5).best == 0.5


def test_a_loss_without_rows_of_its_own_proposes_on_all_of_them() -> None:
    X = torch.randn(1500, 3, generator=torch.Generator().manual_seed(0)).double()
    Y = X[:, :1].abs()
    loss = F.OutputLoss(lambda outputs: (outputs - Y).square().mean(), convex=True)
    block = ShallowBlock(X[:2], torch.zeros(1, 2).double())
    found = F.best_widening(block, X, loss, units=4, held_out=0.0)
    assert found.after < 0.5 * found.before


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("deep", [False, True])
def test_separable_labels_do_not_send_logits_far_away_and_other_rows_pay_nothing(seed: int, deep: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    X = torch.randn(400, 20, generator=draw).double()
    labels = (X[:, 0] * X[:, 1] + 0.5 * X[:, 2] > 0).long()
    W, H, K = (torch.randn(shape, generator=draw).double() / 4 for shape in ((3, 20), (2, 3), (2, 2)))
    block = ShallowBlock(W, H)
    layers = (LaterLayer(K, (0.0, 1.0), None),) if deep else ()
    loss, other = (
        LossThroughLayers(end, layers) if deep else end
        for end in (F.CrossEntropy(labels[:60]), F.CrossEntropy(labels[60:]))
    )
    found = F.best_widening(block, X[:60], loss, units=8, held_out=0.0)
    before, after = (loss.at_the_end(one(X[:60])) for one in (block, found.new_block))
    assert found.after < found.before
    assert (after - before).abs().max() <= max(float(before.abs().max()), 8.0) * (1 + 1e-9)
    assert other(found.new_block(X[60:])) < 3 * other(block(X[60:]))
