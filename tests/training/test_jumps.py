"""The loss jumps where the data become others, and neither where it is noisy nor where it rises slowly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from relu_diag.training import LossJumps


def jumps(losses: Iterable[float]) -> list[int]:
    told = LossJumps()
    return [step for step, loss in enumerate(losses) if told.note({"loss": torch.tensor(loss)})]


@pytest.mark.parametrize("begins", [40, 41, 45, 49])
def test_a_jump_is_told_within_twenty_steps_and_once(begins: int) -> None:
    found = jumps([0.2] * begins + [1.0] * 40)
    assert len(found) == 1
    assert begins + 9 <= found[0] < begins + 20


def test_after_a_jump_the_next_one_is_told() -> None:
    assert len(jumps([0.1] * 60 + [1.0] * 60 + [5.0] * 60)) == 2


def test_noise_slow_rises_and_single_spikes_are_none() -> None:
    draw = torch.Generator().manual_seed(0)
    noisy = torch.randn(2000, generator=draw).exp().tolist()
    assert jumps(noisy) == []
    assert jumps([1.01**step for step in range(400)]) == []
    assert jumps([0.1 if step % 7 else 10.0 for step in range(400)]) == []


def test_a_loss_that_is_negative_or_zero_never_jumps() -> None:
    assert jumps([-3.0] * 60 + [-1.0] * 60) == []
    assert jumps([0.0] * 60 + [1.0] * 60) == []


@pytest.mark.parametrize("outputs", [None, {}, {"y": torch.ones(3)}, torch.ones(3), "loss"])
def test_steps_without_a_loss_tell_nothing(outputs: Any) -> None:
    told = LossJumps()
    assert all(told.note(outputs) is None for _ in range(50))


@pytest.mark.parametrize("stop", [25, 45, 57])
def test_a_run_that_is_resumed_sees_the_same_jump(stop: int) -> None:
    losses = [torch.tensor(one) for one in [0.1] * 43 + [0.5] * 27]
    told, resumed = LossJumps(), LossJumps()
    for one in losses[:stop]:
        told.note(one)
    resumed.load_state_dict(told.state_dict())
    found = [resumed.note(one) for one in losses[stop:]]
    assert found == [told.note(one) for one in losses[stop:]]
    assert True in found
