"""Colours that readers with any common colour vision tell apart."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from relu_diag.figures.palette import BLACK, GREY, PALETTE, VERDICT_STYLES, verdict_style
from relu_diag.training import VERDICT_CODES

# Machado, Oliveira and Fernandes 2009: what remains of linear RGB where one kind of cone is missing.
VISIONS = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
WHITE = np.array([0.95047, 1.0, 1.08883])


def linear(color: str) -> NDArray[np.float64]:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(color: str, vision: str) -> NDArray[np.float64]:
    """CIE L*a*b* of a colour as somebody with this vision sees it."""
    ratio = np.array(TO_XYZ) @ np.clip(np.array(VISIONS[vision]) @ linear(color), 0, 1) / WHITE
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def closest(colors: list[str], vision: str) -> float:
    seen = [lab(color, vision) for color in colors]
    return min(float(np.linalg.norm(one - other)) for one, other in combinations(seen, 2))


def contrast(color: str, other: str) -> float:
    """WCAG's contrast of two colours."""
    bright, dark = sorted((float(np.array(TO_XYZ[1]) @ linear(one)) for one in (color, other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("vision", VISIONS)
def test_verdicts_and_groups_are_told_apart(vision: str) -> None:
    # A difference of 2.3 is just noticeable side by side; ten times that is seen at a distance.
    assert closest([style.color for style in VERDICT_STYLES.values()], vision) > 30
    assert closest([*PALETTE, BLACK, GREY], vision) > 23


def test_a_difference_is_zero_between_equal_colours_and_a_hundred_between_black_and_white() -> None:
    assert closest(["#336699", "#336699"], "protanopia") == 0
    assert closest(["#000000", "#FFFFFF"], "all cones") == pytest.approx(100, abs=0.1)


def test_every_verdict_has_a_style_and_a_hatch_of_its_own() -> None:
    assert set(VERDICT_STYLES) == set(VERDICT_CODES)
    assert len({style.hatch for style in VERDICT_STYLES.values()}) == len(VERDICT_STYLES)
    assert verdict_style("a word of tomorrow") == verdict_style("undecided")


def test_black_words_are_read_on_every_band() -> None:
    assert min(contrast(style.tint, "#000000") for style in VERDICT_STYLES.values()) > 7
