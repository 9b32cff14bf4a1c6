"""Plateaus are found where they are: any length, any unit, under noise and spikes; a steady decrease is none."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.streams import changes, kinds, noisy, staircase

from relu_diag.training import PlateauDetector
from relu_diag.training._block_means import KEPT, BlockMeans, PooledNoise

THREE = ["start", "escape", "start", "escape", "start", "escape", "start"]


# Where the plateaus are


@pytest.mark.parametrize("length", [300, 3_000, 20_000])
def test_plateaus_of_any_length_are_found_without_settings(length: int) -> None:
    losses, truth = staircase(length, length, length)
    found = changes(losses)
    assert kinds(found) == THREE
    for (start, end), (seen, first), (noticed, last) in zip(truth, found[::2], found[1::2], strict=False):
        assert abs(first.step - start) <= 0.1 * length
        assert seen - start <= max(0.2 * length, 160)  # never in fewer than a hundred steps
        assert abs(last.step - end) <= max(2, 1e-3 * length)
        assert noticed - end <= 2


def test_plateaus_of_very_different_lengths_follow_each_other() -> None:
    losses, _ = staircase(100_000, 1_000, 20_000, 500)
    assert kinds(changes(losses)) == [*THREE, "escape", "start"]


def test_a_plateau_of_a_million_steps_is_one() -> None:
    losses, ((_, end), _) = staircase(1_000_000, 20_000)
    found = changes(noisy(losses[::10], 0.05), every=10)
    assert kinds(found)[:2] == ["start", "escape"]
    assert end <= found[1][0] <= 1.1 * end


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("spikes", [0.0, 0.01])
def test_noise_and_spikes_make_no_plateau_and_hide_none(noise: float, spikes: float) -> None:
    length = 10_000
    losses, truth = staircase(length, length, length)
    found = changes(noisy(losses, noise, spikes=spikes))
    assert kinds(found) == THREE
    for (_, end), (noticed, last) in zip(truth, found[1::2], strict=False):
        assert 0 <= noticed - end < 0.2 * length
        assert abs(last.step - end) < 0.08 * length


@pytest.mark.parametrize("seed", range(5))
def test_no_end_is_seen_on_a_plateau_however_noisy(seed: int) -> None:
    flat = np.full(100_000, 0.3)
    assert kinds(changes(noisy(flat, 0.2, seed))) == ["start"]


DECREASING = {
    "exponential": lambda t: np.exp(-t / 2e4),
    "linear": lambda t: 1 - 0.8 * t / len(t),
    "power": lambda t: (1 + t) ** -0.3,
    "slow power over a floor": lambda t: 1 + 3 * (1 + t) ** -0.3,
    "warm restarts": lambda t: (1 - 0.5 * (t % 5000) / 5000) * np.exp(-t / 2e5),
}


@pytest.mark.parametrize("shape", DECREASING)
def test_a_steady_decrease_is_no_plateau(shape: str) -> None:
    assert changes(DECREASING[shape](np.arange(60_000.0))) == []


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("shape", DECREASING)
def test_a_noisy_decrease_never_ends_a_plateau(shape: str, noise: float) -> None:
    # Before the decrease stands out of the noise nothing can tell it from a plateau; then it is taken back.
    found = kinds(changes(noisy(DECREASING[shape](np.arange(60_000.0)), noise)))
    assert found in ([], ["start", "slide"])


def test_rise_that_stays_ends_a_plateau_and_one_that_passes_does_not() -> None:
    flat = np.full(20_000, 0.5)
    bump, step = flat.copy(), flat.copy()
    bump[8_000:8_400] = 0.8
    step[8_000:] = 0.8
    assert kinds(changes(bump)) == ["start"]
    found = changes(step)
    assert kinds(found) == ["start", "rise", "start"]
    assert abs(found[1][1].step - 8_000) < 1_100


def test_observations_many_steps_apart_need_no_more_of_them() -> None:
    losses, truth = staircase(30_000, 30_000)
    found = changes(losses[::1000], every=1000)
    assert kinds(found) == THREE[:5]
    assert found[0][0] == 7_000  # the eighth
    assert [abs(change.step - end) <= 1000 for (_, change), (_, end) in zip(found[1::2], truth, strict=False)] == [
        True
    ] * 2


# What does not matter


@settings(max_examples=10, deadline=None)
@given(st.floats(-300.0, 300.0), st.integers(0, 100))
def test_unit_of_the_loss_does_not_matter(exponent: float, seed: int) -> None:
    unit = 10.0**exponent
    losses = noisy(staircase(2_000, 2_000)[0], 0.01, seed)
    expected = [(step, change.how, change.step) for step, change in changes(losses)]
    assert [(step, change.how, change.step) for step, change in changes(unit * losses)] == expected


def test_unit_of_time_does_not_matter() -> None:
    losses = staircase(2_000, 2_000)[0]
    found, slower = changes(losses), changes(losses, every=50)
    # In longer units the least number of steps is reached sooner.
    assert kinds(slower) == kinds(found)
    ends, slower_ends = ([change.step for _, change in one[1::2]] for one in (found, slower))
    assert slower_ends == pytest.approx([50 * end for end in ends], abs=50)


def test_losses_of_both_signs_are_measured_by_their_range() -> None:
    losses, _ = staircase(3_000, 3_000)
    expected = kinds(changes(losses))
    for shift in (-0.7, -5.0):
        assert kinds(changes(losses + shift)) == expected


# Bad input


def test_loss_of_zero_is_a_plateau_that_nothing_ends() -> None:
    assert kinds(changes(np.zeros(1_000))) == ["start"]
    falling = np.concatenate([np.exp(-np.arange(2_000) / 20.0), np.zeros(3_000)])
    assert kinds(changes(falling)) == ["start"]


def test_loss_that_is_not_finite_ends_a_plateau_and_is_forgotten() -> None:
    losses = np.full(1_000, 0.5)
    losses[400:500] = math.nan
    losses[500] = math.inf
    found = changes(losses)
    assert kinds(found) == ["start", "not finite", "start"]
    assert found[1][0] == 400
    assert found[2][1].step > 500
    assert changes(np.full(1_000, math.nan)) == []


def test_a_loss_that_grows_without_bound_is_no_plateau() -> None:
    assert all(step > 750 for step, _ in changes(np.logspace(-300, 300, 3_000)))  # 150 decades above the first one


def test_run_shorter_than_a_window_has_no_plateau() -> None:
    assert changes(np.full(99, 0.5)) == []
    assert kinds(changes(np.full(112, 0.5))) == ["start"]
    assert changes(np.full(1_000, 0.5), detector=PlateauDetector(min_steps=2_000)) == []


@pytest.mark.parametrize("settings", [{"drop": 0.0}, {"drop": 1.0}, {"min_steps": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="`drop` must be in"):
        PlateauDetector(**settings)  # type: ignore[arg-type]


def test_drop_is_the_callers_choice() -> None:
    losses = np.concatenate([np.full(2_000, 1.0), np.full(2_000, 0.97)])
    assert "escape" in kinds(changes(losses, detector=PlateauDetector(drop=0.01)))
    assert "escape" not in kinds(changes(losses, detector=PlateauDetector(drop=0.1)))


# Memory, time, checkpoints


def test_memory_is_that_of_one_block_of_each_size() -> None:
    detector = PlateauDetector()
    changes(noisy(staircase(20_000, 20_000)[0], 0.05), detector=detector)
    state = detector.state_dict()
    assert len(state["levels"]) <= math.log2(150_000) + 1
    assert max(map(len, state["levels"])) <= 2 * KEPT
    assert len(state["recent"]) < 10


def test_a_detector_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    losses = noisy(staircase(3_000, 3_000)[0], 0.01)
    expected = changes(losses)
    for cut in (50, 2_000, 4_400, 8_000):
        detector, other = PlateauDetector(), PlateauDetector()
        before = changes(losses[:cut], detector=detector)
        torch.save(detector.state_dict(), tmp_path / "state.pt")
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert other.loss == detector.loss
        after = []
        for step, loss in enumerate(losses.tolist()):
            change = other.add(step, loss) if step >= cut else None
            after += [(step, change)] if change else []
        assert before + after == expected


def test_block_means_are_the_means_of_blocks() -> None:
    values, means = np.random.default_rng(0).standard_normal(300), BlockMeans()
    for step, value in enumerate(values.tolist()):
        means.add(step, value)
    for level, blocks in enumerate(means.levels):
        for first, last, mean in blocks[-KEPT:]:
            assert last - first + 1 == 2**level
            assert mean == pytest.approx(values[first : last + 1].mean(), rel=1e-12)
    covered = [(first, last) for first, last, _ in means.back()]
    assert covered[0] == (299, 299)
    assert all(last < earlier for (_, last), (earlier, _) in zip(covered[1:], covered, strict=False))
    assert covered[-1][0] == 0


def test_noise_is_read_off_bends_and_a_straight_line_has_none() -> None:
    draw, means, pooled = np.random.default_rng(1), BlockMeans(), PooledNoise()
    for step in range(4_096):
        means.add(step, 1e-3 * step + 0.1 * draw.standard_normal())
        pooled.add(means.levels[0][-3:], 0)
    assert 0.5 < means.noise(0, 8) / (0.1 / 16) < 2  # from sixteen blocks
    assert math.sqrt(pooled.variance(0)) == pytest.approx(0.1, rel=0.1)  # from the last few hundred
    assert pooled.variance(5) == pooled.variance(0)  # nothing known of larger blocks: no less than of small ones
    line = BlockMeans()
    for step in range(64):
        line.add(step, float(step))
    assert line.noise(0, 2) == 0.0
