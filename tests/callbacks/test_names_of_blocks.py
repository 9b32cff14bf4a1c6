"""What is no name of a block is refused where it is given."""

from collections.abc import Callable
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from relu_diag.callbacks import (
    EscapeOnPlateau,
    GrowOnPlateau,
    LandscapeMonitor,
    PlateauMonitor,
    ReviveDeadUnits,
    SaddleAwareEarlyStopping,
)

SEVERAL: list[Callable[..., Any]] = [
    LandscapeMonitor,
    PlateauMonitor,
    ReviveDeadUnits,
    lambda block: SaddleAwareEarlyStopping("loss", block=block),
]
ONE: list[Callable[..., Any]] = [EscapeOnPlateau, GrowOnPlateau]


@pytest.mark.parametrize("callback", [*SEVERAL, *ONE])
@pytest.mark.parametrize("block", [3, 2.5, [0], ("net.0", None)])
def test_numbers_are_no_names(callback: Callable[..., Any], block: object) -> None:
    with pytest.raises(MisconfigurationException, match="`block` must be the name of a block's first layer"):
        callback(block=block)


@pytest.mark.parametrize("callback", SEVERAL)
@pytest.mark.parametrize("block", [None, "net.0", "encoder.*", ["net.0", "net.2"], ("net.0",)])
def test_names_and_patterns_are(callback: Callable[..., Any], block: object) -> None:
    callback(block=block)


def test_a_margin_is_a_number() -> None:
    with pytest.raises(MisconfigurationException, match="`margin`"):
        SaddleAwareEarlyStopping("loss", margin="a fifth")  # type: ignore[arg-type]
